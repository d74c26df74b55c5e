"""Atomic reference energies of each fidelity, by least squares on its labelled training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase.data import chemical_symbols

from mfpyg.datasets.conformations import ConformationDataset


@dataclass
class References:
    """Reference energies of one fidelity.

    Attributes:
        energies: kcal/mol for each element of ``species``, (n_species,) float64.
        undetermined: symbols of the elements whose energy the labels do not determine on their own.
    """

    energies: np.ndarray
    undetermined: list[str]


def compositions(dataset: ConformationDataset, species: tuple[int, ...]) -> np.ndarray:
    """How many atoms of each element every conformation has: (n_conformations, n_species) float64."""
    z = dataset._data.z.numpy()
    starts = dataset.slices["z"].numpy()
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    counts = np.zeros((len(starts) - 1, len(species)))
    for column, number in enumerate(species):
        counts[:, column] = np.bincount(owner[z == number], minlength=len(counts))
    return counts


def elements(dataset: ConformationDataset, rows: np.ndarray) -> tuple[int, ...]:
    """Atomic numbers that occur in these conformations, ascending."""
    every = tuple(torch.unique(dataset._data.z).tolist())
    present = compositions(dataset, every)[rows].any(axis=0)
    return tuple(number for number, there in zip(every, present, strict=True) if there)


def fit_references(dataset: ConformationDataset, rows: np.ndarray, species: tuple[int, ...]) -> dict[str, References]:
    """Fit E ≈ Σ_elements n_Z e_Z for each fidelity, in float64, on its labelled rows.

    Where the compositions do not determine all energies, the solution of least norm is taken, and the
    elements concerned are named; a fidelity without a labelled row gets zeros.

    Args:
        dataset: the data set.
        rows: conformations of the training split.
        species: atomic numbers of the potential.
    """
    counts = compositions(dataset, species)[rows]
    result = {}
    for column, name in enumerate(dataset.fidelities):
        labelled = dataset._data.energy_mask[rows, column].numpy()
        energy = dataset._data.energy[rows, column].numpy()[labelled]
        solution, _, rank, _ = np.linalg.lstsq(counts[labelled], energy, rcond=None)
        undetermined = _undetermined(counts[labelled]) if rank < len(species) else []
        result[name] = References(solution, [chemical_symbols[species[i]] for i in undetermined])
    return result


def _undetermined(counts: np.ndarray) -> list[int]:
    """Columns that take part in a combination the rows say nothing of."""
    values, directions = np.linalg.eigh(counts.T @ counts)  # few by few, however many rows
    silent = directions[:, values <= 1e-10 * max(values.max(initial=0.0), 1.0)]
    return np.flatnonzero(np.abs(silent).max(axis=1, initial=0.0) > 1e-8).tolist()
