"""From the finished runs of a study to their errors: everything that tables, figures and report say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import RESAMPLES, Labels, PropertyErrors, ensemble_errors, labels_of
from mfpyg.evaluation.evaluate import Parity
from mfpyg.fidelity import Fidelity
from mfpyg.inference.dataset import Predictions, average
from mfpyg.study.names import target_of
from mfpyg.study.predicting import evaluated_on, in_groups, parity_of, predict_all
from mfpyg.study.provenance import common_settings, label_counts, n_target_labels, split_sizes, versions_of
from mfpyg.study.reading import Failure, ReadRun, StudyRun, read_runs

__all__ = ["Failure", "ModelResult", "StudyResult", "StudyRun", "collect"]


@dataclass
class ModelResult:
    """Runs of one model, strategy and share of labels, which are the members of an ensemble.

    Attributes:
        name, strategy, label_fraction: what they have in common.
        fidelities: as ``mfpyg-train`` takes them; the target is the last.
        runs: the members.
        n_labels: labels of the target that they were trained on, averaged over the members.
        epochs: until each member's best one.
        errors: ``{split: {fidelity: {property: PropertyErrors}}}``.
        parity: ``{split: {(target, "energy" | "forces"): Parity}}`` of the averaged prediction.
        own_settings: what differs from :attr:`StudyResult.settings`, by dotted name, one value a member.
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
        """The level that the model is made for."""
        return target_of(self.fidelities)

    def of_target(self, split: str, prop: str) -> PropertyErrors | None:
        """Errors at the target; ``None`` where there are no labels."""
        return self.at_level(self.target.name, split, prop)

    def at_level(self, level: str, split: str, prop: str) -> PropertyErrors | None:
        """Errors at any level; ``None`` where the model does not predict it or there are no labels."""
        return self.errors.get(split, {}).get(level, {}).get(prop)


@dataclass
class StudyResult:
    """What :func:`collect` finds.

    Attributes:
        models: in the order of the paper's Table 1, others behind.
        failures: runs without a part in any figure, and why.
        splits: what errors are of: splits of the runs' own data, and other data sets.
        sizes: ``{split: (conformations, molecules)}``.
        trained_on: ``{specification of the data: {"train", "val", …: conformations}}`` of the first run of each.
        methods: what chemists call the levels.
        label_counts: ``{level: {split: (conformations with an energy, with forces)}}`` of the first run of each level.
        settings: those that all runs share, by dotted name.
        versions: ``{package: those that the runs were trained with}``.
        resamples: of the bootstrap.
    """

    models: list[ModelResult]
    failures: list[Failure]
    splits: list[str]
    sizes: dict[str, tuple[int, int]]
    trained_on: dict[str, dict[str, int]]
    methods: dict[str, str]
    label_counts: dict[str, dict[str, tuple[int, int]]]
    settings: dict[str, Any]
    versions: dict[str, list[str]]
    resamples: int

    def find(self, name: str, label_fraction: float, strategy: str) -> ModelResult | None:
        """The model of this name and share of labels; where the strategy has none, that of the first which has."""
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

    Predictions are kept in the run folders, so that a second call takes seconds; a changed checkpoint is evaluated
    anew. A run that is missing, unfinished, damaged or of other conformations becomes a :class:`Failure`.

    Args:
        runs: in any order; those alike in all but the seed are members of an ensemble.
        splits: of the runs' own data to evaluate on; every run has to have them.
        others: more data to evaluate on, such as ``{"comp6": COMP6("data/comp6")}``, all of each.
        accelerator: where to predict: ``auto``, ``cpu`` or ``cuda``.
        resamples: of the bootstrap over molecules.
        note: told what is being evaluated.

    Raises:
        MFPyGError: for a wrong name of a model, a run or a split given twice, or no run at all.
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
        label_counts(used),
        shared,
        versions_of(used),
        resamples,
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
