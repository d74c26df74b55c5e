"""Which runs compile their training steps, that they can be resumed, and that a failure is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mfpyg.settings import from_dict
from mfpyg.training.run import COMPILE_FROM, with_compile_chosen

CPU = torch.device("cpu")


@pytest.mark.parametrize("given", ["on", "off"])
def test_what_is_given_stays(given: str) -> None:
    assert with_compile_chosen(from_dict({"compile": given, "epochs": 1}), 10, CPU).compile == given
    assert with_compile_chosen(from_dict({"compile": given, "epochs": 10**6}), 10**6, CPU).compile == given


def test_auto_compiles_long_runs_on_a_cpu_with_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    settings = from_dict({"epochs": COMPILE_FROM // 10, "batch_size": 8})
    assert with_compile_chosen(settings, 80, CPU).compile == "on"  # ten steps an epoch
    assert with_compile_chosen(settings, 72, CPU).compile == "off"
    assert with_compile_chosen(settings, 80, torch.device("cuda")).compile == "off"
    compiler.unlink()
    assert with_compile_chosen(settings, 80, CPU).compile == "off"


@pytest.mark.slow
def test_a_compiled_run_that_was_killed_ends_with_the_same_weights(trainer: Any) -> None:
    options = ["--compile=on", "--epochs=5", "--batch-size=8"]
    output = trainer.run(*trainer.new("whole", *options))
    assert "torch.compile failed" not in output
    process, log = trainer.start(*trainer.new("cut", *options)), trainer.folder / "cut" / "metrics.csv"
    deadline = time.monotonic() + 200
    while not log.is_file() or len(log.read_text().splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trainer.run("--resume", "cut")
    one, two = (torch.load(trainer.folder / run / "last.ckpt", weights_only=True) for run in ("whole", "cut"))
    assert one["mfpyg"]["config"]["compile"] == two["mfpyg"]["config"]["compile"] == "on"
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key


@pytest.mark.slow
def test_a_failure_to_compile_is_a_note_and_the_run_goes_on(trainer: Any) -> None:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CXX": "/bin/false",
        "TORCHINDUCTOR_CACHE_DIR": str(trainer.folder / "empty"),
    }  # fmt: skip
    command = [sys.executable, "-m", "mfpyg.cli.train", *trainer.new("run", "--compile=on", "--epochs=1")]
    done = subprocess.run(command, cwd=trainer.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "torch.compile" in line]
    assert len(notes) == 1
    assert notes[0].startswith("mfpyg-train: note: torch.compile failed, continuing without it (")
    assert (trainer.folder / "run" / "metrics.json").is_file()
