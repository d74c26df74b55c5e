"""NequIP-style E(3)-equivariant backbone, built on e3nn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.models.dimenet import BesselBasisLayer

from mfpyg.graph import Graph
from mfpyg.models.backbone import Backbone

SCALAR = o3.Irrep("0e")


class State(NamedTuple):
    """State passed from block to block.

    Attributes:
        features: invariant features of the atoms, (n_atoms, width).
        tensors: all features of the atoms, (n_atoms, dim of the irreps).
        one_hot: one-hot species of the atoms, (n_atoms, n_species).
        edge_index: sources and targets, (2, n_edges).
        harmonics: spherical harmonics of the edges, (n_edges, (l_max + 1)²).
        radial: radial basis of the edges, (n_edges, n_radial).
    """

    features: Tensor
    tensors: Tensor
    one_hot: Tensor
    edge_index: Tensor
    harmonics: Tensor
    radial: Tensor


class Convolution(MessagePassing):
    r"""Messages from neighbours: tensor products of features and harmonics, weighted by a network of the distance.

    .. math:: \frac{1}{\sqrt{\bar n}} \sum_j R(r_{ij})\, (L\, x_j) \otimes Y(e_{ij})

    Args:
        irreps_in, irreps_edge: irreps of the features and harmonics.
        irreps_out: irreps of the result, as far as the product contains them.
        radial_sizes: widths of the radial network, from its input to its last hidden layer.
        n_neighbours: average number of neighbours :math:`\bar n`.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_edge: o3.Irreps,
        irreps_out: o3.Irreps,
        radial_sizes: Sequence[int],
        n_neighbours: float,
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.scale = 1 / math.sqrt(n_neighbours)
        paths = [
            (mul, product, i, j)
            for i, (mul, ir) in enumerate(irreps_in)
            for j, (_, ir_edge) in enumerate(irreps_edge)
            for product in ir * ir_edge
            if product in irreps_out
        ]
        irreps_product, order, _ = o3.Irreps([(mul, ir) for mul, ir, _, _ in paths]).sort()
        instructions = sorted(
            ((i, j, order[k], "uvu", True) for k, (_, _, i, j) in enumerate(paths)), key=lambda path: path[2]
        )
        self.before = o3.Linear(irreps_in, irreps_in)
        self.product = o3.TensorProduct(
            irreps_in, irreps_edge, irreps_product, instructions, shared_weights=False, internal_weights=False
        )
        self.radial = FullyConnectedNet([*radial_sizes, self.product.weight_numel], nn.functional.silu)
        self.after = o3.Linear(irreps_product.simplify(), irreps_out)

    def forward(self, state: State) -> Tensor:
        """-> (n_atoms, dim of irreps_out)."""
        n_atoms = state.tensors.shape[0]
        summed = self.propagate(
            state.edge_index,
            x=self.before(state.tensors),
            harmonics=state.harmonics,
            weights=self.radial(state.radial),
            size=(n_atoms, n_atoms),
        )
        return self.after(self.scale * summed)

    def message(self, x_j: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        return self.product(x_j, harmonics, weights)


class Block(nn.Module):
    """A convolution, a species-dependent self-connection, and a gate.

    Args:
        irreps_in, irreps_edge: irreps of the features and harmonics.
        hidden: irreps of the result, as far as the products contain them.
        n_species, radial_sizes, n_neighbours: see :class:`NequIP` and :class:`Convolution`.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_edge: o3.Irreps,
        hidden: o3.Irreps,
        n_species: int,
        radial_sizes: Sequence[int],
        n_neighbours: float,
    ) -> None:
        super().__init__()
        reached = {product for _, ir in irreps_in for _, edge in irreps_edge for product in ir * edge}
        scalars = o3.Irreps([(mul, ir) for mul, ir in hidden if ir.l == 0 and ir in reached])
        gated = o3.Irreps([(mul, ir) for mul, ir in hidden if ir.l > 0 and ir in reached])
        gates = o3.Irreps([(mul, SCALAR) for mul, _ in gated])
        activations = {1: nn.functional.silu, -1: torch.tanh}  # an odd function keeps odd scalars odd
        self.gate = Gate(
            scalars, [activations[ir.p] for _, ir in scalars], gates, [nn.functional.silu] * len(gates), gated
        )
        irreps = self.gate.irreps_in.simplify()
        self.convolution = Convolution(irreps_in, irreps_edge, irreps, radial_sizes, n_neighbours)
        self.self_connection = o3.FullyConnectedTensorProduct(irreps_in, f"{n_species}x0e", irreps)
        self.irreps_out: o3.Irreps = self.gate.irreps_out
        invariant = [s for s, (_, ir) in zip(self.irreps_out.slices(), self.irreps_out, strict=True) if ir == SCALAR]
        self.register_buffer("invariant", torch.cat([torch.arange(s.start, s.stop) for s in invariant]), False)

    def reset_parameters(self) -> None:
        """Draw normal weights, as e3nn does: its layers divide by the square root of the number of inputs."""
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, state: State) -> State:
        changed = self.convolution(state) + self.self_connection(state.tensors, state.one_hot)
        tensors = self.gate(changed)
        return state._replace(features=tensors[:, self.invariant], tensors=tensors)


class NequIP(Backbone):
    """Equivariant network in the style of NequIP, with the invariant features of every block as levels.

    As in NequIP: a trainable Bessel basis with a polynomial envelope, harmonics of the edges, tensor products weighted
    by a network of the distance, self-connections, gates. (Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv
    2101.03164.)

    Args:
        species: atomic numbers.
        n_interactions: number of blocks; the last has invariants only.
        n_features: multiplicity of each irreducible representation.
        l_max: highest degree of harmonics and features.
        parity: whether features of each degree have both parities, or only that of the harmonics.
        n_radial: number of radial basis functions.
        radial_width: width of the two hidden layers of the radial network.
        n_neighbours: average number of neighbours of an atom.
        cutoff: in Å.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = True

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 4,
        n_features: int = 32,
        l_max: int = 1,
        parity: bool = True,
        n_radial: int = 8,
        radial_width: int = 64,
        n_neighbours: float = 12.0,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__(species, cutoff)
        n_species = len(self.species)
        self.harmonics = o3.Irreps.spherical_harmonics(l_max)
        parities = (1, -1) if parity else (1,)
        hidden = o3.Irreps(
            [(n_features, ((degree, p * (-1) ** degree))) for degree in range(l_max + 1) for p in parities]
        )
        invariant = o3.Irreps([(n_features, SCALAR)])
        self.radial = BesselBasisLayer(n_radial, self.cutoff)
        self.embedding = nn.Embedding(n_species, n_features)
        irreps = invariant
        for number in range(n_interactions):
            block = Block(
                irreps,
                self.harmonics,
                hidden if number + 1 < n_interactions else invariant,
                n_species,
                (n_radial, radial_width, radial_width),
                n_neighbours,
            )
            self.blocks.append(block)
            irreps = block.irreps_out
        self.feature_sizes = (n_species, *[n_features] * n_interactions)

    def embed(self, graph: Graph) -> State:
        """The state before the first block, with invariant features only."""
        one_hot = self.one_hot(graph)
        features = one_hot @ self.embedding.weight  # (n_atoms, n_features)
        unit = graph.edge_vec / graph.edge_dist.unsqueeze(1)
        harmonics = o3.spherical_harmonics(self.harmonics, unit, normalize=False, normalization="component")
        radial = self.radial(graph.edge_dist) * (2 / self.cutoff**2)  # PyG's basis has another prefactor
        return State(features, features, one_hot, graph.edge_index, harmonics, radial)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        # e3nn stores the Wigner 3j symbols in float32 buffers; a cast to float64 would keep their rounding errors.
        for name, buffer in self.named_buffers():
            found = re.search(r"_w3j_(\d+)_(\d+)_(\d+)$", name)
            if found:
                buffer.copy_(o3.wigner_3j(*map(int, found.groups()), dtype=torch.float64))
        return self
