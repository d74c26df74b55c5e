"""Predictions for labelled data sets.

Those of a run are stored in its folder, with what they depend on: checkpoint, data, conformations, and version.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

import mfpyg
from mfpyg.checkpoint import load
from mfpyg.datasets.batches import BatchLoader, by_size, rows_of
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.labels import rows_of as n_rows
from mfpyg.errors import MFPyGError
from mfpyg.files import read_npz, replace_file, sha256_of
from mfpyg.models import Potential, Prediction
from mfpyg.models.hessian import MAX_ATOMS, hessian
from mfpyg.models.prediction import predicted_properties
from mfpyg.properties import BY_NAME, ENERGY, HESSIAN, PROPERTIES, Property, in_order, listed
from mfpyg.torch_defaults import with_default_torch_settings

FORMAT = 2
"""Version of the format of stored predictions."""

BATCH_SIZE = 128
"""Maximum number of conformations in a batch."""

ATOMS = 4096
"""Maximum number of atoms in a batch of more than one conformation."""


def common_columns(potential: Potential, dataset: ConformationDataset) -> dict[str, int]:
    """Fidelities that a potential and a data set share, with their columns in the labels of the data set.

    Raises:
        MFPyGError: if there are none.
    """
    columns = {name: dataset.fidelities.index(name) for name in potential.fidelities if name in dataset.fidelities}
    if not columns:
        raise MFPyGError(
            f"the data set has none of the potential's fidelities {', '.join(potential.fidelities)} "
            f"(it has {', '.join(dataset.fidelities)})"
        )
    return columns


def predicted(
    potential: Potential,
    dataset: ConformationDataset,
    rows: np.ndarray,
    columns: Mapping[str, int],
    split: str = "",
    track: Callable[[BatchLoader, str], Iterable[Batch]] = lambda loader, split: loader,
    predict: Callable[[Potential, Batch, dict[str, str]], dict[str, Prediction]] = lambda p, *args: p.predict(*args),
) -> Iterator[tuple[np.ndarray, Batch, dict[str, Prediction]]]:
    """Predict labelled quantities except Hessians in batches of conformations of similar size.

    Args:
        potential: potential in evaluation mode.
        dataset: whole data set, not a subset.
        rows: numbers of the conformations, (n,) int64.
        columns: result of :func:`common_columns`.
        split: name of the split, for the progress bar.
        track: wraps the batches of a split to show progress.
        predict: function that predicts a batch.

    Yields:
        Numbers of the conformations of a batch, the batch, and predictions of each fidelity with a label in it.
    """
    device = next(potential.parameters()).device
    plan = by_size(rows, dataset.slices["z"].diff().numpy(), BATCH_SIZE, ATOMS)
    for chosen, batch in zip(plan(0), track(BatchLoader(dataset, plan=plan), split), strict=True):
        batch = batch.to(device)
        yield chosen, batch, predict(potential, batch, _labelled(potential, batch, columns))


def evaluated_letters(potential: Potential, fidelity: str, letters: str) -> str:
    """Letters, of those given, that a potential predicts for a fidelity."""
    return in_order(set(letters) & set(potential.letters(fidelity)))


def _labelled(potential: Potential, batch: Batch, columns: Mapping[str, int]) -> dict[str, str]:
    """Fidelities with a label in the batch, and the letters of the predicted properties that have one."""
    there = {letter: batch[p.mask].any(dim=0).tolist() for letter, p in PROPERTIES.items() if p.mask in batch}
    found = {name: in_order(letter for letter, mask in there.items() if mask[t]) for name, t in columns.items()}
    found = {name: evaluated_letters(potential, name, letters).replace("H", "") for name, letters in found.items()}
    return {name: letters for name, letters in found.items() if letters}


@dataclass
class Labelled:
    """Labels of a property at one fidelity, or predictions in their place.

    Attributes:
        mask: whether each of n conformations has a label, (n,) bool.
        values: values of the labelled conformations in turn, (n_labelled, …), of their atoms, (Σ n_atoms, …), or of
            their pairs of atoms row by row, (Σ n_atoms², …).
    """

    mask: np.ndarray
    values: np.ndarray

    def owner(self, property: Property, n_atoms: np.ndarray) -> np.ndarray:
        """Number of the conformation, of those with ``n_atoms`` (n,), that each row of ``values`` belongs to."""
        return np.repeat(np.flatnonzero(self.mask), n_rows(property, n_atoms)[self.mask])


@dataclass
class Predictions:
    """Predictions for the labels of n conformations, in the units of :mod:`mfpyg.properties`.

    Attributes:
        rows: numbers of the conformations in the data set, (n,) int64.
        values: ``{(fidelity, name of the property): predictions}`` where there are labels, in the dtype of these.
        reference: sums of the atomic reference energies in kcal/mol of each fidelity with energies, (n_labelled,)
            float64.
    """

    rows: np.ndarray
    values: dict[tuple[str, str], Labelled]
    reference: dict[str, np.ndarray]


def is_compared(dataset: ConformationDataset, rows: np.ndarray, property: Property, column: int) -> np.ndarray:
    """True for conformations with a label that predictions are compared with, (n,) bool.

    Hessians are left out if they are of more than :data:`mfpyg.models.hessian.MAX_ATOMS` atoms.

    Args:
        dataset: whole data set, not a subset.
        rows: numbers of the conformations, (n,) int64.
        property: property of the data set.
        column: index of the fidelity among the T of the data set.
    """
    mask: np.ndarray = dataset._data[property.mask].numpy()[rows, column]
    if property.per == "pair":
        return mask & (dataset.slices["z"].diff().numpy()[rows] <= MAX_ATOMS)
    return mask


@with_default_torch_settings
def predict_rows(potential: Potential, dataset: ConformationDataset, rows: np.ndarray) -> Predictions:
    """Predict all labels of the given conformations, Hessians included.

    Args:
        potential: potential in evaluation mode.
        dataset: whole data set, not a subset; must have at least one of the potential's fidelities.
        rows: numbers of the conformations, (n,) int64.

    Raises:
        MFPyGError: if data and potential have no fidelity in common, or a prediction is NaN or infinite.
    """
    columns = common_columns(potential, dataset)
    n_atoms = dataset.slices["z"].diff().numpy()[rows]
    place = np.full(len(dataset), -1)
    place[rows] = np.arange(len(rows))
    found = Predictions(rows, {}, {})
    starts: dict[tuple[str, str], torch.Tensor] = {}
    for name, column in columns.items():
        for letter in evaluated_letters(potential, name, dataset.letters):
            p = PROPERTIES[letter]
            mask = is_compared(dataset, rows, p, column)
            if mask.any():
                ends = np.cumsum(np.where(mask, n_rows(p, n_atoms), 0))
                starts[name, p.name] = torch.from_numpy(np.concatenate([[0], ends]))
                found.values[name, p.name] = Labelled(mask, np.full((ends[-1], *p.shape), np.nan, p.dtype))
        if (name, ENERGY.name) in starts:
            found.reference[name] = np.full(int(starts[name, ENERGY.name][-1]), np.nan)
    for name, p, chosen, values, reference in _compared(potential, dataset, found, columns):
        at = rows_of(starts[name, p.name], torch.from_numpy(place[chosen]))[0].numpy()
        found.values[name, p.name].values[at] = values.cpu().numpy()
        if reference is not None:
            found.reference[name][at] = reference.cpu().numpy()
    _check_finite(found, dataset, n_atoms)
    return found


def _compared(
    potential: Potential, dataset: ConformationDataset, found: Predictions, columns: Mapping[str, int]
) -> Iterator[tuple[str, Property, np.ndarray, torch.Tensor, torch.Tensor | None]]:
    """Fidelity, property, labelled conformations, their predictions, and reference energies with their energies."""
    for chosen, batch, predictions in predicted(potential, dataset, found.rows, columns):
        for name, prediction in predictions.items():
            for p in predicted_properties(prediction):
                mask = batch[p.mask][:, columns[name]]
                if mask.any():
                    values = getattr(prediction, p.name)[mask[batch.batch] if p.per == "atom" else mask]
                    reference = potential.reference_energy(batch, name)[mask] if p is ENERGY else None
                    yield name, p, chosen[mask.cpu().numpy()], values, reference
    device = next(potential.parameters()).device
    for (name, property), labelled in found.values.items():
        if property == HESSIAN.name:
            sizes = dataset.slices["z"].diff().numpy()
            plan = by_size(found.rows[labelled.mask], sizes, BATCH_SIZE, MAX_ATOMS)
            for chosen, batch in zip(plan(0), BatchLoader(dataset, plan=plan), strict=True):
                yield name, HESSIAN, chosen, hessian(potential, batch.to(device), name), None


def _check_finite(predictions: Predictions, dataset: ConformationDataset, n_atoms: np.ndarray) -> None:
    bad: dict[str, np.ndarray] = {}
    for (name, property), found in predictions.values.items():
        finite = np.isfinite(found.values).reshape(len(found.values), -1).all(axis=1)
        of_fidelity = bad.setdefault(name, np.zeros(len(predictions.rows), bool))
        of_fidelity[found.owner(BY_NAME[property], n_atoms)[~finite]] = True
    for name, of_fidelity in bad.items():
        if of_fidelity.any():
            row = int(predictions.rows[np.flatnonzero(of_fidelity)[0]])
            molecule = dataset.molecules[int(dataset._data.molecule[row])]
            raise MFPyGError(
                f"the potential predicts NaN or infinity for '{name}' of {of_fidelity.sum()} conformations, the first "
                f"being number {row} ({molecule}); expected finite {listed(dataset.letters)}; train it again"
            )


def average(members: Sequence[Predictions]) -> Predictions:
    """Prediction of an ensemble: the mean over its members, in float64.

    Raises:
        MFPyGError: if the members predict different conformations, or labels of different fidelities or properties.
    """
    first = members[0]
    for other in members[1:]:
        same = np.array_equal(first.rows, other.rows) and first.values.keys() == other.values.keys()
        if not same or any(not np.array_equal(v.mask, other.values[key].mask) for key, v in first.values.items()):
            raise MFPyGError("members of an ensemble predict different conformations or labels; expected the same")
    return Predictions(
        first.rows,
        {
            key: Labelled(of.mask, np.mean([m.values[key].values.astype(np.float64) for m in members], axis=0))
            for key, of in first.values.items()
        },
        {name: np.mean([m.reference[name] for m in members], axis=0) for name in first.reference},
    )


@with_default_torch_settings
def run_predictions(
    run: Path,
    dataset: ConformationDataset,
    rows: np.ndarray,
    *,
    device: torch.device | str = "cpu",
) -> Predictions:
    """Predictions of the best epoch of a run, which are stored in its folder and reused.

    Args:
        run: run folder of mfpyg-train.
        dataset: whole data set, not a subset.
        rows: numbers of the conformations, (n,) int64.
        device: device to predict on.

    Raises:
        MFPyGError: if the run cannot be read or its folder cannot be written to, or as :func:`predict_rows`.
    """
    rows_hash = hashlib.sha256(np.ascontiguousarray(rows, np.int64).data).hexdigest()
    path = run / f"predictions-{dataset.fingerprint[:8]}-{rows_hash[:8]}.npz"
    about = {
        "format": FORMAT,
        "version": mfpyg.__version__,
        "checkpoint": sha256_of(run / "best.ckpt"),
        "data": dataset.fingerprint,
        "rows": rows_hash,
        "fidelities": list(dataset.fidelities),
    }
    stored = read_npz(path) if zipfile.is_zipfile(path) else {}  # a truncated file is replaced
    if str(stored.get("about")) == json.dumps(about):
        return _from_arrays(rows, stored)
    found = predict_rows(load(run).to(device), dataset, rows)
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for (name, property), of in found.values.items():
        arrays |= {f"{property}/{name}": of.values, f"{BY_NAME[property].mask}/{name}": of.mask}
    arrays |= {f"reference/{name}": values for name, values in found.reference.items()}
    replace_file(path, lambda name: _save(name, arrays))
    return found


def _from_arrays(rows: np.ndarray, stored: dict[str, np.ndarray]) -> Predictions:
    found = Predictions(rows, {}, {})
    for key, values in stored.items():
        kind, _, name = key.partition("/")
        if kind in BY_NAME:
            found.values[name, kind] = Labelled(stored[f"{BY_NAME[kind].mask}/{name}"], values)
        elif kind == "reference":
            found.reference[name] = values
    return found


def _save(name: str, arrays: dict[str, Any]) -> None:
    with open(name, "wb") as file:  # numpy would append .npz to a name
        np.savez(file, **arrays)
