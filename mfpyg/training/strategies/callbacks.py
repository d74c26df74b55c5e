"""What happens at the end of an epoch of a training in stages, and at the end of a stage."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from mfpyg.training.average import averaged, averages_of
from mfpyg.training.callbacks import EpochLog, EpochProgress, RunCheckpoint
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.schedule import Schedule
from mfpyg.training.strategies.module import StagedModule

MONITOR = "val/loss"
"""The validation loss of the stage: of its labels, and in the last one of the target's."""


class StagedSchedule(Schedule):
    """The schedule of the settings, anew in each stage."""

    def course(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> tuple[float, int, int]:
        assert isinstance(module, StagedModule)
        return module.stage.lr, trainer.current_epoch - module.began, module.stage.plan.epochs

    def restart(self, trainer: lightning.Trainer) -> None:
        """Forget what was before, the batch size included; the rate comes with the new optimiser."""
        self.plateau = self._new_plateau()
        trainer.datamodule.batch_size = self.batch_size  # type: ignore[attr-defined]


class StageLog(EpochLog):
    """With the name of the stage."""

    def more(self, module: MultiFidelityModule) -> dict[str, str]:
        assert isinstance(module, StagedModule)
        return {"stage": module.stage.plan.name}


class StageProgress(EpochProgress):
    """With the name of the stage, and the errors of its fidelities."""

    def text(self, trainer: lightning.Trainer, module: MultiFidelityModule) -> str:
        assert isinstance(module, StagedModule)
        errors = [self._errors(trainer, fidelity) for fidelity in module.stage.plan.fidelities]
        return f"{module.stage.plan.name}  {'  '.join(errors)}"


class StageCheckpoint(RunCheckpoint):
    """Checkpoints, and the way from stage to stage.

    ``best.ckpt`` is of the last stage's epochs alone. A stage before it is over after its epochs, or when it is
    stopped early; it then hands on the weights of its epoch with the lowest ``val/loss`` (those of its last epoch,
    where it says so). The checkpoint after that epoch is of the beginning of the next stage.

    Args:
        run, minutes: see :class:`RunCheckpoint`.
        schedule: to be begun anew with each stage.
        stopper: of stages that no longer improve, if any.
    """

    def __init__(self, run: Path, minutes: float, schedule: StagedSchedule, stopper: EarlyStopping | None) -> None:
        super().__init__(run, MONITOR, minutes)
        self.schedule, self.stopper = schedule, stopper
        self.lowest = math.inf
        self.weights: dict[str, Tensor] | None = None

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, StagedModule)
        stage = module.stage
        over = trainer.current_epoch + 1 - module.began >= stage.plan.epochs or self._stopped()
        if module.in_last_stage:
            module.ended = over
            super().on_train_epoch_end(trainer, module)
            trainer.should_stop = trainer.should_stop or over  # also where an earlier stage has left epochs over
            return
        metric = float(trainer.callback_metrics[self.monitor])
        if stage.keep_best and metric < self.lowest:
            self.lowest = metric
            with averaged(trainer, module):  # what was validated
                weights = module.potential.state_dict()
                self.weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        if over:
            self._go_on(trainer, module)
        self._save_last(trainer)

    def _stopped(self) -> bool:
        return self.stopper is not None and self.stopper.wait_count >= self.stopper.patience

    def _go_on(self, trainer: lightning.Trainer, module: StagedModule) -> None:
        if self.weights is not None:
            module.potential.load_state_dict(self.weights)
        self.lowest, self.weights = math.inf, None
        module.go_on(trainer.current_epoch + 1)
        for average in averages_of(trainer):
            average.begin_anew()
        _wrap_again(trainer)
        trainer.strategy.setup_optimizers(trainer)
        self.schedule.restart(trainer)
        if self.stopper is not None:
            self.stopper.wait_count, self.stopper.stopped_epoch = 0, 0
            self.stopper.best_score = torch.tensor(math.inf)
        trainer.should_stop = False

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "lowest": self.lowest, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.lowest, self.weights = state_dict["lowest"], state_dict["weights"]


def _wrap_again(trainer: lightning.Trainer) -> None:
    """Let DDP, which has the parameters that needed gradients when it was made, add up those of what is trained now."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        module = strategy.lightning_module
        assert module is not None
        strategy.model = module
        gc.collect()  # hooks of the old one go with it
        strategy.configure_ddp()
