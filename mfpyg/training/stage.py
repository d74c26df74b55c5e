"""A stage of a training: which labels, which parameters, which batches, which optimiser, and for how many epochs."""

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
    """A training batch: the epoch of the whole training, its number within that epoch, and how many there are."""

    epoch: int
    number: int
    n_steps: int


@dataclass(frozen=True)
class Place:
    """Position of a stage in its training.

    Attributes:
        number: of the stage, from 0.
        epochs, steps: epochs, and steps of the optimiser, of the stages before.
        last: true of the last stage.
    """

    number: int = 0
    epochs: int = 0
    steps: int = 0
    last: bool = True


@dataclass(kw_only=True)
class Stage:
    """A part of a training, of one ``lightning.Trainer.fit``; this one trains everything that requires gradients.

    Attributes:
        name: in ``metrics.csv`` and on the terminal, where there are several stages.
        fidelities: whose labels are trained on, and whose errors are shown.
        epochs: at most.
        loss: of the validation, and of the metrics; of the training batches, too, unless :meth:`compared` says another.
        lr: initial learning rate.
        dataset: with the labels that the stage may see.
        train: sampling of the training batches.
        val: conformations of the validation, (n,) int64.
        weight_decay: see :func:`mfpyg.training.optimizer.adam`.
        monitor: metric by which the best epoch is chosen, and that the schedule and early stopping follow.
        hands_on: weights that the next stage begins with: those of the ``best`` epoch, or of the ``last``.
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
    hands_on: Literal["best", "last"] = "best"

    def start(self, potential: Potential) -> Potential:
        """The potential that the stage trains, made of the one that the stage before has handed on.

        Of a run that is resumed in this stage, or in a later one, the weights are read in afterwards. Weights that are
        drawn have to be the same then, whatever was drawn before.
        """
        return potential

    def trained(self, potential: Potential) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in potential.parameters() if parameter.requires_grad]

    def optimizer(self, potential: Potential) -> torch.optim.Optimizer:
        """A fresh optimiser of the parameters that are trained."""
        return adam(potential, self.trained(potential), self.lr, self.weight_decay)

    @property
    def train_loss(self) -> MultiFidelityLoss:
        """The loss that the metrics of the training batches are of."""
        return self.loss

    def losses(self) -> list[MultiFidelityLoss]:
        """All losses of the stage, whose tensors are moved to the device."""
        return [self.loss, self.train_loss]

    def compared(
        self, potential: Potential, batch: Batch, step: Step
    ) -> tuple[MultiFidelityPotential, MultiFidelityLoss, Batch]:
        """The network, the loss and the batch of a training step; labels of that loss are among ``train_loss``'s."""
        assert isinstance(potential, MultiFidelityPotential)
        return potential, self.loss, batch

    def after_step(self, potential: Potential, step: Step) -> None:
        """Called after each step of the optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """State between two steps, for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""


def train_only(potential: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Let these parameters of a potential have gradients, and no others."""
    for parameter in potential.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def trained_species(stages: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    """Atomic numbers in the labels that the stages train each fidelity on."""
    found: dict[str, set[int]] = {}
    for stage in stages:
        for name, species in labelled_species(stage.dataset, stage.train.rows, stage.fidelities).items():
            found.setdefault(name, set()).update(species)
    return {name: tuple(sorted(species)) for name, species in found.items()}
