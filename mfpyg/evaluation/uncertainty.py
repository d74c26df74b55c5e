"""Fit of the standard deviations of a trained potential to its training and validation data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.datasets.batches import BatchLoader, BatchPlan, by_size, rows_of
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.evaluation.features import last_features_of
from mfpyg.evaluation.pairs import component_error, pairs_of
from mfpyg.inference.dataset import ATOMS, BATCH_SIZE
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.models.calibration import FEWEST, Calibration, HeldOut, calibrate, n_force_labels
from mfpyg.models.delta import without_charge
from mfpyg.models.last_layer import LastLayer, whitening
from mfpyg.models.uncertainty import drop_uncertainty
from mfpyg.torch_defaults import with_default_torch_settings

TRAINING, VALIDATION, JACOBIANS = 20_000, 1_000, 50
"""Maximum numbers of conformations for the Gram matrices and the calibration of a level, and for κ."""


@dataclass(frozen=True)
class _Level:
    """A level of a network: of the potential itself or, of a Δ-learning potential, of its base and its difference.

    Attributes:
        network: the network.
        name: name of the level in the network.
        columns: column of its labels among the T of the data set, or those of the two levels of a difference.
    """

    network: MultiFidelityPotential
    name: str
    columns: tuple[int, ...]

    def of(self, batch: Batch) -> Batch:
        """The batch as the network takes it: a difference has no total charge."""
        return batch if len(self.columns) == 1 else without_charge(batch)  # type: ignore[return-value]

    def labels(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Labels, (n, T, …) -> (n, …) float64, NaN where missing; ``mask`` (n, T)."""
        there = mask[:, list(self.columns)].all(axis=1)
        label = np.full((len(values), *values.shape[2:]), np.nan)
        first, *others = self.columns
        label[there] = values[there, first].astype(np.float64)
        for other in others:
            label[there] -= values[there, other]
        return label


@with_default_torch_settings
def fit_uncertainty(
    potential: Potential, dataset: ConformationDataset, train: np.ndarray, validation: np.ndarray
) -> None:
    """Give a potential the standard deviations of its levels, see :mod:`mfpyg.models.last_layer`.

    Sets ``uncertainty`` of its networks, and its ``held_out`` and ``quantiles``. Levels with less than
    :data:`mfpyg.models.calibration.FEWEST` energies in training or validation have none. Of larger data sets, random
    conformations are used, always the same ones.

    Args:
        potential: trained potential in evaluation mode.
        dataset: whole data set, with the labels that were trained on.
        train, validation: numbers of conformations, (n,) int64.
    """
    drop_uncertainty(potential)
    mask = dataset._data.energy_mask.numpy()
    levels, rows = [], []
    for level in _levels(potential, dataset):
        labelled = mask[:, list(level.columns)].all(axis=1)
        of_train, of_validation = train[labelled[train]], validation[labelled[validation]]
        if min(len(of_train), len(of_validation)) >= FEWEST:
            level.network.uncertainty[level.name] = _last_layer(level, dataset, _some(of_train, TRAINING))  # type: ignore[index]
            levels.append(level)
            rows.append(_some(of_validation, VALIDATION))  # of each level, as labels of one may be rare
    if not levels:
        return
    held_out, energy_std, forces_std = _held_out(levels, dataset, np.unique(np.concatenate(rows)))
    found = calibrate(held_out, energy_std, forces_std)
    for level in levels:
        if level.name in found:
            level.network.uncertainty[level.name].scale.copy_(_scale(found[level.name]))
        else:
            del level.network.uncertainty[level.name]  # type: ignore[attr-defined]
    if isinstance(potential, DeltaPotential) and potential.has_std(potential.target):
        parts = potential.base_level, potential.difference.fidelities[0]
        scales = [(found[part].energy_scale, found[part].forces_scale) for part in parts]
        _add_sum(held_out, potential.target, parts)
        for std, (a, b) in zip((energy_std, forces_std), zip(*scales, strict=True), strict=True):
            std[potential.target] = np.hypot(a * std[parts[0]], b * std[parts[1]])
        total = calibrate(held_out, energy_std, forces_std)[potential.target]
        potential.std_scale.copy_(_scale(total))
        found[potential.target] = total
    potential.held_out = held_out
    potential.quantiles = {name: one.quantiles for name, one in found.items() if name in potential.fidelities}


def _scale(calibration: Calibration) -> Tensor:
    return torch.tensor([calibration.energy_scale, calibration.forces_scale], dtype=torch.float64)


def _levels(potential: Potential, dataset: ConformationDataset) -> list[_Level]:
    """Levels of the networks of a potential that the data set has labels of."""
    columns = {name: number for number, name in enumerate(dataset.fidelities)}
    if isinstance(potential, DeltaPotential):
        found = _levels(potential.base, dataset)
        if {potential.target, potential.base_level} <= columns.keys():
            both = columns[potential.target], columns[potential.base_level]
            found.append(_Level(potential.difference, potential.difference.fidelities[0], both))
        return found
    if not isinstance(potential, MultiFidelityPotential):
        return []
    return [_Level(potential, name, (columns[name],)) for name in potential.fidelities if name in columns]


def _some(rows: np.ndarray, n: int) -> np.ndarray:
    """At most n of the rows, in their order."""
    if len(rows) <= n:
        return rows
    return rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:n])]


def _plan(dataset: ConformationDataset, rows: np.ndarray) -> BatchPlan:
    return by_size(rows, dataset.slices["z"].diff().numpy(), BATCH_SIZE, ATOMS)


def _batches(level: _Level, dataset: ConformationDataset, plan: BatchPlan) -> Iterator[Batch]:
    device = next(level.network.parameters()).device
    return (level.of(batch.to(device)) for batch in BatchLoader(dataset, plan=plan))


def _last_layer(level: _Level, dataset: ConformationDataset, rows: np.ndarray) -> LastLayer:
    """Standard deviations of a level before their calibration."""
    grams: list[Tensor] = []
    for batch in _batches(level, dataset, _plan(dataset, rows)):
        found = last_features_of(level.network, batch, level.name)
        products = [features.double().mT @ features.double() for features in (found.graphs, found.atoms)]
        grams = [gram + more for gram, more in zip(grams, products, strict=True)] if grams else products
    of_energy, of_atoms = (whitening(gram).to(level.network.dtype) for gram in grams)
    return LastLayer(of_energy, of_atoms, of_energy.new_ones(2))


def force_per_energy(level: _Level, dataset: ConformationDataset, rows: np.ndarray) -> float:
    """κ in 1/Å: RMS standard deviation of force components over that of energies, if energies determine the weights.

    Those of a linear model of the last features with the covariance (Σ Φ Φᵀ + ς)⁻¹ of the weights: its force components
    are −∂Φ/∂x·w.
    """
    whitened = level.network.uncertainty[level.name].energy
    sums = np.zeros((2, 2))
    for batch in _batches(level, dataset, _plan(dataset, _some(rows, JACOBIANS))):
        found = last_features_of(level.network, batch, level.name, jacobian=True)
        assert found.jacobian is not None
        for number, features in enumerate((found.graphs, found.jacobian.flatten(0, 1))):
            square = (features @ whitened).square().sum(dim=1)
            sums[number] += float(square.sum()), len(square)
    (energy, n_energies), (forces, n_forces) = sums
    return float(np.sqrt(forces / n_forces / (energy / n_energies)))


def _held_out(
    levels: list[_Level], dataset: ConformationDataset, rows: np.ndarray
) -> tuple[HeldOut, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Labels and predictions of conformations, and the standard deviations of energies and forces of each level."""
    plan = _plan(dataset, rows)
    rows = np.concatenate(list(plan(0)))
    data, n_atoms = dataset._data, dataset.slices["z"].diff().numpy()[rows]
    held_out = HeldOut(dataset.fingerprint, rows, n_atoms, {}, {}, {}, *_pairs(dataset, rows))
    atoms = rows_of(dataset.slices["z"], torch.from_numpy(rows))[0].numpy()
    energy_std, forces_std = {}, {}
    for level in levels:
        found = [
            level.network.predict(batch, {level.name: "EF"}, std=True)[level.name]
            for batch in _batches(level, dataset, plan)
        ]
        energy, forces, energy_std[level.name], forces_std[level.name] = (
            torch.cat([getattr(one, field) for one in found]).cpu().numpy()
            for field in ("energy", "forces", "energy_std", "forces_std")
        )
        labels = level.labels(data.energy.numpy()[rows], data.energy_mask.numpy()[rows])
        held_out.energy[level.name] = np.stack([labels, energy])
        of_atoms = np.full(forces.shape, np.nan)
        if "forces_mask" in data:
            mask = np.repeat(data.forces_mask.numpy()[rows], n_atoms, axis=0)
            of_atoms = level.labels(data.forces.numpy()[atoms], mask)
        held_out.forces[level.name] = np.stack([of_atoms, forces]).astype(np.float32)
        if n_force_labels(held_out, level.name) < FEWEST:
            held_out.force_per_energy[level.name] = force_per_energy(level, dataset, rows)
    return held_out, energy_std, forces_std


def _pairs(dataset: ConformationDataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Near pairs among conformations, see :class:`mfpyg.models.calibration.HeldOut`."""
    place, found = {row: number for number, row in enumerate(rows.tolist())}, pairs_of(dataset, rows)
    members = np.array([(place[one.first], place[one.second]) for one in found], np.int64).reshape(-1, 2)
    scale = [component_error(dataset, [one], np.array([1 / one.length])) for one in found]
    return members, np.array(scale)


def _add_sum(held_out: HeldOut, name: str, parts: tuple[str, str]) -> None:
    """Add the sum of two levels as a further one."""
    base, difference = parts
    held_out.energy[name] = held_out.energy[base] + held_out.energy[difference]
    held_out.forces[name] = held_out.forces[base] + held_out.forces[difference]
    if difference in held_out.force_per_energy:
        held_out.force_per_energy[name] = held_out.force_per_energy[difference]
