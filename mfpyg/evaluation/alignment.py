r"""Reference energies of a trained potential, fitted to labels with another zero of energy.

Formation and total energies, or total energies of two programs, differ by one energy per element. It is found by least
squares of labels minus predictions on the numbers n of atoms of each element,

.. math:: \min_e \sum_k \Big( E_k - E'_k - \sum_Z n_{kZ}\, e_Z \Big)^2

in float64, and added to the reference energies. Forces do not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from torch_geometric.data import Batch

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import References, compositions, fit, labelled_energies, read_references
from mfpyg.errors import MFPyGError
from mfpyg.inference.dataset import predicted
from mfpyg.models import MultiFidelityPotential, Potential, Prediction
from mfpyg.torch_defaults import with_default_torch_settings
from mfpyg.units import EV_TO_KCAL_MOL, atomic_estimate

LARGE = EV_TO_KCAL_MOL
"""Error in kcal/mol per atom that no trained potential has on molecules of the kind that it was trained on."""

EXPLAINED = 0.05
"""Largest fraction of such errors that one energy per element leaves if labels have another zero of energy."""


@dataclass(frozen=True)
class Alignment:
    """Least-squares fit of one energy per element to labels minus predictions of a fidelity.

    Attributes:
        shifts: energies to add to the reference energies; without labels of an element, the smallest that fit.
        counts: number of atoms of each element in the labelled conformations, (n, n_species) float64.
        left: labels minus predictions before the shift in kcal/mol, (n,) float64.
    """

    shifts: References
    counts: np.ndarray
    left: np.ndarray

    def rmse(self) -> tuple[float, float]:
        """Root mean square errors in kcal/mol on the conformations of the fit, before and after the shift."""
        before, after = self.left, self.left - self.counts @ self.shifts.energies
        return float(np.sqrt(np.mean(before**2))), float(np.sqrt(np.mean(after**2)))

    def as_dict(self, on: str, species: Sequence[int]) -> dict[str, object]:
        """Plain values: where it was fitted, to how many energies, and shifts in kcal/mol by element."""
        symbols = [chemical_symbols[number] for number in species]
        shifts = dict(zip(symbols, self.shifts.energies.tolist(), strict=True))
        return {"on": on, "n": len(self.left), "shifts": shifts, "undetermined": self.shifts.undetermined}


@with_default_torch_settings
def fit_to_predictions(
    potential: Potential,
    dataset: ConformationDataset,
    rows: np.ndarray,
    fidelities: Sequence[str],
    given: Mapping[str, Mapping[int, float]] | None = None,
) -> dict[str, Alignment]:
    """Fit shifts of the reference energies to the labels of some conformations; the potential is not changed.

    A fit to the labels themselves, as for new networks, would ignore binding energies, which the trained network
    predicts, and be poor with few labels. If isolated atoms have their reference energies exactly
    (``head.isolated reference``), those among the conformations are kept exactly.

    Args:
        potential: potential in evaluation mode.
        dataset, rows: data set, and its conformations to fit to.
        fidelities: fidelities of the potential and of the data set.
        given: reference energies in kcal/mol, by fidelity and atomic number, that are not fitted.

    Raises:
        MFPyGError: for an element that the potential does not know, or a label that is NaN or infinite.
    """
    columns = {name: dataset.fidelities.index(name) for name in fidelities}
    mask = dataset._data.energy_mask.numpy()
    rows = rows[mask[rows][:, list(columns.values())].any(axis=1)]
    energy = {name: np.full(len(dataset.slices["energy"]) - 1, np.nan) for name in columns}
    for chosen, _, predictions in predicted(potential, dataset, rows, columns, predict=_energies):
        for name, prediction in predictions.items():
            energy[name][chosen] = prediction.energy.cpu().numpy()
    counts, found = compositions(dataset, potential.species), {}
    exact = isinstance(potential, MultiFidelityPotential) and potential.isolated == "reference"
    for name, column in columns.items():
        labelled = rows[mask[rows, column]]
        left = labelled_energies(dataset, name, labelled) - energy[name][labelled]
        before = dict(zip(potential.species, potential.reference(name).tolist(), strict=True))
        wanted = (given or {}).get(name, {})
        missing = {number: value - before[number] for number, value in wanted.items() if number in before}
        isolated = dataset.isolated_atoms[labelled] if exact else None
        shifts = fit(counts[labelled], left, potential.species, missing, isolated)
        found[name] = Alignment(shifts, counts[labelled], left)
    return found


def _energies(potential: Potential, batch: Batch, wanted: Mapping[str, str]) -> dict[str, Prediction]:
    """Energies alone, as forces do not depend on references."""
    return potential.predict(batch, {name: "E" for name, letters in wanted.items() if "E" in letters})


def align(potential: Potential, alignments: Mapping[str, Alignment]) -> None:
    """Shift the reference energies of a potential by those of :func:`fit_to_predictions`."""
    for name, alignment in alignments.items():
        potential.shift_references(name, torch.from_numpy(alignment.shifts.energies))


def alignment_notes(alignments: Mapping[str, Alignment], where: str, present: Sequence[str] | None = None) -> list[str]:
    """Notes on shifts that the labels do not determine.

    Args:
        alignments: result of :func:`fit_to_predictions`.
        where: name of the conformations of the fit.
        present: symbols of the elements to mention; all if not given.
    """
    notes = []
    for name, alignment in alignments.items():
        symbols = [s for s in alignment.shifts.undetermined if present is None or s in present]
        if symbols:
            notes.append(
                f"note: the {name} energies of {where} do not determine the reference energies of {', '.join(symbols)} "
                "individually; the smallest shifts that fit are used"
            )
    return notes


def offset_note(fidelity: str, left: np.ndarray, counts: np.ndarray, remedy: str) -> str | None:
    """Note on predictions whose large errors are explained by the composition; ``None`` for others.

    Args:
        fidelity: name of the fidelity.
        left: labels minus predictions in kcal/mol, (n,) float64.
        counts: number of atoms of each element, (n, n_species) float64.
        remedy: what to do about it.
    """
    n_atoms = counts.sum(axis=1)
    before = float(np.sqrt(np.mean((left / n_atoms) ** 2))) if len(left) else 0.0
    if before < LARGE:
        return None
    shifts, _, rank, _ = np.linalg.lstsq(counts, left, rcond=None)
    freedom = len(left) - int(rank)
    after = (left - counts @ shifts) / n_atoms
    unexplained = float(np.sqrt(np.sum(after**2) / freedom)) if freedom else math.inf
    if unexplained > EXPLAINED * before:
        return None
    return (
        f"note: {fidelity} energies differ from the labels by {before:,.0f} kcal/mol per atom, and by "
        f"{unexplained:,.1f} after a fit of one energy per element (RMS): model and labels have different zeros of "
        f"energy, as formation and total energies have; {remedy}"
    )


def add_references(potential: Potential, path: str | Path) -> None:
    """Add energies of isolated atoms from a file to the reference energies, for models of formation energies.

    Args:
        potential: potential to change.
        path: file for :func:`mfpyg.datasets.references.read_references`.

    Raises:
        MFPyGError: if it cannot be read, lacks an element of the potential, or if the potential predicts total energies
            already.
    """
    estimate = np.array(atomic_estimate(potential.species))
    for name, energies in read_references(path, potential.fidelities).items():
        lacking = [chemical_symbols[number] for number in potential.species if number not in energies]
        if lacking:
            raise MFPyGError(
                f"{path}: {name} has no energy of {', '.join(lacking)}, which the model knows; expected all of "
                f"{', '.join(chemical_symbols[number] for number in potential.species)}"
            )
        before = potential.reference(name).numpy()
        if (before < 0.5 * estimate).all():
            raise MFPyGError(
                f"{name} has total energies already (references of {before.min():,.0f} to {before.max():,.0f} "
                f"kcal/mol), and {path} would add energies of isolated atoms to them; leave '{name}' out of it"
            )
        potential.shift_references(name, torch.tensor([energies[number] for number in potential.species]).double())
