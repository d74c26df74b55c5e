"""Atomic reference energies of each fidelity, by least squares on its labelled training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError

_ATOMS_AT_ONCE = 1 << 22


@dataclass
class References:
    """Reference energies of one fidelity.

    Attributes:
        energies: kcal/mol for each element of ``species``, (n_species,) float64.
        undetermined: symbols of the elements whose energy the labels do not determine on their own.
    """

    energies: np.ndarray
    undetermined: list[str]


def species_of(dataset: ConformationDataset) -> tuple[int, ...]:
    """Atomic numbers that occur in the data set, ascending."""
    return tuple(np.flatnonzero(np.bincount(dataset._data.z.numpy())).tolist())


def compositions(dataset: ConformationDataset, species: tuple[int, ...]) -> np.ndarray:
    """How many atoms of each element every conformation has: (n_conformations, n_species) float64."""
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
) -> dict[str, References]:
    """Fit E ≈ Σ_elements n_Z e_Z for each fidelity, in float64, on its labelled rows.

    Where the compositions do not determine all energies, the solution of least norm is taken, and the
    elements concerned are named; a fidelity without a labelled row gets zeros.

    Args:
        dataset: the data set.
        rows: conformations of the training split.
        species: atomic numbers of the potential.
        names: of the fidelities; all if not given.
        counts: the :func:`compositions` of the data set, if they are known.

    Raises:
        MFPyGError: for an energy that is NaN or infinite and not masked.
    """
    counts = (compositions(dataset, species) if counts is None else counts)[rows]
    result = {}
    for name in names or dataset.fidelities:
        column = dataset.fidelities.index(name)
        labelled = dataset._data.energy_mask[:, column].numpy()[rows]
        energy = labelled_energies(dataset, name, rows[labelled])
        result[name] = fit(counts[labelled], energy, species)
    return result


def labelled_energies(dataset: ConformationDataset, name: str, rows: np.ndarray) -> np.ndarray:
    """Total energies of a fidelity of rows that all have one, (n,) float64.

    Raises:
        MFPyGError: naming the first that is NaN or infinite; no source gives such labels, but columns can be changed.
    """
    energy = dataset._data.energy[:, dataset.fidelities.index(name)].numpy()[rows]
    wrong = rows[~np.isfinite(energy)]
    if len(wrong):
        molecule = dataset.molecules[int(dataset._data.molecule[wrong[0]])]
        number = int(dataset._data.conformation[wrong[0]])
        raise MFPyGError(
            f"the {name} energy label of {molecule}, conformation {number}, is NaN or infinite but not masked "
            f"({len(wrong)} such in all); process the data anew"
        )
    return energy


def fit(counts: np.ndarray, energy: np.ndarray, species: tuple[int, ...]) -> References:
    """References of total energies, (n,) float64, given the conformations' :func:`compositions`, (n, n_species)."""
    solution, _, rank, _ = np.linalg.lstsq(counts, energy, rcond=None)
    undetermined = _undetermined(counts) if rank < len(species) else []
    return References(solution, [chemical_symbols[species[i]] for i in undetermined])


def silent_directions(counts: np.ndarray) -> np.ndarray:
    """Combinations of elements' energies that the compositions say nothing of: (n, n_species) -> (n_species, m)."""
    counts = counts.astype(np.float64, copy=False)
    values, directions = np.linalg.eigh(counts.T @ counts)  # few by few, however many rows
    return directions[:, values <= 1e-10 * max(values.max(initial=0.0), 1.0)]


def _undetermined(counts: np.ndarray) -> list[int]:
    """Columns that take part in a combination the rows say nothing of."""
    return np.flatnonzero(np.abs(silent_directions(counts)).max(axis=1, initial=0.0) > 1e-8).tolist()
