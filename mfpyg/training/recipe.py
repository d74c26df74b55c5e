"""What a training is made of: the potential, the module that trains it, its data, and what happens along the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback, EarlyStopping
from rich.console import Console

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import GivenReferences
from mfpyg.fidelity import Fidelity, parse_weights
from mfpyg.models import Potential
from mfpyg.settings import TrainSettings
from mfpyg.training.average import WeightAverage
from mfpyg.training.callbacks import EpochLog, EpochProgress, RunCheckpoint
from mfpyg.training.check import check_minimum
from mfpyg.training.data import ConformationData
from mfpyg.training.folder import RunFolder
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.prepare import new_potential
from mfpyg.training.schedule import Schedule

Describe = Callable[[Potential], dict[str, Any]]
"""From a potential to the plain values that go into its checkpoints."""


class Recipe:
    """Training on all levels at once.

    Args:
        settings: checked.
        fidelities: that are trained on.
        dataset: with the labels that the training may see.
        splits: ``{"train": rows, "val": rows, …}``.
        given: reference energies that are not fitted.

    Raises:
        MFPyGError: if the data do not allow it.

    Attributes:
        potential: with fresh weights, drawn from torch's global generator.
        notes: lines for the user.
    """

    potential: Potential
    notes: list[str]

    def __init__(
        self,
        settings: TrainSettings,
        fidelities: tuple[Fidelity, ...],
        dataset: ConformationDataset,
        splits: Mapping[str, np.ndarray],
        given: GivenReferences | None = None,
    ) -> None:
        self.settings, self.fidelities, self.dataset, self.splits = settings, fidelities, dataset, splits
        self.given = given or {}
        self.prepare()

    def prepare(self) -> None:
        """Make the potential and the notes."""
        self.potential, self.notes = new_potential(
            self.settings, self.fidelities, self.dataset, self.splits, self.given
        )

    def module(self, describe: Describe, compiled: bool) -> MultiFidelityModule:
        """What is trained; ``compiled`` says whether through ``torch.compile``."""
        settings = self.settings
        columns = {f.name: self.dataset.fidelities.index(f.name) for f in self.fidelities}
        weights = parse_weights(settings.weights, self.fidelities)
        loss = MultiFidelityLoss(self.fidelities, columns, weights, settings.hierarchicality)
        described, optim = describe(self.potential), settings.optim
        return MultiFidelityModule(
            self.potential, loss, optim.lr, described, self.dataset.molecules, compiled, optim.weight_decay
        )

    def data(self, module: MultiFidelityModule) -> ConformationData:
        """What it is trained on."""
        settings = self.settings
        minimum = check_minimum(settings, [f.name for f in self.fidelities])
        return ConformationData(
            self.dataset, self.splits, self.fidelities, settings.sampling, minimum, settings.batch_size, settings.seed
        )

    def callbacks(self, folder: RunFolder, console: Console) -> list[Callback]:
        """What happens at the end of epochs."""
        settings = self.settings
        monitor = "val/loss" if settings.monitor == "sum" else f"val/{settings.monitor}/loss"
        return [
            *averages(settings),
            Schedule(settings.optim, monitor, settings.batch_size),
            EpochLog(folder.log),
            EpochProgress(self.fidelities, console),
            RunCheckpoint(folder.path, monitor, settings.checkpoint_minutes),
            *early_stopping(settings, monitor),
        ]


def averages(settings: TrainSettings) -> list[WeightAverage]:
    """One, if the settings want it; before what saves or looks at the weights."""
    return [] if settings.optim.ema is None else [WeightAverage(settings.optim.ema)]


def early_stopping(settings: TrainSettings, monitor: str) -> list[EarlyStopping]:
    """One, if the settings want it."""
    patience = settings.optim.stop_after
    return [] if patience is None else [EarlyStopping(monitor, patience=patience, check_on_train_epoch_end=True)]
