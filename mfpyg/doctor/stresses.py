"""Stresses that are not symmetric, or of the wrong sign or unit by the slope of ΔE against the work of strains."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mfpyg.datasets.consistency import FARTHEST, near_pairs, spread_rows
from mfpyg.doctor.slope import EFFECTIVE, FEWEST, IN_GROUP, fitted, forces_wrong, groups, judge
from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory

NAME = "energies against stresses"

SUSPICIOUS, CERTAIN = 0.01, 0.1
"""Thresholds of an asymmetry, over the largest component; clean data have 2e-5 (Hessians of the bundled data)."""

_ROUNDING = 1e-4  # kcal/mol/Å³, an asymmetry that is never reported
_LARGEST_STRAIN = 0.1
_STILL = 0.05  # displacement within the cell over that by the strain that is allowed without forces
_SAME = 0.05  # largest relative deviation of a slope from one over the volume
_MOST_PAIRS = 400  # of a crystal


def check(view: View) -> Iterator[Finding]:
    """Symmetry of stresses, and the slope of energy differences against the work of strains."""
    for column, level in view.levels:
        labelled = view.mask("S")[:, column]
        if not labelled.any():
            continue
        rows = np.flatnonzero(labelled)
        stress = view.labels("S")[rows, column]
        off = np.abs(stress - stress.transpose(0, 2, 1)).max(axis=(1, 2))
        off = np.where(off > _ROUNDING, off / np.maximum(np.abs(stress).max(axis=(1, 2)), _ROUNDING), 0)
        fix = "check the order of the components; Voigt's is xx, yy, zz, yz, xz, xy in ASE"
        yield from asymmetry(view, level.name, "stresses", rows, off, fix)
        for source, of_source, own in view.parts(column):
            both = of_source[labelled[of_source] & view.energy_mask[of_source, column]]
            finding = _judge(view, column, both, own, f" in {source}" if source else "")
            if finding is not None:
                yield finding


def asymmetry(view: View, name: str, what: str, rows: np.ndarray, off: np.ndarray, fix: str) -> Iterator[Finding]:
    """Finding for asymmetries ``off`` of the labels of ``rows``, relative to the largest component, (n,)."""
    bad = np.flatnonzero(off > SUSPICIOUS)
    if len(bad):
        bad = bad[np.argsort(-off[bad], kind="stable")]
        text = (
            f"{len(bad)} of {len(rows)} {what} are not symmetric; the largest difference is {off[bad[0]]:.2g} of the "
            f"largest component, in {view.where(int(rows[bad[0]]))}"
        )
        severity = "certain" if off[bad[0]] > CERTAIN else "suspect"
        yield Finding(f"asymmetric {what}", severity, name, text, fix, tuple(rows[bad]))


def _judge(view: View, column: int, rows: np.ndarray, level: LevelOfTheory, where: str) -> Finding | None:
    """Finding of one source; ``None`` where conformations differ by more than strains."""
    use_forces = not forces_wrong(view, column, rows, level)
    crystals = groups(view, rows, one_lattice=False)
    slope, examples = fitted(crystals, lambda group: _pairs(view, column, group, use_forces))
    if view.lattice is None or slope.n_pairs < FEWEST or slope.n_effective < EFFECTIVE:
        return None
    what = "ΔE against V·stress·Δstrain"
    finding = judge(slope, level, where, examples, name=NAME, letters="ES", what=what)
    volume = float(np.median(np.abs(np.linalg.det(view.lattice[examples].astype(np.float64)))))
    label = level.labels["S"]
    if finding is None or finding.severity == "note" or label.virial or abs(abs(slope.value) * volume - 1) > _SAME:
        return finding
    sign = "-" if (slope.value > 0) != label.negative else ""
    text = f"slope of {what} {slope.value:.4g} over {slope.n_pairs} pairs{where}, one over the volume: they are virials"
    fix = f"define the level with V={sign}{label.keys[0]} instead of S"
    return Finding(NAME, "certain", level.name, text, fix, tuple(examples))


def _pairs(view: View, column: int, group: np.ndarray, use_forces: bool) -> np.ndarray:
    """Energy differences and work of strains between near conformations of one crystal.

    By the trapezoid rule, E_b − E_a = ½ Σ (V σ : L⁻¹ΔL − F · Δx) over a and b, L being the lattice vectors as rows, and
    Δx displacements of atoms at constant L. Pairs must differ mainly by ΔL, and without forces hardly by Δx.

    Args:
        view: data set.
        column: column of the fidelity.
        group: conformations with energy and stress.
        use_forces: whether forces are taken as known where there are any.

    Returns:
        ΔE without the work of forces, and work of strains, both in kcal/mol, and displacement in Å, (3, m).
    """
    assert view.lattice is not None  # stresses are of crystals
    rows = group[spread_rows(len(group), IN_GROUP)]
    cell, atoms = view.lattice[rows].astype(np.float64), view.atoms_of(rows)
    n_atoms = atoms.shape[1]
    scaled = view.pos[atoms].astype(np.float64) @ np.linalg.inv(cell)  # (n, n_atoms, 3)
    scaled -= np.rint(scaled - scaled[:1])
    pos = scaled @ cell
    centre = pos.mean(axis=1, keepdims=True)
    a, b = near_pairs(np.concatenate([pos, centre + cell, centre - cell], axis=1), _MOST_PAIRS).T
    change, step = cell[b] - cell[a], scaled[b] - scaled[a]
    step -= step.mean(axis=1, keepdims=True)
    known = view.forces_mask[rows, column] & use_forces
    stress = view.labels("S")[rows, column].astype(np.float64)
    energy, work = view.energy[rows[b], column] - view.energy[rows[a], column], np.zeros(len(a))
    gradient = np.zeros((len(a), 3, 3))
    volume = np.abs(np.linalg.det(cell))
    for end in (a, b):
        of_end = np.linalg.inv(cell[end]) @ change
        forces = np.where(known[end, None, None], view.forces[atoms[end], column], 0)
        work += volume[end] * np.einsum("mij,mij->m", stress[end], of_end) / 2
        energy += np.einsum("mni,mni->m", forces, step @ cell[end]) / 2
        gradient += of_end / 2
    strain = np.linalg.norm(gradient + gradient.transpose(0, 2, 1), axis=(1, 2)) / 2
    by_strain = strain * np.sqrt(n_atoms) * (volume[a] / n_atoms) ** (1 / 3)
    within = np.linalg.norm(step @ cell[a], axis=(1, 2))
    displacement = np.hypot(by_strain, within)
    still = within <= np.where(known[a] & known[b], 1.0, _STILL) * by_strain
    small = (np.linalg.norm(gradient, axis=(1, 2)) < _LARGEST_STRAIN) & (displacement < FARTHEST)
    return np.stack([energy, work, displacement])[:, still & small & (strain > 0)]
