"""Ctrl-C and SIGTERM stop a run with the state of that moment, and say how to go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

STOPS = int(os.environ.get("MFPYG_FAULT_STOPS", "2"))
SEED = int(os.environ.get("MFPYG_FAULT_SEED", "0"))

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
    words = f"saved at step {step}, after {step // 10} complete epochs", "continue with: mfpyg-train --resume cut"
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
    assert_stopped(ended, "the last checkpoint is at step 3, after 0 complete epochs", "--resume cut")
    forks.whole("--resume", "cut")
    assert_same_run(whole, forks.folder / "cut")


def test_nothing_is_left_of_a_run_that_made_no_step(forks: Any) -> None:
    aim = {"file": "step", "moment": "half", "after": 0, "signal": "SIGINT", "twice": True}
    assert_stopped(forks.run(*OPTIONS, "--out", "here/cut", aim=aim), "nothing was saved")
    aim = {"file": "splits.npz", "moment": "half", "after": 0, "signal": "SIGTERM"}
    assert_stopped(forks.run(*OPTIONS, "--out", "here/cut", aim=aim), "nothing was saved")
    assert not (forks.folder / "here").exists()


def test_final_table_that_was_stopped_comes_with_resume(
    forks: Any, whole: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    aim = {"file": "table", "moment": "half", "after": 0, "signal": "SIGTERM"}
    ended = forks.run(*OPTIONS, "--out", "cut", aim=aim)
    assert_stopped(ended, "the training has ended, print its table with: mfpyg-train --resume cut")
    assert not (forks.folder / "cut" / "metrics.json").exists()
    forks.whole("--resume", "cut")
    assert_same_run(whole, forks.folder / "cut")


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mfpyg.cli.train", *options],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def importing(folder: Path, run: str) -> subprocess.Popen[str]:
    """A process that has made its run folder, where its imports of torch begin."""
    process = started(folder, *OPTIONS, "--out", run)
    while not (folder / run).exists():
        assert process.poll() is None
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_process_that_is_stopped_while_it_imports_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = importing(tmp_path, "cut")
    process.send_signal(number)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert output == ""
    assert error == "mfpyg-train: stopped\n"
    assert list(tmp_path.iterdir()) == []


def test_any_moment_will_do(
    tmp_path: Path, whole: Path, assert_same_run: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole process, from its lock to its end, stopped at random moments (``MFPYG_FAULT_STOPS`` of them)."""
    chance, outcomes = random.Random(SEED), Counter[str]()
    process, began = importing(tmp_path, "whole"), time.monotonic()
    process.communicate()
    seconds = time.monotonic() - began
    for number in range(STOPS):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = importing(folder, "cut")
        time.sleep(chance.uniform(0, seconds))
        process.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM]))
        output, error = process.communicate(timeout=120)
        if process.returncode == 0 or output.endswith("run folder: cut\n"):  # Python itself may still have been ending
            outcomes["had ended"] += 1
            assert process.returncode or "Traceback" not in error
        elif "--resume cut" in output:
            outcomes["saved, and resumed"] += 1
            assert "Traceback" not in error
            assert process.returncode == 130, error
            resumed = started(folder, "--resume", "cut")
            assert resumed.communicate(timeout=120)[1] == ""
            assert resumed.returncode == 0
        else:
            outcomes["left nothing"] += 1
            # Python ends by SIGINT itself, 130 for a shell, where it met a KeyboardInterrupt within some imports in C.
            assert process.returncode in (130, -signal.SIGINT), error
            assert error == "mfpyg-train: stopped\n"
            assert list(folder.iterdir()) == []
            continue
        assert_same_run(whole, folder / "cut")
    with capsys.disabled():
        print(f"\n{STOPS} stops at random moments: {dict(outcomes)}")
