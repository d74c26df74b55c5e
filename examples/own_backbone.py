"""A custom backbone: defined, checked against physics, and trained on two fidelities.

    python examples/own_backbone.py --epochs 20 --out runs/own

Options are those of mfpyg-train. In your own package, an entry point in the group ``mfpyg.backbones`` replaces
``register`` and ``main``: then run ``mfpyg-train --backbone own``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfpyg.cli.train import main
from mfpyg.graph import Graph
from mfpyg.models import Backbone, register
from mfpyg.testing import check_potential


class State(NamedTuple):
    features: Tensor  # (n_atoms, n_features)
    graph: Graph
    radial: Tensor  # (n_edges, n_radial), zero at the cutoff


class Block(nn.Module):
    def __init__(self, n_features: int, n_radial: int) -> None:
        super().__init__()
        self.filter = nn.Linear(n_radial, n_features, bias=False)  # no bias, so that messages vanish at the cutoff
        self.update = nn.Sequential(nn.Linear(n_features, n_features), nn.SiLU(), nn.Linear(n_features, n_features))

    def forward(self, state: State) -> State:
        source, target = state.graph.edge_index
        messages = state.features[source] * self.filter(state.radial)  # (n_edges, n_features)
        summed = torch.zeros_like(state.features).index_add(0, target, messages)
        return state._replace(features=state.features + self.update(summed))


class Own(Backbone):
    """Message passing with filters of the interatomic distance.

    Args:
        species: atomic numbers that the network knows.
        n_interactions: interaction blocks.
        n_features: width of the features.
        n_radial: Gaussians of the distance.
        cutoff: cutoff in Å.
    """

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 2,
        n_features: int = 64,
        n_radial: int = 16,
        cutoff: float = 4.5,
    ) -> None:
        super().__init__(species, cutoff)
        self.embedding = nn.Embedding(len(self.species), n_features)
        self.register_buffer("centres", torch.linspace(0.5, cutoff, n_radial))
        self.blocks.extend(Block(n_features, n_radial) for _ in range(n_interactions))
        self.feature_sizes = (len(self.species), *[n_features] * n_interactions)

    def embed(self, graph: Graph) -> State:
        features = self.one_hot(graph) @ self.embedding.weight
        envelope = torch.cos(0.5 * torch.pi / self.cutoff * graph.edge_dist).square()
        gaussians = torch.exp(-10 * (graph.edge_dist.unsqueeze(1) - self.centres).square())
        return State(features, graph, gaussians * envelope.unsqueeze(1))


register("own", Own)

if __name__ == "__main__":
    for law in check_potential(Own([1, 6, 7, 8])):
        print(law)
    main(["--backbone", "own", "--fidelities", "dz:EF", "cc:E", *sys.argv[1:]])
