"""Labels by the error that they take from the forces of the target level, per cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.frames import Frame
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.inference.dataset import predict_rows
from mfpyg.properties import PROPERTIES
from mfpyg.selection.candidates import Candidates
from mfpyg.selection.choice import Choice
from mfpyg.selection.features import Show, features_of_frames, features_of_rows
from mfpyg.selection.geometries import Geometries, of_rows
from mfpyg.selection.greedy import Greedy
from mfpyg.selection.levels import LabelledMolecules, level_covariance
from mfpyg.selection.posterior import NOISE, Features, Grams, Posterior
from mfpyg.selection.settings import SelectSettings
from mfpyg.selection.trained import Trained

CANDIDATES, TARGETS, LABELLED = 2_000, 1_000, 1_000
"""Maximum numbers of candidates, of those whose forces are wanted, and of labelled conformations; otherwise random."""

OFFSET = 0.1
"""Variance of the coefficients of elements in Å², in the units of :data:`mfpyg.selection.posterior.ENERGY_NOISE`."""


def choose_labels(
    candidates: Candidates,
    settings: SelectSettings,
    trained: Trained,
    labelled: Sequence[ConformationDataset],
    source: str,
    show: Show = iter,
) -> Choice:
    """Choose labels, one after the other, by the reduction of the expected error of the target's forces per cost.

    See :mod:`mfpyg.selection.posterior` for the error, and :mod:`mfpyg.selection.levels` for what it is fitted to.

    Args:
        candidates: frames to choose from, whose mean error counts.
        settings: target, costs, budget.
        trained: potential with its data.
        labelled: further data with labels.
        source: name of the pool, for errors.
        show: wraps lists of batches to show progress.

    Raises:
        MFPyGError: for an unknown level, a frame that the potential cannot predict, no labels for validation, or no
            label that helps within the budget.
    """
    model = _Model(trained, str(settings.target), settings.seed, show)
    for name in (settings.target, *settings.costs):
        if name not in model.names:
            raise unknown_name("level of the run", str(name), model.names)
    pool = _some(np.arange(len(candidates.frames)), CANDIDATES, model.rng)
    notes = []
    if len(pool) < len(candidates.frames):
        notes.append(f"note: {len(pool):,} random ones of {len(candidates.frames):,} frames are considered")
    features = model.fit([candidates.frames[number] for number in pool], labelled, source)
    numbers = {name: number for number, name in enumerate(model.names)}
    greedy = Greedy(
        model.posterior,
        features,
        [[numbers[name] for name in candidates.missing[number]] for number in pool],
        [[numbers[name] for name in candidates.known[number] if name in numbers] for number in pool],
        model.letters,
        {numbers[name]: cost for name, cost in settings.costs.items()},
    )
    chosen = greedy.run(settings.budget, settings.max)
    if not chosen:
        raise MFPyGError(
            f"budget is {settings.budget:g}: no label that it suffices for tells anything about forces of "
            f"'{settings.target}'; raise it, or give other levels"
        )
    levels = {int(pool[number]): tuple(model.names[level] for level in of) for number, of in chosen.items()}
    errors = {"before": np.sqrt(greedy.start), "after": np.sqrt(model.posterior.mean_square_error())}
    before, after = (f"{error:.3g}" for error in errors.values())
    of_forces = f"forces of {settings.target}"
    notes.append(f"expected RMSE of {of_forces} over the pool: {before} kcal/mol/Å, with the labels {after}")
    stated = {"of": f"{of_forces}, RMSE over the pool in kcal/mol/Å", "before": float(before), "after": float(after)}
    return Choice(levels, {"expected_error": stated, "levels": model.about}, notes)


class _Model:
    """Distribution of the errors of all levels, fitted to a pool, to the labels of a run, and to its held-out errors.

    Args:
        trained: potential with its data.
        target: level whose forces are wanted.
        seed: seed of random parts of large sets.
        show: wraps lists of batches to show progress.

    Attributes:
        names, letters: names of the levels, and the letters of their energies and forces by number.
        posterior, about: the distribution, and a description of the levels for the recipe; set by :meth:`fit`.
    """

    posterior: Posterior
    about: dict[str, Any]

    def __init__(self, trained: Trained, target: str, seed: int, show: Show) -> None:
        self.trained, self.target, self.show = trained, target, show
        self.names, self.letters = _levels(trained)
        self.rng = np.random.default_rng(seed)

    def fit(self, frames: list[Frame], labelled: Sequence[ConformationDataset], source: str) -> list[Features]:
        """Fit the distribution; returns the features of the frames, scaled to a variance of 1 before any label."""
        potential, trained = self.trained.potential, self.trained
        features = features_of_frames(potential, frames, self.target, source, jacobian=True, show=self.show)
        wanted = [features[number] for number in _some(np.arange(len(features)), TARGETS, self.rng)]
        metric = sum(one.of("F").T @ one.of("F") for one in wanted) / sum(len(one.of("F")) for one in wanted)
        constant = np.diag(metric) == 0
        scale = np.sqrt(np.where(constant, OFFSET, 1 / np.trace(metric)))
        of_training = self._labels(trained.dataset, trained.train, scale, without_baselines=True)
        held_out = self._labels(trained.dataset, trained.held_out, scale)
        _replace_by_errors(held_out, trained, self.names)
        levels, self.about = level_covariance(self.names, of_training, held_out, constant)
        further = [(self._labels(one, np.arange(len(one)), scale), one) for one in labelled]
        grams = _grams(of_training, trained.dataset, further)
        self.posterior = Posterior(levels, grams, self.names.index(self.target), scale[:, None] * metric * scale)
        return [_scaled(one, scale) for one in features]

    def _labels(
        self, dataset: ConformationDataset, rows: np.ndarray, scale: np.ndarray, without_baselines: bool = False
    ) -> LabelledMolecules:
        chosen = _some(rows, LABELLED, self.rng)
        dataset = self.trained.without_baselines(chosen) if without_baselines else dataset
        potential = self.trained.potential
        found = features_of_rows(potential, dataset, chosen, self.target, jacobian=True, show=self.show)
        scaled = [_scaled(one, scale) for one in found]
        return _labels(dataset, chosen, self.names, self.letters, scaled, len(rows))


def _levels(trained: Trained) -> tuple[list[str], dict[int, str]]:
    """Names of the levels that the potential was trained on, and the letters of their energies and forces."""
    kept = {name: "".join(letter for letter in of if letter in NOISE) for name, of in trained.letters.items()}
    names = [name for name in trained.potential.fidelities if kept.get(name) and name in trained.dataset.fidelities]
    return names, {number: kept[name] for number, name in enumerate(names)}


def _some(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most this many of the rows, in their order."""
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def _scaled(features: Features, scale: np.ndarray) -> Features:
    """Features whose weights have a variance of 1 before any label."""
    return Features(features.energy * scale, features.of("F") * scale)


def _labels(
    dataset: ConformationDataset,
    rows: np.ndarray,
    names: Sequence[str],
    letters: Mapping[int, str],
    features: list[Features],
    n_all: int,
) -> LabelledMolecules:
    """Labels of conformations, of the levels that the data set has; they stand for all of ``n_all``."""
    data = dataset._data
    columns = {level: dataset.fidelities.index(name) for level, name in enumerate(names) if name in dataset.fidelities}
    energy = np.full((len(rows), len(names)), np.nan)
    having: list[dict[int, str]] = [{} for _ in rows]
    for level, column in columns.items():
        masks = {letter: data[PROPERTIES[letter].mask].numpy()[rows, column] for letter in letters[level]}
        energy[:, level] = np.where(data.energy_mask.numpy()[rows, column], data.energy.numpy()[rows, column], np.nan)
        for number, of in enumerate(having):
            there = "".join(letter for letter, mask in masks.items() if mask[number])
            of.update({level: there} if there else {})
    return LabelledMolecules(rows, features, having, energy, [{} for _ in rows], n_all / max(len(rows), 1))


def _replace_by_errors(molecules: LabelledMolecules, trained: Trained, names: Sequence[str]) -> None:
    """Replace the labels of conformations by the errors of their predictions."""
    dataset, rows = trained.dataset, molecules.rows
    predictions = predict_rows(trained.potential, dataset, rows)
    for level, name in enumerate(names):
        column = dataset.fidelities.index(name)
        if (name, "energy") in predictions.values:
            found = predictions.values[name, "energy"]
            molecules.energy[found.mask, level] = found.values - molecules.energy[found.mask, level]
        if (name, "forces") in predictions.values:
            found = predictions.values[name, "forces"]
            n_atoms = np.array([len(one.of("F")) // 3 for one in molecules.features])
            ends = np.cumsum(n_atoms[found.mask])
            for number, values in zip(np.flatnonzero(found.mask), np.split(found.values, ends[:-1]), strict=True):
                first, end = dataset.slices["forces"][rows[number]], dataset.slices["forces"][rows[number] + 1]
                label = dataset._data.forces[first:end, column].double().numpy()
                molecules.forces[number][level] = (values.astype(np.float64) - label).ravel()


def _grams(
    trained: LabelledMolecules,
    dataset: ConformationDataset,
    further: Sequence[tuple[LabelledMolecules, ConformationDataset]],
) -> Grams:
    """Features of all labels, those of one molecule together, wherever they are; each label counts once."""
    entries = [
        (one, dict(having), trained.weight) for one, having in zip(trained.features, trained.letters, strict=True)
    ]
    geometries = [geometry for _, geometry in of_rows(dataset, trained.rows.tolist())] if further else []
    for molecules, source in further:
        known = Geometries(geometries)
        for number, (_, geometry) in enumerate(of_rows(source, molecules.rows.tolist())):
            same = known.same(geometry)
            if same:
                entries[same[0]][1].update(molecules.letters[number])
            else:
                entries.append((molecules.features[number], dict(molecules.letters[number]), molecules.weight))
                geometries.append(geometry)
    grams = Grams()
    for features, letters, weight in entries:
        grams.add(features, letters.items(), weight)
    return grams
