"""The examples run as their first lines say, and commands of the README as they stand there, at a small size."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mfpyg.cli import train

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_own_backbone(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "own_backbone.py"), "--epochs", "1", "--batch-size", "64", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok  ") > 20
    assert "FAIL" not in done.stdout
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert "backbone: own" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "tutorial.py"), "--epochs", "4", "--steps", "60", "--molecule", "H2O"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "cc forces are off by" in done.stdout
    assert "harmonic frequencies in cm⁻¹:" in done.stdout
    assert (tmp_path / "tutorial" / "tutorial.png").stat().st_size > 10_000
    assert (tmp_path / "tutorial" / "model" / "best.ckpt").is_file()


@pytest.mark.slow
def test_readme_tunes_the_optimiser(tmp_path: Path) -> None:
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    command = text[text.index("**Tune the optimiser.**") :].split("```sh\n")[1].splitlines()[0]
    name, *arguments = shlex.split(command)
    assert name == "mfpyg-train"
    train.main([*arguments, "--epochs=2", "--batch-size=64", "--model.n-features=6", "--out", str(tmp_path / "run")])
    settings = (tmp_path / "run" / "config.yaml").read_text()
    assert all(line in settings for line in ("warmup: 2.0", "ema: 0.99", "weight_decay: 0.01", "accumulate: 2"))
