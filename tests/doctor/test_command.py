"""``mfpyg-doctor``: exit status, table, JSON, and what the user does wrong."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from mfpyg.cli import doctor

from .conftest import Planted


def gradients(file: h5py.File) -> None:
    for group in file.values():
        group["wb97x_dz.forces"][...] = -group["wb97x_dz.forces"][...]


def status(*arguments: str) -> int:
    try:
        doctor.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_clean_data_give_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("minichno") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("788 conformations, fidelities dz, tz, mp2, cc: 0 certainly wrong")
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_certain_findings_give_status_1(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    target = planted.folder / "found.json"
    assert status(f"minichno:{planted.file(gradients)}", "--fidelities", "dz", "--json", str(target)) == 1
    out = capsys.readouterr().out
    assert "certain" in out
    assert "fix the data before training" in out.splitlines()[-1]
    found = json.loads(target.read_text(encoding="utf-8"))
    assert found["conformations"] == 788
    assert found["fidelities"] == ["dz"]
    assert found["counts"] == {"certain": 1, "suspect": 0, "note": 1}  # the noise of Hessians
    finding = found["findings"][0]
    assert set(finding) == {"check", "severity", "fidelity", "evidence", "fix", "rows", "examples"}
    assert finding["fidelity"] == "dz"
    assert finding["examples"][0]["row"] == finding["rows"][0]
    assert set(finding["examples"][0]) == {"row", "molecule", "conformation", "source"}
    assert finding["examples"][0]["source"] == "edited.h5"


def test_json_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("minichno", "--json", "-", "--seed", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seed"] == 3
    assert found["dataset"] == ["minichno"]


def test_several_data_sets_are_one(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    """The same data twice, one with gradients: duplicates, and the wrong source by name."""
    assert status("minichno", f"minichno:{planted.file(gradients)}", "--json", "-") == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    wrong = [f for f in findings if f["check"] == "energies against forces" and f["severity"] == "certain"]
    assert [f["fidelity"] for f in wrong] == ["dz"]
    assert "edited.h5" in wrong[0]["evidence"]
    assert any(f["check"] == "contradicting labels" for f in findings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minichn"], "did you mean 'minichno'?"),
        (["minichno", "--fidelities", "ccc"], "unknown fidelity of minichno 'ccc'"),
        (["minichno", "--jsn", "x"], "did you mean '--json'?"),
        (["minichno", "--seed", "-1"], "--seed is -1"),
        (["minichno", "--json", "."], "expected the name of a file"),
        (["ani1x:nowhere.h5"], "no such file"),
        (["minichno", "minichno"], "given 2 times"),
        (["minichno", "--json", "no/such/folder/x.json"], "no such folder; create it, or write x.json elsewhere"),
        (["minichno", "--seed", "x"], "seed is x, expected a whole number"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("mfpyg-doctor: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_all_properties_are_read(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    def negative(file: h5py.File) -> None:
        for group in file.values():
            group["wb97x_dz.hessian"][...] = -group["wb97x_dz.hessian"][...]

    assert status(f"minichno:{planted.file(negative)}", "--json", "-") == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [f["check"] for f in findings if f["severity"] == "certain"] == ["forces against Hessians"]
