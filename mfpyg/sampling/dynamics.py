"""Langevin dynamics: geometries of the Boltzmann distribution of a calculator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin

FRICTION = 0.01
"""Friction in fs⁻¹: velocities are forgotten within 100 fs."""


def trajectory(
    atoms: Atoms,
    temperature: float,
    rng: np.random.Generator,
    *,
    timestep: float = 0.5,
    equilibration: float = 500.0,
    stride: float = 100.0,
) -> Iterator[np.ndarray]:
    """Positions along one endless trajectory at a constant temperature and, of periodic systems, a constant cell.

    The centre of mass is not held, as the distribution of positions would no longer be that of Boltzmann. Of a molecule
    it is moved to the origin in what is returned.

    Args:
        atoms: start, with a calculator; moved.
        temperature: temperature in K.
        rng: source of random numbers.
        timestep: step of the integrator in fs.
        equilibration: time in fs before the first positions.
        stride: time in fs between positions, and after the equilibration before the first.

    Yields:
        Positions in Å, (n, 3).
    """
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(momenta)
    dynamics = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(round(equilibration / timestep))
    while True:
        dynamics.run(max(round(stride / timestep), 1))
        yield atoms.positions - (0 if atoms.pbc.any() else atoms.get_center_of_mass())
