"""Training and validation steps, as a LightningModule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.diagnosis import fault_of_data, fault_of_predictions
from mfpyg.evaluation.metrics import mae_and_rmse
from mfpyg.models import MultiFidelityPotential, Potential, Prediction
from mfpyg.settings import OptimSettings
from mfpyg.training.loss import MultiFidelityLoss, sum_over_processes
from mfpyg.training.optimizer import Diverged, average_over, fault_of_gradients, first_cause, skip_unlabelled
from mfpyg.training.stage import Place, Stage, Step, train_only


@dataclass
class _AccumulatedBatch:
    """Batch whose gradient is part of the next optimiser step.

    Attributes:
        potential, loss, batch: arguments of :meth:`MultiFidelityModule.compare`.
        labelled: result of :meth:`MultiFidelityLoss.labelled`.
    """

    potential: MultiFidelityPotential
    loss: MultiFidelityLoss
    batch: Batch
    labelled: dict[tuple[str, str], bool]


class MultiFidelityModule(lightning.LightningModule):
    """LightningModule that trains a potential in one stage of a training.

    Logged at the end of every epoch, over all processes: ``train/…`` and ``val/…`` for each label
    (``val/cc/energy_rmse``), for each fidelity (``val/cc/loss``) and their sum (``val/loss``); and the
    numbers of energies and of components of other labels trained on (``train/cc/energy_labels``).

    Args:
        potential: potential to train.
        stage: stage with the parameters to train, the loss and the optimiser.
        metadata: plain values saved in every checkpoint under ``"mfpyg"``.
        molecules: names of the molecules, for errors about a conformation.
        compiled: whether to compile training steps with ``torch.compile``; validation does not benefit from it.
        optim: settings of the optimiser.
        place: position of the stage in the whole training.
    """

    def __init__(
        self,
        potential: Potential,
        stage: Stage,
        metadata: Mapping[str, Any] | None = None,
        molecules: Sequence[str] = (),
        compiled: bool = False,
        optim: OptimSettings | None = None,
        place: Place | None = None,
    ) -> None:
        super().__init__()
        self.potential, self.stage, self.loss = potential, stage, stage.loss
        self.losses = nn.ModuleList(stage.losses())  # registered, so that their tensors move to the device
        self.metadata, self.molecules, self.compiled = dict(metadata or {}), list(molecules), compiled
        self.optim, self.place = optim or OptimSettings(), place or Place()
        self.labels_seen: dict[str, int] = {}
        """Numbers of labelled components of each fidelity in the last epoch; exact, unlike logged floats."""
        self.logged: set[str] = set()
        """Names of all values logged in the last epoch."""
        self._n_steps = 1
        self._optimizer: torch.optim.Optimizer | None = None
        self._sums: dict[str, Tensor] = {}
        self._window: list[_AccumulatedBatch] = []
        """Batches since the last optimiser step."""
        self._val_fault: tuple[str, bool] | None = None
        train_only(potential, stage.trained(potential))

    @property
    def epoch(self) -> int:
        """Epoch number in the whole training."""
        return self.place.epochs + self.current_epoch

    @property
    def step(self) -> int:
        """Number of optimiser steps in the whole training."""
        return self.place.steps + self.global_step

    @property
    def over(self) -> bool:
        """True once the stage has finished all its epochs or was stopped early."""
        ended = "train" not in self._sums
        return ended and (self.current_epoch + 1 >= self.stage.epochs or self.trainer.should_stop)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._optimizer = self.stage.optimizer(self.potential)
        return self._optimizer

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._n_steps = int(self.trainer.num_training_batches)

    def training_step(self, batch: Batch, batch_number: int) -> Tensor:
        potential, loss, batch = self.stage.compared(self.potential, batch, self._step(batch_number))
        value, sums = self.compare(potential, loss, batch, batch_number)
        labels = list(self.stage.train_loss.weights)
        of_all = sums.new_zeros(len(labels), sums.shape[1])
        of_all[[labels.index(label) for label in loss.weights]] = sums
        self._add("train", of_all)
        return value

    def optimizer_step(self, epoch: int, batch_idx: int, *arguments: Any, **more: Any) -> None:
        # Not at the end of the batch, as checkpoints saved there must have the weights after this.
        super().optimizer_step(epoch, batch_idx, *arguments, **more)
        self.stage.after_step(self.potential, self._step(batch_idx))

    def _step(self, batch_number: int) -> Step:
        return Step(self.epoch, batch_number, self._n_steps)

    def compare(
        self, potential: Potential, loss: MultiFidelityLoss, batch: Batch, batch_number: int
    ) -> tuple[Tensor, Tensor]:
        """Loss of a potential on a batch of this number in the epoch, and the error sums.

        Raises:
            MFPyGError: if the loss is not finite, naming the conformation that causes it.
        """
        assert isinstance(potential, MultiFidelityPotential)
        predictions = self._predicted(potential, loss, batch, self.compiled, self.epoch, batch_number)
        value, sums = loss(predictions, batch)
        if not torch.isfinite(value):
            what = "NaN" if value.isnan() else "infinite"
            raise self._failure(f"the loss became {what}", self._fault(potential, loss, batch, predictions))
        self._window.append(_AccumulatedBatch(potential, loss, batch, loss.labelled(sums)))
        return value, sums

    def _predicted(
        self, potential: Potential, loss: MultiFidelityLoss, batch: Batch, compiled: bool = False, *moment: int
    ) -> dict[str, Prediction]:
        before, potential.compiled = potential.compiled, compiled
        try:
            return loss.predict(potential, batch, *moment)
        except MFPyGError as error:  # which only has the index of the graph
            fault = fault_of_data(potential, batch, loss.labels, self.molecules)
            if fault is None:
                raise
            raise MFPyGError(f"training stopped{self._when()}: {fault}") from error
        finally:
            potential.compiled = before

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients of fidelities without labels, which must not affect clipping, and check the others.

        Raises:
            MFPyGError: if the gradient is not finite.
        """
        window, self._window = self._window, []  # free the batches before the next one is computed
        last = window[-1]
        if len(window) < self.optim.accumulate:  # at the end of an epoch; Lightning divides by the full number
            average_over(last.potential, len(window), self.optim.accumulate)
        labelled = {name: any(of.labelled[name] for of in window) for name in last.labelled}
        skip_unlabelled(last.potential, labelled)
        fault = fault_of_gradients(last.potential)
        if fault is not None:
            faults = (self._fault(of.potential, of.loss, of.batch, None) for of in window)
            found = next((one for one in faults if one is not None), None)
            raise self._failure("the gradient became NaN or infinite", found or (fault, False))

    def _add(self, split: str, sums: Tensor) -> None:
        if split not in self._sums:
            self._sums[split] = sums
            return
        before = self._sums[split].to(sums)  # a resumed epoch's were loaded on the CPU
        if before.shape != sums.shape:
            raise MFPyGError("the error sums in last.ckpt are not those of these labels; start a new run")
        self._sums[split] = sums + before

    def validation_step(self, batch: Batch, batch_number: int) -> None:
        predictions = self._predicted(self.potential, self.loss, batch)
        sums = self.loss.sums(predictions, batch)
        if self._val_fault is None and not torch.isfinite(sums).all():
            self._val_fault = self._fault(self.potential, self.loss, batch, predictions)
        self._add("val", sums)

    def on_validation_epoch_end(self) -> None:
        # The sums of training steps are over all processes already.
        self._sums["val"] = sum_over_processes(self._sums["val"])
        self.logged = set()
        self._log("train", self.stage.train_loss, self._sums.pop("train"))
        self._log("val", self.loss, self._sums.pop("val"))
        if self.place.steps:  # loggers count steps over all stages, Lightning only those of this one
            self.log_dict({"epoch": float(self.epoch), "step": float(self.step - 1)}, batch_size=1)

    def _log(self, split: str, loss: MultiFidelityLoss, sums: Tensor) -> None:
        errors = loss.error(sums)
        total = errors.sum()
        if not torch.isfinite(total):
            raise self._failure(f"the {split} loss became NaN or infinite", self._val_fault)
        values = {f"{split}/loss": float(total)}
        for (name, prop), row, error in zip(loss.weights, sums, errors, strict=True):
            key = f"{split}/{name}/loss"
            values[key] = values.get(key, 0.0) + float(error)
            if split == "train":
                self.labels_seen[f"train/{name}/{prop}_labels"] = int(row[0])
            if row[0] > 0:
                mae, rmse = mae_and_rmse(row)
                values[f"{split}/{name}/{prop}_mae"], values[f"{split}/{name}/{prop}_rmse"] = mae, rmse
        seen = {name: float(count) for name, count in self.labels_seen.items()} if split == "train" else {}
        self.logged |= {*values, *seen}
        self.log_dict({**values, **seen}, batch_size=1)

    def _fault(
        self,
        potential: Potential,
        loss: MultiFidelityLoss,
        batch: Batch,
        predictions: Mapping[str, Prediction] | None,
    ) -> tuple[str, bool] | None:
        """Description of non-finite values in a batch, and whether they are in the data."""
        fault = fault_of_data(potential, batch, loss.labels, self.molecules)
        if fault is not None:
            return fault, True
        fault = fault_of_predictions(predictions or loss.predict(potential, batch), batch, self.molecules)
        return None if fault is None else (fault, False)

    def _failure(self, what: str, fault: tuple[str, bool] | None) -> MFPyGError:
        """Error that ends the run: what happened, when, and why.

        All processes must call it, as their findings are gathered.
        """
        fault = first_cause(fault)
        because = "" if fault is None else f": {fault[0]}"
        if fault is not None and fault[1]:
            return MFPyGError(f"{what}{self._when()}{because}")
        advice = "lower optim.lr or optim.clip" if self.optim.clip else "lower optim.lr, or set optim.clip"
        return Diverged(f"{what}{self._when()}{because}; {advice}")

    def _when(self) -> str:
        lr = self.stage.lr if self._optimizer is None else self._optimizer.param_groups[0]["lr"]
        return f" in epoch {self.epoch}, step {self.step}, at learning rate {lr:.3g}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        unfinished = "train" in self._sums
        checkpoint["mfpyg"] = self.metadata
        checkpoint["progress"] = {"epochs": self.epoch + (not unfinished), "sums": dict(self._sums)}
        checkpoint["stage"] = {**dataclasses.asdict(self.place), "over": self.over, "state": self.stage.state_dict()}
        checkpoint["epoch"], checkpoint["global_step"] = self.epoch, self.step  # Lightning's own counts are in "loops"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums = dict(checkpoint.get("progress", {}).get("sums", {}))
        if "stage" in checkpoint:  # mfpyg 0.1.0 had a single stage
            self.stage.load_state_dict(checkpoint["stage"]["state"])
        if self.metadata:  # those of the weights; a fit on another machine may differ in the last digit
            self.metadata["reference_energies"] = checkpoint["mfpyg"]["reference_energies"]
