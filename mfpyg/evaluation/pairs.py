"""Pairs of near geometries: their energy difference is a directional force, also at levels that have energies only.

Of two geometries a and b of the same atoms, with d = x_b − x_a and the unit vector u = d / |d|,

    −(E_b − E_a) / |d| = ∫₀¹ F(x_a + t d)·u dt = F(x_a + d/2)·u + O(|d|²).

The mean force along the line is exact: compared with the same quotient of a potential's energies, it has no error of
discretisation. The force at the midpoint has one of third derivatives, |d|² ∂³E/∂u³ / 24.

The default step is an RMS displacement of 0.01 Å, |d| = 0.01 √n Å. Between geometries of ethanol displaced by 0.06 Å
per coordinate, the force at the midpoint (GFN2-xTB) then differs from the quotient by 0.06 kcal/mol/Å (RMS; 0.26 of
water, 0.15 of H₂), 0.1 to 0.2 % of the directional forces. Errors of 1e-7 Hartree in the energies, as those of CCSD(T)
with PySCF's default thresholds, change the quotient by 0.003 kcal/mol/Å, those of 1e-6 Hartree by 0.03. A step of
0.02 Å has four times the first error and half of the second. Networks in float32 change it by 0.0005 kcal/mol/Å (RMS,
trained on molecules of up to nine atoms), of which errors of 0.1 do not notice anything.

Directions are isotropic among the displacements orthogonal to translations and rotations, of which there are
k = 3n − 6 (3n − 5 of linear molecules). Errors of forces that are orthogonal to rigid motions, too, as are those of
invariant potentials, then have the mean square per component ⟨(ΔF·u)²⟩ k / 3n.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from mfpyg.errors import MFPyGError
from mfpyg.rigid import n_internal_motions

if TYPE_CHECKING:
    from mfpyg.datasets.conformations import ConformationDataset

DIRECTIONAL_FORCE = "directional_force"
"""Name of the mean forces along pairs in errors and logs."""

NEAR = 0.03
"""RMS displacement in Å up to which two geometries are near."""

SAME = 1e-3
"""RMS displacement in Å below which two geometries are too near to tell their energies apart."""

_AXES, _TILE, _PART = 16, 512, 1 << 16


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
    z: Sequence[np.ndarray],
    pos: Sequence[np.ndarray],
    keys: Sequence[Hashable | None] | None = None,
    kinds: Sequence[Hashable] | None = None,
) -> list[Pair]:
    """Find the pairs among geometries.

    Args:
        z: atomic numbers of each geometry, (n,).
        pos: positions of each geometry in Å, (n, 3). Of periodic systems, atoms must be in the same images.
        keys: the ``pair`` of each geometry, ``None`` for those without. Default: pairs are geometries of the same atoms
            in the same order, each of which is the nearest of the other, at an RMS displacement from :data:`SAME` to
            :data:`NEAR`. Molecules are not aligned.
        kinds: without keys, only geometries of the same kind are pairs, as of the same charge, spin and cell.

    Returns:
        The pairs, in the order of their first geometries, whose numbers are the smaller ones.

    Raises:
        MFPyGError: for a key that not exactly two geometries have, or that two geometries have with different atoms or
            the same positions.
    """
    pairs = [
        Pair(i, j, displacement / length, length)
        for i, j in (_mutually_nearest(z, pos, kinds) if keys is None else _of_keys(keys))
        for displacement, length in [_displacement(z, pos, i, j)]
    ]
    return sorted(pairs, key=lambda pair: pair.first)


def pairs_of(dataset: ConformationDataset, rows: np.ndarray) -> list[Pair]:
    """Pairs by nearness among conformations of a data set with energies, see :func:`find_pairs`.

    The members of a pair have the same molecule, total charge and cell. Data sets do not know spins, so that states of
    different spin must be different levels.

    Args:
        dataset: whole data set, not a subset.
        rows: numbers of the conformations, (n,) int64.

    Returns:
        Pairs of row numbers.
    """
    data, starts = dataset._data, dataset.slices["z"].numpy()
    z, pos = data.z.numpy(), data.pos.numpy()
    rows = rows[data.energy_mask.numpy()[rows].any(axis=1)]
    rows = rows[np.lexsort((rows, data.molecule.numpy()[rows]))]
    kinds = _kinds(dataset, rows)
    found = []
    by_molecule = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(data.molecule.numpy()[rows])) + 1)
    for at in (at for at in by_molecule if len(at) > 1):
        group, of_group = rows[at], [row.tobytes() for row in kinds[at]]
        atoms = [slice(a, b) for a, b in zip(starts[group].tolist(), starts[group + 1].tolist(), strict=True)]
        pairs = find_pairs([z[of] for of in atoms], [pos[of] for of in atoms], kinds=of_group)
        found += [pair._replace(first=int(group[pair.first]), second=int(group[pair.second])) for pair in pairs]
    return sorted(found, key=lambda pair: pair.first)


def _kinds(dataset: ConformationDataset, rows: np.ndarray) -> np.ndarray:
    """Total charge, cell and periodicity of each conformation, (n_rows, 1 or 13) float32."""
    charge = dataset.total_charges[rows, None]
    if "cell" not in dataset.slices:
        return charge
    cell, pbc = dataset._data.cell.numpy()[rows].reshape(-1, 9), dataset._data.pbc.numpy()[rows]
    return np.hstack([charge, cell, pbc.astype(np.float32)])


def component_error(dataset: ConformationDataset, pairs: Sequence[Pair], errors: np.ndarray) -> float:
    """RMSE of the components of forces, estimated from the errors of directional forces along random directions.

    The square root of Σ k e² / Σ 3n over the pairs, n being the number of atoms and k that of internal motions; exact
    on average if directions are isotropic among the latter, as those of ``mfpyg-sample --pairs``.

    Args:
        dataset: data set of the pairs.
        pairs: from :func:`pairs_of`, m of them.
        errors: errors of their directional forces, (m,) in any unit.
    """
    starts, pos, periodic = dataset.slices["z"].numpy(), dataset._data.pos.numpy(), dataset.periodic
    of_first = [(pos[starts[pair.first] : starts[pair.first + 1]], periodic[pair.first]) for pair in pairs]
    k = [n_internal_motions(x.astype(np.float64), rotations=not in_cell) for x, in_cell in of_first]
    return float(np.sqrt(np.dot(k, errors**2) / sum(x.size for x, _ in of_first)))


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


def _mutually_nearest(
    z: Sequence[np.ndarray], pos: Sequence[np.ndarray], kinds: Sequence[Hashable] | None
) -> list[tuple[int, int]]:
    """Geometries of the same atoms and kind that are each the nearest of the other."""
    groups: dict[Hashable, list[int]] = {}
    for row, numbers in enumerate(z):
        key = np.asarray(numbers, np.int64).tobytes(), None if kinds is None else kinds[row]
        groups.setdefault(key, []).append(row)
    result = []
    for rows in groups.values():
        if len(rows) > 1:
            nearest = _nearest(np.stack([np.asarray(pos[row], np.float64).ravel() for row in rows]))
            one = np.flatnonzero(nearest >= 0)
            one = one[(nearest[nearest[one]] == one) & (one < nearest[one])]
            result += [(rows[i], rows[j]) for i, j in zip(one.tolist(), nearest[one].tolist(), strict=True)]
    return result


def _nearest(points: np.ndarray) -> np.ndarray:
    """Number of the nearest point of each, from :data:`SAME` to :data:`NEAR` apart; −1 without one.

    Args:
        points: (n, 3 n_atoms) float64.
    """
    root = np.sqrt(points.shape[1] / 3)
    if len(points) > _TILE:
        return _nearest_of_many(points, root)
    length = cdist(points, points)
    length[(length < SAME * root) | (length > NEAR * root)] = np.inf
    return np.where(np.isfinite(length).any(axis=1), length.argmin(axis=1), -1)


def _nearest_of_many(points: np.ndarray, root: float) -> np.ndarray:
    """As :func:`_nearest`, without most of the distances.

    Those along some principal axes, which are not larger than the whole ones, rule out most points by products of
    matrices. In tens of dimensions, k-d trees are slower.
    """
    centered = points - points.mean(axis=0)
    axes = np.linalg.eigh(centered.T @ centered)[1][:, ::-1]  # the widest first
    along = (centered @ axes[:, :_AXES]).astype(np.float32)
    order = np.argsort(along[:, 0])
    points, along = points[order], along[order]
    half, ones = (along**2).sum(axis=1, keepdims=True) / 2, np.ones((len(points), 1), np.float32)
    most = np.float32((NEAR * root) ** 2 / 2 + 1e-5 * half.max())  # with the rounding of the products
    one, other = np.hstack([-along, half - most, ones]), np.hstack([along, ones, half])  # products: squares / 2 - most
    best, nearest = np.full(len(points), np.inf), np.full(len(points), -1)
    for a in range(0, len(points), _TILE):
        left = slice(a, a + _TILE)
        end = np.searchsorted(along[:, 0], along[left, 0][-1] + np.sqrt(2 * most), side="right")
        for b in range(a, end, _TILE):
            excess = one[left] @ other[b : b + _TILE].T
            i, j = np.divmod(np.flatnonzero(excess <= 0), excess.shape[1])
            i, j = i + a, j + b
            for part in np.array_split(np.flatnonzero(i < j), len(i) // _PART + 1):
                _update(best, nearest, points, i[part], j[part], root)
    found = np.full(len(points), -1)
    found[order] = np.where(nearest < 0, -1, order[nearest])
    return found


def _update(
    best: np.ndarray, nearest: np.ndarray, points: np.ndarray, i: np.ndarray, j: np.ndarray, root: float
) -> None:
    """Take the points j (m,) for the nearest of i (m,), and the reverse, where they are nearer than the best so far."""
    length = np.linalg.norm(points[i] - points[j], axis=1)
    near = (length >= SAME * root) & (length <= NEAR * root)
    i, j, length = i[near], j[near], length[near]
    for one, other in ((i, j), (j, i)):
        np.minimum.at(best, one, length)
        nearer = length == best[one]
        nearest[one[nearer]] = other[nearer]
