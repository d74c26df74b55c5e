"""Forces that are all zero, outliers, or have a net force or torque."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mfpyg.doctor.view import Finding, Span, View

ZERO = "zero forces"
OUTLIER = "outlying force"
NET = "net force"
TORQUE = "net torque"

SUSPICIOUS_RATIO, SUSPICIOUS = 15.0, 500.0
"""Thresholds of a suspicious force: ratio to the median of the conformations' largest forces, and kcal/mol/Å."""

IMPOSSIBLE = 1e4
"""Threshold in kcal/mol/Å; a C-H bond compressed to half its length has less than a third of it."""

TYPICAL, ONE = 0.01, 0.2
"""Sum of forces over their norm that is suspicious as a median, and (plus 2 kcal/mol/Å) in one conformation.

Density functionals on grids have 0.001 (the bundled data) and 0.02 (``tz`` of ANI-1x); missing atoms, or forces in
another order than the positions, give 0.3 and more.
"""


@dataclass
class _Sums:
    """Norms of the forces of one fidelity, for each labelled conformation, (n,), in kcal/mol/Å.

    Attributes:
        rows: rows of the data set.
        largest: norm of the largest force.
        norm: norm of all forces together, √Σ|F|².
        net: norm of the net force.
        torque: norm of the torque about the centroid, over √Σ|r|².
    """

    rows: np.ndarray
    largest: np.ndarray
    norm: np.ndarray
    net: np.ndarray
    torque: np.ndarray


def check(view: View) -> Iterator[Finding]:
    """All checks of the forces of each fidelity, from one pass over them."""
    for column, level in view.levels:
        sums = _sums(view, column)
        if len(sums.rows):
            yield from _zero(view, level.name, sums)
            yield from _outliers(view, level.name, sums)
            yield from _net(view, level.name, sums)


def _sums(view: View, column: int) -> _Sums:
    if not view.forces_mask[:, column].any():
        return _Sums(np.zeros(0, np.int64), *(np.zeros(0) for _ in range(4)))
    parts = [_sums_of(view, column, span) for span in view.spans()]
    return _Sums(*(np.concatenate([part[i] for part in parts]) for i in range(5)))


def _sums_of(view: View, column: int, span: Span) -> tuple[np.ndarray, ...]:
    forces = view.forces[span.atoms, column]  # (n_atoms, 3)
    labelled = view.forces_mask[span.rows, column]
    pos = view.pos[span.atoms]
    square = np.einsum("ij,ij->i", forces, forces)
    centre = span.sum(pos) / span.n_atoms[:, None]
    pos = pos - np.repeat(centre, span.n_atoms, axis=0)
    extent = span.sum(np.einsum("ij,ij->i", pos, pos))
    torque = np.linalg.norm(span.sum(np.cross(pos, forces)), axis=1)
    return tuple(
        values[labelled]
        for values in (
            np.arange(span.rows.start, span.rows.stop),
            np.sqrt(span.max(square)),
            np.sqrt(span.sum(square)),
            np.linalg.norm(span.sum(forces), axis=1),
            torque / np.sqrt(np.maximum(extent, 1e-12)),
        )
    )


def _zero(view: View, name: str, sums: _Sums) -> Iterator[Finding]:
    zero = sums.rows[(sums.largest == 0) & (view.n_atoms[sums.rows] > 1)]
    if len(zero):
        evidence = f"{len(zero)} of {len(sums.rows)} conformations have exactly zero forces, e.g. {view.where(zero[0])}"
        fix = "zeros stand for missing forces: make them NaN, or train without the forces of this fidelity"
        yield Finding(ZERO, "certain", name, evidence, fix, tuple(zero))


def _outliers(view: View, name: str, sums: _Sums) -> Iterator[Finding]:
    moving = sums.largest[sums.largest > 0]
    if not len(moving):
        return
    middle = float(np.median(moving))
    limit = max(SUSPICIOUS, SUSPICIOUS_RATIO * middle)
    for severity, out in (
        ("certain", sums.largest > max(IMPOSSIBLE, limit)),
        ("suspect", (sums.largest > limit) & (sums.largest <= max(IMPOSSIBLE, limit))),
    ):
        if out.any():
            order = np.flatnonzero(out)[np.argsort(-sums.largest[out])]
            worst = order[0]
            evidence = (
                f"{out.sum()} of {len(sums.rows)} conformations have a force above {limit:.4g} kcal/mol/Å; the largest "
                f"is {sums.largest[worst]:.4g} in {view.where(sums.rows[worst])} (median of the largest {middle:.4g})"
            )
            fix = "leave out these conformations, or make their labels NaN: they outweigh all others in the loss"
            yield Finding(OUTLIER, severity, name, evidence, fix, tuple(sums.rows[order]))


def _net(view: View, name: str, sums: _Sums) -> Iterator[Finding]:
    for what, values, cause in (
        (NET, sums.net, "the sum of forces on a molecule"),
        (TORQUE, sums.torque, "the torque (over the root of Σ|r|²)"),
    ):
        some = sums.norm > 0
        if what == TORQUE:  # depends on the choice of periodic images
            some &= ~view.periodic[sums.rows]
        share = values[some] / sums.norm[some]
        bad = np.flatnonzero(some)[values[some] > ONE * sums.norm[some] + 2]
        typical = float(np.median(share)) if len(share) else 0.0
        if typical <= TYPICAL and not len(bad):
            continue
        worst = int(np.argmax(np.where(some, values, -1)))
        evidence = (
            f"{cause} is {typical:.2g} of the norm of all forces (median of {len(share)}), in {len(bad)} conformations "
            f"above {ONE:g}; the largest is {values[worst]:.4g} kcal/mol/Å in {view.where(sums.rows[worst])}"
        )
        fix = "true forces have none: check for missing atoms or fields, and for a different order of the atoms"
        rows = sums.rows[bad] if len(bad) else sums.rows[[worst]]
        yield Finding(what, "suspect", name, evidence, fix, tuple(rows))
