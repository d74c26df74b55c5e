"""What a checkpoint holds of a training besides the weights has to fit, when it is taken over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.training.company import is_loss


def checked_when_loaded(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimiser whose state, when it comes from a checkpoint, has to fit what it trains.

    The fused ones write where the state of another weight would end, and not where this one ends.
    """
    may_differ = ("params", "lr", "initial_lr")
    made = [{k: v for k, v in group.items() if k not in may_differ} for group in optimizer.param_groups]
    optimizer.register_load_state_dict_post_hook(lambda loaded: _check_loaded(loaded, made))
    return optimizer


def _check_loaded(optimizer: torch.optim.Optimizer, made: Sequence[Mapping[str, Any]]) -> None:
    """``made`` is what each group of parameters was made with."""
    damaged = "the checkpoint's optimiser is damaged or that of other weights"
    for group, options in zip(optimizer.param_groups, made, strict=True):
        other = [name for name, value in options.items() if group.get(name) != value]
        lr = group["lr"]
        if other or not isinstance(lr, float) or not math.isfinite(lr):
            raise MFPyGError(f"{damaged}: its {', '.join(other) or 'lr'} can't be gone on with; start the run anew")
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            right = () if name == "step" else weight.shape
            fits = isinstance(value, Tensor) and value.shape == right and bool(torch.isfinite(value).all())
            if not fits or id(weight) not in trained:
                raise MFPyGError(
                    f"{damaged}: its {name} does not fit a weight {tuple(weight.shape)}; start the run anew"
                )


class Restored(Callback):
    """Whether training goes on, all that a checkpoint holds having been taken over.

    Args:
        then: called as soon as it does.
    """

    def __init__(self, then: Callable[[], Any]) -> None:
        self.done, self.then = False, then

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.done = True
        self.then()

    @contextmanager
    def checked(self, checkpoint: Path | None) -> Iterator[None]:
        """Turn what goes wrong before training does into one line, where there is a checkpoint to go on from.

        Raises:
            MFPyGError: for a state that Lightning or torch can make nothing of.
        """
        try:
            yield
            if not self.done:  # no epoch was left
                self.then()
        except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            known = isinstance(error, MFPyGError | torch.OutOfMemoryError) or is_loss(error)
            if self.done or checkpoint is None or known:
                raise
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise MFPyGError(f"{checkpoint}: the state of its training can't be gone on with ({reason})") from error
