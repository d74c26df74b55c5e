"""What every released version has written stays readable, and means the same."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch_geometric.data import Data

import mfpyg
from mfpyg.cli import evaluate, train
from mfpyg.inspection import inspect

STORED = Path(__file__).with_name("checkpoints")
RUNS = sorted(path.parent for path in STORED.glob("*/expected.json"))
CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def expected(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "expected.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.skipif(not CHANGELOG.is_file(), reason="the tests stand alone")
def test_every_released_version_is_there() -> None:
    released = re.findall(r"^## (\d\S*)", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert released
    assert sorted(released) == [run.name for run in RUNS]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_potential_is_the_same(run: Path) -> None:
    potential = mfpyg.load(run)
    for molecule in expected(run)["molecules"]:
        data = Data(z=torch.tensor(molecule["z"]), pos=torch.tensor(molecule["pos"]))
        for name in potential.fidelities:
            prediction = potential(data, fidelity=name)
            torch.testing.assert_close(prediction.energy.item(), molecule[name]["energy"], rtol=0, atol=1e-3)
            forces = torch.tensor(molecule[name]["forces"])
            torch.testing.assert_close(prediction.forces, forces, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_run_is_inspected_evaluated_gone_on_with_and_trained_further(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MFPYG_CACHE", str(tmp_path / "cache"))
    shutil.copytree(run, tmp_path / "run")
    assert inspect(run)["versions"]["trained"] == expected(run)["versions"]
    evaluate.main(["run", "--split", "test", "--json", "metrics.json"])
    stored = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    found = json.loads(Path("metrics.json").read_text(encoding="utf-8"))["test"]
    for name, of in stored.items():
        for label, errors in of.items():
            assert found[name][label]["rmse"] == pytest.approx(errors["rmse"], rel=1e-4)
    train.main(["--resume", "run", "--epochs", "3"])
    rows = Path("run/metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "0", "1", "2"]
    train.main(["--init", str(run), "--epochs", "1", "--batch-size", "256", "--out", "further"])
    assert mfpyg.load("further").fidelities == mfpyg.load(run).fidelities


@pytest.mark.skipif(not CHANGELOG.is_file(), reason="the tests stand alone")
def test_workflow_runs_every_cell_of_the_matrix() -> None:
    root = CHANGELOG.parent
    lines = [line.partition("#")[0].split() for line in (root / ".ci/cells.txt").read_text().splitlines()]
    cells = [line for line in lines if line]
    workflow = yaml.safe_load((root / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["matrix"]["strategy"]["matrix"]["cell"] == list(range(1, len(cells) + 1))
    assert {python for python, *_ in cells} == {"3.10", "3.11", "3.12", "3.13"}
