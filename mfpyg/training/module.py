"""The training and validation step, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.metrics import mae_and_rmse
from mfpyg.graph import find_topology
from mfpyg.models import Potential, Prediction
from mfpyg.models.overlap import find_overlap
from mfpyg.training.loss import MultiFidelityLoss, sum_over_processes


def train_only(potential: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Let these parameters of a potential have gradients, and no others."""
    for parameter in potential.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def checked_when_loaded(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimiser whose state, when it comes from a checkpoint, has to fit what it trains.

    The fused ones write where the state of another weight would end, and not where this one ends.
    """
    optimizer.register_load_state_dict_post_hook(_check_loaded)
    return optimizer


def _check_loaded(optimizer: torch.optim.Optimizer) -> None:
    damaged = "the checkpoint's optimiser is damaged or that of other weights"
    may_differ = ("params", "lr", "initial_lr")
    for group in optimizer.param_groups:
        other = [name for name, value in optimizer.defaults.items() if name not in may_differ and group[name] != value]
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


class MultiFidelityModule(lightning.LightningModule):
    """Trains a potential on a multi-fidelity loss.

    Logged at the end of every epoch, over all processes: ``train/…`` and ``val/…`` for each label
    (``val/cc/energy_rmse``), for each fidelity (``val/cc/loss``) and their sum (``val/loss``); and how
    many energies and force components of each were trained on (``train/cc/energy_labels``).

    Args:
        potential: what is trained, as far as its parameters require gradients.
        loss: what is minimised.
        lr: learning rate of Adam.
        metadata: plain values that go into every checkpoint under ``"mfpyg"``.
        molecules: names, by which a conformation that breaks the training is reported.
        compiled: whether training steps go through ``torch.compile``; validation, where it gains nothing, does not.
    """

    def __init__(
        self,
        potential: Potential,
        loss: MultiFidelityLoss,
        lr: float,
        metadata: Mapping[str, Any],
        molecules: list[str],
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.potential, self.loss, self.lr = potential, loss, lr
        self.metadata, self.molecules, self.compiled = dict(metadata), molecules, compiled
        self.labels_seen: dict[str, int] = {}
        """Energies and force components of each fidelity in the last epoch; exact, which a logged float is not."""
        self.logged: set[str] = set()
        """Names of all that was logged of the last epoch."""
        self._sums: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Fused: a step of a small network is bound by the number of calls, not by arithmetic.
        trained = [parameter for parameter in self.potential.parameters() if parameter.requires_grad]
        return checked_when_loaded(torch.optim.Adam(trained, lr=self.lr, fused=True))

    def training_step(self, batch: Batch, batch_number: int) -> Tensor:
        loss, sums = self.compare(self.potential, self.loss, batch)
        self._add("train", sums)
        return loss

    def compare(self, potential: Potential, loss: MultiFidelityLoss, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a potential on a batch, and the error sums, as :class:`MultiFidelityLoss` gives them.

        Raises:
            MFPyGError: if the loss is not finite, naming the conformation where that comes from.
        """
        before, potential.compiled = potential.compiled, self.compiled
        try:
            predictions = potential.predict(batch, loss.wanted)
        finally:
            potential.compiled = before
        value, sums = loss(predictions, batch)
        if not torch.isfinite(value):
            raise MFPyGError(self._explain(loss, predictions, batch))
        return value, sums

    def _add(self, split: str, sums: Tensor) -> None:
        # Those of a resumed epoch were read before the module came to its device.
        self._sums[split] = sums + self._sums[split].to(sums) if split in self._sums else sums

    def validation_step(self, batch: Batch, batch_number: int) -> None:
        self._add("val", self.loss.sums(self.potential.predict(batch, self.loss.wanted), batch))

    def on_validation_epoch_end(self) -> None:
        # Those of the training step are over all processes already.
        self._sums["val"] = sum_over_processes(self._sums["val"])
        self.logged = set()
        for split in ("train", "val"):
            self._log(split, self.loss_of(split), self._sums.pop(split))

    def loss_of(self, split: str) -> MultiFidelityLoss:
        """What the error sums of ``train`` or ``val`` are of."""
        return self.loss

    def _log(self, split: str, loss: MultiFidelityLoss, sums: Tensor) -> None:
        errors = loss.error(sums)
        total = errors.sum()
        if not torch.isfinite(total):
            raise MFPyGError(
                f"the {split} loss became NaN at the end of epoch {self.current_epoch}; "
                f"try a lower optim.lr or optim.clip"
            )
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

    def _explain(self, loss: MultiFidelityLoss, predictions: Mapping[str, Prediction], batch: Batch) -> str:
        """Name the conformation where a NaN comes from."""
        message = f"the loss became NaN in epoch {self.current_epoch}"
        topology, lattice = find_topology(batch, self.potential.cutoff, dtype=self.potential.dtype)
        overlap = find_overlap(batch.pos.to(self.potential.dtype), topology, lattice)
        if overlap is not None:
            molecule, number = (
                self.molecules[int(batch.molecule[overlap.graph])],
                int(batch.conformation[overlap.graph]),
            )
            return (
                f"{message}: {overlap} in {molecule}, conformation {number}; take it out of the data (mfpyg-doctor "
                "finds all such)"
            )
        for name, prediction in predictions.items():
            column = loss.columns[name]
            bad = {"energy": ~torch.isfinite(prediction.energy)}
            bad["energy label"] = batch.energy_mask[:, column] & ~torch.isfinite(batch.energy[:, column])
            if prediction.forces is not None:
                wrong = (~torch.isfinite(prediction.forces)).any(dim=1)
                bad["forces"] = torch.bincount(batch.batch[wrong], minlength=batch.num_graphs) > 0
            for what, where in bad.items():
                if where.any():
                    first = int(where.nonzero()[0])
                    molecule = self.molecules[int(batch.molecule[first])]
                    number = int(batch.conformation[first])
                    return (
                        f"{message}: {name} {what} of {molecule}, conformation {number}, is not finite "
                        f"({int(where.sum())} of {batch.num_graphs} in the batch); look at its data, "
                        f"or try a lower optim.lr or optim.clip"
                    )
        return f"{message}; try a lower optim.lr or optim.clip"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mfpyg"] = self.metadata
        unfinished = "train" in self._sums
        checkpoint["progress"] = {"epochs": self.current_epoch + (not unfinished), "sums": dict(self._sums)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums = dict(checkpoint.get("progress", {}).get("sums", {}))
        if self.metadata:  # references come with the weights; fitted on another machine they differ in the last digit
            self.metadata["reference_energies"] = checkpoint["mfpyg"]["reference_energies"]
