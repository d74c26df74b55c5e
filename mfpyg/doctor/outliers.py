"""Outlying energies, with respect to the fit of atomic references or to their molecule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mfpyg.datasets.references import fit_references
from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory

FAR = "outlying energy"
OF_MOLECULE = "energy far from its molecule"

SUSPICIOUS_Z, SUSPICIOUS = 20.0, 5.0
"""Thresholds of a suspicious outlier of the fit, robust z and kcal/mol per atom; both must be exceeded.

Clean data: 6.7 (bundled), 18 (excerpt of ANI-1x).
"""

IMPOSSIBLE = 200.0
"""Threshold in kcal/mol per atom: more than breaking every bond takes (at most about 130)."""

MOLECULE_Z, MOLECULE = 15.0, 50.0
"""Thresholds of robust z and kcal/mol from the median of conformations with the same atoms in the same order.

Clean data: 8.3 (bundled; molecular dynamics at three temperatures), 1.5 (S66x8).
"""

_FEWEST = 10
_FIX = "check whether these calculations converged to the right state; if not, make the labels NaN"


def check_outliers(view: View) -> Iterator[Finding]:
    """Energies whose residual per atom, after the fit of reference energies, is an outlier."""
    for column, level in view.levels:
        rows = np.flatnonzero(view.energy_mask[:, column])
        if len(rows) < _FEWEST:
            continue
        residual = _residuals(view, column, level, rows)  # (n,) kcal/mol per atom
        middle = np.median(residual)
        scale = max(1.4826 * float(np.median(np.abs(residual - middle))), 1e-6)
        far = np.abs(residual - middle)
        for severity, out in (
            ("certain", far > max(IMPOSSIBLE, 10 * scale)),
            ("suspect", (far > max(SUSPICIOUS_Z * scale, SUSPICIOUS)) & (far <= max(IMPOSSIBLE, 10 * scale))),
        ):
            if not out.any():
                continue
            order = np.flatnonzero(out)[np.argsort(-far[out])]
            first = order[0]
            evidence = (
                f"{out.sum()} of {len(rows)} energies are far from the fit of atomic references; the farthest is "
                f"{view.where(int(rows[first]))}, by {residual[first] - middle:+.4g} kcal/mol per atom "
                f"(robust z {far[first] / scale:.0f})"
            )
            yield Finding(FAR, severity, level.name, evidence, _FIX, tuple(rows[order]))


def _residuals(view: View, column: int, level: LevelOfTheory, rows: np.ndarray) -> np.ndarray:
    """Energy per atom above the fitted references, kcal/mol; the second of two fits leaves out outliers."""
    fitted = rows
    for _ in range(2):
        references = fit_references(view.dataset, fitted, view.species, [level.name], view.counts)[level.name].energies
        residual = (view.energy[rows, column] - view.counts[rows] @ references) / view.n_atoms[rows]
        far = np.abs(residual - np.median(residual))
        fitted = rows[far <= max(SUSPICIOUS_Z * float(np.median(far)), 1e-6)]
    return residual


def check_molecules(view: View) -> Iterator[Finding]:
    """Energies far from those of conformations with the same atoms in the same order, if there are at least ten."""
    for column, level in view.levels:
        rows = np.flatnonzero(view.energy_mask[:, column])
        if not len(rows):
            continue
        away, scale = deviations(view, column, rows)
        far = (np.abs(away) > MOLECULE_Z * scale) & (np.abs(away) > MOLECULE)
        if far.any():
            order = np.flatnonzero(far)[np.argsort(-np.abs(away[far]))]
            first = order[0]
            evidence = (
                f"{far.sum()} of {len(rows)} energies are far from those of conformations with the same atoms; the "
                f"farthest is {view.where(int(rows[first]))}, {away[first]:+.4g} kcal/mol from the median "
                f"(robust z {abs(away[first]) / scale[first]:.0f})"
            )
            yield Finding(OF_MOLECULE, "suspect", level.name, evidence, _FIX, tuple(rows[order]))


def deviations(view: View, column: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy above the molecule's median, and 1.4826 MAD (infinite for few conformations); (n,) kcal/mol each."""
    _, number, size = np.unique(view.sequence[rows], return_inverse=True, return_counts=True)
    energy = view.energy[rows, column]
    away = energy - _medians(energy, number, size)[number]
    scale = 1.4826 * _medians(np.abs(away), number, size)
    scale[size < _FEWEST] = np.inf
    return away, np.maximum(scale, 1e-6)[number]


def _medians(values: np.ndarray, number: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Upper median of the values of each group: (n,) -> (n_groups,)."""
    order = np.lexsort((values, number))
    return values[order[np.cumsum(size) - size + size // 2]]
