"""Finished runs as members of ensembles: reading, checking that they can be compared, and predicting."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfpyg.checkpoint import epochs_done, read_checkpoint
from mfpyg.datasets.batches import rows_of
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.spec import open_dataset, recorded_specs
from mfpyg.device import choose_device
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import Labels
from mfpyg.evaluation.evaluate import Parity
from mfpyg.fidelity import further_letters, parse_fidelities
from mfpyg.inference.dataset import Predictions, average, run_predictions
from mfpyg.properties import ENERGY
from mfpyg.study.names import PAPER_MODELS, model_name
from mfpyg.study.plan import StudyRun
from mfpyg.training.folder import RunFolder


@dataclass(frozen=True)
class Failure:
    """A run that is left out of the results, and the reason."""

    run: StudyRun
    reason: str


@dataclass
class ReadRun:
    """Contents of the folder of a finished run.

    Attributes:
        run: the run.
        config: its settings, as nested plain values.
        data: name, fingerprint and methods of its data.
        splits: numbers of the conformations of each split.
        versions: versions of packages.
        epochs: number of epochs up to its best one.
        fidelities: fidelities of its potential.
        dataset: its data as in training.
        evaluated: the same conformations with the labels of all properties that any run was trained on.
        signature: hash of the geometries of each split.
    """

    run: StudyRun
    config: dict[str, Any]
    data: dict[str, Any]
    splits: dict[str, np.ndarray]
    versions: dict[str, str]
    epochs: int
    fidelities: tuple[str, ...]
    dataset: ConformationDataset
    evaluated: ConformationDataset
    signature: dict[str, str] = field(default_factory=dict)


def read_runs(runs: Iterable[StudyRun], splits: Sequence[str]) -> tuple[list[ReadRun], list[Failure]]:
    """Read finished runs whose splits agree; all other runs are failures.

    The requested splits must have the same conformations in all runs for their errors to be comparable; if they
    differ, the largest group of agreeing runs is kept.

    Args:
        runs: runs of the study.
        splits: splits to evaluate on.

    Raises:
        MFPyGError: for an invalid name of a model, or a repeated run.
    """
    found: list[ReadRun] = []
    failures: list[Failure] = []
    opened: dict[tuple[Any, ...], ConformationDataset] = {}
    seen: set[tuple[Any, ...]] = set()
    runs = list(runs)
    letters = letters_of(runs)
    for run in runs:
        if (*run.key, run.seed) in seen:
            raise MFPyGError(f"the study has two runs of {run}; give members of an ensemble different seeds")
        seen.add((*run.key, run.seed))
        try:
            found.append(_read(run, splits, letters, opened))
        except MFPyGError as error:
            failures.append(Failure(run, str(error)))
    agreeing, differing = _agreeing(found, splits)
    return agreeing, failures + differing


def letters_of(runs: Iterable[StudyRun]) -> str | None:
    """Letters of the properties that any run is trained on, see :func:`mfpyg.fidelity.further_letters`.

    Raises:
        MFPyGError: for an invalid name of a model.
    """
    return further_letters(fidelity for run in runs for fidelity in parse_fidelities(run.fidelities))


def check_data(runs: Iterable[StudyRun], dataset: ConformationDataset, fidelities: Sequence[str]) -> None:
    """Check that runs to be continued were started on these data.

    Args:
        runs: runs of the study.
        dataset: data set opened for these fidelities.
        fidelities: fidelities of the runs to check.

    Raises:
        MFPyGError: naming the first run that was started on other data.
    """
    for run in runs:
        last = RunFolder(run.folder).last
        if run.fidelities != list(fidelities) or not last.is_file():
            continue
        try:
            started_on = read_checkpoint(last)["mfpyg"]["data"]["fingerprint"]
        except MFPyGError:  # a damaged run fails on its own later
            continue
        if started_on != dataset.fingerprint:
            data = " + ".join(run.data or ())
            raise MFPyGError(
                f"{run.folder}: {data} is not the data that it was started on; give those, or another folder with --out"
            )


def splits_with_data(runs: Iterable[StudyRun], names: Sequence[str]) -> list[str]:
    """Splits that are not empty in the first run that has splits; the first name if no run has any.

    Raises:
        MFPyGError: if that run's file of splits is damaged.
    """
    for run in runs:
        folder = RunFolder(run.folder)
        if folder.splits.is_file():
            found = folder.read_splits()
            return [name for name in names if len(found.get(name, ()))]
    return [names[0]]


def _read(
    run: StudyRun, splits: Sequence[str], letters: str | None, opened: dict[tuple[Any, ...], ConformationDataset]
) -> ReadRun:
    if run.failure is not None:
        raise MFPyGError(run.failure)
    folder = RunFolder(Path(run.folder))
    if not folder.path.is_dir():
        raise MFPyGError(f"{folder.path}: no such run folder; train it")
    if not folder.metrics.is_file():
        raise MFPyGError(f"{folder.path}: not finished, it has no {folder.metrics.name}; continue it with --resume")
    checkpoint = read_checkpoint(folder.best)
    described = checkpoint["mfpyg"]
    fidelities, target = tuple(described["fidelities"]), run.fidelities[-1].partition(":")[0]
    if target not in fidelities:
        raise MFPyGError(f"{folder.path}: predicts {', '.join(fidelities)}, but {run.name} needs its target '{target}'")
    # As in training, which may have had levels that the potential does not have.
    trained = parse_fidelities(described["config"]["fidelities"])
    named, names, own = run.data or folder.recorded_data(described), [f.name for f in trained], further_letters(trained)

    def data(properties: str | None) -> ConformationDataset:
        key = (*named, *names, properties)
        if key not in opened:
            otherwise = f"StudyRun(…, data=[NEW]), or mfpyg-train --resume {folder.path} --dataset NEW"
            opened[key] = open_dataset(recorded_specs(named, otherwise), names, properties=properties)
        return opened[key]

    dataset, evaluated = data(own), data(letters or own)
    if dataset.fingerprint != described["data"]["fingerprint"]:
        raise MFPyGError(f"{folder.path}: {' + '.join(named)} is no longer the data that it was trained on")
    rows = {name: of.numpy().astype(np.int64) for name, of in described["splits"].items()}
    missing = [name for name in splits if not len(rows.get(name, ()))]
    if missing:
        raise MFPyGError(f"{folder.path}: no split {missing[0]} (it has {', '.join(rows)})")
    signature = {name: _signature(evaluated, rows[name]) for name in splits}
    return ReadRun(
        *(run, described["config"], described["data"], rows, described["versions"]),
        *(epochs_done(checkpoint), fidelities, dataset, evaluated, signature),
    )


def _signature(dataset: ConformationDataset, rows: np.ndarray) -> str:
    """Hash of elements and positions, but not of labels, which may be those of other levels."""
    atoms, starts, _ = rows_of(dataset.slices["z"], torch.from_numpy(rows))
    digest = hashlib.sha256()
    for tensor in (starts, dataset._data.z[atoms], dataset._data.pos[atoms]):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _agreeing(found: list[ReadRun], splits: Sequence[str]) -> tuple[list[ReadRun], list[Failure]]:
    if not found:
        return [], []
    counted = Counter(tuple(read.signature.values()) for read in found)
    usual = max(counted, key=lambda signature: counted[signature])  # the first of equally frequent ones
    agreeing = [read for read in found if tuple(read.signature.values()) == usual]
    example = agreeing[0].run.folder
    differing = []
    for read in found:
        other = [name for name, one in zip(splits, usual, strict=True) if read.signature[name] != one]
        if other:
            where = f"{read.run.folder}: its split {', '.join(other)} is not that of {example}"
            differing.append(Failure(read.run, f"{where}; train them on the same conformations"))
    return agreeing, differing


def evaluated_on(
    one: ReadRun, splits: Sequence[str], whole: Mapping[str, ConformationDataset]
) -> dict[str, tuple[ConformationDataset, np.ndarray]]:
    """Data sets, and numbers of the conformations, that a run is evaluated on."""
    own = {name: (one.evaluated, one.splits[name]) for name in splits}
    return own | {name: (data, np.arange(len(data))) for name, data in whole.items()}


def predict_all(
    read: list[ReadRun],
    splits: Sequence[str],
    whole: Mapping[str, ConformationDataset],
    accelerator: str,
    note: Callable[[str], None],
) -> tuple[dict[int, tuple[ReadRun, dict[str, Predictions]]], list[Failure]]:
    """Predictions of each run, by its ``id``, on all data with any of its fidelities."""
    device = choose_device(accelerator)
    found, failures = {}, []
    for one in read:
        note(str(one.run))
        try:
            found[id(one)] = (
                one,
                {
                    name: run_predictions(one.run.folder, data, rows, device=device)
                    for name, (data, rows) in evaluated_on(one, splits, whole).items()
                    if set(one.fidelities) & set(data.fidelities)
                },
            )
        except MFPyGError as error:
            failures.append(Failure(one.run, f"{one.run.folder}: {error}"))
    return found, failures


def in_groups(
    found: Mapping[int, tuple[ReadRun, dict[str, Predictions]]],
) -> tuple[list[list[ReadRun]], list[Failure]]:
    """Members of each ensemble, in the order of the tables, and runs with other levels or labels than the first."""
    groups: dict[tuple[str, str, float], list[ReadRun]] = {}
    failures = []
    order = sorted((r for r, _ in found.values()), key=lambda r: (_order(r.run), r.run.strategy, -r.run.label_fraction))
    for one in sorted(order, key=lambda r: r.run.seed):
        first = groups.setdefault(one.run.key, [one])[0]
        if set(one.fidelities) != set(first.fidelities):
            what = f"{one.run.folder}: predicts {', '.join(one.fidelities)}, but {first.run.folder}, an earlier member,"
            failures.append(Failure(one.run, f"{what} {', '.join(first.fidelities)}; give it another strategy"))
        elif one is not first:
            try:
                for split, of_first in found[id(first)][1].items():
                    average([of_first, found[id(one)][1][split]])
            except MFPyGError as error:
                failures.append(Failure(one.run, f"{one.run.folder} and {first.run.folder}: {error}"))
            else:
                groups[one.run.key].append(one)
    return [groups[key] for key in dict.fromkeys(one.run.key for one in order)], failures


def _order(run: StudyRun) -> tuple[int, str]:
    """Sort key: the order of the paper's Table 1, then other models."""
    name = model_name(run.fidelities)
    return (PAPER_MODELS.index(name) if name in PAPER_MODELS else len(PAPER_MODELS)), name


def parity_of(mean: Predictions, labels: Labels, target: str) -> dict[tuple[str, str], Parity]:
    """Labels and averaged predictions of the target, for :func:`mfpyg.evaluation.report.parity_plot`."""
    pairs: dict[tuple[str, str], Parity] = {}
    for (name, property), found in mean.values.items():
        if name == target:
            both = [labels.values[name, property].values, found.values]
            if property == ENERGY.name:
                both = [(energies - mean.reference[name]) / labels.n_atoms[found.mask] for energies in both]
            pairs[name, property] = Parity(*([values.ravel()] for values in both))
    return pairs
