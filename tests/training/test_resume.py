"""A stopped run continues to the weights of an uninterrupted one, bit for bit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = ("--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5")


def rows(run: Path) -> list[dict[str, str]]:
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stop_after(process: Any, run: Path, epochs: int, how: signal.Signals) -> str:
    """Send a signal as soon as so many epochs are logged; the process's output."""
    deadline = time.monotonic() + 120
    while len(rows(run)) < epochs:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    return process.communicate(timeout=60)[0]


@pytest.mark.slow
def test_interrupted_and_killed_run_ends_with_the_same_weights(trainer: Any) -> None:
    # A patience of zero raises the batch size and then halves the rate within a few epochs.
    options = ["--epochs=14", "--optim.schedule=plateau", "--optim.patience=0", "--optim.max-batch-size=100",
               "--optim.stop-after=50", "--optim.lr=0.5"]  # fmt: skip
    trainer.run(*trainer.new("whole", *options))
    whole, cut = trainer.folder / "whole", trainer.folder / "cut"

    process = trainer.start(*trainer.new("cut", *options))
    output = stop_after(process, cut, 3, signal.SIGINT)
    assert process.returncode == 130
    assert "mfpyg-train --resume cut" in output
    assert "Traceback" not in output

    process = trainer.start("--resume", "cut")
    stop_after(process, cut, 8, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL

    trainer.run("--resume", "cut")
    for name in ("last.ckpt", "best.ckpt"):
        one, two = (torch.load(run / name, weights_only=True) for run in (whole, cut))
        assert one["epoch"] == two["epoch"]
        for key, value in one["state_dict"].items():
            assert torch.equal(value, two["state_dict"][key]), key
        assert one["callbacks"] == two["callbacks"]
        assert one["ConformationData"] == two["ConformationData"]
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(run)] for run in (whole, cut)]
    assert without_time[0] == without_time[1]
    assert [int(row["epoch"]) for row in rows(cut)] == list(range(14))
    batch_sizes = [int(row["batch_size"]) for row in rows(cut)]
    rates = [float(row["lr"]) for row in rows(cut)]
    assert batch_sizes[-1] == 100, "the schedule never acted"
    assert rates[-1] < rates[0], "the schedule never acted"
    assert (whole / "metrics.json").read_text() == (cut / "metrics.json").read_text()


@pytest.mark.slow
def test_termination_by_the_system_keeps_the_run_and_says_how_to_go_on(trainer: Any) -> None:
    run = trainer.folder / "run"
    process = trainer.start(*trainer.new("run", "--epochs=500"))
    output = stop_after(process, run, 2, signal.SIGTERM)
    assert process.returncode == 130
    assert "mfpyg-train --resume run" in output
    assert "Traceback" not in output


SEVERAL_BATCHES = (
    "--checkpoint-minutes=0", "--epochs=3", "--batch-size=100", "--sampling.strategy=balanced",
    "--sampling.minimum=tz=20", "--optim.lr=0.01", "--fidelities", "dz:EF", "tz:E",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs of seven batches, made without a pause."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = subprocess.run(
        [sys.executable, "-m", "mfpyg.cli.train", *TINY, *SEVERAL_BATCHES, "--out", "whole"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        ["batch:3"],
        ["validation:7"],
        ["best:7"],
        ["last:7"],
        ["batch:10"],
        ["last:14"],
        ["batch:2", "log:7", "batch:8", "batch:16"],
    ],
    ids=" ".join,
)
def test_run_killed_within_an_epoch_ends_with_the_same_weights(
    trainer: Any, uninterrupted: Path, moments: list[str]
) -> None:
    cut = trainer.folder / "cut"
    trainer.killed(moments[0], *TINY, *SEVERAL_BATCHES, "--out", "cut")
    moment, step = moments[0].split(":")
    assert (cut / "best.ckpt").is_file() == (moment in ("best", "last") or int(step) > 7)
    for moment in moments[1:]:
        trainer.killed(moment, "--resume", "cut")
    trainer.run("--resume", "cut")
    for name in ("last.ckpt", "best.ckpt"):
        one, two = (torch.load(run / name, weights_only=True) for run in (uninterrupted, cut))
        assert (one["epoch"], one["global_step"]) == (two["epoch"], two["global_step"])
        for key, value in one["state_dict"].items():
            assert torch.equal(value, two["state_dict"][key]), key
        assert one["callbacks"] == two["callbacks"]
        assert one["progress"] == two["progress"]
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows(run)] for run in (uninterrupted, cut)
    ]
    assert without_time[0] == without_time[1]
    assert len(without_time[0]) == 3
    assert (uninterrupted / "metrics.json").read_text() == (cut / "metrics.json").read_text()


def test_error_that_an_interrupt_led_to_is_an_interrupt() -> None:
    from mfpyg.training.run import _is_interrupt

    def stumble(first: type[BaseException]) -> BaseException:
        try:
            try:
                raise first
            except first:
                raise RuntimeError("while going down")  # noqa: B904
        except RuntimeError as error:
            return error

    assert _is_interrupt(stumble(KeyboardInterrupt))
    assert _is_interrupt(SystemExit())
    assert not _is_interrupt(stumble(ValueError))
