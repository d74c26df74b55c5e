"""Checks that a run can be resumed from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from mfpyg.checkpoint import epochs_done, potential_of, read_checkpoint, versions
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError, UnreadableError
from mfpyg.settings import TrainSettings, from_dict
from mfpyg.training.folder import RunFolder, check_nothing_changed, setting_changes


def check_resumable(
    folder: RunFolder, settings: TrainSettings, dataset: ConformationDataset, splits: Mapping[str, np.ndarray]
) -> bool:
    """Check that the last checkpoint is of this run, and of these data and splits.

    Args:
        folder: run folder.
        settings: current settings.
        dataset: current data set.
        splits: current splits of the folder.

    Returns:
        Whether there is anything left to train; not if it had stopped early, or its last stage is over.

    Raises:
        MFPyGError: naming what is missing or damaged, or all differences.
    """
    folder.check_resumable()
    checkpoint = read_last(folder)
    states = checkpoint["callbacks"].values()
    if any(state.get("best_epoch", -1) >= 0 for state in states):  # needed at the end; fail early
        read_checkpoint(folder.best)
    described = checkpoint["mfpyg"]
    before = from_dict(described["config"])
    changes = [
        *setting_changes(before, settings),
        *_data_changes(described["data"], dataset),
        *_split_changes(described["splits"], splits),
    ]
    check_nothing_changed(changes, before, f"{folder.path}: ")
    done = epochs_done(checkpoint)
    if settings.epochs < done:
        raise MFPyGError(f"{folder.path} has {done} epochs already; --epochs {settings.epochs} is less")
    stage = checkpoint.get("stage", {"last": True, "over": False})  # mfpyg 0.1.0 had a single stage
    if not stage["last"]:
        return True
    stopped = any("wait_count" in state and state["wait_count"] >= state["patience"] for state in states)
    return not stopped and not (stage["over"] and settings.epochs == before.epochs)


def read_last(folder: RunFolder) -> dict[str, Any]:
    """Contents of ``last.ckpt``.

    Raises:
        MFPyGError: if it is damaged, saying how else to continue.
    """
    try:
        checkpoint = read_checkpoint(folder.last)
        potential_of(checkpoint, str(folder.last))
        for name in ("callbacks", "optimizer_states", "loops", "global_step"):
            if name not in checkpoint:
                raise MFPyGError(f"{folder.last}: lacks {name}, it is a potential without the state of a training")
    except UnreadableError:
        raise
    except MFPyGError as error:
        raise MFPyGError(f"{error}; {_recovery(folder)}") from error
    return checkpoint


def _recovery(folder: RunFolder) -> str:
    """Advice for a damaged ``last.ckpt``."""
    try:
        epochs = epochs_done(read_checkpoint(folder.best))
    except MFPyGError:
        return f"{folder.best} is missing or damaged, too; start a new run"
    return f"{folder.best} is intact: copy it over {folder.last} to continue after {epochs} epochs"


def _data_changes(before: Mapping[str, Any], dataset: ConformationDataset) -> list[str]:
    if before["fingerprint"] == dataset.fingerprint:
        levels, now = before.get("levels"), list(dataset.fidelities)  # mfpyg 0.1.0 did not write them
        return [] if levels in (None, now) else [f"levels of the data were {', '.join(levels)}, now {', '.join(now)}"]
    which = "labels"
    if before.get("geometries") != dataset.geometries:
        which = "conformations or elements"
    return [
        f"the data are not those the run was started on (other {which}; fingerprint was "
        f"{before['fingerprint'][:12]}, now {dataset.fingerprint[:12]})"
    ]


def _split_changes(before: Mapping[str, Any], splits: Mapping[str, np.ndarray]) -> list[str]:
    """Differences between splits; the order matters, as batches are drawn from it."""
    changes = []
    for name in dict.fromkeys([*before, *splits]):
        old = before[name].tolist() if name in before else []
        new = splits[name].tolist() if name in splits else []
        if old != new:
            new_rows = len(set(map(str, new)) - set(map(str, old)))
            changes.append(f"split {name} had {len(old)} conformations, now {len(new)}, {new_rows} of them new")
    return changes


def version_notes(folder: RunFolder, backbone: str) -> list[str]:
    """Note on packages whose versions differ from those that the run was started with, if any."""
    before, now = folder.read_versions(), versions(backbone)
    changed = [
        f"{name} was {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    ]
    if not changed:
        return []
    return [f"note: {'; '.join(changed)}: the weights may differ from those of an uninterrupted run in the last bits"]


class Restored(Callback):
    """Callback that records that the state of a checkpoint was restored and training has begun.

    Args:
        then: function called at that point.
    """

    def __init__(self, then: Callable[[], Any]) -> None:
        self.done, self.then = False, then

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.done = True
        self.then()

    @contextmanager
    def checked(self, checkpoint: Path | None) -> Iterator[None]:
        """Report a state that Lightning or torch cannot restore in one line.

        Args:
            checkpoint: checkpoint to resume from, if any.

        Raises:
            MFPyGError: for an error before training has begun.
        """
        try:
            yield
            if not self.done:  # no epoch was left
                self.then()
        except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            known = isinstance(error, MFPyGError | torch.OutOfMemoryError | torch.distributed.DistError)
            if self.done or checkpoint is None or known:
                raise
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise MFPyGError(f"{checkpoint}: the state of its training cannot be resumed ({reason})") from error
