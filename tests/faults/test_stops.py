"""Ctrl-C and SIGTERM stop a run with the state of that moment, and say how to go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

OPTIONS = (
    "--fidelities", "dz:EF", "cc:E", "--epochs=2", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1",
    "--model.n-sensitivities=5", "--compile=off", "--checkpoint-minutes=0",
)  # fmt: skip
"""Two epochs of ten steps."""


def assert_stopped(ended: Any, *words: str) -> None:
    """It ended in the way of Ctrl-C, and said so in a line with these words."""
    assert ended.status == 130, ended.output
    assert "Traceback" not in ended.output
    assert ended.unfinished == []
    last = ended.output.strip().splitlines()[-1]
    assert last.startswith("mfpyg-train: stopped")
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    ("aim", "step"),
    [
        ({"file": "step", "moment": "half", "after": 0}, 1),
        ({"file": "step", "moment": "half", "after": 4, "signal": "SIGTERM"}, 5),
        ({"file": "step", "moment": "half", "after": 9}, 10),  # the last of the epoch
        ({"file": "validation", "moment": "half", "after": 0, "signal": "SIGTERM"}, 10),
        ({"file": "metrics.csv", "moment": "half", "after": 0}, 10),
        ({"file": "last.ckpt", "moment": "empty", "after": 9}, 10),
        ({"file": "last.ckpt", "moment": "whole", "after": 19}, 20),  # that of the last epoch
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_run_stops_with_the_state_of_the_moment(
    forks: Any, whole: Path, assert_same_run: Callable[[Path, Path], None], aim: dict[str, Any], step: int
) -> None:
    ended = forks.run(*OPTIONS, "--out", "cut", aim={"signal": "SIGINT", **aim})
    words = f"saved is step {step}, after {step // 10} whole epochs", "continue with: mfpyg-train --resume cut"
    assert_stopped(ended, *words)
    assert "stopping after this step" in ended.output
    assert torch.load(forks.folder / "cut" / "last.ckpt", weights_only=True)["global_step"] == step
    assert not (forks.folder / "cut" / ".lock").exists()
    forks.whole("--resume", "cut")
    assert_same_run(whole, forks.folder / "cut")


@pytest.mark.parametrize(("number", "moment"), [("SIGINT", "half"), ("SIGTERM", "empty"), ("SIGINT", "whole")])
def test_second_one_stops_at_once_and_keeps_the_last_checkpoint(
    forks: Any, whole: Path, assert_same_run: Callable[[Path, Path], None], number: str, moment: str
) -> None:
    aim = {"file": "last.ckpt", "moment": moment, "after": 3, "signal": number, "twice": True}
    ended = forks.run(*OPTIONS, "--out", "cut", aim=aim)
    assert_stopped(ended, "the last checkpoint is step 3, after 0 whole epochs", "--resume cut")
    forks.whole("--resume", "cut")
    assert_same_run(whole, forks.folder / "cut")


def test_nothing_is_left_of_a_run_that_made_no_step(forks: Any) -> None:
    aim = {"file": "step", "moment": "half", "after": 0, "signal": "SIGINT", "twice": True}
    assert_stopped(forks.run(*OPTIONS, "--out", "here/cut", aim=aim), "nothing was kept")
    aim = {"file": "splits.npz", "moment": "half", "after": 0, "signal": "SIGTERM"}
    assert_stopped(forks.run(*OPTIONS, "--out", "here/cut", aim=aim), "nothing was kept")
    assert not (forks.folder / "here").exists()


def test_final_table_that_was_stopped_comes_with_resume(
    forks: Any, whole: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    aim = {"file": "table", "moment": "half", "after": 0, "signal": "SIGTERM"}
    ended = forks.run(*OPTIONS, "--out", "cut", aim=aim)
    assert_stopped(ended, "the training has ended, its table comes with: mfpyg-train --resume cut")
    assert not (forks.folder / "cut" / "metrics.json").exists()
    forks.whole("--resume", "cut")
    assert_same_run(whole, forks.folder / "cut")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_process_that_is_stopped_while_it_imports_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mfpyg.cli.train", *OPTIONS, "--out", "cut"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not (tmp_path / "cut").exists():  # where torch's imports begin
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    output, error = process.communicate(timeout=120)
    # Python ends itself with the signal if that met an import made from C; a shell shows 130 for both.
    assert process.returncode in (130, -signal.SIGINT)
    assert output == ""
    assert re.fullmatch(r"mfpyg-train: stopped\n", error)
    assert list(tmp_path.iterdir()) == []
