"""Bonds, close contacts and duplicates of sampled geometries."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

TOO_CLOSE = 0.62
"""Distance over the sum of covalent radii below which a geometry is refused; ``mfpyg-doctor`` calls it suspect."""

BONDED = 1.3
"""Distance over the sum of covalent radii up to which two atoms of the reference geometry are bonded."""

BROKEN = 1.5
"""Length of a bond, over that in the reference geometry, above which it is broken."""

FORMED = 1.15
"""Distance over the sum of covalent radii below which two atoms without a bond in the reference geometry form one."""


def pair_distances(atoms: Atoms) -> np.ndarray:
    """Distances of all pairs of atoms i < j, row by row, to the nearest image, in Å, (n (n − 1) / 2,)."""
    i, j = np.triu_indices(len(atoms), 1)
    if atoms.pbc.any():
        return np.asarray(atoms.get_all_distances(mic=True))[i, j]
    return np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)


def _contact_lengths(atoms: Atoms) -> np.ndarray:
    """Sums of the covalent radii of all pairs of atoms, in Å, as in :func:`pair_distances`."""
    i, j = np.triu_indices(len(atoms), 1)
    radii = covalent_radii[atoms.numbers]
    return radii[i] + radii[j]


def too_close(atoms: Atoms) -> bool:
    """True if two atoms are closer than :data:`TOO_CLOSE`, or a position is not finite."""
    return not bool((pair_distances(atoms) >= TOO_CLOSE * _contact_lengths(atoms)).all())


class Bonds:
    """Bonds of a reference geometry, and whether another geometry of the same atoms has them.

    Thresholds are far from each other, so that vibrations do not count as reactions.

    Args:
        reference: geometry in which atoms up to :data:`BONDED` are bonded.
    """

    def __init__(self, reference: Atoms) -> None:
        distances, contact = pair_distances(reference), _contact_lengths(reference)
        bonded = distances <= BONDED * contact
        self.longest = np.where(bonded, BROKEN * distances, np.inf)
        self.shortest = np.where(bonded, 0.0, np.minimum(FORMED * contact, distances))

    def changed(self, atoms: Atoms) -> bool:
        """True if a bond is broken (see :data:`BROKEN`) or formed (see :data:`FORMED`)."""
        distances = pair_distances(atoms)
        return not bool(((distances <= self.longest) & (distances >= self.shortest)).all())


class Distinct:
    """Geometries of one molecule that differ from each other.

    The deviation of two geometries is the root mean square difference of their interatomic distances, sorted within
    each pair of elements. It is 0 for rotations, reflections and permutations of like atoms.

    Args:
        tolerance: smallest deviation in Å of geometries that count as different.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._known: dict[bytes, list[np.ndarray]] = {}

    def add(self, atoms: Atoms) -> bool:
        """Remember a geometry; False if it is the same as an earlier one."""
        key, distances = sorted_distances(atoms)
        known = self._known.setdefault(key, [])
        if known and len(distances):
            deviation = np.sqrt(((np.array(known) - distances) ** 2).mean(axis=1))
            if deviation.min() < self.tolerance:
                return False
        elif known:  # single atoms
            return False
        known.append(distances)
        return True


def sorted_distances(atoms: Atoms) -> tuple[bytes, np.ndarray]:
    """Sorted atomic numbers as bytes, and distances in Å ordered by pair of elements and length, (n (n − 1) / 2,)."""
    i, j = np.triu_indices(len(atoms), 1)
    z = np.sort(np.stack([atoms.numbers[i], atoms.numbers[j]]), axis=0)
    distances = pair_distances(atoms)
    return np.sort(atoms.numbers).tobytes(), distances[np.lexsort((distances, z[1], z[0]))]
