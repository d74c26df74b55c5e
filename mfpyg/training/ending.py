"""The end of a training that is stopped or diverges: its message, and its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mfpyg.checkpoint import epochs_done, read_checkpoint
from mfpyg.errors import MFPyGError
from mfpyg.files import FULL
from mfpyg.settings import TrainSettings
from mfpyg.training.callbacks import Stopped
from mfpyg.training.distributed import is_main_process
from mfpyg.training.folder import RunFolder
from mfpyg.training.optimizer import Diverged


class Interrupted(Exception):
    """Training was stopped by the user or the system; the message says how to go on."""


@contextmanager
def ending_told(folder: RunFolder, settings: TrainSettings) -> Iterator[None]:
    """Say how to go on after Ctrl-C, SIGTERM or numbers that blew up; leave nothing of a run without a checkpoint."""
    try:
        yield
    except BaseException as stop:
        if is_main_process():
            folder.discard_unstarted()
        if isinstance(stop, Diverged):
            raise MFPyGError(f"{stop}; {_after_divergence(folder, settings)}") from stop
        if isinstance(stop, OSError) and stop.errno in FULL:  # of what Lightning or its logger writes
            raise MFPyGError(f"{stop.filename or folder.path}: can't write there ({stop.strerror})") from stop
        if not isinstance(stop, Stopped) and not _is_interrupt(stop):
            raise
        if not folder.last.is_file():
            raise Interrupted("stopped before the first step was made; nothing was kept") from stop
        checkpoint = read_checkpoint(folder.last)
        raise Interrupted(
            f"stopped; {'saved' if isinstance(stop, Stopped) else 'the last checkpoint'} is step "
            f"{checkpoint['global_step']:,}, after {epochs_done(checkpoint):,} whole epochs; continue with: "
            f"mfpyg-train --resume {folder.path}"
        ) from stop


def _after_divergence(folder: RunFolder, settings: TrainSettings) -> str:
    """Advice after a divergence: not ``--resume``, which would take the same steps again."""
    if not folder.last.is_file():
        return "no epoch had ended, nothing was kept"
    if settings.strategy != "mfl" or not folder.best.is_file():
        return f"{folder.last} is of before, but --resume would come to the same end; start anew in another folder"
    rate = f"{settings.optim.lr / 10:g}"
    return (
        f"best.ckpt and last.ckpt in {folder.path} are of before; --resume would come to the same end, so go on from "
        f"the best epoch in a new folder: --init {folder.path} --optim.lr {rate} and the run's other options"
    )


def _is_interrupt(stop: BaseException) -> bool:
    """True for Ctrl-C, which Lightning turns into SystemExit, or fails at between two epochs."""
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt | SystemExit):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
