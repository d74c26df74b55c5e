"""Consistency of energies and forces: the slope of energy differences against work.

Between two near conformations a and b of one molecule, the trapezoid rule gives

    E_b − E_a = −½ (F_a + F_b) · (R_b − R_a) + O(|R_b − R_a|³),

so that the slope of the left side against the right side is 1 for true forces −dE/dx in the unit of the energy per Å,
−1 for gradients, and a ratio of units if one of them is wrong. Overall translation and rotation do no work, as true
forces have no sum and no torque; they are removed by the alignment of Kabsch, Acta Cryst. A 32, 922 (1976).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch_geometric.data import Data

FARTHEST = 1.0
"""Largest distance of a pair in configuration space, Å; beyond it the trapezoid rule fails."""

_CURVATURE = 30.0  # error of the trapezoid rule, kcal/mol/Å³: about a stretched C-H bond's third derivative / 100
_NOISE = 0.01  # noise of labels, kcal/mol
_FAR = 30.0  # multiple of the median change above which a pair has a wrong label and is left out
_CANDIDATES, _QUERIES, _DISTANCES = 2000, 400, 600

_MOLECULES, _CONFORMATIONS = 100, 100  # maxima for the check of the sign; conformations per molecule
_ENOUGH_PAIRS, _CORRELATED = 20, 0.9


@dataclass(frozen=True)
class Slope:
    """Slope of ΔE against work, through the origin.

    Attributes:
        value: slope, 1 if energies and forces are consistent.
        error: standard error of the slope.
        correlation: of ΔE and work, weighted as in the fit; its square is R².
        n_pairs: number of pairs fitted, without outliers.
        n_effective: number of pairs of equal weight with the same information.
    """

    value: float
    error: float
    correlation: float
    n_pairs: int
    n_effective: float

    @classmethod
    def fit(cls, d_energy: np.ndarray, work: np.ndarray, displacement: np.ndarray) -> Slope:
        """Robust regression through the origin, with weights by displacement and Huber's weights for outliers.

        Pairs are weighted by the inverse square of the trapezoid rule's error at their displacement, so that the
        nearest count most. Those whose |ΔE| or |work| is more than 30 times the median at their displacement are left
        out first: Huber's weights do not bound the influence of a single large work.

        Args:
            d_energy, work: as from :func:`energy_work_pairs`, (m,), kcal/mol.
            displacement: displacement of each pair, (m,), Å.
        """
        usual = _usual(d_energy, displacement) & _usual(work, displacement)
        d_energy, work, displacement = d_energy[usual], work[usual], displacement[usual]
        base = 1 / ((_CURVATURE * displacement**3) ** 2 + _NOISE**2)  # (m,)
        if not (base * work**2).sum() > 0 or not (base * d_energy**2).sum() > 0:
            return cls(0.0, np.inf, 0.0, len(work), 0.0)
        weight = base
        for _ in range(20):
            value = float((weight * d_energy * work).sum() / (weight * work**2).sum())
            residual = np.abs(d_energy - value * work) * np.sqrt(base)
            scale = 2.5 * 1.4826 * np.median(residual)
            weight = base * np.minimum(1, scale / np.maximum(residual, 1e-300)) if scale > 0 else base
        information = weight * work**2
        total = information.sum()
        error = np.sqrt((weight**2 * work**2 * (d_energy - value * work) ** 2).sum()) / total
        correlation = (weight * d_energy * work).sum() / np.sqrt(total * (weight * d_energy**2).sum())
        return cls(value, float(error), float(correlation), len(work), float(total**2 / (information**2).sum()))


def _usual(change: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """True for changes (kcal/mol) of at most 30 times the median at their displacement, (m,) bool."""
    moved = displacement > 0
    size = np.abs(change)
    typical = float(np.median(size[moved] / displacement[moved])) if moved.any() else 0.0
    return size <= _FAR * typical * displacement + _NOISE if typical > 0 else np.ones(len(change), bool)


def spread_rows(n: int, most: int, run: int = 50) -> np.ndarray:
    """At most ``most`` of n row numbers, in evenly spaced runs, as neighbours in a trajectory are similar."""
    if n <= most:
        return np.arange(n)
    first = np.linspace(0, n - run, max(1, most // run)).astype(np.int64)
    return np.unique(first[:, None] + np.arange(run))


def near_pairs(pos: np.ndarray, max_pairs: int, first: int | None = None) -> np.ndarray:
    """Nearest neighbours among conformations of one molecule, by their interatomic distances.

    At most 2,000 conformations and 600 distances, evenly selected, are compared.

    Args:
        pos: positions with the same order of atoms, (n, n_atoms, 3), Å.
        max_pairs: maximum number of pairs.
        first: number of the leading conformations whose neighbours are found; those of all if not given.

    Returns:
        Numbers of both conformations of each pair, the smaller first, (m, 2) int64; the nearest pair first.
    """
    chosen = spread_rows(len(pos), _CANDIDATES)
    if len(chosen) < 2 or pos.shape[1] < 2 or max_pairs < 1:
        return np.zeros((0, 2), np.int64)
    i, j = np.triu_indices(pos.shape[1], 1)
    kept = np.linspace(0, len(i) - 1, min(len(i), _DISTANCES)).astype(np.int64)
    sample = pos[chosen].astype(np.float64)
    distances = np.linalg.norm(sample[:, i[kept]] - sample[:, j[kept]], axis=-1)  # (n, n_distances)
    distances -= distances.mean(axis=0)
    square = (distances**2).sum(axis=1)
    query = spread_rows(len(chosen) if first is None else min(first, len(chosen)), _QUERIES)
    apart = square[query, None] + square - 2 * distances[query] @ distances.T  # (n_queries, n)
    apart[np.arange(len(query)), query] = np.inf
    k = min(3, len(chosen) - 1)
    nearest = np.argpartition(apart, k - 1, axis=1)[:, :k]
    a, b = np.repeat(query, k), nearest.ravel()
    order = np.argsort(apart[np.repeat(np.arange(len(query)), k), b], kind="stable")
    pairs = np.sort(np.stack([a, b], axis=1)[order], axis=1)
    _, new = np.unique(pairs, axis=0, return_index=True)
    return chosen[pairs[np.sort(new)[:max_pairs]]]


def align(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre pairs of conformations a and b, and rotate b onto a, without reflection.

    Args:
        a, b: positions, (m, n_atoms, 3), Å.

    Returns:
        Centred a, centred and rotated b, both (m, n_atoms, 3), and rotations R (m, 3, 3), which turn a row v into v R.
    """
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    u, _, vt = np.linalg.svd(b.transpose(0, 2, 1) @ a)
    u[:, :, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation = u @ vt
    return a, b @ rotation, rotation


def energy_work_pairs(
    pos: np.ndarray, energy: np.ndarray, forces: np.ndarray, max_pairs: int = 400, *, turned: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energy differences and work between near conformations of one molecule.

    Args:
        pos: positions with the same order of atoms, (n, n_atoms, 3), Å.
        energy: total energies, (n,), kcal/mol.
        forces: −dE/dx, (n, n_atoms, 3), kcal/mol/Å.
        max_pairs: maximum number of pairs.
        turned: whether to align rotations; False in a fixed lattice, where a rotation does work.

    Returns:
        ΔE = E_b − E_a and work −½ (F_a + F_b)·(R_b − R_a) of each pair, (m,) kcal/mol, and the displacement
        |R_b − R_a| in configuration space, (m,) Å; only of pairs nearer than ``FARTHEST``.
    """
    first, second = near_pairs(pos, max_pairs).T
    a, b = pos[first].astype(np.float64), pos[second].astype(np.float64)
    if turned:
        a, b, rotation = align(a, b)
    else:
        a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
        rotation = np.eye(3)
    step = b - a  # (m, n_atoms, 3)
    displacement = np.sqrt((step**2).sum(axis=(1, 2)))
    mean = (forces[first] + forces[second].astype(np.float64) @ rotation) / 2
    work = -(mean * step).sum(axis=(1, 2))
    near = displacement < FARTHEST
    return (energy[second] - energy[first])[near], work[near], displacement[near]


def negated_forces(data: Data, starts: np.ndarray, rows: np.ndarray) -> Slope | None:
    """Slope of ΔE against work if it shows that the forces of the first level are gradients, else ``None``.

    Args:
        data: collated data set.
        starts: first atom of each conformation, and the end, (n + 1,).
        rows: numbers of the conformations to compare.
    """
    molecule = data.molecule.numpy()
    rows = rows[np.argsort(molecule[rows], kind="stable")]
    groups = np.split(rows, np.flatnonzero(np.diff(molecule[rows])) + 1)
    found = [np.empty((3, 0))]
    for group in (groups[i] for i in spread_rows(len(groups), _MOLECULES, run=1)):
        part = group[spread_rows(len(group), _CONFORMATIONS)]
        atoms = starts[part][:, None] + np.arange(starts[group[0] + 1] - starts[group[0]])  # (n, n_atoms)
        energy, forces = data.energy[part, 0].numpy(), data.forces[:, 0].numpy()[atoms]
        found.append(np.stack(energy_work_pairs(data.pos.numpy()[atoms], energy, forces)))
    slope = Slope.fit(*np.concatenate(found, axis=1))
    return slope if slope.n_pairs >= _ENOUGH_PAIRS and slope.correlation < -_CORRELATED else None
