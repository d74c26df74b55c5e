"""Forces that are gradients or in the wrong unit, by the slope of ΔE against work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mfpyg.datasets.consistency import Slope, energy_work_pairs, spread_rows
from mfpyg.doctor.distances import followed
from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory
from mfpyg.units import (
    BOHR_TO_ANGSTROM,
    ENERGY_UNITS,
    EV_TO_KCAL_MOL,
    HARTREE_TO_KCAL_MOL,
    energy_factor,
    force_factor,
    length_unit,
)

NAME = "energies against forces"
PAIRS, GROUPS, IN_GROUP = 3000, 300, 2000
"""Maximum numbers of pairs, molecules, and conformations of a molecule that are used."""

TOLERANCE = 0.1  # valid data give 1 within 0.005, or within 0.05 if pairs are few and far
_CONSTANTS = {
    "1 Å is 1.89 bohr": 1 / BOHR_TO_ANGSTROM,
    "1 kcal is 4.184 kJ": 4.184,
    "1 eV is 23.06 kcal/mol": EV_TO_KCAL_MOL,
    "1 Hartree is 27.21 eV": HARTREE_TO_KCAL_MOL / EV_TO_KCAL_MOL,
    "1 Hartree is 627.5 kcal/mol": HARTREE_TO_KCAL_MOL,
}
_NAMED = 0.05  # largest deviation of the logarithm of a slope from that of a ratio of units
_FEWEST, _EFFECTIVE, _CORRELATED = 8, 3.0, 0.9


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
    found, examples = [], []
    n_pairs = 0
    for group in groups(view, rows):
        chosen = group[spread_rows(len(group), IN_GROUP)]
        atoms = view.atoms_of(chosen)
        pos, turned = view.pos[atoms], True
        if view.lattice is not None and view.periodic[chosen[0]]:
            pos, turned = followed(pos, view.lattice[chosen[0]].astype(np.float64)), False
        pairs = energy_work_pairs(pos, view.energy[chosen, column], view.forces[atoms, column], turned=turned)
        if len(pairs[0]):
            found.append(pairs)
            examples.append(int(chosen[0]))
            n_pairs += len(pairs[0])
        if n_pairs >= PAIRS or len(found) >= GROUPS:
            break
    if not found:
        return Slope(0.0, np.inf, 0.0, 0, 0.0), []
    d_energy, work, displacement = (np.concatenate(part) for part in zip(*found, strict=True))
    return Slope.fit(d_energy, work, displacement), examples


def groups(view: View, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of the same molecule, order of atoms and lattice, in random order; at least two rows and two atoms."""
    rows = rows[view.n_atoms[rows] > 1]
    molecule = view.dataset._data.molecule.numpy()[rows].astype(np.uint64)
    key = view.sequence[rows] ^ (molecule * np.uint64(0x9E3779B97F4A7C15))
    if view.lattice is not None:
        bits = view.lattice[rows].reshape(len(rows), 9).view(np.uint32).astype(np.uint64)
        odd = np.random.default_rng(3).integers(1 << 63, size=9, dtype=np.uint64) | np.uint64(1)
        key ^= (bits * odd).sum(axis=1, dtype=np.uint64)
    order = np.argsort(key, kind="stable")
    bounds = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]], append=~key[order[-1:]]))
    large = np.flatnonzero(np.diff(bounds) > 1)
    for number in np.random.default_rng(view.seed).permutation(large)[: 4 * GROUPS]:
        yield rows[order[bounds[number] : bounds[number + 1]]]


def judge(slope: Slope, level: LevelOfTheory, where: str, examples: list[int]) -> Finding | None:
    """Finding for a slope; ``None`` if it is 1."""
    measured = (
        f"slope of ΔE against work {slope.value:.4g} ± {slope.error:.2g} over {slope.n_pairs} pairs of near "
        f"conformations{where}, correlation {slope.correlation:.3f}"
    )
    fix = "check the sign of the forces by a finite difference"
    if slope.n_pairs < _FEWEST:
        text = f"not checked: only {slope.n_pairs} pairs of conformations are near enough{where}"
        return Finding(NAME, "note", level.name, text, fix)
    if slope.n_effective < _EFFECTIVE:
        text = (
            f"not checked: of {slope.n_pairs} pairs of near conformations{where}, a few outweigh all others "
            f"(equivalent to {slope.n_effective:.1f} pairs of equal weight)"
        )
        return Finding(NAME, "note", level.name, text, fix, tuple(examples))
    if abs(slope.correlation) < _CORRELATED:
        text = f"{measured}; too low to tell the sign or the unit"
        fix = "if conformations are neighbours in a trajectory, check whether forces belong to other rows or atoms"
        return Finding(NAME, "note", level.name, text, fix, tuple(examples))
    if abs(slope.value - 1) <= max(TOLERANCE, 3 * slope.error):
        return None
    meaning, fix = name_slope(slope.value, level)
    return Finding(NAME, "certain", level.name, f"{measured}: {meaning}", fix, tuple(examples))


def name_slope(value: float, level: LevelOfTheory) -> tuple[str, str]:
    """Explanation of a slope other than 1, and the fix.

    If energies read in unit U are in V, the slope is U/V; if forces read in P are in Q, it is Q/P; gradients change the
    sign.
    """
    known = _ratios(level)
    ratio, (meaning, fix) = min(known, key=lambda item: abs(np.log(abs(value) / item[0])))
    if abs(np.log(abs(value) / ratio)) > _NAMED:
        meaning = "energies and forces do not belong together"
        fix = "check that both are of one level of theory, and in the units and rows that the reader assumes"
        if value < 0:
            meaning += ", and by the sign they are gradients"
    elif value < 0:
        now, flip = ("gradients", "negated") if not level.labels["F"].negative else ("true forces", "not negated")
        meaning = f"the forces are {now}" + (f", and {meaning}" if ratio != 1 else "")
        fix = f"the reader must take the key '{level.labels['F'].keys[0]}' {flip}" + (f"; {fix}" if ratio != 1 else "")
    return meaning, fix


def _ratios(level: LevelOfTheory) -> list[tuple[float, tuple[str, str]]]:
    """Slopes of all single mistakes in a unit; first that of no mistake, last those of unnamed units."""
    known = [(1.0, ("", ""))]
    energy_unit, forces_unit = level.labels["E"].unit, level.labels["F"].unit
    energy, _, length = forces_unit.rpartition("/")
    for unit in ENERGY_UNITS:
        meaning = f"the energies are in {unit}, but read as {energy_unit}"
        mistake = meaning, f"define the level with energies in {unit}"
        known.append((energy_factor(energy_unit) / energy_factor(unit), mistake))
    other = "Å" if length_unit(length) == "bohr" else "bohr"
    for unit in (*(f"{name}/{length}" for name in ENERGY_UNITS), f"{energy}/{other}"):
        mistake = (
            f"the forces are in {unit}, but read as {forces_unit}",
            f"define the level with forces in {unit}",
        )
        known.append((force_factor(unit) / force_factor(forces_unit), mistake))
    fix = "find where a conversion is missing or applied twice in making the file, and correct it"
    known += [
        (ratio, (f"the energies are {ratio:.4g} times too large for the forces ({name})", fix))
        for name, value in _CONSTANTS.items()
        for ratio in (value, 1 / value)
    ]
    return known
