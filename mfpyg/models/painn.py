"""PaiNN backbone: equivariant message passing of scalars and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.models.dimenet import BesselBasisLayer

from mfpyg.graph import Graph
from mfpyg.models.backbone import Backbone
from mfpyg.models.interaction import cosine_cutoff

_TINY = 1e-8
"""Added to squared lengths, as the derivative of their root is infinite at zero."""


class State(NamedTuple):
    """State passed from block to block.

    Attributes:
        features: scalars s of the atoms, (n_atoms, F).
        vectors: vectors v of the atoms, (n_atoms, 3, F).
        edge_index: sources and targets, (2, n_edges).
        unit: unit vectors of the edges, (n_edges, 3).
        radial: radial basis of the edges, (n_edges, n_radial).
        within: cutoff function of the edges, (n_edges, 1).
    """

    features: Tensor
    vectors: Tensor
    edge_index: Tensor
    unit: Tensor
    radial: Tensor
    within: Tensor


class Message(MessagePassing):
    r"""Messages from neighbours (eqs. 7-8), with distance-dependent filters W and :math:`\phi = W_2\,silu(W_1 s_j)`,

    .. math::
        \Delta s_i = \sum_j \phi_s \circ W_s, \qquad
        \Delta v_i = \sum_j v_j \circ \phi_{vv} \circ W_{vv} + e_{ij} (\phi_{vs} \circ W_{vs})
    """

    def __init__(self, n_features: int, n_radial: int) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.atom = nn.Sequential(nn.Linear(n_features, n_features), nn.SiLU(), nn.Linear(n_features, 3 * n_features))
        self.filter = nn.Linear(n_radial, 3 * n_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in (self.atom[0], self.atom[2], self.filter):
            _reset(layer)

    def forward(self, state: State) -> tuple[Tensor, Tensor]:
        """Changes of the scalars, (n_atoms, F), and of the vectors, (n_atoms, 3, F)."""
        n_atoms = state.features.shape[0]
        phi = self.atom(state.features)  # (n_atoms, 3F)
        filters = self.filter(state.radial) * state.within  # (n_edges, 3F)
        changes = self.propagate(
            state.edge_index,
            phi=phi,
            vectors=state.vectors,
            filters=filters,
            unit=state.unit,
            size=(n_atoms, n_atoms),
        )  # (n_atoms, 4, F)
        scalars, vectors = changes.split([1, 3], dim=1)
        return scalars.squeeze(1), vectors

    def message(self, phi_j: Tensor, vectors_j: Tensor, filters: Tensor, unit: Tensor) -> Tensor:
        """Concatenated scalars and vectors, (n_edges, 4, F)."""
        scalars, of_vectors, of_unit = (phi_j * filters).unsqueeze(1).chunk(3, dim=2)  # (n_edges, 1, F) each
        return torch.cat([scalars, vectors_j * of_vectors + unit.unsqueeze(2) * of_unit], dim=1)


class Update(nn.Module):
    r"""Mixing of the scalars and vectors of an atom (eqs. 9-10), with a = W₂ silu(W₁ [s, |V v|]):

    .. math:: \Delta s = a_{ss} + a_{sv} \langle U v, V v \rangle, \qquad \Delta v = a_{vv} U v
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.mix = nn.Linear(n_features, 2 * n_features, bias=False)  # U and V
        self.atom = nn.Sequential(
            nn.Linear(2 * n_features, n_features), nn.SiLU(), nn.Linear(n_features, 3 * n_features)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.mix, self.atom[0], self.atom[2]):
            _reset(layer)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of the scalars, (n_atoms, F), and of the vectors, (n_atoms, 3, F)."""
        u, v = self.mix(vectors).chunk(2, dim=2)  # (n_atoms, 3, F) each
        length = (v.square().sum(dim=1) + _TINY).sqrt()  # (n_atoms, F)
        of_scalars, of_product, of_vectors = self.atom(torch.cat([scalars, length], dim=1)).chunk(3, dim=1)
        return of_scalars + of_product * (u * v).sum(dim=1), u * of_vectors.unsqueeze(1)


class Block(nn.Module):
    """A message layer and an update layer, both residual."""

    def __init__(self, n_features: int, n_radial: int) -> None:
        super().__init__()
        self.message = Message(n_features, n_radial)
        self.update = Update(n_features)

    def forward(self, state: State) -> State:
        for layer in (lambda s: self.message(s), lambda s: self.update(s.features, s.vectors)):
            scalars, vectors = layer(state)
            state = state._replace(features=state.features + scalars, vectors=state.vectors + vectors)
        return state


class PaiNN(Backbone):
    """Polarizable atom interaction network. (Schütt et al., ICML 2021, arXiv 2102.03150.)

    The radial basis is that of DimeNet++: Bessel functions with trainable frequencies and an envelope.

    Args:
        species: atomic numbers.
        n_interactions: number of blocks.
        n_features: width of the scalars, and of the vectors.
        n_radial: number of radial basis functions.
        cutoff: in Å.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = True

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 3,
        n_features: int = 128,
        n_radial: int = 20,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__(species, cutoff)
        self.embedding = nn.Embedding(len(self.species), n_features)
        self.radial = BesselBasisLayer(n_radial, self.cutoff)
        self.blocks.extend(Block(n_features, n_radial) for _ in range(n_interactions))
        self.feature_sizes = (len(self.species), *[n_features] * n_interactions)

    def embed(self, graph: Graph) -> State:
        """The state before the first block; its vectors are zero."""
        scalars = self.one_hot(graph) @ self.embedding.weight  # (n_atoms, F)
        return State(
            features=scalars,
            vectors=scalars.new_zeros(scalars.shape[0], 3, scalars.shape[1]),
            edge_index=graph.edge_index,
            unit=graph.edge_vec / graph.edge_dist.unsqueeze(1),
            radial=self.radial(graph.edge_dist) / self.cutoff,  # sin(nπr/R_c)/r; PyG's is that of r/R_c
            within=cosine_cutoff(graph.edge_dist, self.cutoff).unsqueeze(1),
        )


def _reset(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
