"""The examples run as their first lines say, and commands of the README as they stand there, at a small size."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mfpyg
from mfpyg.cli import train
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.references import compositions

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
def test_teacher_student(tmp_path: Path) -> None:
    small = ["--epochs=2", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1", "--threads=1"]
    train.main([*small, "--fidelities", "dz:EF", "cc:E", "--out", str(tmp_path / "teacher")])
    script = [
        sys.executable,
        str(EXAMPLES / "teacher_student.py"),
        *small,
        "--fidelities",
        "tz:EF",
        "cc:E",
        "--out=run",
    ]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [*script, "--strategy-options", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=dict(os.environ))

    wrong = run("taecher=teacher")
    assert wrong.returncode == 2
    assert "did you mean 'strategy_options.teacher'" in wrong.stderr
    done = run("teacher=teacher", "level=tz")
    assert done.returncode == 0, done.stderr
    assert "tz has the labels that teacher predicts for dz" in done.stdout
    assert "val/tz/forces_rmse" in (tmp_path / "run" / "metrics.csv").read_text()
    student, teacher = mfpyg.load(tmp_path / "run"), mfpyg.load(tmp_path / "teacher")
    splits = np.load(tmp_path / "run" / "splits.npz")
    rows, dataset = [*splits["train"], *splits["val"]], MiniCHNO()
    # References are a fit of the labels, here of the teacher's predictions, also where tz has no label.
    energies = [float(teacher(dataset[int(row)], fidelity="dz", forces=False).energy) for row in splits["train"]]
    counts = compositions(dataset, student.species)[splits["train"]]
    fitted = np.linalg.lstsq(counts, np.array(energies), rcond=None)[0]
    assert student.reference("tz").numpy() == pytest.approx(fitted, abs=1e-2)
    assert len(rows) > 600


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "tutorial.py"), "--epochs", "2", "--steps", "20", "--molecule", "H2O"]
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
