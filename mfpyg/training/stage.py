"""Stage of a training: its labels, parameters, batches, optimiser and epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch_geometric.data import Batch

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.fidelity import Fidelity
from mfpyg.models import MultiFidelityPotential, Potential
from mfpyg.training.labels import labelled_species
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.optimizer import adam
from mfpyg.training.sampling import Interleaved, Sampling


class Step(NamedTuple):
    """Training batch: epoch in the whole training, index within the epoch, and number of batches per epoch."""

    epoch: int
    number: int
    n_steps: int


@dataclass(frozen=True)
class Place:
    """Position of a stage in its training.

    Attributes:
        number: index of the stage, from 0.
        epochs, steps: numbers of epochs and of optimiser steps of earlier stages.
        last: whether it is the last stage.
    """

    number: int = 0
    epochs: int = 0
    steps: int = 0
    last: bool = True


@dataclass(kw_only=True)
class Stage:
    """Part of a training, run in one ``lightning.Trainer.fit``; this class trains all parameters with gradients.

    Attributes:
        name: name in ``metrics.csv`` and on the terminal, if there are several stages.
        fidelities: fidelities to train on, whose errors are shown.
        epochs: maximum number of epochs.
        loss: loss for validation and metrics, and for training batches unless :meth:`compared` returns another.
        lr: initial learning rate.
        dataset: data set with the labels available to the stage.
        train: sampling of the training batches.
        val: conformations for validation, (n,) int64.
        weight_decay: see :func:`mfpyg.training.optimizer.adam`.
        monitor: metric for the choice of the best epoch, the schedule and early stopping.
        handed_on: epoch whose weights the next stage starts from, ``best`` or ``last``.
    """

    name: str
    fidelities: tuple[Fidelity, ...]
    epochs: int
    loss: MultiFidelityLoss
    lr: float
    dataset: ConformationDataset
    train: Sampling | Interleaved
    val: np.ndarray
    weight_decay: float = 0.0
    monitor: str = "val/loss"
    handed_on: Literal["best", "last"] = "best"

    def start(self, potential: Potential) -> Potential:
        """Potential to train in this stage, made from that of the previous stage.

        If a run is resumed in this stage or a later one, the weights are loaded afterwards. Randomly drawn weights must
        not depend on earlier draws.
        """
        return potential

    def trained(self, potential: Potential) -> list[nn.Parameter]:
        """Parameters to train."""
        return [parameter for parameter in potential.parameters() if parameter.requires_grad]

    def optimizer(self, potential: Potential) -> torch.optim.Optimizer:
        """New optimiser of the parameters to train."""
        return adam(potential, self.trained(potential), self.lr, self.weight_decay)

    @property
    def train_loss(self) -> MultiFidelityLoss:
        """Loss for the metrics of the training batches."""
        return self.loss

    def losses(self) -> list[MultiFidelityLoss]:
        """All losses of the stage, whose tensors are moved to the device."""
        return [self.loss, self.train_loss]

    def network(self, potential: Potential) -> Potential:
        """Network whose predictions are compared with the labels of training batches."""
        return potential

    def with_labels(self, batch: Batch) -> Batch:
        """Training batch with the labels of ``train_loss``, which on a GPU is made before the step."""
        return batch

    def compared(
        self, potential: Potential, batch: Batch, step: Step
    ) -> tuple[MultiFidelityPotential, MultiFidelityLoss, Batch]:
        """Network, loss and batch of a training step; the labels of the loss must be among those of ``train_loss``.

        On a GPU, it is called while the step before is being computed.
        """
        network = self.network(potential)
        assert isinstance(network, MultiFidelityPotential)
        return network, self.loss, batch

    def after_step(self, potential: Potential, step: Step) -> None:
        """Called after each step of the optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """State between two steps, for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""


def train_only(potential: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Enable gradients for these parameters of a potential, and for no others."""
    for parameter in potential.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def trained_species(stages: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    """Atomic numbers in the training labels of each fidelity, over all stages."""
    found: dict[str, set[int]] = {}
    for stage in stages:
        for name, species in labelled_species(stage.dataset, stage.train.rows, stage.fidelities).items():
            found.setdefault(name, set()).update(species)
    return {name: tuple(sorted(species)) for name, species in found.items()}
