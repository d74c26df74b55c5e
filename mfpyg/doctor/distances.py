"""Interatomic distances: closest atoms, invariants for finding duplicates, and periodic images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell, minkowski_reduce

REACH = 3.5
"""Distance in Å up to which the nearest image is found; beyond it, the image may be another."""

_MOST_SHIFTS = 3
_AT_ONCE = 1 << 20


@dataclass
class Distances:
    """Results of one pass over all interatomic distances.

    Attributes:
        closest: smallest distance over the sum of covalent radii, (n,) float32; infinite for one atom. In periodic
            conformations to the nearest image, also of the same atom.
        invariants: three sums of distances with random signs, Å, (n, 3) float64; invariant under rotation, translation
            and reflection, but not under permutations of the atoms. In periodic conformations they are of the atoms as
            given, without images, and of six lengths of the lattice.
    """

    closest: np.ndarray
    invariants: np.ndarray


def measure(z: np.ndarray, pos: np.ndarray, starts: np.ndarray, lattice: np.ndarray | None) -> Distances:
    """Closest atoms and invariants of all conformations, in batches of one size.

    Args:
        z, pos: atomic numbers (n_atoms,) and positions (n_atoms, 3), Å, of all conformations.
        starts: first atom of each conformation, and the end, (n + 1,).
        lattice: lattice vectors as rows, Å, zero where nothing is repeated, (n, 3, 3); ``None`` for molecules.
    """
    sizes = np.diff(starts)
    closest, invariants = np.full(len(sizes), np.inf, np.float32), np.zeros((len(sizes), 3))
    for size in np.unique(sizes).tolist():
        if size < 2:
            continue
        i, j = np.triu_indices(size, 1)
        signs = np.random.default_rng(size).choice([-1.0, 1.0], (len(i), 3)).astype(np.float32)
        every = np.flatnonzero(sizes == size)
        step = max(1, _AT_ONCE // len(i))
        for first in range(0, len(every), step):
            rows = every[first : first + step]
            atoms = starts[rows][:, None] + np.arange(size)  # (m, size)
            square = np.zeros((len(rows), len(i)), np.float32)
            for axis in range(3):
                x = pos[atoms, axis]
                square += (x[:, i] - x[:, j]) ** 2
            distance = np.sqrt(square)  # (m, pairs)
            radii = covalent_radii.astype(np.float32)[z[atoms]]
            closest[rows] = (distance / (radii[:, i] + radii[:, j])).min(axis=1)
            invariants[rows] = distance @ signs
    if lattice is not None:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (6, 3))
        for row in np.flatnonzero(lattice.any(axis=(1, 2))):
            own, vectors = slice(starts[row], starts[row + 1]), lattice[row].astype(np.float64)
            closest[row] = closest_images(pos[own].astype(np.float64), z[own], vectors)[0]
            lengths = np.linalg.norm(np.concatenate([vectors, vectors + np.roll(vectors, 1, axis=0)]), axis=1)  # (6,)
            invariants[row] += lengths @ signs
    return Distances(closest, invariants)


def closest_images(pos: np.ndarray, z: np.ndarray, lattice: np.ndarray) -> tuple[float, float, int, int]:
    """Closest two atoms of a periodic conformation, which may be an atom and its own image.

    Args:
        pos: positions, (n, 3), Å.
        z: atomic numbers, (n,).
        lattice: lattice vectors as rows, Å, (3, 3); zero where nothing is repeated.

    Returns:
        Their distance over the sum of covalent radii; their distance in Å; their numbers, the same for an image.
    """
    periodic = lattice.any(axis=1)
    # The shortest vectors of the lattice, so that few images are near.
    cell = np.asarray(minkowski_reduce(complete_cell(lattice), periodic)[0])
    inverse = np.linalg.inv(cell)
    heights = 1 / np.linalg.norm(inverse, axis=0)  # (3,) between lattice planes
    most = np.where(periodic, np.minimum(np.floor(REACH / heights + 0.5), _MOST_SHIFTS), 0).astype(int)
    shifts = np.array(list(product(*(range(-m, m + 1) for m in most)))) @ cell  # (n_shifts, 3)
    radii = covalent_radii[z]
    largest = int(np.argmax(radii))
    own = float(np.linalg.norm(cell[periodic], axis=1).min())
    best = (own / (2 * float(radii[largest])), own, largest, largest)
    first, second = np.triu_indices(len(z), 1)
    for start in range(0, len(first), _AT_ONCE):
        i, j = first[start : start + _AT_ONCE], second[start : start + _AT_ONCE]
        fractions = (pos[i] - pos[j]) @ inverse
        fractions[:, periodic] -= np.rint(fractions[:, periodic])
        vectors = fractions @ cell  # (pairs, 3)
        square = np.full(len(i), np.inf)
        for shift in shifts:
            np.minimum(square, ((vectors + shift) ** 2).sum(axis=1), out=square)
        ratio = np.sqrt(square) / (radii[i] + radii[j])
        k = int(np.argmin(ratio))
        best = min(best, (float(ratio[k]), float(np.sqrt(square[k])), int(i[k]), int(j[k])))
    return best


def followed(pos: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Unwrap conformations in one cell: move each atom to the image nearest to its position in the first one.

    Args:
        pos: positions with the same order of atoms, (n, n_atoms, 3), Å.
        lattice: lattice vectors of all conformations, as in :func:`closest_images`.
    """
    periodic = lattice.any(axis=1)
    cell = complete_cell(lattice)
    fractions = (pos - pos[:1]).astype(np.float64) @ np.linalg.inv(cell)
    fractions[..., ~periodic] = 0
    return pos - np.rint(fractions) @ cell
