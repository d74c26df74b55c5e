"""Predictions for labelled data sets.

The predictions of a run are stored in its folder, together with what they depend on: the SHA-256 of the checkpoint, the
fingerprint of the data, the conformations and the version of the package.
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
from mfpyg.errors import MFPyGError
from mfpyg.files import read_npz, replace_file, sha256_of
from mfpyg.models import Potential, Prediction
from mfpyg.properties import PROPERTIES, in_order
from mfpyg.torch_defaults import with_default_torch_settings

FORMAT = 1
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
) -> Iterator[tuple[np.ndarray, Batch, dict[str, Prediction]]]:
    """Predict labelled quantities but Hessians in batches of conformations of similar size.

    Args:
        potential: potential in evaluation mode.
        dataset: whole data set, not a subset.
        rows: numbers of the conformations, (n,) int64.
        columns: result of :func:`common_columns`.
        split: name of the split, for the progress bar.
        track: wraps the batches of a split to show progress.

    Yields:
        Numbers of the conformations of a batch, the batch, and predictions of each fidelity with a label in it.
    """
    device = next(potential.parameters()).device
    plan = by_size(rows, dataset.slices["z"].diff().numpy(), BATCH_SIZE, ATOMS)
    for chosen, batch in zip(plan(0), track(BatchLoader(dataset, plan=plan), split), strict=True):
        batch = batch.to(device)
        yield chosen, batch, potential.predict(batch, _labelled(potential, batch, columns))


def evaluated_letters(potential: Potential, fidelity: str, letters: str) -> str:
    """Those of these letters that a potential predicts for a fidelity."""
    return in_order(set(letters) & set(potential.letters(fidelity)))


def _labelled(potential: Potential, batch: Batch, columns: Mapping[str, int]) -> dict[str, str]:
    """Fidelities with a label in the batch, and the letters of the predicted properties that have one."""
    there = {letter: batch[p.mask].any(dim=0).tolist() for letter, p in PROPERTIES.items() if p.mask in batch}
    found = {name: in_order(letter for letter, mask in there.items() if mask[t]) for name, t in columns.items()}
    found = {name: evaluated_letters(potential, name, letters).replace("H", "") for name, letters in found.items()}
    return {name: letters for name, letters in found.items() if letters}


@dataclass
class Predictions:
    """Predictions for n conformations with N atoms in total; NaN where the data have no label.

    Attributes:
        rows: numbers of the conformations in the data set, (n,) int64.
        energy: total energies of each fidelity in kcal/mol, (n,) float64.
        forces: forces of each fidelity with labelled forces in kcal/mol/Å, (N, 3) float32.
        reference: sums of the atomic reference energies of each fidelity in kcal/mol, (n,) float64.
    """

    rows: np.ndarray
    energy: dict[str, np.ndarray]
    forces: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]


@with_default_torch_settings
def predict_rows(
    potential: Potential,
    dataset: ConformationDataset,
    rows: np.ndarray,
) -> Predictions:
    """Predict all labels of the given conformations.

    Args:
        potential: potential in evaluation mode.
        dataset: whole data set, not a subset; must have at least one of the potential's fidelities.
        rows: numbers of the conformations, (n,) int64.

    Raises:
        MFPyGError: if data and potential have no fidelity in common, or a prediction is NaN or infinite.
    """
    columns = common_columns(potential, dataset)
    n_atoms = dataset.slices["z"].diff().numpy()[rows]
    starts = np.concatenate([[0], np.cumsum(n_atoms)])
    place = np.full(len(dataset), -1)
    place[rows] = np.arange(len(rows))
    energy = {name: np.full(len(rows), np.nan) for name in columns}
    reference = {name: np.full(len(rows), np.nan) for name in columns}
    forces = {name: np.full((starts[-1], 3), np.nan, np.float32) for name in columns}
    for chosen, batch, predictions in predicted(potential, dataset, rows, columns):
        at = place[chosen]
        for name, prediction in predictions.items():
            labelled = batch.energy_mask[:, columns[name]].cpu().numpy()
            energy[name][at[labelled]] = prediction.energy.cpu().numpy()[labelled]
            reference[name][at[labelled]] = potential.reference_energy(batch, name).cpu().numpy()[labelled]
            if prediction.forces is not None:
                mask = batch.forces_mask[:, columns[name]].cpu().numpy()
                atoms, _, _ = rows_of(torch.from_numpy(starts), torch.from_numpy(at[mask]))
                of_labelled = mask[batch.batch.cpu().numpy()]
                forces[name][atoms.numpy()] = prediction.forces.cpu().numpy()[of_labelled]
    predictions_of_rows = Predictions(rows, energy, forces, reference)
    _check_finite(predictions_of_rows, dataset, columns, n_atoms)
    predictions_of_rows.forces = {name: values for name, values in forces.items() if not np.isnan(values).all()}
    return predictions_of_rows


def _check_finite(
    predictions: Predictions, dataset: ConformationDataset, columns: dict[str, int], n_atoms: np.ndarray
) -> None:
    # A NaN prediction must not be taken for a missing label.
    for name, column in columns.items():
        has_energy = dataset._data.energy_mask[predictions.rows, column].numpy()
        has_forces = dataset._data.forces_mask[predictions.rows, column].numpy()
        bad = has_energy & ~np.isfinite(predictions.energy[name])
        owner = np.repeat(np.arange(len(predictions.rows)), n_atoms)
        bad[owner[has_forces[owner] & ~np.isfinite(predictions.forces[name]).all(axis=1)]] = True
        if bad.any():
            row = int(predictions.rows[np.flatnonzero(bad)[0]])
            molecule = dataset.molecules[int(dataset._data.molecule[row])]
            raise MFPyGError(
                f"the potential predicts NaN or infinity for '{name}' of {bad.sum()} conformations, the first being "
                f"number {row} ({molecule}); expected finite energies and forces; train it again"
            )


def average(members: Sequence[Predictions]) -> Predictions:
    """Prediction of an ensemble: the mean of the energies and forces of its members.

    Raises:
        MFPyGError: if the members predict different conformations or fidelities.
    """
    first = members[0]
    for other in members[1:]:
        if not np.array_equal(first.rows, other.rows) or set(first.energy) != set(other.energy):
            raise MFPyGError("members of an ensemble predict different conformations or fidelities; expected the same")
    return Predictions(
        first.rows,
        {name: np.mean([m.energy[name] for m in members], axis=0) for name in first.energy},
        {name: np.mean([m.forces[name].astype(np.float64) for m in members], axis=0) for name in first.forces},
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
        return Predictions(rows, *(_by_fidelity(stored, kind) for kind in ("energy", "forces", "reference")))
    found = predict_rows(load(run).to(device), dataset, rows)
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for kind in ("energy", "forces", "reference"):
        arrays |= {f"{kind}/{name}": values for name, values in getattr(found, kind).items()}
    replace_file(path, lambda name: _save(name, arrays))
    return found


def _by_fidelity(stored: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    return {key.partition("/")[2]: values for key, values in stored.items() if key.startswith(f"{kind}/")}


def _save(name: str, arrays: dict[str, Any]) -> None:
    with open(name, "wb") as file:  # numpy would append .npz to a name
        np.savez(file, **arrays)
