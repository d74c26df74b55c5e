"""The average of the weights against its recursion, and who sees it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mfpyg
from mfpyg.cli import train
from mfpyg.training.callbacks import RunCheckpoint
from mfpyg.training.module import MultiFidelityModule

OPTIONS = (
    "--fidelities", "dz:EF", "cc:E", "--epochs=3", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1",
    "--model.n-sensitivities=5", "--compile=off", "--optim.lr=0.02", "--optim.ema=0.7",
)  # fmt: skip


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[Any]]:
    """Weights after each batch, and of each validation batch, of whatever is trained."""
    monkeypatch.chdir(tmp_path)
    seen: dict[str, list[Any]] = {"steps": [], "validated": []}
    end, validate = RunCheckpoint.on_train_batch_end, MultiFidelityModule.validation_step

    def weights(module: MultiFidelityModule) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    def recorded_end(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        seen["steps"].append((module.step, weights(module)))
        end(self, trainer, module, *rest)

    def recorded_validation(self: Any, *rest: Any) -> None:
        seen["validated"].append((self.step, weights(self)))
        validate(self, *rest)

    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", recorded_end)
    monkeypatch.setattr(MultiFidelityModule, "validation_step", recorded_validation)
    return seen


def expected(steps: list[tuple[int, dict[str, Tensor]]], decay: float) -> dict[int, dict[str, Tensor]]:
    """The average after each step of the optimiser, in double precision."""
    found: dict[int, dict[str, Tensor]] = {}
    average: dict[str, Tensor] = {}
    for step, weights in dict(steps).items():
        if not step:  # batches before the first one
            continue
        new = {name: value.double() for name, value in weights.items()}
        average = {name: decay * average[name] + (1 - decay) * new[name] for name in new} if average else new
        found[step] = average
    return found


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name].double(), two[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 30), (4, 9)])
def test_average_is_that_of_the_recursion(recorded: dict[str, list[Any]], accumulate: int, steps: int) -> None:
    train.main([*OPTIONS, f"--optim.accumulate={accumulate}", "--out", "run"])
    averages = expected(recorded["steps"], 0.7)
    assert max(averages) == steps
    assert [step for step, _ in recorded["validated"]] == [steps // 3, 2 * steps // 3, steps]
    for step, weights in recorded["validated"]:
        assert_close(weights, averages[step])
    last = torch.load("run/last.ckpt", weights_only=True)
    raw = dict(recorded["steps"])[steps]
    assert last["raw_weights"].keys() == raw.keys()
    for name, value in raw.items():
        assert torch.equal(last["raw_weights"][name], value), "training goes on from what it has trained"
    best = torch.load("run/best.ckpt", weights_only=True)
    loaded = {f"potential.{name}": p.detach() for name, p in mfpyg.load("run").named_parameters()}
    assert_close(loaded, averages[best["global_step"]])


@pytest.mark.slow
def test_error_table_is_that_of_the_validation(recorded: dict[str, list[Any]]) -> None:
    """Of the best epoch, whose averaged weights are saved."""
    train.main([*OPTIONS, "--out", "run"])
    with open("run/metrics.csv", newline="") as file:
        best = min(csv.DictReader(file), key=lambda row: float(row["val/loss"]))
    table = json.loads(Path("run/metrics.json").read_text())["val"]
    for fidelity, of, column in (("dz", "forces", "val/dz/forces_rmse"), ("cc", "energy", "val/cc/energy_rmse")):
        assert table[fidelity][of]["rmse"] == pytest.approx(float(best[column]), rel=1e-4)


@pytest.mark.slow
def test_next_stage_begins_with_the_validated_weights(recorded: dict[str, list[Any]]) -> None:
    """And with an average of its own."""
    train.main([*OPTIONS, "--strategy=tl", "--epochs=2", "--optim.lr=0.02", "--transfer.lr=1e-12", "--out", "run"])
    first, second = recorded["steps"][:10], recorded["steps"][10:]
    handed_on = expected(first, 0.7)[10]
    assert_close(second[0][1], handed_on)
    assert_close(recorded["validated"][-1][1], expected(second, 0.7)[20])


@pytest.mark.slow
def test_raw_weights_that_do_not_fit_are_refused(
    recorded: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([*OPTIONS, "--epochs=1", "--out", "run"])
    good = torch.load("run/last.ckpt", weights_only=True)
    name = next(iter(good["raw_weights"]))
    for wrong, message in (
        ({name: good["raw_weights"][name]}, "raw_weights are not those that are trained"),
        ({**good["raw_weights"], name: torch.zeros(1)}, f"'{name}' in its raw_weights does not match"),
        ({**good["raw_weights"], name: good["raw_weights"][name] / 0}, f"weight '{name}' is NaN or infinite"),
        ([1], "damaged"),
    ):
        torch.save({**good, "raw_weights": wrong}, "run/last.ckpt")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train.main(["--resume", "run", "--epochs=2"])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
