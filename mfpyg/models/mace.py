"""MACE backbone: equivariant message passing with products of several neighbours' messages."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.models.dimenet import BesselBasisLayer

from mfpyg.graph import Graph
from mfpyg.models.backbone import Backbone
from mfpyg.models.by_element import ByElement, by_element
from mfpyg.models.symmetric_contraction import SymmetricContraction
from mfpyg.torch_defaults import with_default_torch_settings

_SILU = 1.6765
"""Inverse root mean square of silu(x) for normal x."""


class State(NamedTuple):
    """State passed from block to block; inside, atoms are sorted by element.

    Attributes:
        features: invariant features of the atoms in the order of the graph, (n_atoms, C).
        tensors: features of the sorted atoms, degree after degree, (n_atoms, (l + 1)², C).
        place: place of each atom of the graph among the sorted ones, (n_atoms,).
        counts: number of atoms of each element.
        edge_index: sources and targets among the sorted atoms, (2, n_edges).
        harmonics: spherical harmonics of the edges, (n_edges, (l_max + 1)²).
        radial: radial basis of the edges, (n_edges, n_radial).
    """

    features: Tensor
    tensors: Tensor
    place: Tensor
    counts: list[int]
    edge_index: Tensor
    harmonics: Tensor
    radial: Tensor


class Linear(nn.Linear):
    """Linear layer without bias, whose results have the variance of its inputs, times a gain², before training."""

    def __init__(self, n_in: int, n_out: int, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(n_in, n_out, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.gain / math.sqrt(self.in_features))


class ByDegree(nn.ModuleList):
    """A linear layer for each degree.

    Args:
        n_in: width of the features of each degree.
        n_out: width of the results.
    """

    def __init__(self, n_in: Sequence[int], n_out: int) -> None:
        super().__init__(Linear(n, n_out) for n in n_in)

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """(n_atoms, 2l + 1, n_in) for each degree l -> (n_atoms, (l_max + 1)², n_out)."""
        return torch.cat([layer(x) for layer, x in zip(self, tensors, strict=True)], dim=1)


class SelfConnection(nn.Module):
    """A linear layer for each degree and element.

    Args:
        l_in, l_out: highest degree of the features and of the results, which are zero at degrees above ``l_in``.
        n_species: number of elements.
        n_features: width of the features and results.
    """

    def __init__(self, l_in: int, l_out: int, n_species: int, n_features: int) -> None:
        super().__init__()
        self.sizes = [2 * ell + 1 for ell in range(min(l_in, l_out) + 1)]
        self.missing = (l_out + 1) ** 2 - sum(self.sizes)  # components
        self.weight = nn.Parameter(torch.empty(len(self.sizes), n_species, n_features, n_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights that keep the variance."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight.shape[-1]))

    def forward(self, tensors: Tensor, counts: list[int]) -> Tensor:
        """(n_atoms, (l_in + 1)², C), atoms sorted by element -> (n_atoms, (l_out + 1)², C)."""
        by_degree = tensors[:, : sum(self.sizes)].split(self.sizes, dim=1)
        results = [
            torch.cat([part @ w for part, w in zip(x.split(counts), weights, strict=True)])
            for x, weights in zip(by_degree, self.weight, strict=True)
        ]
        return nn.functional.pad(torch.cat(results, dim=1), (0, 0, 0, self.missing))


def paths_of(l_in: int, l_max: int) -> list[list[tuple[int, int]]]:
    """Degrees of features and harmonics whose product contains each degree from 0 to ``l_max``, with its parity."""
    pairs = list(itertools.product(range(l_in + 1), range(l_max + 1)))
    return [
        [(l1, l2) for l1, l2 in pairs if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0]
        for l3 in range(l_max + 1)
    ]


@functools.cache
@with_default_torch_settings
def coupling(l_in: int, l_max: int) -> Tensor:
    """Wigner 3j symbols of all paths: from harmonics to matrices that act on the features.

    Returns:
        ((l_max + 1)², n_rows * (l_in + 1)²) float64; rows are degrees of the result, their components, and paths.
    """
    blocks = []
    for l3, paths in enumerate(paths_of(l_in, l_max)):
        block = torch.zeros((l_max + 1) ** 2, 2 * l3 + 1, len(paths), (l_in + 1) ** 2, dtype=torch.float64)
        for number, (l1, l2) in enumerate(paths):
            symbols = math.sqrt(2 * l3 + 1) * o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
            block[l2**2 : (l2 + 1) ** 2, :, number, l1**2 : (l1 + 1) ** 2] = symbols.permute(1, 2, 0)
        blocks.append(block.flatten(1, 2))
    return torch.cat(blocks, dim=1).flatten(1)


class Convolution(MessagePassing):
    r"""Messages from neighbours: tensor products of features and harmonics, weighted by a network of the distance.

    .. math::
        A_{i,c,l_3} = \frac{1}{\bar n} \sum_{l_1 l_2} \sum_{c'} W^{l_1 l_2 l_3}_{c c'} \sum_j
            R^{l_1 l_2 l_3}_{c'}(r_{ij})\, \bigl((L\, x_j)_{c',l_1} \otimes Y_{l_2}(e_{ij})\bigr)_{l_3}

    Paths with :math:`l_1 + l_2 + l_3` odd are left out, as the parity of degree l is :math:`(-1)^l`.

    Args:
        l_in: highest degree of the features.
        l_max: highest degree of the harmonics and of the result.
        n_features: width of the features and of the result.
        radial_sizes: widths of the radial network, from its input to its last hidden layer.
        n_neighbours: average number of neighbours :math:`\bar n`.
    """

    coupling: Tensor

    def __init__(
        self, l_in: int, l_max: int, n_features: int, radial_sizes: Sequence[int], n_neighbours: float
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.sizes, self.n_features = (l_in, l_max), n_features
        self.scale = 1 / n_neighbours
        n_paths = [len(paths) for paths in paths_of(l_in, l_max)]
        self.register_buffer("coupling", coupling(l_in, l_max).to(torch.get_default_dtype()), persistent=False)
        self.components = [2 * ell + 1 for ell in range(l_in + 1)]
        self.shapes = [(2 * ell + 1, n) for ell, n in enumerate(n_paths)]  # components and paths of each degree
        self.before = ByDegree([n_features] * (l_in + 1), n_features)
        hidden = [
            part
            for number, (a, b) in enumerate(itertools.pairwise(radial_sizes))
            for part in (Linear(a, b, _SILU if number else 1.0), nn.SiLU())
        ]
        self.radial = nn.Sequential(*hidden, Linear(radial_sizes[-1], sum(n_paths) * n_features, _SILU))
        self.after = ByDegree([n * n_features for n in n_paths], n_features)

    def forward(self, state: State) -> Tensor:
        """-> (n_atoms, (l_max + 1)², C)."""
        n_atoms = state.tensors.shape[0]
        summed = self.propagate(
            state.edge_index,
            x=self.before(state.tensors.split(self.components, dim=1)),
            harmonics=state.harmonics,
            weights=self.radial(state.radial) * self.scale,
            size=(n_atoms, n_atoms),
        )  # (n_atoms, n_rows * C)
        parts = summed.split([m * n * self.n_features for m, n in self.shapes], dim=1)
        return self.after([x.unflatten(1, (m, -1)) for x, (m, _) in zip(parts, self.shapes, strict=True)])

    def message(self, x_j: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        """Products by path, (n_edges, n_rows * C)."""
        matrices = (harmonics @ self.coupling).unflatten(1, (-1, x_j.shape[1]))  # (n_edges, n_rows, (l_in + 1)²)
        products = torch.bmm(matrices, x_j).split([m * n for m, n in self.shapes], dim=1)
        of_paths = weights.unflatten(1, (1, -1, self.n_features)).split([n for _, n in self.shapes], dim=2)
        weighted = [
            x.unflatten(1, shape) * w  # (n_edges, 2l + 1, n_paths, C)
            for x, w, shape in zip(products, of_paths, self.shapes, strict=True)
        ]
        return torch.cat([x.flatten(1) for x in weighted], dim=1)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        self.coupling.copy_(coupling(*self.sizes))  # a cast to float32 and back would keep the rounding errors
        return self


class Block(nn.Module):
    """A convolution, products of its results, and a self-connection by element.

    Args:
        l_in, l_out: highest degree of the features and of the result.
        l_max, correlation, n_species, n_features, radial_sizes, n_neighbours: see :class:`MACE`.
    """

    def __init__(
        self,
        l_in: int,
        l_out: int,
        l_max: int,
        correlation: int,
        n_species: int,
        n_features: int,
        radial_sizes: Sequence[int],
        n_neighbours: float,
    ) -> None:
        super().__init__()
        self.degrees = range(l_out + 1)
        self.convolution = Convolution(l_in, l_max, n_features, radial_sizes, n_neighbours)
        self.contraction = SymmetricContraction(l_max, l_out, correlation, n_species, n_features)
        self.after = ByDegree([n_features] * (l_out + 1), n_features)
        self.self_connection = SelfConnection(l_in, l_out, n_species, n_features)

    def forward(self, state: State) -> State:
        summed = self.convolution(state).permute(1, 2, 0).contiguous()  # (components, C, n_atoms)
        products = self.contraction(summed, state.counts).permute(2, 1, 0)  # (n_atoms, (l_out + 1)², C)
        tensors = self.after(products.split([2 * ell + 1 for ell in self.degrees], dim=1))
        tensors = tensors + self.self_connection(state.tensors, state.counts)
        return state._replace(features=tensors[:, 0].index_select(0, state.place), tensors=tensors)


class MACE(Backbone):
    """Equivariant network of higher body order, with the invariant features of every block as levels.

    Sums over neighbours, as those of NequIP, are multiplied with themselves: products of up to ν of them, coupled to
    equivariant features, and weighted by element (Batatia et al., NeurIPS 2022, arXiv 2206.07697). As in its reference
    implementation, sums are divided by the number of neighbours, and every block has a self-connection by element.
    The radial basis is that of NequIP: Bessel functions of trainable frequencies, with a polynomial envelope.

    Args:
        species: atomic numbers.
        n_interactions: number of blocks; the last has invariants only.
        n_features: multiplicity of each irreducible representation.
        l_max: highest degree of the harmonics, and of the sums over neighbours.
        l_hidden: highest degree of the features passed between blocks.
        correlation: highest number of factors ν; a block sees ν + 1 atoms at a time.
        n_radial: number of radial basis functions.
        radial_width: width of the hidden layers of the radial network.
        radial_layers: number of hidden layers of the radial network.
        n_neighbours: average number of neighbours of an atom, by which sums are divided.
        cutoff: in Å.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = True

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 2,
        n_features: int = 128,
        l_max: int = 3,
        l_hidden: int = 1,
        correlation: int = 3,
        n_radial: int = 8,
        radial_width: int = 64,
        radial_layers: int = 3,
        n_neighbours: float = 12.0,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__(species, cutoff)
        n_species = len(self.species)
        self.harmonics = o3.Irreps.spherical_harmonics(l_max)
        self.radial = BesselBasisLayer(n_radial, self.cutoff)
        self.embedding = nn.Embedding(n_species, n_features)
        radial_sizes = (n_radial, *[radial_width] * radial_layers)
        degrees = [0, *[l_hidden] * (n_interactions - 1), 0]
        for l_in, l_out in itertools.pairwise(degrees):
            block = Block(l_in, l_out, l_max, correlation, n_species, n_features, radial_sizes, n_neighbours)
            self.blocks.append(block)
        self.feature_sizes = (n_species, *[n_features] * n_interactions)

    def prepare(self, graph: Graph) -> ByElement:
        return by_element(self.one_hot(graph))

    def embed(self, graph: Graph) -> State:
        """The state before the first block, with invariant features only."""
        atoms = graph.prepared if isinstance(graph.prepared, ByElement) else self.prepare(graph)
        features = self.one_hot(graph) @ self.embedding.weight  # (n_atoms, C)
        unit = graph.edge_vec / graph.edge_dist.unsqueeze(1)
        return State(
            features,
            features.index_select(0, atoms.order).unsqueeze(1),
            atoms.place,
            atoms.counts,
            atoms.place[graph.edge_index],
            o3.spherical_harmonics(self.harmonics, unit, normalize=False, normalization="component"),
            self.radial(graph.edge_dist) * math.sqrt(2 / self.cutoff**3),  # PyG's basis has another prefactor
        )
