"""The examples run as their first lines say, at a small size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
