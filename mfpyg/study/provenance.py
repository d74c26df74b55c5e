"""Where the runs of a study come from: settings, data and versions, as far as they are the same."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

from mfpyg.settings import flat
from mfpyg.study.reading import ReadRun
from mfpyg.training.folder import RunFolder

NOT_SETTINGS = ("out", "seed", "fidelities")
"""What a run's configuration holds besides what could be the same in all runs of a study."""


def common_settings(read: list[ReadRun]) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Settings that all runs share, and by ``id`` of each run those that not all share; by dotted name."""
    by_run = {id(one): flat(one.config) for one in read}
    every = dict.fromkeys(name for values in by_run.values() for name in values if name not in NOT_SETTINGS)
    written = {name: Counter(json.dumps(v.get(name)) for v in by_run.values()) for name in every}
    shared = {name: json.loads(next(iter(counts))) for name, counts in written.items() if len(counts) == 1}
    return shared, {key: {name: v.get(name) for name in every if name not in shared} for key, v in by_run.items()}


def n_target_labels(one: ReadRun, target: str) -> int | None:
    """Conformations with a label of the target in training; ``None`` where that can't be told.

    As the run says; else as many as an epoch saw at most, which its log counts, where each was seen once an epoch; else
    those of the training split, if all of them were used.
    """
    if one.run.n_labels is not None:
        return one.run.n_labels
    seen = _labels_seen(RunFolder(Path(one.run.folder)).log, target)
    if seen is not None and one.config.get("sampling", {}).get("strategy") == "proportional":
        return seen
    if one.run.label_fraction != 1:
        return None
    column, rows = one.dataset.fidelities.index(target), one.splits["train"]
    return int((one.dataset._data.energy_mask[rows, column] | one.dataset._data.forces_mask[rows, column]).sum())


def _labels_seen(log: Path, target: str) -> int | None:
    """Most energies of a fidelity in an epoch, by ``metrics.csv``."""
    if not log.is_file():
        return None
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = [row[name] for row in rows if row.get(name := f"train/{target}/energy_labels")]
    return max(round(float(count)) for count in counts) if counts else None


def split_sizes(read: list[ReadRun]) -> dict[str, dict[str, int]]:
    """``{specification of the data: {split: conformations}}`` of the first run of each."""
    found: dict[str, dict[str, int]] = {}
    for one in read:
        named = one.data["name"]
        spec = named if isinstance(named, str) else " + ".join(named)
        found.setdefault(spec, {name: len(rows) for name, rows in one.splits.items()})
    return found


def label_counts(read: list[ReadRun]) -> dict[str, dict[str, tuple[int, int]]]:
    """``{level: {split: (conformations with an energy, with forces)}}`` of the first run that predicts the level."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for one in read:
        data = one.dataset._data
        for name in one.fidelities:
            if name not in found:
                column = one.dataset.fidelities.index(name)
                masks = data.energy_mask[:, column], data.forces_mask[:, column]
                found[name] = {
                    split: (int(masks[0][rows].sum()), int(masks[1][rows].sum())) for split, rows in one.splits.items()
                }
    return found


def versions_of(read: list[ReadRun]) -> dict[str, list[str]]:
    """``{package: versions}`` that the runs were trained with."""
    found: dict[str, list[str]] = {}
    for one in read:
        for package, version in one.versions.items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return found
