"""Pairs of near geometries: their energy difference is a directional force, also at levels that have energies only.

Of two geometries a and b of the same atoms, with d = x_b − x_a and the unit vector u = d / |d|,

    −(E_b − E_a) / |d| = ∫₀¹ F(x_a + t d)·u dt = F(x_a + d/2)·u + O(|d|²).

The mean force along the line is exact: compared with the same quotient of a potential's energies, it has no error of
discretisation. The force at the midpoint has one of third derivatives, |d|² ∂³E/∂u³ / 24.

The default step is an RMS displacement of 0.01 Å, |d| = 0.01 √n Å. Between geometries of ethanol displaced by 0.06 Å
per coordinate, the force at the midpoint (GFN2-xTB) then differs from the quotient by 0.06 kcal/mol/Å (RMS; 0.26 of
water, 0.15 of H₂), 0.1 to 0.2 % of the directional forces. Errors of 1e-7 Hartree in the energies, as those of CCSD(T)
with PySCF's default thresholds, change the quotient by 0.003 kcal/mol/Å, those of 1e-6 Hartree by 0.03. A step of
0.02 Å has four times the first error and half of the second.

Directions are isotropic among the displacements orthogonal to translations and rotations, of which there are
k = 3n − 6 (3n − 5 of linear molecules). Errors of forces that are orthogonal to rigid motions, too, as are those of
invariant potentials, then have the mean square per component ⟨(ΔF·u)²⟩ k / 3n.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from mfpyg.errors import MFPyGError
from mfpyg.rigid import internal_motions

NEAR = 0.03
"""RMS displacement in Å up to which two geometries are near."""

SAME = 1e-3
"""RMS displacement in Å below which two geometries are too near to tell their energies apart."""


def partner(atoms: Atoms, step: float, rng: np.random.Generator) -> np.ndarray:
    """Positions near those of the atoms, displaced in a random direction without translation and rotation.

    Args:
        atoms: a molecule of at least two atoms, or a periodic system.
        step: RMS displacement of the atoms in Å.
        rng: source of random numbers.

    Returns:
        Positions in Å, (n, 3).
    """
    motions = internal_motions(atoms.positions, np.ones(len(atoms)), rotations=not atoms.pbc.any())  # (3n, k)
    direction = motions @ rng.standard_normal(motions.shape[1])
    direction *= step * np.sqrt(len(atoms)) / np.linalg.norm(direction)
    return atoms.positions + direction.reshape(-1, 3)


class Pair(NamedTuple):
    """Two near geometries.

    Attributes:
        first, second: their numbers.
        direction: unit vector of the displacement from the first to the second, (n, 3).
        length: length of the displacement in Å, in 3n dimensions.
    """

    first: int
    second: int
    direction: np.ndarray
    length: float


def find_pairs(
    z: Sequence[np.ndarray], pos: Sequence[np.ndarray], keys: Sequence[Hashable | None] | None = None
) -> list[Pair]:
    """Find the pairs among geometries.

    Args:
        z: atomic numbers of each geometry, (n,).
        pos: positions of each geometry in Å, (n, 3). Of periodic systems, atoms must be in the same images.
        keys: the ``pair`` of each geometry, ``None`` for those without. Default: pairs are geometries of the same atoms
            in the same order at an RMS displacement from :data:`SAME` to :data:`NEAR`; nearest ones first, and none is
            in two pairs. Molecules that differ in charge or spin must not be among them.

    Returns:
        The pairs, in the order of their first geometries, whose numbers are the smaller ones.

    Raises:
        MFPyGError: for a key that not exactly two geometries have, or that two geometries have with different atoms or
            the same positions.
    """
    pairs = [
        Pair(i, j, displacement / length, length)
        for i, j in (_nearest(z, pos) if keys is None else _of_keys(keys))
        for displacement, length in [_displacement(z, pos, i, j)]
    ]
    return sorted(pairs, key=lambda pair: pair.first)


def directional_forces(pairs: Sequence[Pair], energy: np.ndarray) -> np.ndarray:
    """Mean force along each pair's direction, −(E_b − E_a) / |d|.

    Args:
        pairs: from :func:`find_pairs`.
        energy: energies of all geometries, (n_geometries,) or (n_geometries, n_levels), float64; NaN where missing.

    Returns:
        (n_pairs,) or (n_pairs, n_levels), in the unit of the energies by Å; NaN where an energy is missing.
    """
    first, second = (np.array([pair[k] for pair in pairs], np.int64) for k in (0, 1))
    length = np.array([pair.length for pair in pairs]).reshape(-1, *[1] * (np.ndim(energy) - 1))
    return -(np.asarray(energy)[second] - np.asarray(energy)[first]) / length


def _displacement(z: Sequence[np.ndarray], pos: Sequence[np.ndarray], i: int, j: int) -> tuple[np.ndarray, float]:
    if not np.array_equal(z[i], z[j]):
        raise MFPyGError(f"geometries {i} and {j} of a pair have different atoms; expected the same in the same order")
    displacement = np.asarray(pos[j], np.float64) - np.asarray(pos[i], np.float64)
    length = float(np.linalg.norm(displacement))
    if length == 0:
        raise MFPyGError(f"geometries {i} and {j} of a pair are the same; expected near ones")
    return displacement, length


def _of_keys(keys: Sequence[Hashable | None]) -> list[tuple[int, int]]:
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            rows.setdefault(key, []).append(row)
    for key, found in rows.items():
        if len(found) != 2:
            raise MFPyGError(f"pair '{key}' has {len(found)} geometries, expected 2")
    return [(first, second) for first, second in rows.values()]


def _nearest(z: Sequence[np.ndarray], pos: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs by nearness, each geometry in one at most."""
    groups: dict[bytes, list[int]] = {}
    for row, numbers in enumerate(z):
        groups.setdefault(np.asarray(numbers, np.int64).tobytes(), []).append(row)
    result = []
    for rows in groups.values():
        points = np.stack([np.asarray(pos[row], np.float64).ravel() for row in rows])
        root = np.sqrt(points.shape[1] / 3)
        near = cKDTree(points).query_pairs(NEAR * root, output_type="ndarray")  # (m, 2), first < second
        length = np.linalg.norm(points[near[:, 0]] - points[near[:, 1]], axis=1)
        taken: set[int] = set()
        for k in np.argsort(length, kind="stable"):
            i, j = near[k].tolist()
            if length[k] >= SAME * root and not taken & {i, j}:
                taken |= {i, j}
                result.append((rows[i], rows[j]))
    return result
