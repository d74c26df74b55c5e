"""Duplicated conformations: with contradicting labels, across the split, or redundant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from mfpyg.datasets.consistency import align
from mfpyg.doctor.view import LABELS, Finding, View

SAME = "duplicated conformations"
CONTRADICTION = "contradicting labels"
LEAK = "duplicates across the split"

TOLERANCE = 1e-4
"""Largest displacement in Å of an atom between aligned conformations that count as the same."""

ENERGY_TOLERANCE = 1e-3
"""Largest difference in kcal/mol allowed between energies of identical positions."""

ROTATED_TOLERANCE = 0.05
"""As ``ENERGY_TOLERANCE``, for rotated conformations: integration grids do not rotate with the molecule."""

_STEEP = 1000.0  # kcal/mol/Å: energy difference allowed per difference in positions
_FORCE_TOLERANCE = 0.1
_LAGS = 3
_AT_ONCE = 1 << 20


@dataclass
class Pairs:
    """Pairs of identical conformations.

    Attributes:
        first, second: rows, first < second, (m,) int64.
        deviation: largest displacement of an atom after alignment, Å; 0 where positions are identical, (m,).
    """

    first: np.ndarray
    second: np.ndarray
    deviation: np.ndarray


def check(view: View) -> Iterator[Finding]:
    """All checks of duplicates, from one search."""
    pairs = find(view)
    if not len(pairs.first):
        return
    yield from _contradictions(view, pairs)
    yield from _leaks(view, pairs)
    exact = int((pairs.deviation == 0).sum())
    rows = np.unique(pairs.second)
    evidence = (
        f"{len(rows)} conformations repeat others ({exact} pairs identical, {len(pairs.first) - exact} up to "
        f"rotation and translation), e.g. {_names(view, pairs, 0)}"
    )
    fix = "leave out all but one; merge labels of different fidelities into one conformation"
    yield Finding(SAME, "suspect", None, evidence, fix, _rows(pairs, slice(None)))


def find(view: View) -> Pairs:
    """Pairs of conformations with the same atoms in the same order at the same relative positions, and the same charge.

    Periodic ones must also have the same lattice, and their atoms in the same images: duplicates with atoms wrapped
    through a boundary of the cell are not found.

    Conformations are binned by their invariants, in eight grids shifted by half a bin against each other, so that near
    ones share a bin in one of them; neighbours in a bin are then aligned. Time is linear except for the sorting.
    """
    invariants = view.distances.invariants  # (n, 3)
    n_atoms = view.n_atoms
    # Signs are random: a sum of n_atoms²/2 distances, each off by up to 2 tolerances, is off by n_atoms of these.
    near = 2 * TOLERANCE * (n_atoms + 6 * view.periodic)
    width = 2 * near
    keys = np.random.default_rng(2).integers(1 << 63, size=3, dtype=np.uint64) | np.uint64(1)
    found = np.zeros(0, np.int64)  # first · n + second
    for shift in product((0.0, 0.5), repeat=3):
        key = view.sequence.copy()
        for axis in range(3):
            cell = np.floor(invariants[:, axis] / width + shift[axis]).astype(np.int64)
            key += cell.view(np.uint64) * keys[axis]
            key ^= key >> np.uint64(29)
        order = np.argsort(key, kind="stable")  # rows ascend within a bin
        ordered = key[order]
        new = [found]
        for lag in range(1, _LAGS + 1):
            same = np.flatnonzero(ordered[lag:] == ordered[:-lag])
            first, second = order[same], order[same + lag]
            close = (np.abs(invariants[first] - invariants[second]) <= near[first, None]).all(axis=1)
            new.append(first[close] * len(view) + second[close])
        found = np.unique(np.concatenate(new))
    return _verified(view, np.stack(np.divmod(found, len(view)), axis=1))


def _verified(view: View, pairs: np.ndarray) -> Pairs:
    """Pairs that are the same within the tolerance."""
    deviation = np.full(len(pairs), np.inf)
    size = view.n_atoms[pairs[:, 0]]
    possible = (size == view.n_atoms[pairs[:, 1]]) & (view.sequence[pairs[:, 0]] == view.sequence[pairs[:, 1]])
    charge = view.dataset.total_charges
    possible &= charge[pairs[:, 0]] == charge[pairs[:, 1]]
    for n in np.unique(size[possible]).tolist():
        every = np.flatnonzero(possible & (size == n))
        step = max(1, _AT_ONCE // n)
        for start in range(0, len(every), step):
            some = every[start : start + step]
            deviation[some] = _deviation(view, pairs[some])
    same = deviation <= TOLERANCE
    return Pairs(pairs[same, 0], pairs[same, 1], deviation[same])


def _deviation(view: View, pairs: np.ndarray) -> np.ndarray:
    atoms = view.atoms_of(pairs[:, 0]), view.atoms_of(pairs[:, 1])
    a, b = view.pos[atoms[0]], view.pos[atoms[1]]  # (m, n, 3)
    if view.lattice is not None:
        a, b = (_with_lattice(x, view.lattice[rows]) for x, rows in ((a, pairs[:, 0]), (b, pairs[:, 1])))
    result = np.zeros(len(pairs))
    moved = (a != b).any(axis=(1, 2))
    if moved.any():
        a, b, _ = align(a[moved].astype(np.float64), b[moved].astype(np.float64))
        # Positions that differ at all must not count as identical.
        result[moved] = np.maximum(np.sqrt(((a - b) ** 2).sum(axis=2)).max(axis=1), 1e-12)
    result[(view.z[atoms[0]] != view.z[atoms[1]]).any(axis=1)] = np.inf
    return result


def _with_lattice(pos: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Positions with the lattice vectors and their opposites as six extra points about the centre of the atoms.

    Args:
        pos: positions, (m, n, 3), Å.
        lattice: lattice vectors, (m, 3, 3), Å; zeros for molecules, whose alignment the extra points do not change.

    Returns:
        (m, n + 6, 3) float64; the positions of the atoms are exactly those given.
    """
    centre = pos.astype(np.float64).mean(axis=1, keepdims=True)
    return np.concatenate([pos, centre + lattice, centre - lattice], axis=1)


def _contradictions(view: View, pairs: Pairs) -> Iterator[Finding]:
    slack = _STEEP * pairs.deviation * np.sqrt(view.n_atoms[pairs.first])
    allowed = np.where(pairs.deviation == 0, ENERGY_TOLERANCE, ROTATED_TOLERANCE + slack)
    for column, level in view.levels:
        both = view.energy_mask[pairs.first, column] & view.energy_mask[pairs.second, column]
        difference = np.abs(view.energy[pairs.first, column] - view.energy[pairs.second, column])
        bad = np.flatnonzero(both & (difference > allowed))  # NaN where a label is missing
        if len(bad):
            worst = bad[np.argmax(difference[bad])]
            evidence = (
                f"{len(bad)} of {both.sum()} pairs of the same conformation have different energies; the largest "
                f"difference, {difference[worst]:.4g} kcal/mol, is of {_names(view, pairs, int(worst))}"
            )
            fix = "find out which label is right, and leave out the other conformation"
            yield Finding(CONTRADICTION, "certain", level.name, evidence, fix, _rows(pairs, bad))
        yield from _force_contradictions(view, pairs, column, level.name)


def _force_contradictions(view: View, pairs: Pairs, column: int, name: str) -> Iterator[Finding]:
    """Different forces at identical positions."""
    both = view.forces_mask[pairs.first, column] & view.forces_mask[pairs.second, column]
    same = np.flatnonzero(both & (pairs.deviation == 0))
    difference = np.zeros(len(same))
    size = view.n_atoms[pairs.first[same]]
    for n in np.unique(size).tolist():
        some = np.flatnonzero(size == n)
        a, b = view.atoms_of(pairs.first[same[some]]), view.atoms_of(pairs.second[same[some]])
        difference[some] = np.abs(view.forces[a, column] - view.forces[b, column]).max(axis=(1, 2))
    bad = np.flatnonzero(difference > _FORCE_TOLERANCE)
    if len(bad):
        worst = int(bad[np.argmax(difference[bad])])
        evidence = (
            f"{len(bad)} of {len(same)} pairs of identical positions have different forces; the largest difference, "
            f"{difference[worst]:.4g} kcal/mol/Å, is of {_names(view, pairs, int(same[worst]))}"
        )
        fix = "find out which label is right, and leave out the other conformation"
        yield Finding(CONTRADICTION, "certain", name, evidence, fix, _rows(pairs, same[bad]))


def _leaks(view: View, pairs: Pairs) -> Iterator[Finding]:
    a, b = view.split[pairs.first], view.split[pairs.second]
    apart = np.flatnonzero((a != b) & (a >= 0) & (b >= 0))
    if not len(apart):
        return
    with_train = apart[(a[apart] == 0) | (b[apart] == 0)]
    kinds, counts = np.unique(np.sort(np.stack([a[apart], b[apart]], 1), axis=1), axis=0, return_counts=True)
    listed = ", ".join(f"{n} {LABELS[int(x)]}/{LABELS[int(y)]}" for (x, y), n in zip(kinds, counts, strict=True))
    shown = with_train if len(with_train) else apart
    example = _names(view, pairs, int(shown[0]))
    evidence = f"pairs of the same conformation in different splits: {listed}; e.g. {example}"
    fix = "leave out the duplicates before splitting; otherwise test errors are training errors"
    yield Finding(LEAK, "certain" if len(with_train) else "suspect", None, evidence, fix, _rows(pairs, shown))


def _names(view: View, pairs: Pairs, number: int) -> str:
    return f"{view.where(int(pairs.first[number]))} and {view.where(int(pairs.second[number]))}"


def _rows(pairs: Pairs, which: np.ndarray | slice) -> tuple[int, ...]:
    return tuple(np.stack([pairs.first[which], pairs.second[which]], axis=1)[:5].ravel())
