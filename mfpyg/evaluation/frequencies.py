"""Harmonic vibrational frequencies."""

from __future__ import annotations

import math

import torch
from ase.data import chemical_symbols
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.models.charges import masses
from mfpyg.rigid import internal_motions

TO_WAVENUMBER = math.sqrt(4.184e26) / (2 * math.pi * 2.99792458e10)
"""√(kcal/mol/Å²/u) as a wavenumber ω / 2πc in cm⁻¹."""


def harmonic_frequencies(hessian: Tensor, z: Tensor, pos: Tensor, periodic: bool = False) -> Tensor:
    """Harmonic frequencies of a molecule, or at the Γ point of a periodic system.

    The eigenvalues ω² of the mass-weighted Hessian H_ij / √(m_i m_j), restricted to displacements that are orthogonal
    to translations and infinitesimal rotations of the whole. At geometries with forces, where rotations change the
    gradient, these would otherwise mix with vibrations.

    Args:
        hessian: d²E/dx_i dx_j in kcal/mol/Å², (n, n, 3, 3), see :func:`mfpyg.models.hessian.hessian`.
        z: atomic numbers, (n,) int64; masses are those of :data:`ase.data.atomic_masses`, in u.
        pos: positions in Å, (n, 3).
        periodic: whether rotations are vibrations, as in crystals.

    Returns:
        Frequencies in cm⁻¹ in ascending order, imaginary ones as negative numbers: (3n − 6,) float64; 3n − 5 of linear
        molecules, see :data:`mfpyg.rigid.LINEAR`, 3n − 3 of periodic systems, and none of an atom.

    Raises:
        MFPyGError: for a Hessian of another shape or with values that are not finite, and unknown masses.
    """
    n = len(z)
    if hessian.shape != (n, n, 3, 3):
        raise MFPyGError(f"the Hessian has the shape {tuple(hessian.shape)}, expected ({n}, {n}, 3, 3) for {n} atoms")
    if not hessian.isfinite().all():
        raise MFPyGError("the Hessian has values that are NaN or infinite, expected finite ones in kcal/mol/Å²")
    root = _known_masses(z).sqrt().to(hessian.device)  # (n,)
    weighted = hessian.detach().double() / (root[:, None] * root)[:, :, None, None]
    matrix = weighted.permute(0, 2, 1, 3).reshape(3 * n, 3 * n)
    motions = internal_motions(pos.detach().double().cpu().numpy(), root.cpu().numpy(), rotations=not periodic)
    vibrations = torch.from_numpy(motions).to(root)  # (3n, n_frequencies)
    values = torch.linalg.eigvalsh(vibrations.T @ ((matrix + matrix.T) / 2) @ vibrations)  # by 1/u
    return values.sign() * values.abs().sqrt() * TO_WAVENUMBER


def _known_masses(z: Tensor) -> Tensor:
    """Standard atomic masses in u, (n,) float64.

    Raises:
        MFPyGError: for atomic numbers without a mass.
    """
    unknown = (z < 1) | (z >= len(chemical_symbols))
    if unknown.any():
        known = len(chemical_symbols) - 1
        raise MFPyGError(f"no mass is known of atomic number {int(z[unknown][0])}, expected one from 1 to {known}")
    return masses(z, torch.float64)
