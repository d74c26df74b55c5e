"""Pairs: directional forces against analytic ones."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from mfpyg.evaluation.pairs import directional_forces, find_pairs
from mfpyg.rigid import internal_motions
from mfpyg.sampling.pairs import partner

from .springs import Springs


def _energy_and_forces(atoms: Atoms, positions: np.ndarray) -> tuple[float, np.ndarray]:
    there = atoms.copy()
    there.positions, there.calc = positions, atoms.calc
    return there.get_potential_energy(), there.get_forces()


@pytest.fixture
def shaken(methanol: Atoms) -> Atoms:
    methanol.calc = Springs(methanol.copy())
    methanol.rattle(0.06, seed=2)
    return methanol


def test_directional_force_is_the_force_at_the_midpoint(shaken: Atoms) -> None:
    """Exactly the mean force along the line, and the force at the midpoint to second order in the step."""
    nodes, weights = np.polynomial.legendre.leggauss(5)  # the third of the nodes is the midpoint
    rms = []
    for step in (0.02, 0.01, 0.005):
        rng, errors = np.random.default_rng(0), []
        for _ in range(10):
            other = partner(shaken, step, rng)
            (pair,) = find_pairs([shaken.numbers] * 2, [shaken.positions, other])
            assert pair.length == pytest.approx(step * np.sqrt(len(shaken)))
            energy = np.array([_energy_and_forces(shaken, x)[0] for x in (shaken.positions, other)])
            (found,) = directional_forces([pair], energy)
            points = [shaken.positions + (t + 1) / 2 * (other - shaken.positions) for t in nodes]
            along = np.array([(_energy_and_forces(shaken, x)[1] * pair.direction).sum() for x in points])
            assert found == pytest.approx(along @ weights / 2, abs=1e-9)
            errors.append(found - along[2])
        rms.append(np.sqrt(np.mean(np.square(errors))))
    assert 0 < rms[1] < 0.01  # eV/Å
    assert rms[0] / rms[1] == pytest.approx(4, rel=0.1)
    assert rms[1] / rms[2] == pytest.approx(4, rel=0.1)


def test_directions_are_isotropic_and_without_rigid_motions(shaken: Atoms) -> None:
    """⟨(ΔF·u)²⟩ k / 3n is the mean square error per component of an internal error ΔF."""
    motions, rng = internal_motions(shaken.positions, np.ones(len(shaken)), rotations=True), np.random.default_rng(3)
    error = motions @ rng.normal(size=motions.shape[1])
    moved = np.array([partner(shaken, 0.01, rng) - shaken.positions for _ in range(4000)]).reshape(4000, -1)
    units = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(units @ motions @ motions.T, units, atol=1e-12)
    expected = (error**2).mean()
    assert ((units @ error) ** 2).mean() * motions.shape[1] / len(error) == pytest.approx(expected, rel=0.06)
