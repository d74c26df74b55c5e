"""Training in stages: the module, and its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.models import Potential
from mfpyg.training.data import ConformationData
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule, train_only
from mfpyg.training.sampling import Interleaved, Sampling
from mfpyg.training.strategies.stage import Stage


class StagedModule(MultiFidelityModule):
    """Trains a potential in stages, of which each may have losses, weights to train and an optimiser of its own.

    A checkpoint says in which stage it was made, and describes the potential of that stage. Metrics have the names
    of :class:`MultiFidelityModule`, ``val/loss`` being the sum over the labels of the stage.

    Args:
        potential: of the first stage, with fresh weights.
        stages: one after the other.
        describe: from a potential to the plain values that go into its checkpoints.
        molecules, compiled: see :class:`MultiFidelityModule`.

    Attributes:
        number: of the stage, from 0.
        began: epoch with which the stage began.
        ended: whether the last stage is over.
    """

    def __init__(
        self,
        potential: Potential,
        stages: list[Stage],
        describe: Callable[[Potential], dict[str, Any]],
        molecules: list[str],
        compiled: bool = False,
    ) -> None:
        super().__init__(potential, stages[0].loss, stages[0].lr, {}, molecules, compiled)
        self.stages, self._describe = stages, describe
        self._losses = nn.ModuleList(loss for stage in stages for loss in stage.losses())  # go to a device with this
        self.number, self.began, self.ended = 0, 0, False
        self._enter(0)
        self.stage.begin(self.potential)

    @property
    def stage(self) -> Stage:
        """The stage that is trained now."""
        return self.stages[self.number]

    @property
    def in_last_stage(self) -> bool:
        """Whether no other follows."""
        return self.number == len(self.stages) - 1

    @property
    def steps(self) -> int:
        """Optimiser steps of this epoch."""
        return int(self.trainer.num_training_batches)

    def _enter(self, number: int) -> None:
        dtype, mode = self.potential.dtype, self.potential.training
        self.number, self.loss = number, self.stages[number].loss
        self.potential = self.stage.enter(self.potential).to(device=self.device, dtype=dtype).train(mode)
        train_only(self.potential, self.stage.trained(self.potential))
        self.labels_seen, self.metadata = {}, {}

    def go_on(self, epoch: int) -> None:
        """Come to the next stage, which begins with this epoch."""
        self._enter(self.number + 1)
        self.stage.begin(self.potential)
        self.began = epoch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.stage.optimizer(self.potential)

    def training_step(self, batch: Batch, batch_number: int) -> Tensor:
        loss, sums = self.stage.compare(self, batch, batch_number)
        self._add("train", sums)
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, *arguments: Any, **more: Any) -> None:
        # Here, and not at the end of the batch, as a checkpoint made then has to be of the weights afterwards.
        super().optimizer_step(epoch, batch_idx, *arguments, **more)
        self.stage.after_step(self, batch_idx)

    def loss_of(self, split: str) -> MultiFidelityLoss:
        return self.stage.train_loss if split == "train" else self.loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.metadata:  # once a stage
            self.metadata = self._describe(self.potential)
        super().on_save_checkpoint(checkpoint)
        checkpoint["stage"] = {
            "number": self.number,
            "began": self.began,
            "ended": self.ended,
            "state": self.stage.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint["stage"]
        for number in range(1, stored["number"] + 1):
            self._enter(number)
        self.began, self.ended = stored["began"], stored["ended"]
        self.stage.load_state_dict(stored["state"])


class StagedData(ConformationData):
    """Loaders of what the stage of a module is trained and validated on.

    Args:
        dataset: all of it.
        module: that says the stage.
        batch_size: initial one of each stage.
    """

    def __init__(self, dataset: ConformationDataset, module: StagedModule, batch_size: int) -> None:
        lightning.LightningDataModule.__init__(self)
        self.dataset, self.batch_size, self._module = dataset, batch_size, module
        self.n_atoms = dataset.slices["z"].diff().numpy()

    @property
    def train(self) -> Sampling | Interleaved:
        return self._module.stage.train

    @property
    def val(self) -> np.ndarray:
        return self._module.stage.val
