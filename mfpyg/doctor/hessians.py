"""Hessians that are zero, not symmetric, do not add up to zero, or do not match the forces of near conformations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from mfpyg.datasets.consistency import FARTHEST, align, near_pairs, spread_rows
from mfpyg.doctor.distances import followed
from mfpyg.doctor.slope import EFFECTIVE, FEWEST, IN_GROUP, fitted, forces_wrong, groups, judge
from mfpyg.doctor.stresses import asymmetry
from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory

AGAINST_FORCES = "forces against Hessians"
AGAINST_ENERGIES = "energies against Hessians"
ZERO = "zero Hessians"
SUMS = "sums of Hessians"

NOISE, GROSS = 1e-3, 0.05
"""Sums of the rows of a Hessian over its largest component that are noted, and that are suspicious.

Grids of density functionals give 0.003, and 0.022 at most (the bundled data).
"""

_HESSIANS, _CENTRES = 400, 8  # of a molecule, compared with forces and with energies
_MOST_PAIRS = 400  # of a molecule
_OPPOSITE = 0.02  # largest |d + d'| / |d| of opposite displacements
_PAIRS_AT_ONCE = 1 << 19


def check(view: View) -> Iterator[Finding]:
    """Symmetry of Hessians, sums of their rows, and the slope of differences of forces or energies against them."""
    for column, level in view.levels:
        labelled = view.mask("H")[:, column]
        if not labelled.any():
            continue
        rows, largest, off, sums = _sizes(view, column, np.flatnonzero(labelled))
        zero = rows[(largest == 0) & (view.n_atoms[rows] > 1)]
        if len(zero):
            text = f"{len(zero)} of {len(rows)} Hessians are exactly zero, e.g. {view.where(int(zero[0]))}"
            yield Finding(
                ZERO, "certain", level.name, text, "zeros stand for missing Hessians: make them NaN", tuple(zero)
            )
        fix = "check the order of the axes: (n_atoms, 3, n_atoms, 3) in files"
        yield from asymmetry(view, level.name, "Hessians", rows, off, fix)
        yield from _sums(view, level.name, rows, sums)
        for source, of_source, own in view.parts(column):
            finding = _judge(view, column, of_source, own, f" in {source}" if source else "")
            if finding is not None:
                yield finding


def blocks(view: View, column: int, rows: np.ndarray) -> np.ndarray:
    """Hessians H[i, j, a, b] of labelled conformations of one size, (m, n_atoms, n_atoms, 3, 3), kcal/mol/Å²."""
    n_atoms = int(view.n_atoms[rows[0]])
    before = view.mask("H")[rows, :column].sum(axis=1)
    starts = view.dataset.slices["hessian"].numpy()[rows] + n_atoms**2 * before
    return view.labels("H")[starts[:, None] + np.arange(n_atoms**2)].reshape(-1, n_atoms, n_atoms, 3, 3)


def _sizes(view: View, column: int, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows by size, and for each the largest component, and the asymmetry and the largest sum of a row over it."""
    parts = []
    sizes = view.n_atoms[rows]
    for size in np.unique(sizes).tolist():
        every = rows[sizes == size]
        step = max(1, _PAIRS_AT_ONCE // size**2)
        for start in range(0, len(every), step):
            some = every[start : start + step]
            hessian = blocks(view, column, some)
            largest = np.abs(hessian).max(axis=(1, 2, 3, 4))
            off = np.abs(hessian - hessian.transpose(0, 2, 1, 4, 3)).max(axis=(1, 2, 3, 4))
            sums = np.abs(hessian.sum(axis=2, dtype=np.float64)).max(axis=(1, 2, 3))
            scale = np.where(largest > 0, largest, 1)
            parts.append((some, largest, off / scale, sums / scale))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _sums(view: View, name: str, rows: np.ndarray, sums: np.ndarray) -> Iterator[Finding]:
    several = np.flatnonzero(view.n_atoms[rows] > 1)
    if not len(several) or sums[several].max() <= NOISE:
        return
    order = several[np.argsort(-sums[several], kind="stable")]
    bad = order[sums[order] > GROSS]
    text = (
        f"the rows of {len(order)} Hessians add up to {np.median(sums[order]):.2g} of the largest component (median), "
        f"at most to {sums[order[0]]:.2g} in {view.where(int(rows[order[0]]))}"
    )
    if len(bad):
        text += f"; {len(bad)} to more than {GROSS:g}"
        fix = "they must add up to zero: check for mass-weighted Hessians, missing atoms and fields"
        yield Finding(SUMS, "suspect", name, text, fix, tuple(rows[bad]))
    else:
        fix = "nothing if it is the noise of these labels, as of integration grids; those of a potential add up exactly"
        yield Finding(SUMS, "note", name, text, fix, tuple(rows[order[:1]]))


def _judge(view: View, column: int, rows: np.ndarray, level: LevelOfTheory, where: str) -> Finding | None:
    """Finding of one source, from its forces, or its energies where there are too few; ``None`` if forces are wrong."""
    labelled = view.mask("H")[:, column]
    if forces_wrong(view, column, rows, level):
        return None
    rows = rows[np.isin(view.sequence[rows], view.sequence[rows[labelled[rows]]])]
    for name, letters, what, mask, compare in (
        (AGAINST_FORCES, "FH", "ΔF·Δx against −Δx·H·Δx", view.forces_mask, _force_pairs),
        (AGAINST_ENERGIES, "EH", "E(x+d) + E(x−d) − 2E(x) against d·H·d", view.energy_mask, _energy_triples),
    ):
        used = groups(view, rows[mask[rows, column]])
        slope, examples = fitted((_ordered(group, labelled) for group in used), partial(compare, view, column))
        if slope.n_pairs >= FEWEST and slope.n_effective >= EFFECTIVE:
            return judge(slope, level, where, examples, name=name, letters=letters, what=what)
    return None


def _ordered(group: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """At most ``IN_GROUP`` rows of a group, those with Hessians first."""
    first, others = group[labelled[group]], group[~labelled[group]]
    kept = others[spread_rows(len(others), IN_GROUP - _HESSIANS)]
    return np.concatenate([first[spread_rows(len(first), _HESSIANS)], kept])


def _force_pairs(view: View, column: int, rows: np.ndarray) -> np.ndarray:
    """Δx·ΔF, −Δx·H·Δx and |Δx| of near conformations, (3, m), kcal/mol and Å.

    H is the mean of both, or that of the first where the second has none.

    Args:
        view: data set.
        column: column of the fidelity.
        rows: conformations of one molecule with forces, those with Hessians first.
    """
    n_hessians = int(view.mask("H")[rows, column].sum())
    pos, turned = _positions(view, rows)
    a, b = near_pairs(pos, _MOST_PAIRS, first=n_hessians).T
    step, rotation = _steps(pos, a, b, turned)
    forces = view.forces[view.atoms_of(rows), column].astype(np.float64)
    change = np.einsum("mni,mni->m", forces[b] @ rotation - forces[a], step)
    work = np.empty(len(a))
    for k in range(len(a)):
        work[k] = -_curvature(view, column, rows[a[k]], step[k])
        if b[k] < n_hessians:
            back = step[k] @ rotation[k].T  # in the frame of b
            work[k] = (work[k] - _curvature(view, column, rows[b[k]], back)) / 2
    displacement = np.linalg.norm(step, axis=(1, 2))
    return np.stack([change, work, displacement])[:, displacement < FARTHEST]


def _energy_triples(view: View, column: int, rows: np.ndarray) -> np.ndarray:
    """E(x+d) + E(x−d) − 2E(x), d·H·d and |d| of opposite displacements, (3, m); arguments as :func:`_force_pairs`.

    Displacements are taken as they are: after an alignment they would not be opposite to second order.
    """
    pos, _ = _positions(view, rows)
    energy, found = view.energy[rows, column], [np.empty((3, 0))]
    for centre in range(min(int(view.mask("H")[rows, column].sum()), _CENTRES)):
        others = np.delete(np.arange(len(rows)), centre)
        step, _ = _steps(pos, np.full(len(others), centre), others, turned=False)
        size = np.linalg.norm(step, axis=(1, 2))
        near = np.argsort(size)[:_MOST_PAIRS]
        near = near[(size[near] < FARTHEST) & (size[near] > 0)]
        step, size, others = step[near], size[near], others[near]
        flat = step.reshape(len(step), -1)
        sums = np.sqrt(np.maximum(size[:, None] ** 2 + size**2 + 2 * flat @ flat.T, 0))
        i, j = np.nonzero(np.triu(sums < _OPPOSITE * size[:, None]))
        curvature = np.array([_curvature(view, column, rows[centre], one) for one in (step[i] - step[j]) / 2])
        change = energy[others[i]] + energy[others[j]] - 2 * energy[centre]
        found.append(np.stack([change, curvature, size[i]]))
    return np.concatenate(found, axis=1)


def _positions(view: View, rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """Positions of conformations of one molecule, (m, n_atoms, 3), Å, and whether they may be turned."""
    pos = view.pos[view.atoms_of(rows)].astype(np.float64)
    if view.lattice is not None and len(rows) and view.periodic[rows[0]]:
        return followed(pos, view.lattice[rows[0]].astype(np.float64)), False
    return pos, True


def _steps(pos: np.ndarray, a: np.ndarray, b: np.ndarray, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Displacements from a to the aligned b, (m, n_atoms, 3), and the rotations of b onto a, (m, 3, 3)."""
    if turned:
        first, second, rotation = align(pos[a], pos[b])
        return second - first, rotation
    step = pos[b] - pos[a]
    return step - step.mean(axis=1, keepdims=True), np.tile(np.eye(3), (len(a), 1, 1))


def _curvature(view: View, column: int, row: int, step: np.ndarray) -> float:
    """Δx·H·Δx of a conformation, kcal/mol."""
    hessian = blocks(view, column, np.array([row]))[0]
    return float(np.einsum("iajb,ia,jb->", hessian.transpose(0, 2, 1, 3), step, step, optimize=True))
