"""A small potential and mixed frames for the tests of inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pytest
import torch

from mfpyg.inference.frames import Values
from mfpyg.interop.ase import data_of
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.hessian import hessian
from mfpyg.units import EV_TO_KCAL_MOL

Make = Callable[..., MultiFidelityPotential]
Frames = list[ase.Atoms]
TOLERANCE = {"rel": 1e-11, "abs": 1e-11}


def alone(potential: MultiFidelityPotential, atoms: ase.Atoms, fidelity: str, stress: bool = False) -> Values:
    found = potential(data_of(atoms), fidelity, stress=stress)
    factor = 1 / EV_TO_KCAL_MOL
    return Values(
        energy=float(found.energy) * factor,
        forces=found.forces.numpy() * factor,
        stress=found.stress[0].numpy() * factor if stress else None,
    )


def all_alone(potential: MultiFidelityPotential, atoms: ase.Atoms, fidelity: str, charge: float = 0) -> Values:
    """All properties that the atoms have, in eV, each from the potential itself."""
    data = data_of(atoms)
    data.charge = torch.tensor([charge])
    letters = "EFQ" + "S" * bool(atoms.pbc.all()) + "D" * (not atoms.pbc.any())
    found, factor = potential(data, fidelity, properties=letters), 1 / EV_TO_KCAL_MOL
    values = alone(potential, atoms, fidelity, "S" in letters)
    vars(values).update(
        hessian=hessian(potential, data, fidelity).transpose(1, 2).flatten(2, 3).flatten(0, 1).numpy() * factor,
        dipole=found.dipole[0].numpy() if "D" in letters else None,
        charges=found.charges.numpy(),
    )
    return values


def written(path: Path, frames: Sequence[ase.Atoms], **options: str) -> Path:
    ase.io.write(path, frames, **options)
    return path


@pytest.fixture(scope="session")
def small_potential() -> Callable[..., MultiFidelityPotential]:
    """``small_potential(seed, *fidelities)``: float64, in evaluation mode, with every part of the energy of a size.

    With ``charges`` of some tenths of e for these fidelities.
    """

    def make(seed: int = 0, *fidelities: str, charges: Sequence[str] = ()) -> MultiFidelityPotential:
        torch.manual_seed(seed)
        backbone = HIPNN([1, 6, 7, 8], n_features=8, n_sensitivities=6, n_interactions=1, n_atom_layers=1, cutoff=4.0)
        potential = (
            MultiFidelityPotential(backbone, fidelities or ("dz", "cc"), further=dict.fromkeys(charges, "DQ"))
            .double()
            .eval()
        )
        with torch.no_grad():
            for parameter in potential.further_heads.parameters():
                parameter.normal_(std=0.3)
        for head in potential.heads:
            head.reference.copy_(-1000 * torch.rand(4))
            for level in head.levels:
                level.reset_parameters()
        return potential

    return make


@pytest.fixture
def mixed_frames() -> list[ase.Atoms]:
    """Molecules of 1 to 9 atoms, a crystal, a slab and a molecule in a box, in no order of sizes."""
    random = np.random.default_rng(0)
    frames = []
    for n in (5, 1, 9, 3, 4, 2):
        corners = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:n] * 1.2
        frames.append(ase.Atoms(random.choice([1, 6, 7, 8], n), corners + 0.1 * random.normal(size=(n, 3))))
    for number, pbc in ((1, True), (3, (True, True, False)), (4, False)):
        frames[number].set_cell([[3.5, 0, 0], [0.5, 4, 0], [0, 0.3, 5]])
        frames[number].set_pbc(pbc)
    return frames


@pytest.fixture
def ions(mixed_frames: Frames) -> tuple[Frames, list[float]]:
    """The mixed frames as ions, and their charges: by ``info``, by initial charges, by both, of a crystal, and none."""
    mixed_frames[0].info["charge"] = 1
    mixed_frames[1].info["charge"] = 2
    mixed_frames[2].set_initial_charges([-0.25] * 4 + [0.0] * 5)
    mixed_frames[4].set_initial_charges([3, 0, 0, 0])
    mixed_frames[4].info["charge"] = -2.0
    return mixed_frames, [1, 2, -1, 0, -2, 0]
