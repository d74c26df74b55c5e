"""Derivatives of the wrong sign or unit, by the slope of ΔE against work and the like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mfpyg.datasets.consistency import Slope, energy_work_pairs, spread_rows
from mfpyg.doctor.distances import followed
from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory
from mfpyg.properties import PROPERTIES
from mfpyg.units import (
    BOHR_TO_ANGSTROM,
    ENERGY_UNITS,
    EV_TO_KCAL_MOL,
    HARTREE_TO_KCAL_MOL,
    LENGTH_UNITS,
    PRESSURE_UNITS,
    length_unit,
)

NAME = "energies against forces"
PAIRS, GROUPS, IN_GROUP = 3000, 300, 2000
"""Maximum numbers of pairs, molecules, and conformations of a molecule that are used."""

TOLERANCE = 0.1  # valid data give 1 within 0.005, or within 0.05 if pairs are few and far
_LENGTHS = {"F": ("1 Å is 1.89 bohr", 1), "H": ("1 Å² is 3.57 bohr²", 2), "S": ("1 Å³ is 6.75 bohr³", 3)}
_CONSTANTS = {
    "1 kcal is 4.184 kJ": 4.184,
    "1 eV is 23.06 kcal/mol": EV_TO_KCAL_MOL,
    "1 Hartree is 27.21 eV": HARTREE_TO_KCAL_MOL / EV_TO_KCAL_MOL,
    "1 Hartree is 627.5 kcal/mol": HARTREE_TO_KCAL_MOL,
}
_NAMED = 0.05  # largest deviation of the logarithm of a slope from that of a ratio of units
FEWEST, EFFECTIVE = 8, 3.0
"""Numbers of pairs, and of pairs of equal weight with the same information, below which nothing is concluded."""

_CORRELATED = 0.9


def check(view: View) -> Iterator[Finding]:
    """Slope of energy differences against the work of the forces, for each fidelity and source."""
    for column, _ in view.levels:
        for source, rows, level in view.parts(column):
            if not view.forces_mask[rows, column].any():
                continue
            both = view.energy_mask[rows, column] & view.forces_mask[rows, column]
            slope, examples = measure(view, column, rows[both])
            finding = judge(slope, level, f" in {source}" if source else "", examples)
            if finding is not None:
                yield finding


def measure(view: View, column: int, rows: np.ndarray) -> tuple[Slope, list[int]]:
    """Slope over near neighbours of randomly chosen molecules.

    Args:
        view: data set.
        column: column of the fidelity.
        rows: conformations with energy and forces.

    Returns:
        The slope, and the first conformation of each molecule used.
    """

    def compare(group: np.ndarray) -> Sequence[np.ndarray]:
        chosen = group[spread_rows(len(group), IN_GROUP)]
        atoms = view.atoms_of(chosen)
        pos, turned = view.pos[atoms], True
        if view.lattice is not None and view.periodic[chosen[0]]:
            pos, turned = followed(pos, view.lattice[chosen[0]].astype(np.float64)), False
        return energy_work_pairs(pos, view.energy[chosen, column], view.forces[atoms, column], turned=turned)

    return fitted(groups(view, rows), compare)


def forces_wrong(view: View, column: int, rows: np.ndarray, level: LevelOfTheory) -> bool:
    """True if the forces of one source certainly do not match its energies, so that nothing is compared with them."""
    both = rows[view.energy_mask[rows, column] & view.forces_mask[rows, column]]
    finding = judge(measure(view, column, both)[0], level, "", [])
    return finding is not None and finding.severity == "certain"


def fitted(
    groups: Iterator[np.ndarray], compare: Callable[[np.ndarray], Sequence[np.ndarray] | np.ndarray]
) -> tuple[Slope, list[int]]:
    """Slope over the pairs of some groups, until there are ``PAIRS`` of them or ``GROUPS`` are used.

    Args:
        groups: rows of each group.
        compare: returns both quantities and the displacement of the pairs of a group, (m,) each.

    Returns:
        The slope, and the first conformation of each group used.
    """
    found: list[Sequence[np.ndarray] | np.ndarray] = []
    examples: list[int] = []
    n_pairs = 0
    for group in groups:
        pairs = compare(group)
        if len(pairs[0]):
            found.append(pairs)
            examples.append(int(group[0]))
            n_pairs += len(pairs[0])
        if n_pairs >= PAIRS or len(found) >= GROUPS:
            break
    if not found:
        return Slope(0.0, np.inf, 0.0, 0, 0.0), []
    change, work, displacement = (np.concatenate(part) for part in zip(*found, strict=True))
    return Slope.fit(change, work, displacement), examples


def groups(view: View, rows: np.ndarray, one_lattice: bool = True) -> Iterator[np.ndarray]:
    """Rows of the same molecule and order of atoms, in random order of molecules; at least two rows.

    Args:
        view: data set.
        rows: conformations to group.
        one_lattice: whether those of a group must also have the same lattice, and two atoms.
    """
    rows = rows[view.n_atoms[rows] > 1] if one_lattice else rows
    molecule = view.dataset._data.molecule.numpy()[rows].astype(np.uint64)
    key = view.sequence[rows] ^ (molecule * np.uint64(0x9E3779B97F4A7C15))
    if one_lattice and view.lattice is not None:
        bits = view.lattice[rows].reshape(len(rows), 9).view(np.uint32).astype(np.uint64)
        odd = np.random.default_rng(3).integers(1 << 63, size=9, dtype=np.uint64) | np.uint64(1)
        key ^= (bits * odd).sum(axis=1, dtype=np.uint64)
    order = np.argsort(key, kind="stable")
    bounds = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]], append=~key[order[-1:]]))
    large = np.flatnonzero(np.diff(bounds) > 1)
    for number in np.random.default_rng(view.seed).permutation(large)[: 4 * GROUPS]:
        yield rows[order[bounds[number] : bounds[number + 1]]]


def judge(
    slope: Slope,
    level: LevelOfTheory,
    where: str,
    examples: list[int],
    *,
    name: str = NAME,
    letters: str = "EF",
    what: str = "ΔE against work",
) -> Finding | None:
    """Finding for a slope; ``None`` if it is 1.

    Args:
        slope: slope of one quantity against another.
        level: level of theory, with its keys and units.
        where: source, after a space, if there are several.
        examples: rows that were compared.
        name: name of the check.
        letters: property that the first quantity is made of, and its derivative, of which the second one is made.
        what: both quantities in words.
    """
    derivative = PROPERTIES[letters[1]].plural
    measured = (
        f"slope of {what} {slope.value:.4g} ± {slope.error:.2g} over {slope.n_pairs} pairs of near "
        f"conformations{where}, correlation {slope.correlation:.3f}"
    )
    fix = f"check the sign of the {derivative} by a finite difference"
    if slope.n_pairs < FEWEST:
        text = f"not checked: only {slope.n_pairs} pairs of conformations are near enough{where}"
        return Finding(name, "note", level.name, text, fix)
    if slope.n_effective < EFFECTIVE:
        text = (
            f"not checked: of {slope.n_pairs} pairs of near conformations{where}, a few outweigh all others "
            f"(equivalent to {slope.n_effective:.1f} pairs of equal weight)"
        )
        return Finding(name, "note", level.name, text, fix, tuple(examples))
    if abs(slope.correlation) < _CORRELATED:
        text = f"{measured}; too low to tell the sign or the unit"
        fix = (
            f"if conformations are neighbours in a trajectory, check whether {derivative} belong to other rows or atoms"
        )
        return Finding(name, "note", level.name, text, fix, tuple(examples))
    if abs(slope.value - 1) <= max(TOLERANCE, 3 * slope.error):
        return None
    meaning, fix, named = name_slope(slope.value, level, letters)
    # Basis sets that do not follow a strain, and Hessians of another level, give slopes that are not quite 1.
    severity = "certain" if named or letters == "EF" else "suspect"
    return Finding(name, severity, level.name, f"{measured}: {meaning}", fix, tuple(examples))


def name_slope(value: float, level: LevelOfTheory, letters: str = "EF") -> tuple[str, str, bool]:
    """Explanation of a slope other than 1, the fix, and whether the slope is that of a known mistake.

    If energies read in unit U are in V, the slope is U/V; if forces read in P are in Q, it is Q/P; gradients change the
    sign. Of stresses and Hessians only their own units are named, as energies and forces have checks of their own.
    """
    known = _ratios(level, letters)
    first, second = (PROPERTIES[letter].plural for letter in letters)
    label = level.labels[letters[1]]
    ratio, (meaning, fix) = min(known, key=lambda item: abs(np.log(abs(value) / item[0])))
    named = bool(abs(np.log(abs(value) / ratio)) <= _NAMED)
    if not named:
        meaning = f"{first} and {second} do not belong together"
        fix = "check that both are of one level of theory, and in the units and rows that the reader assumes"
        if value < 0:
            meaning += f", and by the sign they are {'gradients' if letters[1] == 'F' else 'negatives'}"
    elif value < 0:
        wrong = ("true forces" if label.negative else "gradients") if letters[1] == "F" else "of the wrong sign"
        flip = "not negated" if label.negative else "negated"
        meaning = f"the {second} are {wrong}" + (f", and {meaning}" if ratio != 1 else "")
        fix = f"the reader must take the key '{label.keys[0]}' {flip}" + (f"; {fix}" if ratio != 1 else "")
    return meaning, fix, named


def _ratios(level: LevelOfTheory, letters: str) -> list[tuple[float, tuple[str, str]]]:
    """Slopes of all single mistakes in a unit; first that of no mistake, last those of unnamed units."""
    known = [(1.0, ("", ""))]
    first, second = (PROPERTIES[letter].plural for letter in letters)
    if letters == "EF":
        known += [(1 / ratio, mistake) for ratio, mistake in _mistakes(level, "E", list(ENERGY_UNITS))]
    label = level.labels[letters[1]]
    known += _mistakes(level, letters[1], list(ENERGY_UNITS) if label.virial else _units(letters[1], label.unit))
    fix = "find where a conversion is missing or applied twice in making the file, and correct it"
    length, power = _LENGTHS[letters[1]]
    known += [
        (ratio, (f"the {first} are {ratio:.4g} times too large for the {second} ({name})", fix))
        for name, value in {length: BOHR_TO_ANGSTROM**-power, **_CONSTANTS}.items()
        for ratio in (value, 1 / value)
    ]
    return known


def _mistakes(level: LevelOfTheory, letter: str, units: list[str]) -> list[tuple[float, tuple[str, str]]]:
    """For each unit that labels may be in, the factor by which they are then too small, and what to say."""
    what, read = PROPERTIES[letter].plural, level.labels[letter].unit
    factor = PROPERTIES["E"].factor if level.labels[letter].virial else PROPERTIES[letter].factor
    return [
        (
            factor(unit) / factor(read),
            (f"the {what} are in {unit}, but read as {read}", f"define the level with {what} in {unit}"),
        )
        for unit in units
    ]


def _units(letter: str, read: str) -> list[str]:
    """Other units that a derivative may be in; of forces one part of the unit is exchanged at a time."""
    energy, _, length = read.rpartition("/")
    if letter == "F":
        other = "Å" if length_unit(length) == "bohr" else "bohr"
        return [*(f"{name}/{length}" for name in ENERGY_UNITS), f"{energy}/{other}"]
    mark = {"H": "²", "S": "³"}[letter]
    units = [f"{name}/{length}{mark}" for length in LENGTH_UNITS for name in ENERGY_UNITS]
    return [*units, *PRESSURE_UNITS] if letter == "S" else units
