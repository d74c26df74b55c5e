"""Energy differences between conformers of a molecule, over all pairs of them.

As in Messerly et al., arXiv 2505.01590, section 2.2.2: the conformers of a molecule are the evaluated conformations
within 100 kcal/mol of its lowest one, by the labels of the level in question, and the error of a pair is that of
ΔE_ij = E_i − E_j. With the errors e_i of the n energies of a molecule, no loop over the n(n−1)/2 pairs is needed:

    Σ_{i<j} (e_i − e_j)² = n Σ_i (e_i − ē)²
    Σ_{i<j} |e_i − e_j|  = Σ_k (2k − n + 1) e_(k),   e_(0) ≤ e_(1) ≤ … ≤ e_(n−1)
"""

from __future__ import annotations

import re

import numpy as np
import torch
from ase.data import chemical_symbols

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.isomers import same_molecule

WINDOW = 100.0
"""Energy window in kcal/mol above the lowest conformation of a molecule."""

_ELEMENT = re.compile(r"([A-Z][a-z]?)(\d*)")


def molecules_of_rows(dataset: ConformationDataset, rows: np.ndarray) -> np.ndarray:
    """Number of each conformation's molecule, from 0, (n,) int64.

    Conformations of one name and source are of one molecule, as in COMP6. If the name is only the formula, as in the
    ANI-1x release file, isomers are told apart by their bonds (see :mod:`mfpyg.datasets.isomers`), and merged when in
    doubt.

    Args:
        dataset: whole data set, not a part.
        rows: numbers of the conformations, (n,) int64.
    """
    part = dataset.copy(torch.from_numpy(rows))
    name, source = part._data.molecule.numpy(), part._data.source.numpy()
    bonds = np.zeros(len(rows), np.int64)
    by_formula = _named_by_formula(part)
    if by_formula.any():
        bonds[by_formula] = same_molecule(part.copy(torch.from_numpy(np.flatnonzero(by_formula))))
    keys = np.stack([source, name, bonds], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _named_by_formula(dataset: ConformationDataset) -> np.ndarray:
    """True for conformations whose name is the formula of their atoms, (n,) bool."""
    names = dataset._data.molecule.numpy()
    starts, z = dataset.slices["z"].numpy(), dataset._data.z.numpy()
    numbers, first, of = np.unique(names, return_index=True, return_inverse=True)
    found = np.zeros(len(numbers), bool)
    for i, (number, row) in enumerate(zip(numbers, first, strict=True)):
        symbols, counts = np.unique(z[starts[row] : starts[row + 1]], return_counts=True)
        atoms = dict(zip((chemical_symbols[s] for s in symbols), counts.tolist(), strict=True))
        found[i] = _formula(dataset.molecules[number]) == atoms
    return found[of.reshape(-1)]


def _formula(name: str) -> dict[str, int] | None:
    """Atoms of each element from a name such as ``C2H6O1`` or ``CH3OH``; ``None`` if it is not a formula."""
    if not name or _ELEMENT.sub("", name):
        return None
    counts: dict[str, int] = {}
    for symbol, number in _ELEMENT.findall(name):
        counts[symbol] = counts.get(symbol, 0) + int(number or 1)
    return counts


def in_window(energy: np.ndarray, molecule: np.ndarray, width: float = WINDOW) -> np.ndarray:
    """True for conformations within the window above the lowest one of their molecule, (n,) bool.

    Args:
        energy: labels of one level in kcal/mol, (n,).
        molecule: number of each conformation's molecule, (n,) int64.
        width: width of the window in kcal/mol.
    """
    lowest = np.full(molecule.max(initial=-1) + 1, np.inf)
    np.minimum.at(lowest, molecule, energy)
    return energy - lowest[molecule] <= width


def pair_sums(errors: np.ndarray, molecule: np.ndarray, n_molecules: int) -> np.ndarray:
    """Number of pairs of each molecule, and Σ|e_i − e_j| and Σ(e_i − e_j)² over them, (n_molecules, 3) float64.

    Args:
        errors: errors of the energies of conformations in kcal/mol, (n,).
        molecule: number of each conformation's molecule, (n,) int64, below ``n_molecules``.
        n_molecules: number of molecules.
    """
    order = np.lexsort((errors, molecule))
    e, of = errors[order].astype(np.float64), molecule[order]
    n = np.bincount(of, minlength=n_molecules)
    mean = np.bincount(of, e, minlength=n_molecules) / np.maximum(n, 1)
    e = e - mean[of]
    rank = np.arange(len(of)) - (np.cumsum(n) - n)[of]  # k, within the molecule
    absolute = np.bincount(of, (2 * rank - n[of] + 1) * e, minlength=n_molecules)
    squared = n * np.bincount(of, e * e, minlength=n_molecules)
    return np.stack([n * (n - 1) / 2, absolute, squared], axis=1)
