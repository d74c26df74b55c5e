"""ViSNet backbone, from the layers of PyTorch Geometric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.visnet import ViSNetBlock

from mfpyg.graph import Graph
from mfpyg.models.backbone import Backbone, check_elements


class State(NamedTuple):
    """State passed from block to block. Edges include a self-loop of length zero for each atom.

    Attributes:
        features: features of the level, (n_atoms, 2 n_features); not used by the next block.
        scalars: scalar features of the atoms, (n_atoms, n_features).
        vectors: vector features of the atoms, (n_atoms, n_harmonics, n_features).
        edges: features of the edges, (n_edges, n_features).
        edge_index: sources and targets, (2, n_edges).
        dist: lengths of the edges in Å, (n_edges,).
        harmonics: spherical harmonics of the edges, (n_edges, n_harmonics).
    """

    features: Tensor
    scalars: Tensor
    vectors: Tensor
    edges: Tensor
    edge_index: Tensor
    dist: Tensor
    harmonics: Tensor


class Block(nn.Module):
    """Message-passing layer of PyG's ViSNet with residual connections."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        # Unlike in PyG, this bias stays zero: it is added to a term that vanishes at the cutoff, so that vectors and
        # forces would otherwise be discontinuous there.
        layer.s_proj.bias.requires_grad_(False)  # type: ignore[union-attr, operator]

    def forward(self, state: State) -> State:
        s = state
        scalars, vectors, edges = self.layer(s.scalars, s.vectors, s.edge_index, s.dist, s.edges, s.harmonics)
        scalars, vectors = s.scalars + scalars, s.vectors + vectors
        edges = s.edges if edges is None else s.edges + edges  # the last layer has none
        return s._replace(features=invariants(scalars, vectors), scalars=scalars, vectors=vectors, edges=edges)


class LastBlock(Block):
    """The last layer, followed by the normalization of scalars and vectors."""

    def __init__(self, layer: nn.Module, norm: nn.Module, vector_norm: nn.Module) -> None:
        super().__init__(layer)
        self.norm, self.vector_norm = norm, vector_norm

    def forward(self, state: State) -> State:
        state = super().forward(state)
        scalars, vectors = self.norm(state.scalars), self.vector_norm(state.vectors)
        return state._replace(features=invariants(scalars, vectors), scalars=scalars, vectors=vectors)


class ViSNetBackbone(Backbone):
    """ViSNet without output layers. Its features are the scalars and the squared lengths of the vectors.

    After the last layer, scalars and vectors equal those of :class:`torch_geometric.nn.models.ViSNet`, whose output
    layers also use lengths of the vectors. (Wang et al., Nat. Commun. 15, 313 (2024), arXiv 2210.16518.)

    Args:
        species: atomic numbers.
        n_interactions: number of blocks.
        n_features: width of scalars, vectors and edges.
        n_heads: number of attention heads.
        n_radial: number of radial basis functions.
        l_max: highest degree of the harmonics, 1 or 2.
        vertex: whether edge features depend on the geometry around the target as well.
        cutoff: in Å.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = True

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 6,
        n_features: int = 128,
        n_heads: int = 8,
        n_radial: int = 32,
        l_max: int = 1,
        vertex: bool = False,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__(species, cutoff)
        check_elements("ViSNet", species, 99)
        net = ViSNetBlock(
            lmax=l_max,
            num_heads=n_heads,
            num_layers=n_interactions,
            hidden_channels=n_features,
            num_rbf=n_radial,
            cutoff=self.cutoff,
            vertex=vertex,
        )
        self.embedding, self.neighbour_embedding = net.embedding, net.neighbor_embedding
        self.expansion, self.sphere, self.edge_embedding = net.distance_expansion, net.sphere, net.edge_embedding
        *layers, last = net.vis_mp_layers
        self.blocks.extend(map(Block, layers))
        self.blocks.append(LastBlock(last, net.out_norm, net.vec_out_norm))
        self.feature_sizes = (len(self.species), *[2 * n_features] * n_interactions)

    def embed(self, graph: Graph) -> State:
        atoms = torch.arange(graph.n_atoms, device=graph.z.device)
        edge_index = torch.cat([graph.edge_index, torch.stack([atoms, atoms])], dim=1)
        zero = graph.edge_dist.new_zeros(graph.n_atoms, 1)
        dist = torch.cat([graph.edge_dist, zero.squeeze(1)])
        unit = torch.cat([graph.edge_vec / graph.edge_dist.unsqueeze(1), zero.expand(-1, 3)])
        harmonics, radial = self.sphere(unit), self.expansion(dist)
        scalars = self.embedded(graph, radial[: graph.edge_dist.shape[0]])
        vectors = scalars.new_zeros(scalars.shape[0], harmonics.shape[1], scalars.shape[1])
        edges = self.edge_embedding(edge_index, radial, scalars)
        return State(invariants(scalars, vectors), scalars, vectors, edges, edge_index, dist, harmonics)

    def embedded(self, graph: Graph, radial: Tensor) -> Tensor:
        """Embedding of the species of the atoms and their neighbours, (n_atoms, n_features).

        Like PyG's ``NeighborEmbedding``, but including an atom's own periodic images, which that skips as self-loops.
        """
        layer = self.neighbour_embedding
        filters = layer.distance_proj(radial) * layer.cutoff(graph.edge_dist).unsqueeze(1)  # (n_edges, n_features)
        neighbours = layer.propagate(
            graph.edge_index, x=layer.embedding(graph.z), W=filters, size=(graph.n_atoms, graph.n_atoms)
        )
        return layer.combine(torch.cat([self.embedding(graph.z), neighbours], dim=1))


def invariants(scalars: Tensor, vectors: Tensor) -> Tensor:
    """Concatenated scalars and squared lengths of the vectors, (n_atoms, 2F)."""
    return torch.cat([scalars, vectors.square().sum(dim=1)], dim=1)
