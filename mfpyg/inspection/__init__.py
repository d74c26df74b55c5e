"""Contents of the files of this package: checkpoints, run folders, studies and processed data sets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.datasets.spec import DatasetSpec, parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.inspection.trained import describe_checkpoint, describe_run
from mfpyg.study.plan import read_plan
from mfpyg.training.folder import RunFolder

if TYPE_CHECKING:
    from mfpyg.datasets.chunks import Track

__all__ = ["inspect"]


def inspect(target: str | os.PathLike[str], track: Track = iter) -> dict[str, Any]:
    """Contents of a file or folder, as plain values; nothing that is in it is run, and no network is made.

    Args:
        target: a checkpoint, a run folder, a study's folder, a processed data set (``.pt``), or a data set as
            ``--dataset`` names it, which is processed where it was not yet.
        track: wraps the list of groups to show the progress of processing.

    Returns:
        A dictionary whose ``"kind"`` says which: ``checkpoint``, ``run``, ``study`` or ``dataset``. Everything in it
        goes into JSON: text, numbers, lists, dictionaries, ``None`` for what is not known.

    Raises:
        MFPyGError: if there is no such thing, or it is damaged or foreign.

    Example:
        >>> mfpyg.inspection.inspect("runs/example")["training"]["best_epoch"]       # doctest: +SKIP
        61
    """
    path = Path(target)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise MFPyGError(f"{path}: can't be read ({error.strerror})") from error
    if is_folder:
        return _folder(path)
    if is_file and path.suffix == ".pt":
        return _processed(path)
    if is_file and (path.suffix == ".ckpt" or ":" not in path.name):
        return describe_checkpoint(path)
    if path.suffix in (".ckpt", ".pt"):
        raise MFPyGError(f"{path}: no such file; expected a checkpoint, a run folder or a processed data set")
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
    raise MFPyGError(f"{path} is no run folder, no study and no processed data set; expected one of them")


def _study(path: Path) -> dict[str, Any]:
    """The plan of a study, and the state of each of its runs."""
    plan = read_plan(path)
    states = {str(run): _state(RunFolder(run.folder)) for run in plan.runs(path)}
    return {"kind": "study", "path": str(path), "plan": dataclasses.asdict(plan), "runs": states}


def _state(folder: RunFolder) -> str:
    if folder.metrics.is_file():
        return "finished"
    return "started" if folder.last.is_file() else "missing"


# Imported when they are needed, as the readers of data take half a second.


def _processed(path: Path) -> dict[str, Any]:
    from mfpyg.inspection.data import describe_processed

    return describe_processed(path)


def _dataset(specs: Sequence[DatasetSpec], track: Track) -> dict[str, Any]:
    from mfpyg.inspection.data import describe_dataset

    return describe_dataset(specs, track)
