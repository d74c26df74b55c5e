"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mfpyg.errors import MFPyGError
from mfpyg.training.optimizer import makes_step


class WeightAverage(Callback):
    r"""Keeps an exponential moving average of the trained weights, which is validated and saved.

    .. math:: \bar\theta_1 = \theta_1, \qquad \bar\theta_n = d\,\bar\theta_{n-1} + (1 - d)\,\theta_n

    A checkpoint has the average in ``state_dict``, so that it loads as the validated potential, and the weights to
    resume from in ``raw_weights``.

    Lightning's ``EMAWeightAveraging`` copies the whole module with its data and buffers at the start of a fit, before
    it is moved to its device; this class copies only the trained parameters, on their device.

    Args:
        decay: decay d.
    """

    def __init__(self, decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay)
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None  # from a checkpoint, until the fit starts

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._raw = checkpoint.get("raw_weights")

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self._raw is None:
            return
        if self._raw.keys() != _trained(module).keys():
            raise MFPyGError("the checkpoint's raw_weights are not those that are trained; start a new run")
        self._average = {name: value.detach().to(_trained(module)[name]) for name, value in self._raw.items()}
        self._raw = None
        self.swap(module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not makes_step(trainer, batch_idx):
            return
        trained = {name: weight.detach() for name, weight in _trained(module).items()}
        if self._average:
            self._update(list(self._average.values()), list(trained.values()), None)
        else:
            self._average = {name: weight.clone() for name, weight in trained.items()}

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.swap(module)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.swap(module)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average:
            checkpoint["raw_weights"] = {name: checkpoint["state_dict"][name] for name in self._average}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self._average}

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the weights of the module with their averages."""
        for name, average in self._average.items():
            weight = module.get_parameter(name)
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


@contextmanager
def averaged(trainer: lightning.Trainer, module: nn.Module) -> Iterator[None]:
    """Use the averaged weights within the context, if there is an average."""
    averages = [one for one in trainer.callbacks if isinstance(one, WeightAverage)]  # type: ignore[attr-defined]
    for average in averages:
        average.swap(module)
    try:
        yield
    finally:
        for average in averages:
            average.swap(module)
