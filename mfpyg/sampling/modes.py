"""Normal modes, and geometries displaced along them as in the harmonic Boltzmann distribution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms, units

SOFT = 200.0
"""Wavenumber in cm⁻¹ that softer and imaginary modes are displaced with.

Straight displacements along a soft torsion stretch bonds. The mean potential energy of 60 geometries of acetone
(GFN2-xTB, 600 K) is 7.3 times that of the harmonic model if its modes of 62i and 114 cm⁻¹ are displaced with their own
ω, and 1.5 times with this threshold.
"""

DELTA = 0.005
"""Displacement in Å of the finite differences of forces."""

LINEAR = 1e-3
"""Size of a rotation, relative to the other rigid motions, below which a molecule is linear."""

TO_WAVENUMBER = np.sqrt(units._e / units._amu) * 1e10 / (2 * np.pi * units._c * 100)
"""√(eV/Å²/u) as a wavenumber ω / 2πc in cm⁻¹."""

TO_ENERGY = units._hbar * np.sqrt(units._e / units._amu) * 1e10 / units._e
"""√(eV/Å²/u) as an energy ħω in eV."""


class Modes(NamedTuple):
    """Vibrations of a system of n atoms.

    Attributes:
        eigenvalues: ω² in eV/Å²/u, ascending, (k,); negative for imaginary modes.
        vectors: orthonormal mass-weighted modes as columns, (3n, k).
        masses: atomic masses in u, (n,).
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    masses: np.ndarray

    @property
    def wavenumbers(self) -> np.ndarray:
        """ω / 2πc in cm⁻¹, (k,); imaginary ones as negative numbers."""
        return np.sign(self.eigenvalues) * np.sqrt(np.abs(self.eigenvalues)) * TO_WAVENUMBER

    def displacement(self, temperature: float, rng: np.random.Generator, quantum: bool = False) -> np.ndarray:
        """Random displacement of all atoms in Å, (n, 3).

        Mass-weighted coordinates Q_k of the modes are independent normal numbers with the variance

            classical: ⟨Q²⟩ = k_B T / ω²
            quantum:   ⟨Q²⟩ = ħ / 2ω · coth(ħω / 2 k_B T)

        the latter of the Wigner distribution, with zero-point motion, and atoms are displaced by
        Δx_i = Σ_k vectors_ik Q_k / √m_i. Modes below :data:`SOFT`, and imaginary ones, have ω of :data:`SOFT`.

        Args:
            temperature: T in K.
            rng: source of random numbers.
            quantum: which of the variances.
        """
        squares = np.maximum(np.abs(self.eigenvalues), (SOFT / TO_WAVENUMBER) ** 2)  # ω², (k,)
        energy = np.full(len(squares), units.kB * temperature)  # twice the mean potential energy of a mode
        if quantum:
            half = TO_ENERGY * np.sqrt(squares) / 2
            energy = half / np.tanh(half / energy)
        coordinates = rng.standard_normal(len(squares)) * np.sqrt(energy / squares)
        return (self.vectors @ coordinates).reshape(-1, 3) / np.sqrt(self.masses)[:, None]


def normal_modes(atoms: Atoms) -> Modes:
    """Normal modes by the calculator of the atoms.

    Translations, and rotations of molecules, are projected out of the mass-weighted Hessian, so that they do not mix
    with soft vibrations.
    """
    masses = atoms.get_masses()
    root = np.repeat(np.sqrt(masses), 3)  # (3n,)
    vibrations = internal_motions(atoms, root)  # (3n, k)
    eigenvalues, within = np.linalg.eigh(vibrations.T @ (hessian(atoms) / np.outer(root, root)) @ vibrations)
    return Modes(eigenvalues, vibrations @ within, masses)


def internal_motions(atoms: Atoms, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Orthonormal displacements orthogonal to translations and, of molecules, to infinitesimal rotations.

    Args:
        atoms: a molecule, or a periodic system whose rotations count as internal.
        weights: factors of the coordinates, (3n,), such as square roots of masses.

    Returns:
        Displacements as columns, (3n, 3n − 6); 3n − 5 of linear molecules, 3n − 3 of periodic systems.
    """
    axes = np.eye(3)
    rigid = np.tile(axes, (len(atoms), 1))  # (3n, 3)
    if len(atoms) > 1 and not atoms.pbc.any():
        from_center = atoms.positions - atoms.get_center_of_mass()
        turns = np.stack([np.cross(axis, from_center).ravel() for axis in axes], axis=1)  # (3n, 3)
        rigid = np.concatenate([rigid, turns / np.abs(from_center).max()], axis=1)
    vectors, sizes, _ = np.linalg.svd(np.reshape(weights, (-1, 1)) * rigid)
    return vectors[:, int((sizes > LINEAR * sizes.max()).sum()) :]


def hessian(atoms: Atoms) -> np.ndarray:
    """Second derivatives of the energy in eV/Å², symmetric, (3n, 3n).

    The calculator's own, where it has the property ``hessian``, else central differences of its forces.
    """
    if "hessian" in atoms.calc.implemented_properties:
        found = np.asarray(atoms.calc.get_property("hessian", atoms))
    else:
        displaced, found = atoms.copy(), np.empty((3 * len(atoms), 3 * len(atoms)))
        displaced.calc = atoms.calc
        for row in range(len(found)):
            ends = []
            for sign in (1, -1):
                displaced.positions = atoms.positions
                displaced.positions.flat[row] += sign * DELTA
                ends.append(displaced.get_forces().ravel())
            found[row] = (ends[1] - ends[0]) / (2 * DELTA)
    return (found + found.T) / 2
