"""The examples run as their first lines say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mfpyg
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.references import compositions

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_own_backbone(forks: Any) -> None:
    output = forks.whole("--epochs=1", "--batch-size=64", "--out=run", command=str(EXAMPLES / "own_backbone.py"))
    assert output.count("ok  ") > 20
    assert "FAIL" not in output
    assert (forks.folder / "run" / "metrics.json").is_file()
    assert "backbone: own" in (forks.folder / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_teacher_student(forks: Any) -> None:
    folder, small = forks.folder, ["--epochs=2", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1"]
    forks.whole(*small, "--fidelities", "dz:EF", "cc:E", "--out=teacher")

    def run(*options: str) -> Any:
        arguments = [*small, "--fidelities", "tz:EF", "cc:E", "--out=run", "--strategy-options", *options]
        return forks.run(*arguments, command=str(EXAMPLES / "teacher_student.py"))

    wrong = run("taecher=teacher")
    assert wrong.status == 2
    assert "did you mean 'strategy_options.teacher'" in wrong.output
    done = run("teacher=teacher", "level=tz")
    assert done.status == 0, done.output
    assert "tz has the labels that teacher predicts for dz" in done.output
    assert "val/tz/forces_rmse" in (folder / "run" / "metrics.csv").read_text()
    student, teacher = mfpyg.load(folder / "run"), mfpyg.load(folder / "teacher")
    splits = np.load(folder / "run" / "splits.npz")
    rows, dataset = [*splits["train"], *splits["val"]], MiniCHNO()
    # References are a fit of the labels, here of the teacher's predictions, also where tz has no label.
    energies = [float(teacher(dataset[int(row)], fidelity="dz", forces=False).energy) for row in splits["train"]]
    counts = compositions(dataset, student.species)[splits["train"]]
    fitted = np.linalg.lstsq(counts, np.array(energies), rcond=None)[0]
    assert student.reference("tz").numpy() == pytest.approx(fitted, abs=1e-2)
    assert len(rows) > 600
