"""Ctrl-C and SIGTERM in several processes: all stop after the same step, with a checkpoint of it."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mfpyg.training.folder import RunFolder


class StopTogether(Callback):
    """Notes the signals, which may come to any process at any time, and asks all after each step whether there was one.

    A process that stopped where it stands would leave the others in a collective. The answer travels while the step is
    computed. Lightning's own handler of SIGTERM talks to the others from within the signal, whatever they are doing.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._noted = False
        self._question: tuple[Tensor, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # until Lightning sets back those that were there before
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        noted = torch.tensor([self._noted], dtype=torch.int32, device=module.device)
        self._question = noted, dist.all_reduce(noted, op=dist.ReduceOp.MAX, async_op=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._question is not None
        noted, answer = self._question
        answer.wait()
        # The end of an epoch saves by itself, and has to be logged.
        if noted.item() and batch_idx + 1 < trainer.num_training_batches:
            trainer.save_checkpoint(self.folder.last)
            raise SystemExit
