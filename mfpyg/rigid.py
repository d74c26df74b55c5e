"""Rigid motions of molecules and crystals."""

from __future__ import annotations

import numpy as np

LINEAR = 1e-3
"""Largest deviation from a line, relative to the length, of molecules that are taken for linear."""


def internal_motions(pos: np.ndarray, weights: np.ndarray, rotations: bool) -> np.ndarray:
    """Orthonormal weighted displacements orthogonal to translations and infinitesimal rotations of the whole.

    Args:
        pos: positions in Å, (n, 3).
        weights: factors of the displacements of the atoms, (n,), such as square roots of masses.
        rotations: whether rotations are rigid motions; False for periodic systems.

    Returns:
        Displacements as columns: (3n, 3n − 6); 3n − 5 of linear molecules, see :data:`LINEAR`, 3n − 3 without rotations
        or of an atom.
    """
    rigid = _rigid_motions(pos, weights, rotations)
    return np.linalg.qr(rigid, mode="complete").Q[:, rigid.shape[1] :]


def n_internal_motions(pos: np.ndarray, rotations: bool) -> int:
    """Number of internal motions, see :func:`internal_motions`."""
    return pos.size - _rigid_motions(pos, np.ones(len(pos)), rotations).shape[1]


def _rigid_motions(pos: np.ndarray, weights: np.ndarray, rotations: bool) -> np.ndarray:
    """Orthonormal weighted displacements of translations and infinitesimal rotations as columns, (3n, 3 to 6)."""
    axes = np.eye(3)
    rigid = (weights[:, None, None] * axes / np.linalg.norm(weights)).reshape(-1, 3)
    if rotations:
        from_center = pos - (weights**2 @ pos) / (weights**2).sum()
        turns = np.cross(axes, from_center[:, None])  # (n, axis, 3)
        turns = (weights[:, None, None] * turns).transpose(0, 2, 1).reshape(-1, 3)  # √m e × x
        vectors, lengths, _ = np.linalg.svd(turns, full_matrices=False)  # √ of the moments of inertia
        rigid = np.concatenate([rigid, vectors[:, lengths > LINEAR * max(lengths.max(), 1e-12)]], axis=1)
    return rigid
