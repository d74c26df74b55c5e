"""The plateau and cosine schedules."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mfpyg.cli import train
from mfpyg.training.callbacks import RunCheckpoint
from mfpyg.training.schedule import Plateau, cosine


def run(plateau: Plateau, metrics: list[float], batch_size: int, lr: float) -> list[tuple[int, float]]:
    history = []
    for metric in metrics:
        batch_size, lr = plateau.step(metric, batch_size, lr)
        history.append((batch_size, lr))
    return history


def test_batch_size_is_raised_to_its_maximum_before_the_rate_is_halved() -> None:
    history = run(Plateau(patience=1, factor=0.5, max_batch_size=60), [1.0] + [1.0] * 8, 16, 1e-3)
    assert history == [
        (16, 1e-3), (16, 1e-3), (32, 1e-3), (32, 1e-3), (60, 1e-3), (60, 1e-3), (60, 5e-4), (60, 5e-4), (60, 2.5e-4),
    ]  # fmt: skip


def test_an_improvement_restores_the_patience() -> None:
    history = run(Plateau(patience=1, factor=0.5, max_batch_size=16), [3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0], 16, 1.0)
    assert [lr for _, lr in history] == [1.0] * 6 + [0.5]


def test_less_than_one_part_in_ten_thousand_is_no_improvement() -> None:
    history = run(Plateau(patience=0, factor=0.5, max_batch_size=8), [1.0, 1.0 - 0.9e-4, 1.0 - 1.2e-4], 8, 1.0)
    assert [lr for _, lr in history] == [1.0, 0.5, 0.5]


def test_cosine_runs_from_one_to_a_hundredth() -> None:
    assert cosine(0.0) == pytest.approx(1.0)
    assert cosine(0.5) == pytest.approx(0.505)
    assert cosine(1.0) == pytest.approx(0.01)


def test_a_factor_near_one_still_raises_the_batch_size() -> None:
    history = run(Plateau(patience=0, factor=0.95, max_batch_size=18), [1.0] * 5, 16, 1.0)
    assert history == [(16, 1.0), (17, 1.0), (18, 1.0), (18, 0.95), (18, 0.95 * 0.95)]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_warm_up_is_linear_in_steps_also_when_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, schedule: str, accumulate: int
) -> None:
    """Over one and a half epochs of ten batches; a plateau schedule without patience would lower the rate before."""
    monkeypatch.chdir(tmp_path)
    rates: dict[int, float] = {}
    end = RunCheckpoint.on_train_batch_end

    def recorded(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        number = 10 * trainer.current_epoch + batch_idx
        assert number not in rates
        rates[number] = trainer.optimizers[0].param_groups[0]["lr"]
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        end(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", recorded)
    options = ("--fidelities", "cc:E", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1",
               "--model.n-sensitivities=5", "--compile=off", "--epochs=3", "--optim.lr=0.8", "--optim.warmup=1.5",
               "--optim.patience=0", f"--optim.schedule={schedule}", f"--optim.accumulate={accumulate}")  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        train.main([*options, "--out", "run"])
    assert stop.value.code == 130
    train.main(["--resume", "run"])
    warm = {number: 0.8 * (number + 1) / 15 for number in range(15)}
    if schedule == "cosine":
        warm = {number: rate * cosine(number / 30) for number, rate in warm.items()}
    assert {number: rates[number] for number in range(15)} == pytest.approx(warm, rel=1e-12)
    after = {number: 0.8 * (cosine(number / 30) if schedule == "cosine" else 1.0) for number in range(15, 20)}
    assert {number: rates[number] for number in range(15, 20)} == pytest.approx(after, rel=1e-12)
