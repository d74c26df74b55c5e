"""Training and validation steps, as a LightningModule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.device import side_stream, waits
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.diagnosis import fault_of_data
from mfpyg.evaluation.metrics import mae_and_rmse
from mfpyg.models import MultiFidelityPotential, Potential, Prediction
from mfpyg.settings import OptimSettings
from mfpyg.training.faults import Compared, Fault, Flags, failure, find_fault
from mfpyg.training.loss import Entries, MultiFidelityLoss, several_processes, sum_over_processes
from mfpyg.training.optimizer import average_over, fault_of_gradients, skip_unlabelled, squared_norm
from mfpyg.training.ready import Ready, make_ready
from mfpyg.training.stage import Place, Stage, Step, train_only


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
        self._window: list[Compared] = []
        """Batches since the last optimiser step."""
        self._to_compare: tuple[MultiFidelityPotential, MultiFidelityLoss, Batch] | None = None
        self._ready: Ready | None = None
        self._steps, self._validated = Flags[list[Compared]](), Flags[Batch]()
        self._val_fault: Fault | None = None
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

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add the labels of the stage."""
        with side_stream(self.device):
            return self.stage.with_labels(batch) if self.trainer.training else batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._n_steps = int(self.trainer.num_training_batches)
        if waits(self.device):
            self._to_compare = self.stage.compared(self.potential, batch, self._step(batch_idx))
            self._make_ready(*self._to_compare, self.epoch, batch_idx)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if waits(self.device):
            self._make_ready(self.potential, self.loss, batch)

    def _make_ready(self, network: Potential, loss: MultiFidelityLoss, batch: Batch, *moment: int) -> None:
        """Prepare a step on a GPU while the one before is being computed."""
        with side_stream(self.device):
            self._ready = make_ready(network, loss, batch, *moment)
        if self.device.type == "cuda":
            self._ready.used_by(torch.cuda.current_stream(self.device))

    def _take_ready(self, batch: Batch) -> Ready | None:
        ready, self._ready = self._ready, None
        return ready if ready is not None and ready.batch is batch else None

    @property
    def _later(self) -> bool:
        """Whether faults are looked for once in so many steps, while the optimiser skips steps on the device.

        Several processes wait for each other in every step already, for Lightning to tell all of a signal to one.
        """
        skips = getattr(self._optimizer, "_step_supports_amp_scaling", False)  # fused ones
        return skips and waits(self.device) and not several_processes()

    def training_step(self, batch: Batch, batch_number: int) -> Tensor:
        found, self._to_compare = self._to_compare, None
        potential, loss, batch = found or self.stage.compared(self.potential, batch, self._step(batch_number))
        value, sums = self.compare(potential, loss, batch, batch_number, self._take_ready(batch))
        rows = dict(zip(loss.weights, sums, strict=True))
        none = sums.new_zeros(sums.shape[1])
        self._add("train", torch.stack([rows.get(label, none) for label in self.stage.train_loss.weights]))
        return value

    def optimizer_step(self, epoch: int, batch_idx: int, *arguments: Any, **more: Any) -> None:
        # Not at the end of the batch, as checkpoints saved there must have the weights after this.
        super().optimizer_step(epoch, batch_idx, *arguments, **more)
        self.stage.after_step(self.potential, self._step(batch_idx))

    def _step(self, batch_number: int) -> Step:
        return Step(self.epoch, batch_number, self._n_steps)

    def compare(
        self,
        potential: Potential,
        loss: MultiFidelityLoss,
        batch: Batch,
        batch_number: int,
        ready: Ready | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss of a potential on a batch of this number in the epoch, and the error sums.

        Raises:
            MFPyGError: if the loss is not finite, naming the conformation that causes it; on a GPU some steps later.
        """
        assert isinstance(potential, MultiFidelityPotential)
        moment, when = (self.epoch, batch_number), self._when()
        entries = loss.entries(batch) if ready is None or ready.batch is not batch else ready.entries
        predictions = self._predicted(potential, loss, batch, entries, ready, self.compiled, *moment)
        value, sums = loss(predictions, batch, entries)
        labelled = loss.labelled(sums, entries)
        self._window.append(Compared(potential, loss, batch, moment, when, labelled, value.detach()))
        if not self._later:
            self._check_loss(self._window[-1], predictions)
        return value, sums

    def _predicted(
        self,
        potential: Potential,
        loss: MultiFidelityLoss,
        batch: Batch,
        entries: Entries,
        ready: Ready | None = None,
        compiled: bool = False,
        *moment: int,
    ) -> dict[str, Prediction]:
        usable = ready is not None and ready.batch is batch and ready.network is potential
        prepared = ready.prepared if usable else None  # type: ignore[union-attr]
        before, potential.compiled = potential.compiled, compiled
        try:
            return loss.predict(potential, batch, *moment, entries=entries, prepared=prepared)
        except MFPyGError as error:  # which only has the index of the graph
            self._look_back()  # at earlier steps
            fault = fault_of_data(potential, batch, loss.labels, self.molecules)
            if fault is None:
                raise
            raise MFPyGError(f"training stopped{self._when()}: {fault}") from error
        finally:
            potential.compiled = before

    def _check_loss(self, of: Compared, predictions: Mapping[str, Prediction]) -> None:
        """Check that a loss is finite; on a CPU right after it was computed.

        Raises:
            MFPyGError: if not.
        """
        if not torch.isfinite(of.value):
            what = "NaN" if of.value.isnan() else "infinite"
            fault = self._fault(of.potential, of.loss, of.batch, predictions)
            raise self._failure(f"the loss became {what}", fault, of.when)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients of fidelities without labels, which must not affect clipping, and check the others.

        Raises:
            MFPyGError: if the gradient is not finite; on a GPU some steps later, none of which is made.
        """
        window, self._window = self._window, []  # free the batches before the next one is computed
        self._drop_unlabelled(window)
        if not self._later:
            self._check_gradient(window)
            return
        values = [of.value for of in window]
        wrong = ~torch.isfinite(torch.stack([*values, squared_norm(window[-1].potential).to(values[0])])).all()
        assert self._optimizer is not None
        self._optimizer.found_inf = self._steps.add(window, wrong).float()  # type: ignore[attr-defined]
        if self._steps.due or window[-1].moment[1] + 1 == self._n_steps:  # before validation
            self._look_back()

    def _drop_unlabelled(self, window: Sequence[Compared]) -> None:
        last = window[-1]
        if len(window) < self.optim.accumulate:  # at the end of an epoch; Lightning divides by the full number
            average_over(last.potential, len(window), self.optim.accumulate)
        skip_unlabelled(last.potential, {name: any(of.labelled[name] for of in window) for name in last.labelled})

    def _check_gradient(self, window: Sequence[Compared]) -> None:
        fault = fault_of_gradients(window[-1].potential)
        if fault is not None:
            faults = (self._fault(of.potential, of.loss, of.batch, None) for of in window)
            found = next((one for one in faults if one is not None), None)
            raise self._failure("the gradient became NaN or infinite", found or (fault, False), window[-1].when)

    def _look_back(self) -> None:
        """Look at the steps since the last time, and repeat the first that failed with the checks made on a CPU.

        No step has moved the weights since.

        Raises:
            MFPyGError: if a loss or a gradient was not finite.
        """
        window = self._steps.read()
        if window is None:
            return
        self.zero_grad()
        for of in window:
            entries = of.loss.entries(of.batch)
            predictions = self._predicted(of.potential, of.loss, of.batch, entries, None, self.compiled, *of.moment)
            value, _ = of.loss(predictions, of.batch, entries)
            self._check_loss(dataclasses.replace(of, value=value.detach()), predictions)
            (value / self.optim.accumulate).backward()
        self._drop_unlabelled(window)
        self._check_gradient(window)
        raise self._failure("the loss or its gradient became NaN or infinite", None, window[-1].when)

    def _add(self, split: str, sums: Tensor) -> None:
        if split not in self._sums:
            self._sums[split] = sums
            return
        before = self._sums[split].to(sums)  # a resumed epoch's were loaded on the CPU
        if before.shape != sums.shape:
            raise MFPyGError("the error sums in last.ckpt are not those of these labels; start a new run")
        self._sums[split] = sums + before

    def validation_step(self, batch: Batch, batch_number: int) -> None:
        ready = self._take_ready(batch)
        entries = self.loss.entries(batch) if ready is None else ready.entries
        predictions = self._predicted(self.potential, self.loss, batch, entries, ready)
        sums = self.loss.sums(predictions, batch, entries)
        if self._later:
            self._validated.add(batch, ~torch.isfinite(sums).all())
            if self._validated.due:
                self._look_at_validated()
        elif self._val_fault is None and not torch.isfinite(sums).all():
            self._val_fault = self._fault(self.potential, self.loss, batch, predictions)
        self._add("val", sums)

    def _look_at_validated(self) -> None:
        batch = self._validated.read()
        if batch is not None and self._val_fault is None:
            predictions = self._predicted(self.potential, self.loss, batch, self.loss.entries(batch))
            self._val_fault = self._fault(self.potential, self.loss, batch, predictions)

    def on_validation_epoch_end(self) -> None:
        self._look_at_validated()
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
        self, potential: Potential, loss: MultiFidelityLoss, batch: Batch, predictions: Mapping[str, Prediction] | None
    ) -> Fault | None:
        return find_fault(potential, loss, batch, predictions, self.molecules)

    def _failure(self, what: str, fault: Fault | None, when: str | None = None) -> MFPyGError:
        return failure(what, self._when() if when is None else when, fault, self.optim.clip)

    def _when(self) -> str:
        lr = self.stage.lr if self._optimizer is None else self._optimizer.param_groups[0]["lr"]
        return f" in epoch {self.epoch}, step {self.step}, at learning rate {lr:.3g}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._look_back()
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
