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
    r"""Averages the trained weights over the steps of the optimiser, and validates and saves the average.

    .. math:: \bar\theta_1 = \theta_1, \qquad \bar\theta_n = d\,\bar\theta_{n-1} + (1 - d)\,\theta_n

    A checkpoint has the average among its weights (``state_dict``), so that whatever reads a potential from it gets
    the one that was validated, and the weights that training goes on from as ``raw_weights``.

    Lightning's own ``EMAWeightAveraging`` copies the whole module, its data and buffers, when a fit begins, and before
    it comes to its device; this keeps the trained parameters alone, where they are.

    Args:
        decay: d.
    """

    def __init__(self, decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay)
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None  # of a checkpoint, until all of it is read

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._raw = checkpoint.get("raw_weights")

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self._raw is None:
            return
        if self._raw.keys() != _trained(module).keys():
            raise MFPyGError("the checkpoint's raw_weights are not those that are trained; start the run anew")
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
    """The averaged weights in their place, if the training has an average."""
    averages = [one for one in trainer.callbacks if isinstance(one, WeightAverage)]  # type: ignore[attr-defined]
    for average in averages:
        average.swap(module)
    try:
        yield
    finally:
        for average in averages:
            average.swap(module)
