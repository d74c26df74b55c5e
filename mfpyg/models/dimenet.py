"""DimeNet++ backbone, from the layers of PyTorch Geometric."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import sympy
import torch
from torch import Tensor, nn
from torch_geometric.nn.models.dimenet import (
    BesselBasisLayer,
    EmbeddingBlock,
    Envelope,
    InteractionPPBlock,
    OutputPPBlock,
)
from torch_geometric.nn.models.dimenet_utils import bessel_basis, real_sph_harm

from mfpyg.graph import Graph
from mfpyg.models.backbone import Backbone, check_elements


@dataclass
class Triplets:
    """Pairs of edges k→j and j→i, where k→j is not the reverse of j→i.

    Attributes:
        incoming: number of the edge k→j, (n_triplets,) int64.
        outgoing: number of the edge j→i, (n_triplets,) int64.
        key: see :class:`mfpyg.graph.Prepared`.
    """

    incoming: Tensor
    outgoing: Tensor
    key: ClassVar[None] = None

    def tensors(self) -> list[Tensor]:
        """See :class:`mfpyg.graph.Prepared`."""
        return [self.incoming, self.outgoing]

    def with_tensors(self, tensors: list[Tensor]) -> Triplets:
        """See :class:`mfpyg.graph.Prepared`."""
        return Triplets(*tensors)


def find_triplets(graph: Graph) -> Triplets:
    """Find the triplets of a graph with edges sorted by target.

    Other images of i count as atoms k: only the edge from the same image of i is excluded.
    """
    source, target = graph.edge_index
    degree = torch.bincount(target, minlength=graph.n_atoms)  # (n_atoms,)
    first = degree.cumsum(0) - degree
    counts = degree[source]  # edges into the source of each edge, (n_edges,)
    edges = torch.arange(len(source), device=source.device)
    outgoing = torch.repeat_interleave(edges, counts)
    number = torch.arange(len(outgoing), device=source.device) - (counts.cumsum(0) - counts)[outgoing]
    incoming = first[source[outgoing]] + number
    # The vectors of the two directions of a pair are exact negatives of each other.
    vec = graph.edge_vec.detach()
    is_reverse = (vec[incoming] + vec[outgoing] == 0).all(dim=1)
    return Triplets(incoming[~is_reverse], outgoing[~is_reverse])


class State(NamedTuple):
    """State passed from block to block.

    Attributes:
        features: features of the atoms, (n_atoms, n_out).
        messages: messages of the edges, (n_edges, n_features).
        radial: radial basis of the edges, (n_edges, n_radial).
        angular: angular basis of the triplets, (n_triplets, n_spherical · n_radial).
        target: target atom of each edge, (n_edges,).
        triplets: triplets of the graph.
        n_atoms: number of atoms.
    """

    features: Tensor
    messages: Tensor
    radial: Tensor
    angular: Tensor
    target: Tensor
    triplets: Triplets
    n_atoms: int


class First(nn.Module):
    """Output block for the messages before the first interaction."""

    def __init__(self, output: nn.Module) -> None:
        super().__init__()
        self.output = output

    def forward(self, state: State) -> State:
        features = self.output(state.messages, state.radial, state.target, state.n_atoms)
        return state._replace(features=features)


class Block(First):
    """Interaction block followed by the output block of its level."""

    def __init__(self, interaction: nn.Module, output: nn.Module) -> None:
        super().__init__(output)
        self.interaction = interaction

    def forward(self, state: State) -> State:
        triplets = state.triplets
        messages = self.interaction(state.messages, state.radial, state.angular, triplets.incoming, triplets.outgoing)
        return super().forward(state._replace(messages=messages))


class DimeNetBackbone(Backbone):
    """DimeNet++ with per-atom features instead of a property of the molecule.

    A level is the per-atom output of an output block of :class:`torch_geometric.nn.models.DimeNetPlusPlus`, which sums
    it over levels and atoms; the first level comes before any interaction and depends on distances only.
    (Gasteiger et al., arXiv 2011.14115.)

    Args:
        species: atomic numbers.
        n_interactions: interaction blocks, one fewer than levels.
        n_features: width of the messages.
        n_triplet: width of the messages in the triplet interaction.
        n_basis: width of the embedded bases.
        n_out: width of the features of atoms.
        n_spherical, n_radial: numbers of angular and radial basis functions.
        cutoff: in Å.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = True

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 4,
        n_features: int = 128,
        n_triplet: int = 64,
        n_basis: int = 8,
        n_out: int = 256,
        n_spherical: int = 7,
        n_radial: int = 6,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__(species, cutoff)
        check_elements("DimeNet++", species, 94)
        self.radial = BesselBasisLayer(n_radial, self.cutoff)
        self.angular = AngularBasis(n_spherical, n_radial, self.cutoff)
        self.embedding = EmbeddingBlock(n_radial, n_features, nn.SiLU())
        for number in range(n_interactions + 1):
            # Zero, as PyG initialises the output of one number, would leave what comes before without a gradient.
            output = OutputPPBlock(n_radial, n_features, n_out, n_out, 3, nn.SiLU(), "glorot_orthogonal")
            sizes = (n_features, n_triplet, n_basis, n_spherical, n_radial, 1, 2)
            self.blocks.append(Block(InteractionPPBlock(*sizes, nn.SiLU()), output) if number else First(output))
        self.feature_sizes = (len(self.species), *[n_out] * (n_interactions + 1))

    def prepare(self, graph: Graph) -> Triplets:
        return find_triplets(graph)

    def embed(self, graph: Graph) -> State:
        triplets = graph.prepared if isinstance(graph.prepared, Triplets) else find_triplets(graph)
        source, target = graph.edge_index
        radial = self.radial(graph.edge_dist)
        angular = self.angular(graph.edge_dist, cosines(graph.edge_vec, triplets), triplets.incoming)
        messages = self.embedding(graph.z, radial, target, source)
        none = messages.new_empty(graph.n_atoms, 0)
        return State(none, messages, radial, angular, target, triplets, graph.n_atoms)


def cosines(edge_vec: Tensor, triplets: Triplets) -> Tensor:
    """Cosine of the angle between the two edge vectors of each triplet, (n_triplets,)."""
    a, b = edge_vec[triplets.outgoing], edge_vec[triplets.incoming]  # (n_triplets, 3) each
    return (a * b).sum(dim=1) / (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()


class AngularBasis(nn.Module):
    """PyG's ``SphericalBasisLayer`` as a function of cosines instead of angles.

    For three collinear atoms the cosine is differentiable, and the angle is not. The spherical Bessel functions are
    evaluated in float64, as the terms of their closed forms cancel near zero.

    Args:
        n_spherical, n_radial: numbers of angular and radial functions.
        cutoff: in Å.
    """

    def __init__(self, n_spherical: int, n_radial: int, cutoff: float) -> None:
        super().__init__()
        self.sizes, self.cutoff = (n_spherical, n_radial), cutoff
        self.envelope = Envelope(5)
        _formulas(*self.sizes)  # cached here, as it takes seconds

    def forward(self, dist: Tensor, cosine: Tensor, incoming: Tensor) -> Tensor:
        """dist (n_edges,), cosine (n_triplets,) -> (n_triplets, n_spherical · n_radial)."""
        bessel, legendre = _formulas(*self.sizes)
        scaled = dist / self.cutoff
        radial = torch.stack([f(scaled.double()) for f in bessel], dim=1).to(dist.dtype)
        radial = (self.envelope(scaled).unsqueeze(1) * radial)[incoming].view(-1, *self.sizes)
        angular = torch.stack([f(cosine) for f in legendre], dim=1)  # (n_triplets, n_spherical)
        return (radial * angular.unsqueeze(2)).flatten(1)


Formulas = list[Callable[[Tensor], Tensor]]


@functools.lru_cache(maxsize=16)
def _formulas(n_spherical: int, n_radial: int) -> tuple[Formulas, Formulas]:
    """Spherical Bessel functions of distance / cutoff, degree by degree, and Legendre functions of the cosine."""
    distance, angle = sympy.symbols("x theta")
    bessel = [
        sympy.lambdify([distance], form, {"sin": torch.sin, "cos": torch.cos})
        for forms in bessel_basis(n_spherical, n_radial)
        for form in forms
    ]
    constant, *others = [forms[0] for forms in real_sph_harm(n_spherical)]
    legendre = [sympy.lambdify([angle], form, {"cos": lambda cosine: cosine}) for form in others]
    return bessel, [lambda cosine: torch.full_like(cosine, float(constant)), *legendre]
