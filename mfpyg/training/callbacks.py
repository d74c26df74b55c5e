"""Callbacks for checkpoints, the CSV log and the progress on the terminal."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.files import append_text, save_torch, write_text
from mfpyg.interrupt import Postponed
from mfpyg.training.average import averaged
from mfpyg.training.data import ConformationData
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.optimizer import makes_step
from mfpyg.training.schedule import get_lr

_SYNC_EVERY = 10
"""Steps between synchronisations of several processes on whether to save."""


class Stopped(Exception):
    """The training was stopped by the user or the system; ``last.ckpt`` has its current state."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and reads them without running code in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_torch(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return torch.load(path, map_location="cpu", weights_only=True)


class RunCheckpoint(Checkpoint):
    """Saves ``last.ckpt`` after every epoch and at intervals within one, and ``best.ckpt`` at each new lowest metric.

    ``best.ckpt`` is saved only in the last stage; earlier stages keep their weights for the next one. Ctrl-C and
    SIGTERM are postponed to the end of the step (of the epoch, in its last step), and end the training with a
    checkpoint and :class:`Stopped`. A second one stops at once and leaves the previous checkpoint.

    Args:
        run: the run folder.
        minutes: minutes between checkpoints within an epoch.

    Attributes:
        weights: weights of the potential for the next stage, if any; ``None`` until there are some.
    """

    def __init__(self, run: Path, minutes: float) -> None:
        self.run, self.minutes = run, minutes
        self.best, self.best_epoch = math.inf, -1
        self.weights: dict[str, Tensor] | None = None
        self._saved = time.monotonic()
        self._interrupts = Postponed()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._saved = time.monotonic()
        message = "stopping after this step; a second time stops at once, without saving"
        self._interrupts = Postponed(message if trainer.is_global_zero else "")
        self._interrupts.begin()  # here, as Lightning has installed its handlers by now

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._interrupts.end()
        self._stop_if_asked(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._interrupts.end()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches or not makes_step(trainer, batch_idx):
            return
        step = batch_idx // trainer.accumulate_grad_batches
        if trainer.world_size > 1 and step % _SYNC_EVERY:  # all processes save or none, which takes communication
            return
        due = time.monotonic() - self._saved >= 60 * self.minutes or self._interrupts.asked
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save_last(trainer)

    def _save_last(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.run / "last.ckpt")
        self._saved = time.monotonic()
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._interrupts.asked, all=False):
            raise Stopped

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, MultiFidelityModule)
        metric = float(trainer.callback_metrics[module.stage.monitor])
        better = metric < self.best
        if better:
            self.best = metric
        if module.place.last and better:
            self.best_epoch = module.epoch
            trainer.save_checkpoint(self.run / "best.ckpt")
        if not module.place.last and (better if module.stage.handed_on == "best" else module.over):
            with averaged(trainer, module):  # the validated weights
                weights = module.potential.state_dict()
                self.weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        handed_on = {} if self.weights is None else {"weights": self.weights}
        return {"best": self.best, "best_epoch": self.best_epoch, **handed_on}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.weights = state_dict.get("weights")


class EpochLog(Callback):
    """Writes one row per epoch to ``metrics.csv``; a resumed run continues from the epoch of its checkpoint.

    Args:
        path: path of the CSV file.
        staged: whether to add a column with the name of the stage.
    """

    def __init__(self, path: Path, staged: bool = False) -> None:
        self.path, self.staged = path, staged
        self._started = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._started = time.perf_counter()  # not called at the start of a resumed epoch
        if not trainer.is_global_zero or not self.path.is_file():
            return
        rows = self._rows()
        whole = [row for row in rows if None not in row and None not in row.values()]  # without a truncated row
        known = [row for row in whole if row.get("epoch", "").isdigit()]
        assert isinstance(module, MultiFidelityModule)
        self._write([row for row in known if int(row["epoch"]) < module.epoch])

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, MultiFidelityModule)
        data: ConformationData = trainer.datamodule  # type: ignore[attr-defined]
        row = {
            "epoch": str(module.epoch),
            **({"stage": module.stage.name} if self.staged else {}),
            "seconds": f"{time.perf_counter() - self._started:.3f}",
            "lr": f"{get_lr(trainer):.6g}",
            "batch_size": str(data.batch_size),
            # Lightning also keeps values logged in earlier epochs.
            **{
                name: f"{float(value):.6g}"
                for name, value in sorted(trainer.callback_metrics.items())
                if name in module.logged
            },
            **{name: str(count) for name, count in sorted(module.labels_seen.items())},
        }
        header = self._header()
        if not set(header).issuperset(row):  # the first row, or columns that an older version did not write
            self._write([*self._rows(), row])
            return
        line = io.StringIO()
        csv.DictWriter(line, header, restval="", lineterminator="\n").writerow(row)
        append_text(self.path, line.getvalue())

    def _text(self) -> io.StringIO:
        """Text of the file, with invalid bytes replaced."""
        text = self.path.read_bytes().decode("utf-8", errors="replace") if self.path.is_file() else ""
        return io.StringIO(text.replace("\0", "\ufffd"), newline="")

    def _rows(self) -> list[dict[str, str]]:
        try:
            return list(csv.DictReader(self._text()))
        except csv.Error as error:
            raise MFPyGError(f"{self.path}: damaged ({error}); remove it to continue without its rows") from error

    def _header(self) -> list[str]:
        try:
            return next(csv.reader(self._text()), [])
        except csv.Error:
            return []

    def _write(self, rows: list[dict[str, str]]) -> None:
        """Rewrite the file with these rows, whose columns may differ."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        if names:
            writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_text(self.path, text.getvalue())


class EpochProgress(Callback):
    """Progress bar with the validation errors of the trained labels; without a terminal, about twenty lines in all.

    Args:
        epochs: epochs of the whole training.
        console: console to write to.
        staged: whether to show the name of the stage.
    """

    def __init__(self, epochs: int, console: Console, staged: bool = False) -> None:
        self.epochs, self.console, self.staged = epochs, console, staged
        self._bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not (trainer.is_global_zero and self.console.is_terminal):
            return
        assert isinstance(module, MultiFidelityModule)
        columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=self.console, transient=True)
        self._bar.add_task("", total=self.epochs, completed=module.epoch)
        self._bar.start()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, MultiFidelityModule)
        done, total, stage = module.epoch + 1, self.epochs, module.stage
        text = "  ".join(self._errors(trainer, fidelity) for fidelity in stage.fidelities)
        text = f"{stage.name}  {text}" if self.staged else text
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=text)
        elif done % max(1, total // 20) == 0 or done == total:
            self.console.print(f"epoch {done}/{total}  {text}", highlight=False, soft_wrap=True)

    @staticmethod
    def _errors(trainer: lightning.Trainer, fidelity: Fidelity) -> str:
        keys = {p.letter: f"val/{fidelity.name}/{p.name}_rmse" for p in fidelity.properties}
        found = [
            f"{letter} {float(trainer.callback_metrics[key]):.2f}"
            for letter, key in keys.items()
            if key in trainer.callback_metrics
        ]
        return f"{fidelity.name} val RMSE {' '.join(found)}"

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
