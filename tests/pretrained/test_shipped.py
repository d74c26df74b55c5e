"""The models that are shipped: size, card, and the physics of two small molecules at all levels."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.data import chemical_symbols
from ase.optimize import BFGS

import mfpyg
from mfpyg.checkpoint import read_checkpoint
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.pretrained import model_path, names
from mfpyg.pretrained.card import read_card

MAX_SIZE = 5_000_000
MOLECULES = ("H2O", "CH3OH")
STEP = 1e-4


@pytest.fixture(params=["chno-1"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def shaken(kind: str) -> Atoms:
    """A molecule out of its minimum and its symmetry."""
    atoms = molecule(kind)
    atoms.rattle(0.05, seed=0)
    return atoms


def test_every_shipped_model_is_tested_here(name: str) -> None:
    assert names() == [name]


def test_weights_alone(name: str) -> None:
    """No state of a training, in single precision, without paths."""
    path = model_path(name)
    assert path.stat().st_size <= MAX_SIZE
    checkpoint = read_checkpoint(path)
    assert checkpoint.keys() <= {"mfpyg", "state_dict", "progress", "uncertainty"}
    assert checkpoint["mfpyg"]["config"]["precision"] == 32
    assert not checkpoint["mfpyg"]["splits"]
    assert checkpoint["mfpyg"]["data"]["name"] == ["minichno"]
    if checkpoint["uncertainty"] is not None:
        assert checkpoint["uncertainty"]["held_out"] is None


def test_card_is_complete(name: str) -> None:
    card, potential = read_card(model_path(name).with_suffix(".yaml")), mfpyg.load(name)
    described = read_checkpoint(name)["mfpyg"]
    assert tuple(card.levels) == potential.fidelities
    assert card.elements == [chemical_symbols[number] for number in potential.species]
    assert described["data"]["methods"] == {level: of.method for level, of in card.levels.items()}
    trained = dict(text.split(":") for text in described["config"]["fidelities"])
    assert trained == {level: of.labels for level, of in card.levels.items()}
    for level in card.levels.values():
        assert level.source
        assert level.conformations >= level.molecules > 0
    assert {(error.level, error.quantity) for error in card.errors} >= {("cc", "force components")}
    for error in card.errors:
        assert error.level in card.levels
        assert 0 < error.interval[0] <= error.rmse <= error.interval[1]
        assert error.n > 0
    assert all((card.title, card.licence, card.use, card.not_for, card.tested_on, card.recipe))


@pytest.mark.parametrize("kind", MOLECULES)
def test_forces_are_derivatives_of_energies(name: str, kind: str) -> None:
    for level in mfpyg.load(name).fidelities:
        atoms = shaken(kind)
        atoms.calc = MFPyGCalculator(name, level, dtype="float64")
        forces = atoms.get_forces()
        assert np.isfinite(forces).all()
        numerical = np.zeros_like(forces)
        for place in np.ndindex(forces.shape):
            energies = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[place] += sign * STEP
                moved.calc = atoms.calc
                energies.append(moved.get_potential_energy())
            numerical[place] = (energies[1] - energies[0]) / (2 * STEP)
        np.testing.assert_allclose(forces, numerical, atol=1e-5)


@pytest.mark.parametrize("kind", MOLECULES)
def test_bond_lengths(name: str, kind: str) -> None:
    """Of the relaxed molecule, within 0.03 Å of ASE's, which are MP2/6-31G(d)."""
    usual = molecule(kind)
    bonds = [(i, j) for i in range(len(usual)) for j in range(i) if usual.get_distance(i, j) < 1.6]
    for level in mfpyg.load(name).fidelities:
        atoms = shaken(kind)
        atoms.calc = MFPyGCalculator(name, level)
        assert BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
        lengths = [(atoms.get_distance(*bond), usual.get_distance(*bond)) for bond in bonds]
        assert all(abs(found - known) < 0.03 for found, known in lengths), (level, lengths)
