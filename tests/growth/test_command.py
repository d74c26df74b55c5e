"""``mfpyg-grow`` from its file to a potential, with the processes that compute and train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mfpyg
from mfpyg.cli import grow


def run(*arguments: str) -> int:
    try:
        grow.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.slow
def test_from_file_to_potential(growing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Molecules and test data of the file, real processes; what the command prints can be used."""
    pytest.importorskip("rdkit", reason="RDKit is not installed: pip install 'mfpyg[label]'")
    growing.write(n=6)
    from mfpyg.cli import evaluate, label, predict

    label.main(["geometries.xyz", "-o", "test.xyz", "--level", "gfn2=tblite:GFN2-xTB:EF"])
    del growing.config["pool"], growing.config["out"]
    growing.config.update(
        molecules=["C", "CO"], budget=600, rounds=1, jobs=2, sample={"modes": 12, "dynamics": 0, "conformers": 1},
        test="test.xyz:gfn2=gfn2_energy,gfn2_forces@eV",
    )  # fmt: skip
    Path("grow.yaml").write_text(yaml.safe_dump(growing.config))
    capsys.readouterr()
    assert run("grow.yaml", "-o", "grown") == 0
    output = capsys.readouterr().out
    assert "pool: 26 geometries" in output
    assert "round 0: labels so far: 26 of gfn1, 26 of gfn2; processor time" in output
    assert "done: round 0" in output
    summary = growing.summary(0)
    assert summary["labels"] == {"gfn1": 26, "gfn2": 26}
    assert 0 < summary["spent"] < 600
    assert summary["test"]["gfn2"]["forces"]["n"] == 3 * sum(len(frame) for frame in mfpyg_frames())
    assert np.isfinite(summary["expected"].get("forces", 0.0))
    commands = [line.split()[1:] for line in output.splitlines() if line.startswith("  mfpyg-")]
    assert len(commands) == 2
    evaluate.main([word.strip("'") for word in commands[0]])
    predict.main([word.replace("FILE", "geometries.xyz") for word in commands[1]])
    assert Path("predicted.xyz").is_file()
    assert mfpyg.load("grown/potential").fidelities == ("gfn1", "gfn2")


def mfpyg_frames() -> Any:
    import ase.io

    return ase.io.read("geometries.xyz", ":")


def test_ctrl_c(growing: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mfpyg.labeling.pool.compute_labels", interrupted)
    Path("grow.yaml").write_text(yaml.safe_dump(growing.config))
    assert run("grow.yaml") == 130
    assert "mfpyg-grow: stopped; the same command continues" in capsys.readouterr().out
    assert Path("grown/grow.yaml").is_file()


def test_a_second_growth_in_the_folder(growing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from mfpyg.training.lock import held

    Path("grow.yaml").write_text(yaml.safe_dump(growing.config))
    with held(Path("grown")):
        assert run("grow.yaml") == 2
    assert "grown: another mfpyg-grow is running in this folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such file; expected a YAML file of settings of a growth"),
        (["grow.yaml"], "grow.yaml has no out, and -o is missing; expected a folder for the growth"),
        (["grow.yaml", "-o", "x"], "geometries-of-mine.xyz: no such file"),
        (["grow.yaml", "--output", "geometries.xyz"], "geometries.xyz"),
        (["grow.yaml", "--rounds", "3"], "unknown option --rounds"),
    ],
)
def test_wrong_arguments(growing: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    del growing.config["out"]
    growing.config["pool"] = "geometries-of-mine.xyz"
    Path("grow.yaml").write_text(yaml.safe_dump(growing.config))
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_has_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for key in ("molecules", "everywhere", "budget", "validation", "test"):
        assert f"\n  {key}: " in text
