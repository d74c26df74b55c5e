"""Normal modes, and geometries displaced along them as in the harmonic Boltzmann distribution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase import Atoms, units

from mfpyg.labeling.program import hessian_of
from mfpyg.rigid import internal_motions

SOFT = 200.0
"""Wavenumber in cm⁻¹ that softer and imaginary modes are displaced with.

Straight displacements along a soft torsion stretch bonds. The mean potential energy of 60 geometries of acetone
(GFN2-xTB, 600 K) is 7.3 times that of the harmonic model if its modes of 62i and 114 cm⁻¹ are displaced with their own
ω, and 1.5 times with this threshold.
"""

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
    vibrations = internal_motions(atoms.positions, np.sqrt(masses), rotations=not atoms.pbc.any())  # (3n, k)
    root = np.repeat(np.sqrt(masses), 3)  # (3n,)
    hessian = hessian_of(atoms.calc, atoms).reshape(len(root), len(root))
    eigenvalues, within = np.linalg.eigh(vibrations.T @ (hessian / np.outer(root, root)) @ vibrations)
    return Modes(eigenvalues, vibrations @ within, masses)
