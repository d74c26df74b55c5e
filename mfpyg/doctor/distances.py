"""One pass over all distances: the closest atoms, and invariants by which duplicates are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.data import covalent_radii

from mfpyg.doctor.images import closest_images

if TYPE_CHECKING:
    from mfpyg.doctor.view import View

_AT_ONCE = 1 << 20  # distances


@dataclass
class Distances:
    """What one pass over all distances gives.

    Attributes:
        closest: smallest distance over the sum of covalent radii, (n,) float32; infinite for one atom. That to
            the nearest image where conformations are periodic, if only of the same atom.
        invariants: three sums of distances with random signs, Å, (n, 3) float64; the same up to rotation,
            translation and reflection, but not for another order of the atoms. Where conformations are periodic,
            of the atoms as they stand, and of six lengths within the lattice.
    """

    closest: np.ndarray
    invariants: np.ndarray


def measure(view: View) -> Distances:
    """All distances of all conformations, those of one size together, a bounded number at a time."""
    closest = np.full(len(view), np.inf, np.float32)
    invariants = np.zeros((len(view), 3))
    signs: dict[int, np.ndarray] = {}
    for span in view.spans():
        for size in np.unique(span.n_atoms).tolist():
            if size < 2:
                continue
            i, j = np.triu_indices(size, 1)
            if size not in signs:
                signs[size] = np.random.default_rng(size).choice([-1.0, 1.0], (len(i), 3)).astype(np.float32)
            every = span.rows.start + np.flatnonzero(span.n_atoms == size)
            step = max(1, _AT_ONCE // len(i))
            for start in range(0, len(every), step):
                rows = every[start : start + step]
                closest[rows], invariants[rows] = _of_size(view, rows, i, j, signs[size])
    if view.lattice is not None:
        _add_lattices(view, view.lattice, closest, invariants)
    return Distances(closest, invariants)


def _add_lattices(view: View, lattice: np.ndarray, closest: np.ndarray, invariants: np.ndarray) -> None:
    """Put the nearest images into ``closest``, and add the lattice to ``invariants``, of periodic conformations."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (6, 3))
    for row in np.flatnonzero(view.periodic):
        atoms = slice(view.starts[row], view.starts[row + 1])
        vectors = lattice[row].astype(np.float64)
        closest[row] = closest_images(view.pos[atoms].astype(np.float64), view.z[atoms], vectors)[0]
        lengths = np.linalg.norm(np.concatenate([vectors, vectors + np.roll(vectors, 1, axis=0)]), axis=1)  # (6,)
        invariants[row] += lengths @ signs


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
