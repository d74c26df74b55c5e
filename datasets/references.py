"""Atomic reference energies of each fidelity, by least squares on its labelled training rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from ase.data import atomic_numbers, chemical_symbols

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.strict_yaml import read_yaml
from mfpyg.units import ENERGY_UNIT, EV_TO_KCAL_MOL, energy_factor

if TYPE_CHECKING:  # imports torch, which reading a file of references does not need
    from mfpyg.datasets.conformations import ConformationDataset

GivenReferences = dict[str, dict[int, float]]
"""Energies in kcal/mol by fidelity and atomic number."""

_ATOMS_AT_ONCE = 1 << 22
_EXAMPLE = "'cc: {unit: Hartree, H: -0.4998, C: -37.78}'"

STRONGEST = 20.0
"""Upper bound on cohesive energies in eV per atom; diamond and tungsten have 8."""


@dataclass
class References:
    """Reference energies of one fidelity.

    Attributes:
        energies: reference energies in kcal/mol for each element of ``species``, (n_species,) float64.
        undetermined: symbols of the elements whose energy the labels do not determine.
        silent: orthonormal combinations of elements that the labels do not determine, (n_species, m).
        sources: fidelities from which undetermined energies are taken.
        isolated: symbols of the elements whose energy is that of an isolated atom.
    """

    energies: np.ndarray
    undetermined: list[str]
    silent: np.ndarray
    sources: tuple[str, ...] = ()
    isolated: tuple[str, ...] = ()


def species_of(dataset: ConformationDataset) -> tuple[int, ...]:
    """Atomic numbers that occur in the data set, ascending."""
    return tuple(np.flatnonzero(np.bincount(dataset._data.z.numpy())).tolist())


def compositions(dataset: ConformationDataset, species: tuple[int, ...]) -> np.ndarray:
    """Number of atoms of each element in every conformation, (n_conformations, n_species) float64."""
    z = dataset._data.z.numpy()
    starts = dataset.slices["z"].numpy()
    counts = np.zeros((len(starts) - 1, len(species)))
    row = 0
    while row < len(counts):
        stop = max(row + 1, int(np.searchsorted(starts, starts[row] + _ATOMS_AT_ONCE, side="right")) - 1)
        first, part = starts[row:stop], z[starts[row] : starts[stop]]
        for column, number in enumerate(species):
            counts[row:stop, column] = np.add.reduceat((part == number).astype(np.int32), first - first[0])
        row = stop
    return counts


def fit_references(
    dataset: ConformationDataset,
    rows: np.ndarray,
    species: tuple[int, ...],
    names: Sequence[str] | None = None,
    counts: np.ndarray | None = None,
    given: Mapping[str, Mapping[int, float]] | None = None,
) -> dict[str, References]:
    """Fit E ≈ Σ_elements n_Z e_Z for each fidelity, in float64, on its labelled rows.

    Given energies, and those of isolated atoms among the rows, are kept exactly. What the labels do not determine is
    taken from another fidelity, see :func:`complete`.

    Args:
        dataset: the data set.
        rows: conformations of the training split.
        species: atomic numbers of the potential.
        names: fidelities to fit; all if not given.
        counts: :func:`compositions` of the data set, if already known.
        given: reference energies in kcal/mol by fidelity and atomic number.

    Raises:
        MFPyGError: for an energy that is NaN or infinite and not masked.
    """
    counts = compositions(dataset, species) if counts is None else counts
    isolated = dataset.isolated_atoms
    fitted = {}
    for name in names or dataset.fidelities:
        labelled = rows[dataset._data.energy_mask[:, dataset.fidelities.index(name)].numpy()[rows]]
        energy = labelled_energies(dataset, name, labelled)
        fitted[name] = fit(counts[labelled], energy, species, (given or {}).get(name, {}), isolated[labelled])
    return complete(fitted, species)


def labelled_energies(dataset: ConformationDataset, name: str, rows: np.ndarray) -> np.ndarray:
    """Total energies of a fidelity in labelled rows, (n,) float64.

    Raises:
        MFPyGError: if one is NaN or infinite, which is possible only if the columns were changed after processing.
    """
    energy = dataset._data.energy[:, dataset.fidelities.index(name)].numpy()[rows]
    wrong = rows[~np.isfinite(energy)]
    if len(wrong):
        molecule = dataset.molecules[int(dataset._data.molecule[wrong[0]])]
        number = int(dataset._data.conformation[wrong[0]])
        raise MFPyGError(
            f"the {name} energy label of {molecule}, conformation {number}, is NaN or infinite but not masked "
            f"({len(wrong)} in total); process the data again"
        )
    return energy


def fit(
    counts: np.ndarray,
    energy: np.ndarray,
    species: tuple[int, ...],
    given: Mapping[int, float] | None = None,
    isolated: np.ndarray | None = None,
) -> References:
    """Least-squares references of total energies.

    Args:
        counts: the conformations' :func:`compositions`, (n, n_species).
        energy: in kcal/mol, (n,) float64.
        species: atomic numbers.
        given: fixed energies in kcal/mol by atomic number.
        isolated: which conformations are isolated atoms, (n,) bool; the lowest energy of each element is kept exactly.

    Raises:
        MFPyGError: if the given energies leave more energy than bonds can have, as with a wrong unit.
    """
    energies = np.full(len(species), np.nan)
    if isolated is not None:
        np.fmin.at(energies, counts[isolated].argmax(axis=1), energy[isolated])
    alone = ~np.isnan(energies)
    for column, number in enumerate(species):
        energies[column] = (given or {}).get(number, energies[column])
    free = np.isnan(energies)
    fitted, left = counts[:, free], energy - counts[:, ~free] @ energies[~free]
    energies[free], _, rank, _ = np.linalg.lstsq(fitted, left, rcond=None)
    directions = silent_directions(fitted) if rank < fitted.shape[1] else np.zeros((fitted.shape[1], 0))
    silent = np.zeros((len(species), directions.shape[1]))
    silent[free] = directions
    if given and len(energy):
        _check_given(given, counts, energy - counts @ energies)
    taking_part = np.flatnonzero(np.abs(silent).max(axis=1, initial=0.0) > 1e-8)
    symbols = [chemical_symbols[number] for number in species]
    from_atoms = tuple(symbols[i] for i in np.flatnonzero(alone) if species[i] not in (given or {}))
    return References(energies, [symbols[i] for i in taking_part], silent, isolated=from_atoms)


def _check_given(given: Mapping[int, float], counts: np.ndarray, left: np.ndarray) -> None:
    """Check that given references leave no more energy than bonds can have."""
    left = np.abs(left) / counts.sum(axis=1).clip(min=1) / EV_TO_KCAL_MOL
    if np.median(left) > STRONGEST:
        symbols = ", ".join(chemical_symbols[number] for number in given)
        raise MFPyGError(
            f"with the given reference energies of {symbols} the labels leave {np.median(left):,.0f} eV per atom, "
            f"more than the {STRONGEST:g} eV that bonds can have; check their unit, and that the "
            "labels are total energies"
        )


def complete(fitted: Mapping[str, References], species: tuple[int, ...]) -> dict[str, References]:
    """Fill in what the labels of a fidelity do not determine from the references of another.

    A least-norm solution would give unseen elements an energy of zero, hundreds or thousands of eV off. Two levels of
    theory differ by roughly a constant per electron; so the other level's energies are used, plus a multiple of the
    atomic number that is fitted where both are determined. Fidelities that differ less are used first.

    Args:
        fitted: references of each fidelity.
        species: atomic numbers.
    """
    result = dict(fitted)
    for name, references in fitted.items():
        missing, energies, sources = references.silent, references.energies.copy(), []
        others = [(other, *_compared(references, one, species)) for other, one in fitted.items() if other != name]
        for other, _, expected in sorted(others, key=lambda item: item[1]):
            known = _orthogonal(missing, fitted[other].silent)  # what this fidelity lacks and the other determines
            if not known.shape[1]:
                continue
            energies += known @ (known.T @ (expected - references.energies))
            missing = _orthogonal(missing, known)
            sources.append(other)
        result[name] = replace(references, energies=energies, sources=tuple(sources))
    return result


def complete_difference(fitted: References, source: str, species: tuple[int, ...]) -> References:
    """Fill in references of the difference to another fidelity with known values, see :func:`complete`."""
    nothing = References(np.zeros(len(species)), [], np.zeros((len(species), 0)))
    return complete({"difference": fitted, source: nothing}, species)["difference"]


def _compared(one: References, two: References, species: tuple[int, ...]) -> tuple[float, np.ndarray]:
    """RMS difference where both are determined, and the energies of the first as expected from the second."""
    determined = _orthogonal(np.eye(len(species)), np.concatenate([one.silent, two.silent], axis=1))
    if not determined.shape[1]:
        return math.inf, two.energies
    electrons, difference = determined.T @ np.array(species, float), determined.T @ (one.energies - two.energies)
    slope = float(electrons @ difference / (electrons @ electrons))
    return float(np.sqrt(np.mean(difference**2))), two.energies + slope * np.array(species)


def _orthogonal(space: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the part of a space that is orthogonal to another: (n, a), (n, b) -> (n, c)."""
    if not space.shape[1] or not excluded.shape[1]:
        return space
    overlap = excluded.T @ space  # (b, a)
    _, values, directions = np.linalg.svd(overlap)
    rank = int((values > 1e-8).sum())
    return space @ directions[rank:].T


def silent_directions(counts: np.ndarray) -> np.ndarray:
    """Combinations of element energies that the compositions do not determine: (n, n_species) -> (n_species, m)."""
    counts = counts.astype(np.float64, copy=False)
    values, directions = np.linalg.eigh(counts.T @ counts)  # (n_species, n_species), however many rows
    return directions[:, values <= 1e-10 * max(values.max(initial=0.0), 1.0)]


def read_references(path: str | Path, fidelities: Sequence[str] | None = None) -> GivenReferences:
    """Read reference energies from a file such as::

        cc:
          unit: Hartree
          H: -0.4998
          C: -37.7817

    Elements that are not in the file are fitted to the labels.

    Args:
        path: file to read.
        fidelities: allowed names; any if not given.

    Raises:
        MFPyGError: if it cannot be read, for an unknown fidelity, element or unit, or an energy that is not a number.
    """
    found: GivenReferences = {}
    for name, level in read_yaml(Path(path).expanduser(), "reference energies", _EXAMPLE).items():
        if fidelities is not None and name not in fidelities:
            raise unknown_name(f"fidelity in {path}", str(name), fidelities)
        if not isinstance(level, dict) or "unit" not in level:
            raise MFPyGError(f"{path}: {name} needs a unit and an energy for each element, as in {_EXAMPLE}")
        try:
            factor = energy_factor(str(level["unit"]))
        except MFPyGError as error:
            raise MFPyGError(f"{path}: {error}") from error
        found[name] = {
            _number(symbol, path): _energy(value, f"{path}: {name} of {symbol}") * factor
            for symbol, value in level.items()
            if symbol != "unit"
        }
    return found


def _number(symbol: Any, path: str | Path) -> int:
    if symbol not in atomic_numbers or symbol == "X":
        raise unknown_name(f"element in {path}", str(symbol), chemical_symbols[1:])
    return int(atomic_numbers[symbol])


def _energy(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MFPyGError(f"{where} is {value!r}, expected the energy of an isolated atom, as in {_EXAMPLE}")
    return float(value)


def as_text(references: Mapping[str, Mapping[int, float]]) -> str:
    """Text that :func:`read_references` reads as the same numbers."""
    values = {
        name: {"unit": ENERGY_UNIT, **{chemical_symbols[number]: energy for number, energy in level.items()}}
        for name, level in references.items()
    }
    return yaml.safe_dump(values, sort_keys=False)
