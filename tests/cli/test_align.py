"""``mfpyg-evaluate --align`` and ``mfpyg-convert --references``: what is fitted on what, and that the tables say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mfpyg
from mfpyg.checkpoint import read_checkpoint
from mfpyg.cli import evaluate

FORMATION = torch.tensor([375.0, 23_890.0, 34_330.0, 47_180.0], dtype=torch.float64)


@pytest.fixture
def formation(untrained: Callable[..., Path], tmp_path: Path) -> Path:
    """A potential of energies that are higher by these of atoms, which knows its data and splits."""
    path = untrained("dz:EF", "cc:E")
    checkpoint = read_checkpoint(path)
    for name, weight in checkpoint["state_dict"].items():
        if name.endswith("reference"):
            weight += FORMATION
    for energies in checkpoint["mfpyg"]["reference_energies"].values():
        for symbol, shift in zip("HCNO", FORMATION.tolist(), strict=True):
            energies[symbol] += shift
    torch.save(checkpoint, tmp_path / "formation.ckpt")
    return tmp_path / "formation.ckpt"


def errors(run: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "errors.json"
    evaluate.main([str(run), "--json", str(out), "--accelerator=cpu", *options])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_errors_are_those_of_references_fitted_to_the_named_split(
    untrained: Callable[..., Path], formation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = errors(formation, tmp_path)
    printed = capsys.readouterr().out
    assert "note: dz energies differ from the labels by" in printed
    assert "--align evaluates with reference energies fitted" in printed
    aligned = errors(formation, tmp_path, "--align", "train")
    printed = capsys.readouterr().out
    assert "reference energies fitted to train: 604 dz energies, 604 cc energies" in printed
    assert "note" not in printed
    assert whole["test"]["dz"]["energy"]["rmse"] > 1e4
    # The references of the untrained network are the least squares of the labels, not of what it leaves of them.
    plain = errors(untrained("dz:EF", "cc:E"), tmp_path, "--align", "train")
    for split in ("train", "val", "test", "ood"):
        for level in ("dz", "cc"):
            one, two = aligned[split][level], plain[split][level]
            assert one["energy"]["rmse"] == pytest.approx(two["energy"]["rmse"], rel=1e-5)
            assert one["energy"]["n"] == whole[split][level]["energy"]["n"]
        assert aligned[split]["dz"]["forces"] == whole[split]["dz"]["forces"]
    of_energy = aligned["test"]["cc"]["energy"]["aligned"]
    assert (of_energy["on"], of_energy["n"], of_energy["undetermined"]) == ("train", 604, [])
    assert of_energy["shifts"]["C"] == pytest.approx(-23_890, abs=40)


def test_the_test_split_takes_part_only_if_it_is_named(formation: Path, tmp_path: Path) -> None:
    """Fitted to the test itself, its errors are lower than with any other references."""
    test = errors(formation, tmp_path, "--split", "test", "--align", "test")["test"]["dz"]["energy"]
    val = errors(formation, tmp_path, "--split", "test", "--align", "val")["test"]["dz"]["energy"]
    assert (test["aligned"]["on"], test["aligned"]["n"]) == ("test", 72)
    assert (val["aligned"]["on"], val["aligned"]["n"]) == ("val", 67)
    assert test["rmse"] < val["rmse"]


def test_a_model_without_splits_takes_those_of_the_data_or_other_data(
    formation: Path,
    tmp_path: Path,
    write_xyz: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    mfpyg.save(mfpyg.load(formation), tmp_path / "saved.ckpt")  # knows no data, as one that is imported
    train = write_xyz(tmp_path / "train.xyz", range(0, 600, 3), dz="energy,forces")
    test = write_xyz(tmp_path / "test.xyz", range(1, 600, 30), dz="energy,forces")
    data, other = f"{test}:dz=energy,forces@eV", f"{train}:dz=energy,forces@eV"
    found = errors(tmp_path / "saved.ckpt", tmp_path, "--dataset", data, "--align", other)["all"]["dz"]["energy"]
    printed = capsys.readouterr().out
    assert f"reference energies fitted to {other}: 200 dz energies" in printed
    assert f"note: {other} has no energies of cc, whose reference energies are kept" in printed
    assert (found["aligned"]["on"], found["aligned"]["n"], found["n"]) == (other, 200, 20)
    assert found["rmse"] < 100

    declared = errors(tmp_path / "saved.ckpt", tmp_path, "--dataset", "minichno", "--split", "test", "--align", "train")
    assert declared["test"]["dz"]["energy"]["aligned"]["n"] == 671  # what is neither test nor ood
    capsys.readouterr()
    errors(tmp_path / "saved.ckpt", tmp_path, "--dataset", "minichno", "--align", "minichno")
    printed = capsys.readouterr().out
    assert "fitted to minichno without its test and ood: 671 dz energies" in printed
    assert "note: reference energies are fitted to 671 of 788 in all, where errors are too low" in printed

    for words, text in (
        (
            ["--align", "train"],
            "test.xyz:dz=energy,forces@eV has no split 'train' to fit reference energies to (it has all)",
        ),
        (["--align", "trian"], "unknown split or data set of --align 'trian'"),
        (["--align", str(train)], "its levels of theory are not known"),
    ):
        with pytest.raises(SystemExit) as stop:
            errors(tmp_path / "saved.ckpt", tmp_path, "--dataset", data, *words)
        assert stop.value.code == 2
        assert text in capsys.readouterr().err


def test_elements_that_are_not_determined_are_named_if_they_occur(
    formation: Path, tmp_path: Path, write_xyz: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Energies of ethylene alone give the sum of one C and two H; errors of ethylene are right, no others."""
    from mfpyg.datasets import MiniCHNO
    from mfpyg.datasets.references import compositions

    ethylene = np.flatnonzero((compositions(MiniCHNO(), (1, 6, 7, 8)) == [4, 2, 0, 0]).all(axis=1))
    data = f"{write_xyz(tmp_path / 'c2h4.xyz', ethylene, dz='energy,forces')}:dz=energy,forces@eV"
    found = errors(formation, tmp_path, "--dataset", data, "--align", "all")["all"]["dz"]["energy"]
    assert found["rmse"] < 100
    assert found["aligned"]["undetermined"] == ["H", "C", "N", "O"]
    printed = capsys.readouterr().out
    assert "note: the dz energies of all do not determine the reference energies of H, C individually" in printed
