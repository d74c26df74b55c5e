"""One pass over all distances: the closest atoms, and invariants by which duplicates are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.data import covalent_radii

if TYPE_CHECKING:
    from mfpyg.doctor.view import View

_AT_ONCE = 1 << 20  # distances


@dataclass
class Distances:
    """What one pass over all distances gives.

    Attributes:
        closest: smallest distance over the sum of covalent radii, (n,) float32; infinite for one atom.
        invariants: three sums of distances with random signs, Å, (n, 3) float64; the same up to rotation,
            translation and reflection, but not for another order of the atoms.
    """

    closest: np.ndarray
    invariants: np.ndarray


def measure(view: View) -> Distances:
    """All distances of all conformations, those of one size together, a bounded number at a time."""
    closest = np.full(len(view), np.inf, np.float32)
    invariants = np.zeros((len(view), 3))
    signs: dict[int, np.ndarray] = {}
    for chunk in view.chunks():
        for size in np.unique(chunk.n_atoms).tolist():
            if size < 2:
                continue
            i, j = np.triu_indices(size, 1)
            if size not in signs:
                signs[size] = np.random.default_rng(size).choice([-1.0, 1.0], (len(i), 3)).astype(np.float32)
            every = chunk.rows.start + np.flatnonzero(chunk.n_atoms == size)
            step = max(1, _AT_ONCE // len(i))
            for start in range(0, len(every), step):
                rows = every[start : start + step]
                closest[rows], invariants[rows] = _of_size(view, rows, i, j, signs[size])
    return Distances(closest, invariants)


def _of_size(
    view: View, rows: np.ndarray, i: np.ndarray, j: np.ndarray, signs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    atoms = view.atoms_of(rows)
    square = np.zeros((len(rows), len(i)), np.float32)
    for axis in range(3):
        x = view.pos[atoms, axis]  # (m, size)
        square += (x[:, i] - x[:, j]) ** 2
    distance = np.sqrt(square)  # (m, pairs)
    radii = covalent_radii.astype(np.float32)[view.z[atoms]]
    return (distance / (radii[:, i] + radii[:, j])).min(axis=1), distance @ signs
