"""Molecules and small potentials for the tests of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.models import HIPNN, MultiFidelityPotential


def _positions(n_atoms: int, generator: torch.Generator, shortest: float = 0.95) -> Tensor:
    """A random cluster of bonded atoms, none of them closer than ``shortest`` Å; (n_atoms, 3) float64."""
    pos = torch.zeros(1, 3, dtype=torch.float64)
    while len(pos) < n_atoms:
        parent = pos[torch.randint(len(pos), (), generator=generator)]
        direction = torch.randn(3, generator=generator, dtype=torch.float64)
        length = 1.0 + 0.6 * torch.rand((), generator=generator, dtype=torch.float64)
        candidate = parent + length * direction / direction.norm()
        if (pos - candidate).norm(dim=1).min() > shortest:
            pos = torch.cat([pos, candidate[None]])
    return pos


@pytest.fixture(scope="session")
def make_molecule() -> Callable[..., Data]:
    """``make_molecule(n_atoms, seed)``: a random molecule of H, C, N and O, positions in float64."""

    def make(n_atoms: int, seed: int = 0) -> Data:
        generator = torch.Generator().manual_seed(1000 * seed + n_atoms)
        z = torch.tensor([1, 6, 7, 8])[torch.randint(4, (n_atoms,), generator=generator)]
        return Data(z=z, pos=_positions(n_atoms, generator))

    return make


@pytest.fixture(scope="session")
def make_batch(make_molecule: Callable[..., Data]) -> Callable[..., Batch]:
    """``make_batch(sizes, seed)``: a batch of random molecules of these numbers of atoms."""

    def make(sizes: Sequence[int], seed: int = 0) -> Batch:
        return Batch.from_data_list([make_molecule(n, seed + i) for i, n in enumerate(sizes)])

    return make


@pytest.fixture(scope="session")
def make_potential() -> Callable[..., MultiFidelityPotential]:
    """``make_potential(tensor_order, fidelities)``: a small float64 potential in evaluation mode.

    Unlike a fresh one it has references of some kcal/mol, and output layers that are not scaled down, so
    that every part of the energy is of a size at which an error would show.
    """

    def make(
        tensor_order: int = 2, fidelities: Sequence[str] = ("dz",), seed: int = 0, **options: Any
    ) -> MultiFidelityPotential:
        torch.manual_seed(seed)
        sizes = {"n_interactions": 2, "n_atom_layers": 1, "n_features": 8, "n_sensitivities": 6, "cutoff": 5.0}
        backbone = HIPNN([1, 6, 7, 8], tensor_order=tensor_order, **{**sizes, **options})
        potential = MultiFidelityPotential(backbone, fidelities).double().eval()
        for head in potential.heads:
            head.reference.copy_(torch.randn(4))
            for level in head.levels:
                level.reset_parameters()
        return potential

    return make
