"""Contents of the files of this package: checkpoints, run folders, studies and processed data sets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.datasets.spec import DatasetSpec, parse_specs
from mfpyg.errors import MFPyGError, did_you_mean
from mfpyg.inspection.trained import describe_checkpoint, describe_run
from mfpyg.pretrained import model_path, names, no_such_model
from mfpyg.study.plan import read_plan
from mfpyg.training.folder import RunFolder

if TYPE_CHECKING:
    from mfpyg.datasets.chunks import Track

__all__ = ["inspect"]


_DATA = (".xyz", ".extxyz", ".db", ".npz", ".traj")
"""Suffixes of files of conformations."""


def inspect(target: str | os.PathLike[str], track: Track = iter) -> dict[str, Any]:
    """Contents of a file or folder, as plain values, without running its code or building a network.

    Args:
        target: checkpoint, name of a shipped model, run folder, study folder, processed data set (``.pt``), or a data
            set as given to ``--dataset``, which is processed if necessary.
        track: wraps the list of groups to show the progress of processing.

    Returns:
        A dictionary whose ``"kind"`` is ``checkpoint``, ``run``, ``study`` or ``dataset``. It can be written as JSON:
        text, numbers, lists, dictionaries, ``None`` for unknown values.

    Raises:
        MFPyGError: if the target does not exist, is damaged, or was not written by this package.

    Example:
        >>> mfpyg.inspection.inspect("runs/example")["training"]["best_epoch"]       # doctest: +SKIP
        61
    """
    path = model_path(target)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise MFPyGError(f"{path}: cannot be read ({error.strerror})") from error
    if is_folder:
        return _folder(path)
    if is_file and path.suffix == ".pt":
        return _processed(path)
    if is_file and path.suffix in _DATA:
        raise MFPyGError(f"{path}: to inspect data, name their levels, as in {path}:dft=energy,forces@eV")
    if is_file and (path.suffix == ".ckpt" or ":" not in path.name):
        return describe_checkpoint(path)
    if path.suffix in (".ckpt", ".pt"):
        raise MFPyGError(f"{path}: no such file; expected a checkpoint, a run folder or a processed data set")
    if did_you_mean(str(target), names()):
        raise no_such_model(target)
    return _dataset(parse_specs([str(target)]), track)


def _folder(path: Path) -> dict[str, Any]:
    if (path / "study.yaml").is_file():
        return _study(path)
    if any((path / name).is_file() for name in ("config.yaml", "best.ckpt", "last.ckpt")):
        return describe_run(path)
    processed = sorted(path.glob("*.pt")) or sorted((path / "processed").glob("*.pt"))
    if len(processed) == 1:
        return _processed(processed[0])
    if processed:
        listed = ", ".join(file.name for file in processed[:5])
        raise MFPyGError(f"{path} holds {len(processed)} processed data sets; name one: {listed}")
    raise MFPyGError(f"{path} is not a run folder, a study or a processed data set; expected one of them")


def _study(path: Path) -> dict[str, Any]:
    """Plan of a study, and state of each run."""
    plan = read_plan(path)
    states = {str(run): _state(RunFolder(run.folder)) for run in plan.runs(path)}
    return {"kind": "study", "path": str(path), "plan": dataclasses.asdict(plan), "runs": states}


def _state(folder: RunFolder) -> str:
    if folder.metrics.is_file():
        return "finished"
    return "started" if folder.last.is_file() else "missing"


# Imported lazily, as importing the readers of data takes half a second.


def _processed(path: Path) -> dict[str, Any]:
    from mfpyg.inspection.data import describe_processed

    return describe_processed(path)


def _dataset(specs: Sequence[DatasetSpec], track: Track) -> dict[str, Any]:
    from mfpyg.inspection.data import describe_dataset

    return describe_dataset(specs, track)
