"""Errors of the finished runs of a study, for tables, figures and report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.datasets.labels import ALWAYS
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import RESAMPLES, Estimate, Labels, PropertyErrors, ensemble_errors, labels_of
from mfpyg.evaluation.evaluate import Parity
from mfpyg.fidelity import Fidelity, parse_fidelities
from mfpyg.inference.dataset import Predictions, average
from mfpyg.options import flat
from mfpyg.properties import PROPERTIES, in_order
from mfpyg.settings import from_dict
from mfpyg.study.ensembles import Failure, ReadRun, evaluated_on, in_groups, parity_of, predict_all, read_runs
from mfpyg.study.names import baseline_of, target_of
from mfpyg.study.plan import StudyRun
from mfpyg.training.check import label_fractions


@dataclass
class ModelResult:
    """Runs of one model, strategy and share of labels, which are the members of an ensemble.

    Attributes:
        name, strategy, label_fraction: common values of the members.
        fidelities: fidelities as for ``mfpyg-train``; the last is the target.
        runs: the members.
        n_labels: number of the target's labels in training, averaged over the members.
        epochs: number of epochs up to each member's best one.
        errors: ``{split: {fidelity: {quantity: PropertyErrors}}}``, see
            :data:`mfpyg.evaluation.ensemble.QUANTITIES`.
        parity: ``{split: {(target, name of the property): Parity}}`` of the averaged prediction.
        own_settings: settings that are not in :attr:`StudyResult.settings`, by dotted name, one value per member.
    """

    name: str
    strategy: str
    label_fraction: float
    fidelities: list[str]
    runs: list[StudyRun]
    n_labels: int
    epochs: list[int]
    errors: dict[str, dict[str, dict[str, PropertyErrors]]]
    parity: dict[str, dict[tuple[str, str], Parity]]
    own_settings: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def target(self) -> Fidelity:
        """Target of the model, its last level."""
        return target_of(self.fidelities)

    def of_target(self, split: str, quantity: str) -> PropertyErrors | None:
        """Errors at the target; ``None`` if the model does not predict the quantity or there are no labels."""
        return self.at_level(self.target.name, split, quantity)

    def at_level(self, level: str, split: str, quantity: str) -> PropertyErrors | None:
        """Errors at any level; ``None`` if the model does not predict them or there are no labels."""
        return self.errors.get(split, {}).get(level, {}).get(quantity)


@dataclass
class StudyResult:
    """Errors, data and settings of a study, as :func:`collect` finds them.

    Attributes:
        models: models in the order of the paper's Table 1, then others.
        failures: runs that are left out, and the reasons.
        splits: names of what is evaluated: splits of the runs' own data, and other data sets.
        sizes: ``{split: (conformations, molecules)}``.
        trained_on: ``{specification of the data: {"train", "val", …: conformations}}`` of the first run of each.
        methods: ``{level: method}``.
        label_counts: ``{level: {split: conformations with a label of each property of letters}}`` of the first run of
            each level.
        settings: settings shared by all runs, by dotted name.
        versions: ``{package: versions in training}``.
        resamples: number of bootstrap resamples.
        letters: letters of the properties of the data.
    """

    models: list[ModelResult]
    failures: list[Failure]
    splits: list[str]
    sizes: dict[str, tuple[int, int]]
    trained_on: dict[str, dict[str, int]]
    methods: dict[str, str]
    label_counts: dict[str, dict[str, tuple[int, ...]]]
    settings: dict[str, Any]
    versions: dict[str, list[str]]
    resamples: int
    letters: str = ALWAYS

    def find(self, name: str, label_fraction: float, strategy: str) -> ModelResult | None:
        """Model of this name and share of labels, of this strategy if there is one, else of the first that has one."""
        same = [m for m in self.models if m.name == name and m.label_fraction == label_fraction]
        return next((m for m in same if m.strategy == strategy), same[0] if same else None)


def collect(
    runs: Iterable[StudyRun],
    *,
    splits: Sequence[str] = ("test", "ood"),
    others: Mapping[str, ConformationDataset] | None = None,
    accelerator: str = "auto",
    resamples: int = RESAMPLES,
    note: Callable[[str], None] = lambda line: None,
) -> StudyResult:
    """Evaluate the runs of a study.

    All models are evaluated on the properties that any of them was trained on, as far as they predict them. Predictions
    are cached in the run folders, so that a second call takes seconds; a changed checkpoint is evaluated
    again. A run that is missing, unfinished, damaged or of other conformations becomes a :class:`Failure`.

    Args:
        runs: runs in any order; those that differ in the seed only are members of an ensemble.
        splits: splits of the runs' own data to evaluate on; every run must have them.
        others: whole data sets to evaluate on as well, such as ``{"comp6": COMP6("data/comp6")}``.
        accelerator: device for predictions: ``auto``, ``cpu`` or ``cuda``.
        resamples: number of bootstrap resamples over molecules.
        note: called with the name of each run that is evaluated.

    Raises:
        MFPyGError: for an invalid name of a model, a repeated run or split, or no run at all.
    """
    runs, others = list(runs), dict(others or {})
    names = [*splits, *others]
    if not runs or not names or len(set(names)) < len(names):
        raise MFPyGError(
            f"a study of {len(runs)} runs on {', '.join(names) or 'nothing'}; expected at least one run, and one or "
            "more splits or data sets with different names"
        )
    whole = {name: data if data._indices is None else data.copy() for name, data in others.items()}
    read, failures = read_runs(runs, splits)
    found, failed = predict_all(read, splits, whole, accelerator, note)
    groups, differing = in_groups(found)
    used = [one for members in groups for one in members]
    labels = {
        (name, data.fingerprint): (data, rows)
        for one in used
        for name, (data, rows) in evaluated_on(one, splits, whole).items()
    }
    labelled = {key: labels_of(data, rows) for key, (data, rows) in labels.items()}
    letters = in_order({*ALWAYS, *(letter for one in used for letter in one.evaluated.letters)})
    shared, own = common_settings(used)
    models = []
    for members in groups:
        on = evaluated_on(members[0], splits, whole)
        of_split = {
            name: (labelled[name, on[name][0].fingerprint], [found[id(m)][1][name] for m in members])
            for name in found[id(members[0])][1]
        }
        own_settings = {name: [own[id(member)][name] for member in members] for name in own[id(members[0])]}
        models.append(_model(members, of_split, resamples, own_settings))
    return StudyResult(
        models,
        [*failures, *failed, *differing],
        names,
        {name: (len(of.rows), of.n_molecules) for (name, _), of in labelled.items()},
        split_sizes(used),
        {level: method for one in used for level, method in one.data["methods"].items() if method},
        label_counts(used, letters),
        shared,
        versions_of(used),
        resamples,
        letters,
    )


def _model(
    members: list[ReadRun],
    of_split: Mapping[str, tuple[Labels, list[Predictions]]],
    resamples: int,
    own_settings: dict[str, list[Any]],
) -> ModelResult:
    run = members[0].run
    target = target_of(run.fidelities).name
    counts = [n_target_labels(member, target) for member in members]
    return ModelResult(
        *(run.name, run.strategy, run.label_fraction, run.fidelities, [m.run for m in members]),
        round(float(np.mean(counts))),
        [member.epochs for member in members],
        {name: ensemble_errors(found, labels, resamples) for name, (labels, found) in of_split.items()},
        {name: parity_of(average(found), labels, target) for name, (labels, found) in of_split.items()},
        own_settings,
    )


def baseline_name(model: ModelResult) -> str:
    """Name of the single-fidelity model with the same labels of the same target."""
    return baseline_of(model.name, [fidelity.partition(":")[0] for fidelity in model.fidelities])


def baseline(result: StudyResult, model: ModelResult) -> ModelResult | None:
    """Baseline with as many labels of the target, of the same strategy if there is one; ``None`` if there is none."""
    return result.find(baseline_name(model), model.label_fraction, model.strategy)


def half_width(estimate: Estimate) -> float | None:
    """Half the width of the interval; ``None`` if there is none."""
    return None if estimate.high is None else estimate.high - estimate.value


def improvement(result: StudyResult, model: ModelResult, split: str, quantity: str) -> Estimate | None:
    """Reduction in percent of the members' mean RMSE with respect to the single-fidelity model.

    The baseline is that of :func:`baseline`. The interval adds the relative half-widths of both in quadrature, which is
    their first-order propagation for independent ensembles; there is none if either has a single member.

    Returns:
        The percentage; ``None`` for single-fidelity models, or if there is no baseline or no label.
    """
    if len(model.fidelities) == 1:
        return None
    base = baseline(result, model)
    own, other = model.of_target(split, quantity), None if base is None else base.of_target(split, quantity)
    if own is None or other is None or not other.rmse.value:
        return None
    ratio = own.rmse.value / other.rmse.value
    percent = 100 * (1 - ratio)
    widths = half_width(own.rmse), half_width(other.rmse)
    if widths[0] is None or widths[1] is None:
        return Estimate(percent)
    half = 100 * ((widths[0] / other.rmse.value) ** 2 + (ratio * widths[1] / other.rmse.value) ** 2) ** 0.5
    return Estimate(percent, percent - half, percent + half)


NOT_SETTINGS = ("out", "seed", "fidelities")
"""Settings that always differ between the runs of a study."""


def common_settings(read: list[ReadRun]) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Settings shared by all runs, and all other settings by ``id`` of each run; by dotted name."""
    by_run = {id(one): flat(one.config) for one in read}
    every = dict.fromkeys(name for values in by_run.values() for name in values if name not in NOT_SETTINGS)
    written = {name: Counter(json.dumps(v.get(name)) for v in by_run.values()) for name in every}
    shared = {name: json.loads(next(iter(counts))) for name, counts in written.items() if len(counts) == 1}
    return shared, {key: {name: v.get(name) for name in every if name not in shared} for key, v in by_run.items()}


def n_target_labels(one: ReadRun, target: str) -> int:
    """Number of training conformations with a label of the target; ``run.n_labels`` if given."""
    if one.run.n_labels is not None:
        return one.run.n_labels
    if target not in one.dataset.fidelities:  # trained further, on other levels
        return 0
    settings = from_dict(one.config)
    fractions = label_fractions(settings, parse_fidelities(settings.fidelities))
    dataset = thin_labels(one.dataset, one.splits, fractions, settings.split_seed)
    column, rows = dataset.fidelities.index(target), one.splits["train"]
    masks = [dataset._data[PROPERTIES[letter].mask].numpy()[rows, column] for letter in dataset.letters]
    return int(np.logical_or.reduce(masks).sum())


def split_sizes(read: list[ReadRun]) -> dict[str, dict[str, int]]:
    """``{specification of the data: {split: conformations}}`` of the first run of each."""
    found: dict[str, dict[str, int]] = {}
    for one in read:
        named = one.data["name"]
        spec = named if isinstance(named, str) else " + ".join(named)
        found.setdefault(spec, {name: len(rows) for name, rows in one.splits.items()})
    return found


def label_counts(read: list[ReadRun], letters: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """``{level: {split: conformations with a label of each property}}`` of the first run that predicts the level."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for one in read:
        data = one.evaluated
        for name in one.fidelities:
            if name not in found and name in data.fidelities:  # it may be a level of other data
                column = data.fidelities.index(name)
                none = np.zeros(len(data), bool)
                masks = [PROPERTIES[letter].mask for letter in letters]
                each = [data._data[mask].numpy()[:, column] if mask in data.slices else none for mask in masks]
                found[name] = {
                    split: tuple(int(mask[rows].sum()) for mask in each) for split, rows in one.splits.items()
                }
    return found


def versions_of(read: list[ReadRun]) -> dict[str, list[str]]:
    """``{package: versions}`` of the training of all runs."""
    found: dict[str, list[str]] = {}
    for one in read:
        for package, version in one.versions.items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return found
