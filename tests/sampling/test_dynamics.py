"""Dynamics: equipartition, and trajectories that a seed determines."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from ase import Atoms, units

from mfpyg.sampling.dynamics import trajectory

from .springs import Springs


def test_equipartition(harmonic: Atoms) -> None:
    """Each of the 3n − 6 vibrations has ½ kT of potential energy on average."""
    temperature, k = 600.0, 3 * len(harmonic) - 6
    steps = trajectory(harmonic, temperature, np.random.default_rng(1), timestep=0.5, equilibration=200, stride=20)
    energies = [harmonic.get_potential_energy() for _ in islice(steps, 300)]
    assert np.mean(energies) == pytest.approx(k / 2 * units.kB * temperature, rel=0.12)


def test_positions_are_about_the_center_and_follow_from_the_seed(methanol: Atoms) -> None:
    def run(seed: int) -> np.ndarray:
        moving = methanol.copy()
        moving.calc = Springs(methanol)
        return np.array(
            list(islice(trajectory(moving, 300, np.random.default_rng(seed), equilibration=5, stride=5), 3))
        )

    found = run(0)
    assert (found == run(0)).all()
    assert (found != run(1)).any()
    masses = methanol.get_masses()[:, None]
    assert np.abs((masses * found).sum(axis=1)).max() < 1e-9
