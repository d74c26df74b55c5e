"""Potentials for the tests of interop: random ones, and one that knows formaldehyde."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from ase import Atoms
from torch_geometric.data import Batch

from mfpyg.datasets import MiniCHNO
from mfpyg.models import HIPNN, MultiFidelityPotential


@pytest.fixture(scope="session")
def random_potential() -> Callable[..., MultiFidelityPotential]:
    """``random_potential(seed, fidelities, **options)``: small, float64, energies of some kcal/mol an atom.

    With ``charges`` of some tenths of e for these fidelities.
    """

    def make(
        seed: int = 0, fidelities: Sequence[str] = ("cc",), charges: Sequence[str] = (), **options: Any
    ) -> MultiFidelityPotential:
        torch.manual_seed(seed)
        sizes = {"n_features": 8, "n_sensitivities": 6, "n_interactions": 2, "n_atom_layers": 1, "cutoff": 4.0}
        backbone = HIPNN([1, 6, 7, 8], **{**sizes, **options})
        potential = MultiFidelityPotential(backbone, fidelities, further=dict.fromkeys(charges, "DQ")).double().eval()
        for parameter in potential.further_heads.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        for head in potential.heads:
            head.reference.copy_(-1000 + 100 * torch.randn(4))
            for level in head.levels:
                level.reset_parameters()
        return potential

    return make


@pytest.fixture(scope="session")
def formaldehyde() -> tuple[MultiFidelityPotential, Atoms]:
    """A potential trained for some seconds on the bundled conformations of CH2O, in float64, and one of them."""
    frames = [data for data in MiniCHNO() if sorted(data.z.tolist()) == [1, 1, 6, 8]]
    batch = Batch.from_data_list(frames)
    energies, forces = batch.energy[:, 0], batch.forces[:, 0].double()
    torch.manual_seed(0)
    sizes = {"n_features": 16, "n_sensitivities": 10, "n_interactions": 1, "n_atom_layers": 1, "cutoff": 4.0}
    potential = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **sizes), ["dz"]).double()
    potential.heads[0].reference.fill_(energies.mean() / 4)
    steps = 200
    optimiser = torch.optim.Adam(potential.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        predicted = potential.predict(batch, {"dz": "EF"})["dz"]
        loss = (predicted.energy - energies).square().mean() + (predicted.forces - forces).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return potential.eval(), Atoms(frames[0].z.numpy(), frames[0].pos.double().numpy())
