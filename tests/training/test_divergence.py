"""Numbers that are not finite stop a run before they move a weight, and leave checkpoints that are."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mfpyg
from mfpyg.cli import train
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.splits import make_splits
from mfpyg.settings import SplitSettings
from mfpyg.training import faults
from mfpyg.training import module as training_module
from mfpyg.training import run as training_run
from mfpyg.training.callbacks import RunCheckpoint
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.schedule import Schedule

TINY = ["--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64"]
MAIN = ["--fidelities", "dz:EF", "cc:E"]


@pytest.fixture(autouse=True, params=["cpu", "gpu"])
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test also as on a GPU, where faults are looked for some steps later, with the same outcome."""
    if request.param == "gpu":
        monkeypatch.setattr(training_module, "waits", lambda device: True)
        monkeypatch.setattr(faults, "READ_EVERY", 4)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a training ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    return lines[0]


def assert_sound(folder: Path, epochs: int) -> None:
    """Both checkpoints are of one of the first epochs, finite, optimiser included, and predict finite energies."""
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(folder / name, weights_only=True)
        assert checkpoint["epoch"] < epochs
        moments = [value for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()]
        assert all(torch.isfinite(value).all() for value in [*checkpoint["state_dict"].values(), *moments])
        callbacks = [state for state in checkpoint["callbacks"].values() if "best_epoch" in state]
        assert all(math.isfinite(state["best"]) for state in callbacks)
        assert torch.isfinite(mfpyg.load(folder / name)(MiniCHNO()[0], fidelity="cc").energy)
    with (folder / "metrics.csv").open(newline="") as file:
        assert "nan" not in file.read()
        file.seek(0)
        assert len(list(csv.DictReader(file))) == epochs


def rates(*of_epoch: float) -> Callable[..., None]:
    def hook(self: Schedule, trainer: Any, module: Any, batch: Any, number: int) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = of_epoch[min(trainer.current_epoch, len(of_epoch) - 1)]

    return hook


def test_a_rate_much_too_high(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says when and of what, how to go on, and that is how it goes on."""
    folder = tmp_path / "run"
    monkeypatch.setattr(Schedule, "on_train_batch_start", rates(1e-3, 1e-3, 1e6))
    error = error_of(capsys, *MAIN, *TINY, "--epochs=5", "--out", folder)
    assert " became " in error
    assert " in epoch 2, step 2" in error
    assert "at learning rate 1e+06" in error
    assert "dz" in error or "cc" in error
    assert "lower optim.lr, or set optim.clip" in error
    assert f"--init {folder} --optim.lr 0.0001" in error
    assert_sound(folder, 2)

    again = error_of(capsys, "--resume", folder)
    assert again == error
    assert_sound(folder, 2)

    monkeypatch.undo()
    train.main(["--init", str(folder), "--optim.lr", "0.0001", "--out", str(tmp_path / "on"), *TINY, "--epochs=1"])
    assert (tmp_path / "on" / "metrics.json").is_file()


def test_nothing_is_left_of_a_run_that_explodes_at_once(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Schedule, "on_train_batch_start", rates(1e6))
    error = error_of(capsys, *MAIN, *TINY, "--out", tmp_path / "run")
    assert "no epoch was completed, nothing was saved" in error
    assert not (tmp_path / "run").exists()


class InfiniteSlope(torch.autograd.Function):
    """Zero, with a derivative that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.zeros((), dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.full_like(x, math.inf)


@pytest.mark.parametrize(("clip", "bad"), [(None, 12), ("0.1", 20)])
def test_an_infinite_gradient_of_a_finite_loss_moves_nothing(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, clip: str | None, bad: int
) -> None:
    """Of the second and the last batch of an epoch; gradients of those that follow are finite."""
    folder, weights, steps, batches = tmp_path / "run", [], [0], []
    forward, check = MultiFidelityLoss.forward, MultiFidelityModule.on_before_optimizer_step

    def steep(self: MultiFidelityLoss, predictions: Any, batch: Any, *others: Any) -> tuple[Tensor, Tensor]:
        value, sums = forward(self, predictions, batch, *others)
        steps[0] += 1
        batches.extend([batch] if steps[0] == bad else [])
        return (
            value + InfiniteSlope.apply(predictions["cc"].energy) if batches and batch is batches[0] else value
        ), sums

    def watched(self: MultiFidelityModule, optimizer: Any) -> None:
        potential = self.potential
        if steps[0] <= bad:
            weights[:] = [potential, {name: value.clone() for name, value in potential.state_dict().items()}]
        check(self, optimizer)

    monkeypatch.setattr(MultiFidelityLoss, "forward", steep)
    monkeypatch.setattr(MultiFidelityModule, "on_before_optimizer_step", watched)
    options = [] if clip is None else ["--optim.clip", clip]
    error = error_of(capsys, *MAIN, *TINY, "--epochs=3", "--out", folder, *options)
    assert f"the gradient became NaN or infinite in epoch 1, step {bad - 1}, at learning rate" in error
    assert "that of heads.1." in error or "that of backbone." in error
    potential, before = weights
    assert all(torch.equal(value, before[name]) for name, value in potential.state_dict().items())
    assert_sound(folder, 1)


def test_no_checkpoint_within_an_epoch_is_of_weights_after_the_fault(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is due after every step; the weights of the last one are those before the step that failed."""
    folder, forward, saved = tmp_path / "run", MultiFidelityLoss.forward, []

    def infinite(self: MultiFidelityLoss, predictions: Any, batch: Any, *others: Any) -> tuple[Tensor, Tensor]:
        value, sums = forward(self, predictions, batch, *others)
        return (value * math.inf if len(saved) == 1 else value), sums

    save = RunCheckpoint._save_last

    def watched(self: RunCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        saved.append(trainer.global_step)

    monkeypatch.setattr(MultiFidelityLoss, "forward", infinite)
    monkeypatch.setattr(RunCheckpoint, "_save_last", watched)
    error = error_of(capsys, *MAIN, *TINY, "--epochs=2", "--checkpoint-minutes=1e-9", "--out", folder)
    assert "the loss became infinite in epoch 0, step 1, at learning rate" in error
    assert saved == [1]
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


Change = Callable[[Any, Sequence[str], int, slice], None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Change], str]:
    """Changes the labels or positions of one conformation of a split, as nothing that reads a file would leave them.

    Returns the name by which errors should call it.
    """

    def spoil(split: str, change: Change) -> str:
        original, named = training_run.open_training_data, []

        def opened(*arguments: Any, **more: Any) -> MiniCHNO:
            dataset = original(*arguments, **more)
            data = dataset._data
            for key in ("pos", "energy", "energy_mask", "forces", "forces_mask"):
                data[key] = data[key].clone()
            rows = make_splits(dataset, SplitSettings(), 0)[split]
            labelled = data.energy_mask[rows].all(dim=1) & data.forces_mask[rows, dataset.fidelities.index("tz")]
            row = int(rows[np.flatnonzero(labelled.numpy())[3]])
            start, stop = dataset.slices["pos"][row : row + 2].tolist()
            change(data, dataset.fidelities, row, slice(start, stop))
            named.append((dataset.molecules[int(data.molecule[row])], int(data.conformation[row])))
            return dataset

        monkeypatch.setattr(training_run, "open_training_data", opened)
        return named  # type: ignore[return-value]

    return spoil


def _energy(data: Any, levels: Sequence[str], row: int, atoms: slice) -> None:
    data.energy[row, levels.index("cc")] = math.nan


def _force(data: Any, levels: Sequence[str], row: int, atoms: slice) -> None:
    data.forces[atoms.start + 1, levels.index("tz"), 2] = -math.inf


def _position(data: Any, levels: Sequence[str], row: int, atoms: slice) -> None:
    data.pos[atoms.start + 1, 0] = math.nan


def _same_place(data: Any, levels: Sequence[str], row: int, atoms: slice) -> None:
    data.pos[atoms.start + 1] = data.pos[atoms.start]


BAD = {
    "energy": (_energy, "the cc energy label of {}, conformation {}, is NaN or infinite but not masked"),
    "force": (_force, "forces label of {}, conformation {}, is NaN or infinite but not masked"),
    "position": (_position, "positions of {}, conformation {}, are NaN or infinite; take it out of the data"),
    "same place": (_same_place, "atoms 0 and 1 are at the same place in {}, conformation {}; take it out of the data"),
}


@pytest.mark.parametrize(
    ("what", "strategy"),
    [*((what, "mfl") for what in BAD), ("force", "tl"), ("force", "delta"), ("force", "meta"), ("energy", "delta")],
)
def test_bad_data_in_training_are_named(tmp_path: Path, capsys: Any, spoil: Any, what: str, strategy: str) -> None:
    change, text = BAD[what]
    named = spoil("train", change)
    options = ["--fidelities", "tz:EF", "cc:E", *TINY, "--epochs=4", "--strategy", strategy, "--compile=off"]
    error = error_of(capsys, *options, "--out", tmp_path / "run")
    assert text.format(*named[0]) in error
    assert "optim.lr" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", BAD)
def test_bad_data_in_validation_are_named_before_anything_is_best(
    tmp_path: Path, capsys: Any, spoil: Any, what: str
) -> None:
    change, text = BAD[what]
    named = spoil("val", change)
    error = error_of(capsys, "--fidelities", "tz:EF", "cc:E", *TINY, "--epochs=4", "--out", tmp_path / "run")
    assert text.format(*named[0]) in error
    assert not (tmp_path / "run").exists()


def test_a_validation_that_explodes_alone(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite training losses, and a prediction that is NaN for a conformation of the validation, in epoch 2."""
    folder, predicted = tmp_path / "run", MultiFidelityModule._predicted

    def exploding(self: MultiFidelityModule, *arguments: Any) -> Any:
        found = predicted(self, *arguments)
        if self.current_epoch == 2 and not self.potential.training:
            found["cc"].energy[5] = math.nan
        return found

    monkeypatch.setattr(MultiFidelityModule, "_predicted", exploding)
    error = error_of(capsys, *MAIN, *TINY, "--epochs=5", "--out", folder)
    assert "the val loss became NaN or infinite in epoch 2, step 30" in error
    assert "the predicted cc energy of" in error
    assert "is not finite (1 of 67 in the batch)" in error
    assert_sound(folder, 2)
