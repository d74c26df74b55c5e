"""Errors with confidence intervals of ensembles, whose members differ in the seed only.

The error of a single model is estimated by the mean over the members with a Student's t interval. The error of the
averaged prediction has a bootstrap interval over the molecules of the test: conformations of a molecule resemble each
other, so that resampling single ones would overstate the independent evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from mfpyg.datasets.batches import rows_of
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.conformers import WINDOW, in_window, molecules_of_rows, pair_sums
from mfpyg.inference.dataset import Labelled, Predictions, average, is_compared
from mfpyg.properties import ENERGY, FORCES, PROPERTIES, Property

CONFIDENCE = 0.95
RESAMPLES = 2000
DRAWN_AT_ONCE = 1 << 20
"""Maximum number of molecules over all resamples that are drawn together."""


@dataclass(frozen=True)
class Quantity:
    """Quantity with errors: a property, or its values or differences for conformers.

    Attributes:
        property: the property with the labels.
        plural: name in tables.
        short: name in figures.
        caption: description of the errors of the quantity.
    """

    property: Property
    plural: str
    short: str
    caption: str

    @classmethod
    def of(cls, property: Property) -> Quantity:
        """Components of a property of all conformations."""
        plural = f"{property.singular} components" if property.shape else property.plural
        return cls(property, plural, property.plural, f"{plural[0].upper()}{plural[1:]}")


QUANTITIES = {p.name: Quantity.of(p) for p in PROPERTIES.values()} | {
    "energy": Quantity(ENERGY, ENERGY.plural, ENERGY.plural, "Total energies"),
    "conformers": Quantity(
        *(ENERGY, "energy differences between conformers", "conformer ΔE"),
        f"Energy differences of all pairs of conformers of a molecule within {WINDOW:g} kcal/mol of its lowest",
    ),
    "conformer_forces": Quantity(
        *(FORCES, "force components of conformers", "conformer forces"),
        f"Force components of the conformers within {WINDOW:g} kcal/mol of a molecule's lowest",
    ),
}
"""Quantities with errors by name: all properties, and two within the window of :mod:`mfpyg.evaluation.conformers`."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; ``None`` for both ends if there are too few data."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PropertyErrors:
    """Errors of one of :data:`QUANTITIES` of one fidelity on one split, in the unit of its property.

    Attributes:
        n: number of labels (energies, charges, components of other properties, or pairs of conformers).
        n_molecules: number of molecules with labels.
        member_rmse, member_mae: errors of each member.
        rmse, mae: means over the members with Student's t intervals; no interval for a single member.
        ensemble_rmse, ensemble_mae: errors of the averaged prediction with bootstrap intervals over molecules; no
            interval for a single molecule.
    """

    n: int
    n_molecules: int
    member_rmse: tuple[float, ...]
    member_mae: tuple[float, ...]
    rmse: Estimate
    mae: Estimate
    ensemble_rmse: Estimate
    ensemble_mae: Estimate


@dataclass
class Labels:
    """Labels of n conformations that predictions are compared with.

    Attributes:
        rows: numbers of the conformations in the data set, (n,) int64.
        molecule: number of each conformation's molecule, (n,) int64.
        n_molecules: number of molecules.
        n_atoms: atoms of each conformation, (n,) int64.
        values: ``{(fidelity, name of the property): labels}`` in the units of :mod:`mfpyg.properties`.
    """

    rows: np.ndarray
    molecule: np.ndarray
    n_molecules: int
    n_atoms: np.ndarray
    values: dict[tuple[str, str], Labelled]


def labels_of(dataset: ConformationDataset, rows: np.ndarray, molecule: np.ndarray | None = None) -> Labels:
    """Labels of some conformations.

    Args:
        dataset: whole data set, not a part.
        rows: numbers of the conformations, (n,) int64.
        molecule: number of each conformation's molecule, (n,) int64; by default from
            :func:`mfpyg.evaluation.conformers.molecules_of_rows`.
    """
    molecule = molecules_of_rows(dataset, rows) if molecule is None else molecule
    values: dict[tuple[str, str], Labelled] = {}
    for column, name in enumerate(dataset.fidelities):
        for letter in dataset.letters:
            p = PROPERTIES[letter]
            mask = is_compared(dataset, rows, p, column)
            if mask.any():
                values[name, p.name] = Labelled(mask, _values(dataset, rows[mask], p, column))
    n_atoms = dataset.slices["z"].diff().numpy()[rows]
    return Labels(rows, molecule, int(molecule.max(initial=-1)) + 1, n_atoms, values)


def _values(dataset: ConformationDataset, rows: np.ndarray, property: Property, column: int) -> np.ndarray:
    """Labels of labelled conformations, see :class:`mfpyg.inference.dataset.Labelled`."""
    chosen, data = torch.from_numpy(rows), dataset._data
    index, starts, owner = rows_of(dataset.slices[property.name], chosen)
    if property.per != "pair":
        values: np.ndarray = data[property.name][index, column].numpy()
        return values
    # The pairs of atoms of all labelled levels of a conformation, one level after the other.
    n_pairs = dataset.slices["z"].diff()[chosen].square()[owner]
    level = (torch.arange(len(index)) - starts[owner]) // n_pairs
    of_column = level == data[property.mask][chosen, :column].sum(dim=1)[owner]
    pairs: np.ndarray = data[property.name][index[of_column]].numpy()
    return pairs


def sums_by_molecule(
    predictions: Predictions, labels: Labels, fidelity: str, window: float = WINDOW
) -> dict[str, np.ndarray]:
    """Count, Σ|e| and Σe² of each molecule for every quantity that has labels: ``{quantity: (n_molecules, 3)}``.

    Args:
        predictions, labels: predictions and labels of the same conformations.
        fidelity: fidelity of both.
        window: energy window of conformers, in kcal/mol.
    """
    found: dict[str, np.ndarray] = {}
    near = np.zeros(len(labels.rows), bool)
    for p in PROPERTIES.values():  # energies before forces
        predicted = predictions.values.get((fidelity, p.name))
        if predicted is None:
            continue
        label = labels.values[fidelity, p.name].values
        errors = predicted.values.astype(np.float64) - label
        owner = predicted.owner(p, labels.n_atoms)
        molecule = labels.molecule[owner]
        found[p.name] = _sums(errors, molecule, labels.n_molecules)
        if p is ENERGY:
            inside = in_window(label, molecule, window)
            near[owner[inside]] = True
            found["conformers"] = pair_sums(errors[inside], molecule[inside], labels.n_molecules)
        elif p is FORCES:
            inside = near[owner]
            found["conformer_forces"] = _sums(errors[inside], molecule[inside], labels.n_molecules)
    return {name: found[name] for name in QUANTITIES if name in found and found[name][:, 0].any()}


def _sums(errors: np.ndarray, molecule: np.ndarray, n_molecules: int) -> np.ndarray:
    """Count, Σ|e| and Σe² per molecule of errors (n, …), such as (n, 3) of n atoms; ``molecule`` is (n,)."""
    errors = errors.reshape(len(molecule), math.prod(errors.shape[1:]))
    parts = (np.full(len(molecule), errors.shape[1]), np.abs(errors).sum(axis=1), np.square(errors).sum(axis=1))
    return np.stack([np.bincount(molecule, part, minlength=n_molecules) for part in parts], axis=1)


def rmse_and_mae(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RMSE and MAE from count, Σ|e| and Σe², (…, 3), of at least one error."""
    count, absolute, squared = np.moveaxis(sums, -1, 0)
    return np.sqrt(squared / count), absolute / count


def mean_estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean over members with the interval mean ± t s/√n, t of n − 1 degrees of freedom; no interval for n = 1."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean)
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Estimate(mean, mean - half, mean + half)


def bootstrap_estimates(
    sums: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[Estimate, Estimate]:
    """RMSE and MAE with percentile intervals over resampled molecules; no interval for a single molecule.

    Args:
        sums: count, Σ|e| and Σe² of each molecule, (n_molecules, 3); molecules without errors are not drawn.
        resamples: number of bootstrap resamples.
        seed: seed, which draws the same molecules for every model.
        confidence: confidence of the interval.
    """
    sums = sums[sums[:, 0] > 0]
    values = [float(v) for v in rmse_and_mae(sums.sum(axis=0))]
    if len(sums) < 2:
        return Estimate(values[0]), Estimate(values[1])
    random = np.random.default_rng(seed)
    parts = []
    for size in _parts(resamples, max(1, DRAWN_AT_ONCE // len(sums))):  # bounds the memory for many molecules
        chosen = random.integers(len(sums), size=(size, len(sums)))
        parts.append(np.stack([column[chosen].sum(axis=1) for column in sums.T], axis=1))
    drawn = np.concatenate(parts)
    tail = (1 - confidence) / 2
    low_high = [np.quantile(v, [tail, 1 - tail]) for v in rmse_and_mae(drawn)]
    rmse, mae = (Estimate(v, float(low), float(high)) for v, (low, high) in zip(values, low_high, strict=True))
    return rmse, mae


def _parts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def ensemble_errors(
    members: Sequence[Predictions],
    labels: Labels,
    resamples: int = RESAMPLES,
    seed: int = 0,
    window: float = WINDOW,
) -> dict[str, dict[str, PropertyErrors]]:
    """Errors of members and of their average, where there are labels: ``{fidelity: {quantity: PropertyErrors}}``.

    Args:
        members: predictions of one or more potentials for the labelled conformations.
        labels: labels from :func:`labels_of`.
        resamples, seed: resamples and seed of the bootstrap.
        window: energy window of conformers, in kcal/mol.

    Raises:
        MFPyGError: if there is no member, or members differ in conformations or labels.
    """
    if not members:
        raise MFPyGError("ensemble without members; expected the predictions of at least one run")
    mean = average(members)
    result: dict[str, dict[str, PropertyErrors]] = {}
    for fidelity in dict.fromkeys(name for name, _ in mean.values):
        of_members = [sums_by_molecule(member, labels, fidelity, window) for member in members]
        for name, sums in sums_by_molecule(mean, labels, fidelity, window).items():
            pairs = [rmse_and_mae(of[name].sum(axis=0)) for of in of_members]
            rmse, mae = (tuple(float(pair[i]) for pair in pairs) for i in (0, 1))
            estimates = (mean_estimate(rmse), mean_estimate(mae), *bootstrap_estimates(sums, resamples, seed))
            n, n_molecules = int(sums[:, 0].sum()), int((sums[:, 0] > 0).sum())
            result.setdefault(fidelity, {})[name] = PropertyErrors(n, n_molecules, rmse, mae, *estimates)
    return result
