"""From settings to a training, in stages where the strategy has some."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import GivenReferences
from mfpyg.fidelity import Fidelity
from mfpyg.settings import TrainSettings
from mfpyg.training.finetune import FinetuneRecipe, Start
from mfpyg.training.folder import RunFolder
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.prepare import elements_of
from mfpyg.training.recipe import Describe, Recipe, averages, early_stopping
from mfpyg.training.strategies import delta, meta, transfer
from mfpyg.training.strategies.callbacks import MONITOR, StageCheckpoint, StagedSchedule, StageLog, StageProgress
from mfpyg.training.strategies.module import StagedData, StagedModule
from mfpyg.training.strategies.plan import plan_of
from mfpyg.training.strategies.stage import Materials

_STAGES = {"tl": transfer.stages, "delta": delta.stages, "meta": meta.stages}


class StagedRecipe(Recipe):
    """Training in the stages of the strategy that the settings name."""

    def prepare(self) -> None:
        settings = self.settings
        elements = elements_of(self.dataset, self.splits)
        plan = plan_of(settings, self.fidelities)
        materials = Materials(settings, plan, self.fidelities, self.dataset, self.splits, elements, self.given)
        self.potential, self.stages = _STAGES[settings.strategy](materials)
        steps = math.ceil(math.ceil(materials.budget / settings.batch_size) / settings.optim.accumulate)
        stages = ", then ".join(f"{stage.plan.name} {stage.plan.epochs:,}" for stage in self.stages)
        self.notes = [f"strategy {settings.strategy}, epochs of {steps:,} steps: {stages}", *materials.notes]

    def module(self, describe: Describe, compiled: bool) -> StagedModule:
        return StagedModule(self.potential, self.stages, describe, self.dataset.molecules, compiled)

    def data(self, module: MultiFidelityModule) -> StagedData:
        assert isinstance(module, StagedModule)
        return StagedData(self.dataset, module, self.settings.batch_size)

    def callbacks(self, folder: RunFolder, console: Console) -> list[Callback]:
        settings = self.settings
        schedule = StagedSchedule(settings.optim, MONITOR, settings.batch_size)
        stopper = early_stopping(settings, MONITOR)
        checkpoint = StageCheckpoint(folder.path, settings.checkpoint_minutes, schedule, next(iter(stopper), None))
        shown = [StageLog(folder.log), StageProgress(self.fidelities, console)]
        return [*averages(settings), schedule, *shown, *stopper, checkpoint]


def recipe_of(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
    start: Start | None = None,
    given: GivenReferences | None = None,
) -> Recipe:
    """What a training with these settings is made of; see :class:`Recipe`.

    Args:
        settings, fidelities, dataset, splits: of the training.
        start: the potential that it goes on from, if any.
        given: reference energies that are not fitted.

    Raises:
        MFPyGError: if the data or the backbone lack what the strategy needs.
    """
    if start is not None:
        return FinetuneRecipe(settings, fidelities, dataset, splits, start, given)
    kind = Recipe if settings.strategy == "mfl" else StagedRecipe
    return kind(settings, fidelities, dataset, splits, given)
