"""Atoms of periodic conformations: the closest ones among all images, and the same ones through boundaries."""

from __future__ import annotations

from itertools import product

import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell, minkowski_reduce

REACH = 3.5
"""Å up to which the distance to the nearest image is exact; beyond, it may be that to another image."""

_MOST_SHIFTS = 3
_AT_ONCE = 1 << 20


def closest_images(pos: np.ndarray, z: np.ndarray, lattice: np.ndarray) -> tuple[float, float, int, int]:
    """The closest two atoms of a periodic conformation, which may be one atom and its own image.

    Args:
        pos: positions, (n, 3), Å.
        z: atomic numbers, (n,).
        lattice: lattice vectors as rows, Å, (3, 3); zero where nothing is repeated.

    Returns:
        Their distance over the sum of covalent radii; their distance in Å; their numbers, the same for an image.
    """
    periodic = lattice.any(axis=1)
    # Reduced vectors are the shortest that there are, so that few images are near.
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
    """Conformations in one cell with each atom in the image that is near its place in the first one.

    Args:
        pos: positions with the same order of atoms, (n, n_atoms, 3), Å.
        lattice: as in :func:`closest_images`, of all of them.
    """
    periodic = lattice.any(axis=1)
    cell = complete_cell(lattice)
    fractions = (pos - pos[:1]).astype(np.float64) @ np.linalg.inv(cell)
    fractions[..., ~periodic] = 0
    return pos - np.rint(fractions) @ cell
