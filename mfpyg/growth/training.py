"""Training of a round, in a process of its own, on all labels so far."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import yaml

from mfpyg.datasets.frames import frames_of_text
from mfpyg.datasets.spec import DatasetSpec
from mfpyg.errors import MFPyGError
from mfpyg.files import replace_file, write_text
from mfpyg.growth.folder import RoundFolder
from mfpyg.growth.frames import PART
from mfpyg.growth.labels import Labels
from mfpyg.settings import to_dict
from mfpyg.study.jobs import Job
from mfpyg.training.check import check_settings

Train = Callable[[Job], None]
"""Runs a job of ``mfpyg-train`` to its end, as :func:`mfpyg.study.jobs.run_jobs` does."""


def train(labels: Labels, folder: RoundFolder, before: RoundFolder | None, run: Train) -> None:
    """Train on all labels; continues a training that was stopped.

    Args:
        labels: labels so far.
        folder: the round.
        before: the round whose potential is trained further; from scratch if there is none.
        run: runs the training.

    Raises:
        MFPyGError: if the settings do not fit the labels, or the training fails.
    """
    if not folder.run.last.is_file():
        _prepare(labels, folder, before)
    job = Job(f"round {folder.number}", folder.run.path, ["--config", str(folder.training)], labels.settings.epochs)
    if not job.finished():
        run(job)
    if job.state == "failed":
        raise MFPyGError(f"the training of round {folder.number} failed: {job.error}; see {job.log}")


def _prepare(labels: Labels, folder: RoundFolder, before: RoundFolder | None) -> None:
    """Write the splits and the settings of a training."""
    dataset = labels.about["dataset"]
    parts = np.array([str(frame.values[PART]) for frame in frames_of_text(labels.folder.labelled)])
    splits = {name: np.flatnonzero(parts == name) for name in ("train", "val")}
    for name, rows in splits.items():
        if not len(rows):
            raise MFPyGError(f"no geometry of '{name}' has a label; see the failures in {labels.folder.labelled}.yaml")
    replace_file(folder.split, lambda name: _save(name, splits))
    fidelities = [f"{level.name}:{level.letters}" for level in DatasetSpec.parse(dataset).defined]
    init = None if before is None else before.run.path
    settings = labels.settings.training(fidelities, dataset, folder.split, folder.run.path, init)
    check_settings(settings)
    write_text(folder.training, yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True))


def _save(name: str, splits: dict[str, np.ndarray]) -> None:
    with open(name, "wb") as file:  # numpy appends .npz to a name
        np.savez(file, **splits)  # type: ignore[arg-type]
