"""Charges that do not add up, and dipole moments of the wrong unit or sign."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory
from mfpyg.units import DIPOLE_UNITS

TOTAL = "total charge"
UNIT = "unit of dipoles"

DEVIATIONS = {"note": 0.01, "suspect": 0.1, "certain": 0.5}
"""Deviations of a sum of charges from the total charge, e, from which it is reported.

Rounding to four decimals leaves at most 0.005 for a hundred atoms; grids leave 0.001 (CM5 charges of ANI-1x) to 0.02
(its MBIS charges). Missing electrons or atoms leave about 1.
"""

BY_CHARGES, BY_LEVEL = 1.5, 1.25
"""Factors by which dipoles may differ from those of atomic charges, and from those of another level.

The charges of ANI-1x give 0.98 (CM5) and 0.94 (MBIS); Hirshfeld charges are too small by about a half.
"""

_FEWEST = 8
_SMALLEST = 0.1  # e·Å; smaller dipoles are not compared
_ALIGNED = 0.9  # smallest median cosine that tells a unit or a sign
_FARTHEST_CHARGE = 1.0  # e; moved across the whole molecule
_ATOM = 0.1  # e·Å; of an atom, which has no size


def check_totals(view: View) -> Iterator[Finding]:
    """Atomic charges that do not add up to the total charge."""
    for column, level in view.levels:
        rows = np.flatnonzero(view.mask("Q")[:, column])
        if not len(rows):
            continue
        charges = view.labels("Q")[:, column]
        totals = np.concatenate([span.sum(charges[span.atoms].astype(np.float64)) for span in view.spans()])[rows]
        deviation = totals - view.charge[rows]
        size = np.abs(deviation)
        bad = np.flatnonzero(size > DEVIATIONS["note"])
        if not len(bad):
            continue
        bad = bad[np.argsort(-size[bad], kind="stable")]
        worst = bad[0]
        text = (
            f"{len(bad)} of {len(rows)} conformations have charges that do not add up to the total charge within "
            f"{DEVIATIONS['note']:g} e; the largest deviation is {deviation[worst]:+.3g} e in "
            f"{view.where(int(rows[worst]))}"
        )
        severity = max((limit, name) for name, limit in DEVIATIONS.items() if size[worst] > limit)[1]
        if severity == "note":
            fix = "nothing if it is the noise of grids or rounding; predicted charges add up exactly"
        else:
            fix = "predicted charges add up to the total charge: give that of ions, and check for missing atoms"
        yield Finding(TOTAL, severity, level.name, text, fix, tuple(rows[bad]))


def check_dipoles(view: View) -> Iterator[Finding]:
    """Dipoles of neutral molecules against those of charges, of the same level or another, else of other levels."""
    charged = [(column, level) for column, level in view.levels if view.mask("Q")[:, column].any()]
    for column in (column for column, _ in view.levels if view.mask("D")[:, column].any()):
        for source, of_source, own in view.parts(column):
            rows = of_source[view.mask("D")[of_source, column] & (view.charge[of_source] == 0)]
            where = f" in {source}" if source else ""
            # Its own charges first.
            for other, of in sorted(charged, key=lambda item: item[0] != column):
                compared = _against_charges(view, column, other, rows)
                if compared is not None:
                    what = f"charges of {of.name}" if other != column else "its charges"
                    finding = _judge(own, compared, f"Σ q x of {what}{where}", BY_CHARGES)
                    yield from () if finding is None else (finding,)
                    break
            else:
                found = list(_against_levels(view, column, own, rows, where))
                yield from found or _too_large(view, column, own, rows, where)


def _against_charges(view: View, column: int, other: int, rows: np.ndarray) -> tuple[float, float, np.ndarray] | None:
    """:func:`_ratio` of dipoles to Σ q x, from charges of the column ``other`` that add up to zero."""
    rows = view.sample(rows[view.mask("Q")[rows, other]])
    if not len(rows):
        return None
    sizes = view.n_atoms[rows]
    first = np.cumsum(sizes) - sizes
    atoms = np.repeat(view.starts[rows] - first, sizes) + np.arange(int(sizes.sum()))
    charges = view.labels("Q")[atoms, other].astype(np.float64)
    neutral = np.abs(np.add.reduceat(charges, first)) < DEVIATIONS["suspect"]
    centre = np.add.reduceat(view.pos[atoms], first, axis=0) / sizes[:, None]
    moments = np.add.reduceat(charges[:, None] * (view.pos[atoms] - np.repeat(centre, sizes, axis=0)), first, axis=0)
    return _ratio(view.labels("D")[rows[neutral], column], moments[neutral], rows[neutral])


def _ratio(dipoles: np.ndarray, others: np.ndarray, rows: np.ndarray) -> tuple[float, float, np.ndarray] | None:
    """Median ratio of dipoles to others along these, median cosine, and rows; ``None`` for few dipoles, (n, 3) e·Å."""
    sizes = np.linalg.norm(dipoles, axis=1), np.linalg.norm(others, axis=1)
    large = np.flatnonzero((np.maximum(*sizes) > _SMALLEST) & (np.minimum(*sizes) > _SMALLEST / 10))
    if len(large) < _FEWEST:
        return None
    product = (dipoles * others)[large].sum(axis=1)
    cosine = product / (sizes[0] * sizes[1])[large]
    return float(np.median(product / sizes[1][large] ** 2)), float(np.median(cosine)), rows[large]


def _judge(
    level: LevelOfTheory,
    compared: tuple[float, float, np.ndarray],
    what: str,
    tolerance: float,
    other: LevelOfTheory | None = None,
) -> Finding | None:
    """Finding for a ratio that tells a wrong unit or sign; ``None`` near 1, and far from the ratios of all units.

    Args:
        level: level of the dipoles.
        compared: as from :func:`_ratio`.
        what: what they are compared with.
        tolerance: factor by which valid dipoles may differ from it.
        other: its level, if these are dipoles too.
    """
    value, cosine, rows = compared
    if abs(cosine) < _ALIGNED:
        return None
    known = [(1.0, level.name, "", ""), *_mistakes(level)]
    if other is not None:
        known += [(1 / ratio, name, meaning, fix) for ratio, name, meaning, fix in _mistakes(other)]
    debye, fix = 1 / DIPOLE_UNITS["Debye"], "find where a conversion is missing or applied twice in making the file"
    known += [(ratio, "", "1 e·Å is 4.803 Debye", fix) for ratio in (debye, 1 / debye)]
    # Units that the tolerance cannot tell from no mistake are not named.
    known = [item for item in known if item[0] == 1 or abs(np.log(item[0])) > 2 * np.log(tolerance)]
    ratio = min((item[0] for item in known), key=lambda ratio: abs(np.log(abs(value) / ratio)))
    if abs(np.log(abs(value) / ratio)) > np.log(tolerance) or (ratio == 1 and value > 0):
        return None
    same = [item for item in known if abs(np.log(item[0] / ratio)) < 1e-6]
    same = [item for item in same if item[1]] or same
    meaning, fix = " or ".join(item[2] for item in same), ", or ".join(item[3] for item in same)
    if value < 0:
        label = level.labels["D"]
        meaning = f"dipoles must point from minus to plus{f', and {meaning}' if meaning else ''}"
        turn = f"the reader must take the key '{label.keys[0]}' {'not ' if label.negative else ''}negated"
        turn += f", or that of {other.name}" if other is not None else ""
        fix = f"{turn}; {fix}" if fix else turn
    text = f"dipoles of {len(rows)} neutral conformations are {value:.3g} times {what} (cosine {cosine:.2f}): {meaning}"
    return Finding(UNIT, "certain", same[0][1] or level.name, text, fix, tuple(rows))


def _mistakes(level: LevelOfTheory) -> list[tuple[float, str, str, str]]:
    """For each other unit the factor by which dipoles in it are too large, the level, what is wrong, and the fix."""
    read, name = level.labels["D"].unit, level.name
    return [
        (
            DIPOLE_UNITS[read] / value,
            name,
            f"the dipoles of {name} are in {unit}, but read as {read}",
            f"define {name} with dipoles in {unit}",
        )
        for unit, value in DIPOLE_UNITS.items()
        if unit != read
    ]


def _against_levels(view: View, column: int, level: LevelOfTheory, rows: np.ndarray, where: str) -> Iterator[Finding]:
    """Comparison with the dipoles of the levels before, so that each pair is compared once."""
    for other, of in view.levels:
        both = view.sample(rows[view.mask("D")[rows, other]]) if other < column else rows[:0]
        compared = _ratio(view.labels("D")[both, column], view.labels("D")[both, other], both)
        if compared is not None:
            own = view.level_at(int(both[0]), other)
            finding = _judge(level, compared, f"those of {of.name}{where}", BY_LEVEL, own)
            yield from () if finding is None else (finding,)


def _too_large(view: View, column: int, level: LevelOfTheory, rows: np.ndarray, where: str) -> Iterator[Finding]:
    """Dipoles larger than that of an elementary charge moved across the whole molecule."""
    extent = np.zeros(len(view))
    for span in view.spans():
        pos = view.pos[span.atoms]
        centre = np.repeat(span.sum(pos) / span.n_atoms[:, None], span.n_atoms, axis=0)
        extent[span.rows] = 2 * span.max(np.linalg.norm(pos - centre, axis=1))
    size = np.linalg.norm(view.labels("D")[rows, column], axis=1)
    bad = np.flatnonzero(size > _FARTHEST_CHARGE * extent[rows] + _ATOM)
    if len(bad):
        bad = bad[np.argsort(-(size / (extent[rows] + _ATOM))[bad], kind="stable")]
        row = int(rows[bad[0]])
        text = (
            f"{len(bad)} of {len(rows)} dipoles{where} exceed that of a charge e moved across the molecule, e.g. "
            f"{size[bad[0]]:.3g} e·Å of {view.where(row)}, {extent[row]:.3g} Å long"
        )
        fix = f"check whether they are in Debye, but read as {level.labels['D'].unit}; give the total charge of ions"
        yield Finding(UNIT, "suspect", level.name, text, fix, tuple(rows[bad]))
