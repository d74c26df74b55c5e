"""Energies in the wrong unit, constant, repeated or rounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory
from mfpyg.units import ENERGY_UNITS, atomic_estimate, energy_factor

UNIT = "unit of energies"
SAME = "labels all the same"
REPEATED = "repeated energy"

_NEAR = 0.15  # relative tolerance; total energies are within 9 % of the estimate
_APART = 3.0  # factor between sources without all electrons, whose ratios depend on the elements

ROUNDED = "rounded energies"
SUSPICIOUS, CERTAIN = 1e-3, 0.1
"""Smallest steps between possible energies, kcal/mol, that are reported as rounding."""

_FEWEST = 8
_SHARE = 0.99  # fraction of the energies that must be multiples
_EXACT = 8 * np.finfo(np.float64).eps  # relative error of a float64 that was converted to kcal/mol and back


@dataclass
class _Ratios:
    """Ratios of the energies of one source to the sums of atomic estimates.

    Attributes:
        source: name of the source, empty if there is only one.
        level: level of theory in the source.
        rows: rows of the data set, (n,).
        values: the ratios, (n,).
        kinds: number of compositions.
        elements: which elements of the data set occur, (n_species,) bool.
        heavy: whether any atom has core electrons, which only total energies of all electrons include.
    """

    source: str
    level: LevelOfTheory
    rows: np.ndarray
    values: np.ndarray
    kinds: int
    elements: np.ndarray
    heavy: bool

    def __post_init__(self) -> None:
        self.low, self.middle, self.high = (float(v) for v in np.quantile(self.values, [0.05, 0.5, 0.95]))

    @property
    def total(self) -> bool:
        """True for all-electron total energies in the unit as read."""
        return abs(self.middle - 1) < _NEAR and self.low > 0

    @property
    def steady(self) -> bool:
        """True if nearly all ratios are the same."""
        return max(abs(self.high - self.middle), abs(self.low - self.middle)) < _NEAR * abs(self.middle)


def check_unit(view: View) -> Iterator[Finding]:
    """Compare total energies with sums of atomic estimates; the ratio is near 1, or a ratio of units.

    Sources of one fidelity must also have similar ratios.
    """
    estimate = np.array(atomic_estimate(view.species))
    for column, _ in view.levels:
        each = []
        for source, rows, level in view.parts(column):
            rows = view.sample(rows[view.energy_mask[rows, column]])
            if len(rows):
                counts = view.counts[rows]
                values = view.energy[rows, column] / (counts @ estimate)
                elements = counts.any(axis=0)
                heavy = bool(elements[np.array(view.species) > 2].any())
                kinds = len(np.unique(counts, axis=0))
                each.append(_Ratios(source, level, rows, values, kinds, elements, heavy))
        for ratios in each:
            if not ratios.total:
                yield _judge_ratio(view, column, ratios, _reference(ratios, each))


def _reference(ratios: _Ratios, each: list[_Ratios]) -> _Ratios | None:
    """Another source, nearer to total energies, that cannot have the same unit and reference."""
    for other in each:
        if other.total and other.heavy and abs(ratios.middle / other.middle - 1) > _NEAR:
            return other
    for other in each:
        if not (ratios.steady and other.steady):
            continue
        factor = ratios.middle / other.middle
        if not 1 / _APART < factor < _APART and abs(np.log(abs(other.middle))) < abs(np.log(abs(ratios.middle))):
            return other
    return None


def _judge_ratio(view: View, column: int, ratios: _Ratios, other: _Ratios | None) -> Finding:
    level, middle, kinds = ratios.level, ratios.middle, ratios.kinds
    example = int(ratios.rows[int(np.argmin(np.abs(ratios.values - middle)))])
    where = f" in {ratios.source}" if ratios.source else ""
    measured = (
        f"{middle:.4g} times the all-electron energy of the atoms (5 to 95 %: {ratios.low:.4g} to {ratios.high:.4g}; "
        f"{len(ratios.rows)} conformations of {kinds} compositions{where}; {view.where(example)}: "
        f"{view.energy[example, column]:.6g} kcal/mol as read)"
    )
    if other is not None:
        measured += f", but {other.middle:.4g} times in {other.source}"
    differ = other is not None and (other.total or bool((other.elements == ratios.elements).all()))
    factors = {unit: energy_factor(level.labels["E"].unit) / value for unit, value in ENERGY_UNITS.items()}
    unit = min(factors, key=lambda name: abs(np.log(abs(middle) / factors[name]))) if middle else level.labels["E"].unit
    if ratios.steady and abs(abs(middle) / factors[unit] - 1) < _NEAR:
        sign = "with the sign changed, " if middle < 0 else ""
        severity = "certain" if abs(middle) > 0.8 or kinds >= 3 or differ else "suspect"
        evidence = f"read as {level.labels['E'].unit}, they seem to be {sign}in {unit}: {measured}"
        fix = f"define the level with energies in {unit}" + (" and change their sign" if sign else "")
        return Finding(UNIT, severity, level.name, evidence, fix, (example,))
    if abs(middle) > 1 + _NEAR:
        evidence = f"larger than total energies can be: {measured}"
        return Finding(UNIT, "certain", level.name, evidence, "find out the unit of this key in the file", (example,))
    if other is not None:
        evidence = f"sources with different units or zeros of energy: {measured}"
        keys = "+".join(level.labels["E"].keys)
        fix = f"find out the unit and reference of '{keys}'{where}; a fidelity must have one of each"
        return Finding(UNIT, "certain" if differ else "suspect", level.name, evidence, fix, (example,))
    evidence = f"not total energies of all electrons: {measured}"
    fix = "fine for formation or atomisation energies and pseudopotentials, if the same for all conformations"
    return Finding(UNIT, "note", level.name, evidence, fix, (example,))


def check_constant(view: View) -> Iterator[Finding]:
    """Energies that are all zero, all the same, or the same for all conformations of each molecule."""
    for column, level in view.levels:
        rows = np.flatnonzero(view.energy_mask[:, column])
        if len(rows) < 2:
            continue
        energy = view.energy[rows, column]
        if (energy == energy[0]).all():
            value = "zero" if energy[0] == 0 else _in_file(view, rows[0], column)
            fix = "the key holds no energies; leave out the fidelity, or write NaN for missing energies"
            yield Finding(SAME, "certain", level.name, f"all {len(rows)} energies are {value}", fix, tuple(rows[:3]))
            continue
        same, several = _same_within_molecules(view, rows, energy)
        if several >= 2 and same == several:
            evidence = (
                f"all conformations of each of {several} molecules have one energy, e.g. {view.where(int(rows[0]))}"
            )
            yield Finding(
                SAME,
                "certain",
                level.name,
                evidence,
                "the key holds one energy per molecule, not per conformation",
                tuple(rows[:3]),
            )


def _in_file(view: View, row: int, column: int) -> str:
    """An energy in the unit of its file."""
    level = view.level_at(row, column)
    return f"{view.energy[row, column] / level.factor('E'):.10g} {level.labels['E'].unit}"


def _same_within_molecules(view: View, rows: np.ndarray, energy: np.ndarray) -> tuple[int, int]:
    """Molecules with one energy for all conformations, and molecules with several conformations."""
    _, number, size = np.unique(view.sequence[rows], return_inverse=True, return_counts=True)
    largest, smallest = np.full(len(size), -np.inf), np.full(len(size), np.inf)
    np.maximum.at(largest, number, energy)
    np.minimum.at(smallest, number, energy)
    several = size > 1
    return int((largest == smallest)[several].sum()), int(several.sum())


def check_repeated(view: View) -> Iterator[Finding]:
    """The same value in conformations of different composition, and exact zeros: sentinels for missing labels."""
    for column, level in view.levels:
        rows = np.flatnonzero(view.energy_mask[:, column])
        energy = view.energy[rows, column]
        if len(rows) < 2 or (energy == energy[0]).all():
            continue
        values, count = np.unique(energy, return_counts=True)
        often = values[(count >= max(5, 1e-4 * len(rows))) | ((values == 0) & (count > 1))]
        order = np.argsort(-count[np.searchsorted(values, often)])
        for value in often[order][:3]:
            same = rows[energy == value]
            same = same[view.n_atoms[same] > 1]
            kinds = len(np.unique(view.counts[same], axis=0))
            if len(same) < 2 or (kinds < 2 and value != 0):
                continue
            evidence = (
                f"{len(same)} conformations of {kinds} compositions have exactly {_in_file(view, same[0], column)}, "
                f"e.g. {view.where(int(same[0]))}"
            )
            yield Finding(
                REPEATED, "certain", level.name, evidence, "it marks a missing label: make it NaN", tuple(same)
            )


def check_rounded(view: View) -> Iterator[Finding]:
    """Energies that are multiples of a power of two or ten, in the unit of the file or another."""
    for column, _ in view.levels:
        for source, rows, level in view.parts(column):
            rows = view.sample(rows[view.energy_mask[rows, column]])
            energy = view.energy[rows, column]
            if len(np.unique(energy)) < _FEWEST:
                continue
            found = coarsest(energy, level)
            if found is None:
                continue
            step, words, example = found
            where = f" in {source}" if source else ""
            evidence = (
                f"energies are {words}, {step:.2g} kcal/mol (error up to {step / 2:.2g}); "
                f"{len(rows)} checked{where}, e.g. {view.where(int(rows[example]))}"
            )
            severity = "certain" if step >= CERTAIN else "suspect"
            fix = "write the file again with float64 energies and all digits; lost digits cannot be restored"
            yield Finding(ROUNDED, severity, level.name, evidence, fix, (rows[example],))


def coarsest(energy: np.ndarray, level: LevelOfTheory) -> tuple[float, str, int] | None:
    """Largest step of which the energies are multiples, if it is worth reporting.

    Powers of two are tried among energies with the same binary exponent, with which the step of float32 grows; powers
    of ten among all.

    Args:
        energy: energies, (n,), kcal/mol.
        level: level of theory, whose unit is tried first.

    Returns:
        The step in kcal/mol, a description, and the number of an example; ``None`` if there is none.
    """
    best: tuple[float, str, int] | None = None
    for unit in dict.fromkeys([level.labels["E"].unit, "Hartree", "eV", "kcal/mol", "kJ/mol"]):
        factor = ENERGY_UNITS.get(unit, level.factor("E"))
        values = energy / factor
        exponent = np.frexp(values)[1]
        for power in np.unique(exponent):
            here = np.flatnonzero(exponent == power)
            if len(here) < _FEWEST:
                continue
            k = _largest(values[here], 2.0)
            if k is not None and (best is None or 2.0**k * factor > 1.01 * best[0]):
                best = 2.0**k * factor, f"multiples of 2^{k} {unit} at this magnitude, as float32 leaves them", here[0]
        k = _largest(values, 10.0)
        if k is not None and (best is None or 10.0**k * factor > 1.01 * best[0]):
            best = 10.0**k * factor, f"rounded to multiples of 10^{k} {unit}", 0
    return best if best is not None and best[0] > SUSPICIOUS else None


def _largest(values: np.ndarray, base: float) -> int | None:
    """Largest k for which nearly all values are multiples of base^k; ``None`` if float64 cannot tell."""
    error = _EXACT * np.abs(values)
    finest = 100 * float(error.max())  # below, anything is a multiple
    distinct = len(np.unique(values))
    if finest == 0 or distinct < _FEWEST:
        return None
    top = int(np.floor(np.log(np.abs(values).max()) / np.log(base)))
    for k in range(top, int(np.ceil(np.log(finest) / np.log(base))), -1):
        step = base**k
        off = np.abs(values - step * np.rint(values / step))
        if (off <= error).mean() >= _SHARE:
            return k
    return None
