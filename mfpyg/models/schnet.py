"""SchNet backbone, from the layers of PyTorch Geometric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch_geometric.nn.models import SchNet

from mfpyg.graph import Graph
from mfpyg.models.backbone import Backbone, check_elements


class State(NamedTuple):
    """State passed from block to block.

    Attributes:
        features: features of the atoms, (n_atoms, n_features).
        edge_index: sources and targets, (2, n_edges).
        dist: lengths of the edges in Å, (n_edges,).
        radial: Gaussian basis of the lengths, (n_edges, n_gaussians).
    """

    features: Tensor
    edge_index: Tensor
    dist: Tensor
    radial: Tensor


class Block(nn.Module):
    """Interaction of PyG's SchNet with a residual connection."""

    def __init__(self, interaction: nn.Module) -> None:
        super().__init__()
        self.interaction = interaction

    def forward(self, state: State) -> State:
        change = self.interaction(state.features, state.edge_index, state.dist, state.radial)
        return state._replace(features=state.features + change)


class SchNetBackbone(Backbone):
    """SchNet without output layers.

    The features after the last block equal the input of the output layers of :class:`torch_geometric.nn.models.SchNet`.
    (Schütt et al., NeurIPS 2017, arXiv 1706.08566.)

    Args:
        species: atomic numbers.
        n_interactions: number of blocks.
        n_features: width of the features.
        n_filters: width of the continuous filters.
        n_gaussians: number of radial basis functions, evenly spaced up to the cutoff.
        cutoff: in Å.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = True

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 6,
        n_features: int = 128,
        n_filters: int = 128,
        n_gaussians: int = 50,
        cutoff: float = 5.0,
    ) -> None:
        super().__init__(species, cutoff)
        check_elements("SchNet", species, 99)
        net = SchNet(n_features, n_filters, n_interactions, n_gaussians, self.cutoff)
        self.embedding, self.expansion = net.embedding, net.distance_expansion
        self.blocks.extend(Block(interaction) for interaction in net.interactions)
        self.feature_sizes = (len(self.species), *[n_features] * n_interactions)

    def embed(self, graph: Graph) -> State:
        dist = graph.edge_dist.clamp(max=self.cutoff)  # beyond, the envelope of PyG's layers is not zero
        return State(self.embedding(graph.z), graph.edge_index, dist, self.expansion(dist))
