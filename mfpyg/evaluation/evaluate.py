"""Errors of a trained potential on labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

from mfpyg.datasets.batches import BatchLoader
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.coverage import Coverage
from mfpyg.evaluation.diagnosis import fault_of_data, fault_of_predictions
from mfpyg.evaluation.hessians import Comparison, compared_hessians
from mfpyg.evaluation.metrics import (
    MetricTable,
    error_sums,
    label_errors,
    labelled_rows,
    mae_and_rmse,
)
from mfpyg.evaluation.pairs import DIRECTIONAL_FORCE, Pair, component_error, directional_forces, pairs_of
from mfpyg.inference.dataset import common_columns, evaluated_letters, predicted
from mfpyg.inference.ensemble import Ensemble
from mfpyg.models import Potential, Prediction
from mfpyg.models.calibration import NORMAL
from mfpyg.models.prediction import predicted_properties
from mfpyg.models.uncertainty import predict_with_std
from mfpyg.properties import ENERGY, HESSIAN, PROPERTIES
from mfpyg.torch_defaults import with_default_torch_settings


@dataclass
class Parity:
    """Labels and predictions of one quantity, for plotting.

    Attributes:
        labels, predictions: energies in kcal/mol per atom without the reference energies, or components of another
            property in its unit.
    """

    labels: list[np.ndarray] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)


@dataclass
class Evaluation:
    """Results of :func:`evaluate`.

    Attributes:
        metrics: ``{split: {fidelity: {"energy": {…}, "forces": {…}, …}}}`` as
            :meth:`mfpyg.evaluation.metrics.MetricTable.result` gives them; energies and forces with standard deviations
            also have ``"calibration": {…}``, see :func:`mfpyg.evaluation.coverage.statistics`; if there are near
            pairs, also ``"directional_force": {n, mae, rmse, component_rmse}``, see
            :mod:`mfpyg.evaluation.pairs`.
        parity: ``{split: {(fidelity, name of the property): Parity}}`` if requested.
        energy_errors: ``{fidelity: predictions minus labels}`` in kcal/mol, (n_conformations,) float64, NaN where there
            is no label or nothing was evaluated.
    """

    metrics: dict[str, dict[str, Any]]
    parity: dict[str, dict[tuple[str, str], Parity]]
    energy_errors: dict[str, np.ndarray]


@with_default_torch_settings
def evaluate(
    potential: Potential,
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
    *,
    parity: bool = False,
    track: Callable[[BatchLoader, str], Iterable[Batch]] = lambda loader, split: loader,
) -> Evaluation:
    """Evaluate a potential against all labels of its fidelities, including those it was not trained on.

    Args:
        potential: potential in evaluation mode.
        dataset: data set with at least one of its fidelities.
        splits: numbers of the conformations of each split.
        parity: whether to keep labels and predictions.
        track: wraps the batches of a split to show progress.

    Raises:
        MFPyGError: if the data set has none of the potential's fidelities, or has an element that it does not know; if
            a label or a prediction is NaN or infinite, naming the conformation.
    """
    columns = common_columns(potential, dataset)
    labels = [
        (name, PROPERTIES[letter].name, column)
        for name, column in columns.items()
        for letter in evaluated_letters(potential, name, dataset.letters)
    ]
    result = Evaluation({}, {}, {name: np.full(len(dataset), np.nan) for name in columns})
    for split, rows in splits.items():
        table, coverage = MetricTable(columns), Coverage(columns)
        pairs: dict[tuple[str, str], Parity] = {}
        errors = {name: np.full(len(dataset), np.nan) for name in columns}  # of energies
        for chosen, batch, predictions in predicted(potential, dataset, rows, columns, split, track, predict_with_std):
            if not table.add(predictions, batch):
                fault = fault_of_data(potential, batch, labels, dataset.molecules)
                raise MFPyGError(fault or str(fault_of_predictions(predictions, batch, dataset.molecules)))
            coverage.add(predictions, batch)
            for name, prediction in predictions.items():
                there = labelled_rows(ENERGY, batch, columns[name])
                of_batch = label_errors(ENERGY, prediction, batch, columns[name])
                errors[name][chosen[there.cpu().numpy()]] = of_batch.cpu().numpy()
            if parity:
                _collect(pairs, potential, predictions, batch, columns)
        if HESSIAN.mask in dataset.slices:
            for found in compared_hessians(potential, dataset, rows, columns):
                _add_hessian(table, found)
                if parity:
                    _append(pairs, (found.fidelity, HESSIAN.name), found.label.flatten(), found.predicted.flatten())
        result.metrics[split] = table.result()
        coverage.add_to(result.metrics[split], potential.quantiles)
        _add_directional_forces(result.metrics[split], dataset, pairs_of(dataset, rows), errors)
        for name, of_split in errors.items():
            result.energy_errors[name][rows] = of_split[rows]
        result.parity[split] = pairs
    return result


@with_default_torch_settings
def evaluate_ensemble(
    ensemble: Ensemble, dataset: ConformationDataset, splits: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Errors of the mean of several potentials, and comparison of their standard deviations with these errors.

    Intervals of an ensemble that is not calibrated are those of a normal distribution. There are no errors of Hessians.

    Args:
        ensemble: potentials; those of a single one are its own, if it has any.
        dataset, splits: as for :func:`evaluate`.

    Returns:
        As :attr:`Evaluation.metrics`.

    Raises:
        MFPyGError: as :func:`evaluate`, but NaN and infinity are not refused.
    """

    def predict(_: Potential, batch: Batch, wanted: Mapping[str, str]) -> dict[str, Prediction]:
        mean, spread = ensemble.predict(batch, wanted, std=True)
        for name, std in (spread or {}).items():
            mean[name].energy_std, mean[name].forces_std = std.energy, std.forces
        return mean

    first, metrics = ensemble.members[0], {}
    columns = {n: column for n, column in common_columns(first, dataset).items() if n in ensemble.fidelities}
    found = {name: ensemble.quantiles(name) for name in columns}
    quantiles = {name: np.stack([NORMAL, NORMAL]) if of is None else of for name, of in found.items()}
    for split, rows in splits.items():
        table, coverage = MetricTable(columns), Coverage(columns)
        for _, batch, predictions in predicted(first, dataset, rows, columns, split, predict=predict):
            table.add(predictions, batch)
            coverage.add(predictions, batch)
        metrics[split] = table.result()
        coverage.add_to(metrics[split], quantiles)
    return metrics


def _add_directional_forces(
    metrics: dict[str, Any], dataset: ConformationDataset, pairs: Sequence[Pair], errors: Mapping[str, np.ndarray]
) -> None:
    """Add errors of directional forces, given those of the energies of all conformations, NaN without a label."""
    for name, of_energy in errors.items():
        of_level = directional_forces(pairs, of_energy)
        there = np.flatnonzero(~np.isnan(of_level))
        if len(there):
            found = of_level[there]
            mae, rmse = mae_and_rmse(error_sums(torch.from_numpy(found)))
            of_component = component_error(dataset, [pairs[i] for i in there.tolist()], found)
            values = {"n": len(found), "mae": mae, "rmse": rmse, "component_rmse": of_component}
            metrics[name][DIRECTIONAL_FORCE] = values


def _add_hessian(table: MetricTable, found: Comparison) -> None:
    table.add_errors(found.fidelity, HESSIAN.name, (found.predicted.double() - found.label.double()).flatten())
    if found.frequencies is not None:
        label, predicted = found.frequencies
        table.add_errors(found.fidelity, "frequencies", predicted - label)


def _collect(
    pairs: dict[tuple[str, str], Parity],
    potential: Potential,
    predictions: Mapping[str, Prediction],
    batch: Batch,
    columns: Mapping[str, int],
) -> None:
    n_atoms = torch.bincount(batch.batch, minlength=batch.num_graphs)
    for name, prediction in predictions.items():
        column = columns[name]
        for property in predicted_properties(prediction):
            rows = labelled_rows(property, batch, column)
            label, value = batch[property.name][rows, column], getattr(prediction, property.name)[rows]
            if property is ENERGY:
                reference = potential.reference_energy(batch, name)[rows]
                label, value = (label - reference) / n_atoms[rows], (value - reference) / n_atoms[rows]
            _append(pairs, (name, property.name), label.flatten(), value.flatten())


def _append(
    pairs: dict[tuple[str, str], Parity], key: tuple[str, str], label: torch.Tensor, predicted: torch.Tensor
) -> None:
    if not len(label):
        return
    entry = pairs.setdefault(key, Parity())
    entry.labels.append(label.cpu().numpy())
    entry.predictions.append(predicted.cpu().numpy())
