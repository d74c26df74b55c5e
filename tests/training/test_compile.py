"""Which runs compile their training steps, that they can be resumed, and that a failure is said."""

from __future__ import annotations

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


TINY = (
    "--fidelities", "dz:EF", "--model.tensor-order=0", "--model.n-interactions=1", "--model.n-features=6",
    "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--compile=on", "--epochs=2",
    "--checkpoint-minutes=0", "--batch-size=64",
)  # fmt: skip


@pytest.mark.slow
def test_compiled_run_that_is_killed_ends_with_the_same_weights(forks: Any) -> None:
    forks.whole(*TINY, "--out", "whole", backend="aot_eager")
    forks.killed("last.ckpt", 12, *TINY, "--out", "cut", backend="aot_eager")
    output = forks.whole("--resume", "cut", backend="aot_eager")
    assert "compiled" in output
    assert "torch.compile failed" not in output
    one, two = (torch.load(forks.folder / run / "last.ckpt", weights_only=True) for run in ("whole", "cut"))
    assert one["mfpyg"]["config"]["compile"] == two["mfpyg"]["config"]["compile"] == "on"
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key


@pytest.mark.slow
def test_failure_to_compile_is_a_note(forks: Any) -> None:
    output = forks.whole(*TINY, "--epochs=1", "--out", "run", backend="no such backend")
    (note,) = [line for line in output.splitlines() if "torch.compile" in line]
    assert note.startswith("mfpyg-train: note: torch.compile failed")
    assert (forks.folder / "run" / "metrics.json").is_file()
