"""Learning rate and batch size over the epochs."""

from __future__ import annotations

import math
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from mfpyg.settings import OptimSettings
from mfpyg.training.data import ConformationData


class Plateau:
    """Schedule on plateaus of a metric: raises the batch size first, then lowers the rate.

    (Smith et al., arXiv:1711.00489.) After ``patience`` epochs without an improvement by at least one
    part in 10⁴, the batch size is divided by ``factor``, up to its maximum; from then on the
    rate is multiplied by ``factor``.

    Args:
        patience: epochs without improvement to wait.
        factor: factor less than 1.
        max_batch_size: maximum batch size.
    """

    THRESHOLD = 1e-4

    def __init__(self, patience: int, factor: float, max_batch_size: int) -> None:
        self.patience, self.factor, self.max_batch_size = patience, factor, max_batch_size
        self.best = math.inf
        self.waited = 0

    def step(self, metric: float, batch_size: int, lr: float) -> tuple[int, float]:
        """Batch size and learning rate of the next epoch, given those of the last one and its metric."""
        if metric < self.best * (1 - self.THRESHOLD):
            self.best, self.waited = metric, 0
            return batch_size, lr
        self.waited += 1
        if self.waited <= self.patience:
            return batch_size, lr
        self.waited = 0
        if batch_size < self.max_batch_size:
            return min(max(int(batch_size / self.factor), batch_size + 1), self.max_batch_size), lr
        return batch_size, lr * self.factor


def cosine(progress: float) -> float:
    """Fraction of the initial learning rate at a fraction of the training: from 1 down to 0.01."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


class Schedule(Callback):
    """Applies the schedule of the settings to the optimiser and the data.

    A warm-up of w epochs multiplies the rate by min(t / w, 1), t being the epochs, which may be fractional, after the
    step.

    Args:
        settings: settings of the optimiser.
        lr: initial learning rate.
        monitor: name of the metric that the plateau schedule follows.
        batch_size: initial batch size; also the maximum, unless the settings give one.
    """

    def __init__(self, settings: OptimSettings, lr: float, monitor: str, batch_size: int) -> None:
        self.settings, self.lr, self.monitor = settings, lr, monitor
        self.plateau = Plateau(settings.patience, settings.factor, settings.max_batch_size or batch_size)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_number: int
    ) -> None:
        assert trainer.max_epochs is not None
        lr, epochs = self.lr, trainer.current_epoch
        before, after = (epochs + number / trainer.num_training_batches for number in (batch_number, batch_number + 1))
        warming = before < self.settings.warmup
        if self.settings.schedule == "cosine":
            lr *= cosine(min(before / trainer.max_epochs, 1.0))
        elif not warming:  # keep the rate, which the plateau schedule lowers
            return
        _set_lr(trainer, lr * min(after / self.settings.warmup, 1.0) if warming else lr)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.settings.schedule == "plateau" and trainer.current_epoch + 1 >= self.settings.warmup:
            data: ConformationData = trainer.datamodule  # type: ignore[attr-defined]
            metric = float(trainer.callback_metrics[self.monitor])
            data.batch_size, lr = self.plateau.step(metric, data.batch_size, get_lr(trainer))
            _set_lr(trainer, lr)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.plateau.best, "waited": self.plateau.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.best, self.plateau.waited = state_dict["best"], state_dict["waited"]


def get_lr(trainer: lightning.Trainer) -> float:
    """Current learning rate."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def _set_lr(trainer: lightning.Trainer, lr: float) -> None:
    for group in trainer.optimizers[0].param_groups:
        group["lr"] = lr
