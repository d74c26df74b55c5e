"""Where the runs of a study come from: settings, data and versions, as far as they are the same."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.fidelity import parse_fidelities
from mfpyg.settings import flat, from_dict
from mfpyg.study.reading import ReadRun
from mfpyg.training.check import label_fractions

NOT_SETTINGS = ("out", "seed", "fidelities")
"""What a run's configuration holds besides what could be the same in all runs of a study."""


def common_settings(read: list[ReadRun]) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Settings that all runs share, and by ``id`` of each run those that not all share; by dotted name."""
    by_run = {id(one): flat(one.config) for one in read}
    every = dict.fromkeys(name for values in by_run.values() for name in values if name not in NOT_SETTINGS)
    written = {name: Counter(json.dumps(v.get(name)) for v in by_run.values()) for name in every}
    shared = {name: json.loads(next(iter(counts))) for name, counts in written.items() if len(counts) == 1}
    return shared, {key: {name: v.get(name) for name in every if name not in shared} for key, v in by_run.items()}


def n_target_labels(one: ReadRun, target: str) -> int:
    """Conformations of the training split with a label of the target; as the run says, else those that it kept."""
    if one.run.n_labels is not None:
        return one.run.n_labels
    if target not in one.dataset.fidelities:  # it was trained further, on other levels
        return 0
    settings = from_dict(one.config)
    fractions = label_fractions(settings, parse_fidelities(settings.fidelities))
    dataset = thin_labels(one.dataset, one.splits, fractions, settings.split_seed)
    column, rows = dataset.fidelities.index(target), one.splits["train"]
    return int((dataset._data.energy_mask[rows, column] | dataset._data.forces_mask[rows, column]).sum())


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
            if name not in found and name in one.dataset.fidelities:  # it may be one of other data
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
