"""What ``mfpyg.save`` keeps of a potential: all that predicting and further training need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mfpyg
from mfpyg.checkpoint import methods_of, read_checkpoint, trained_labels
from mfpyg.cli import train
from mfpyg.interop.ase import data_of
from mfpyg.models.uncertainty import predict_with_std

TINY = ("--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5")
BRIEF = ("--epochs=1", "--batch-size=256", "--compile=off")


@pytest.mark.slow
def test_saved_potential_remembers_all_its_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_xyz: Callable[..., Path]
) -> None:
    """Labels and methods of three trainings, each on a level of its own; it can be trained further, and saved again."""
    monkeypatch.chdir(tmp_path)
    train.main(["--fidelities", "dz:EF", "--out=first", *TINY, *BRIEF])
    one, two = (
        write_xyz(tmp_path / "one.xyz", range(0, 788, 8), cc="e"),
        write_xyz(tmp_path / "b.xyz", range(99), cc="e"),
    )
    add = ("--preset=small", "--finetune.old=frozen", *BRIEF, "--add-fidelity")
    train.main(["--init=first", "--out=second", "--dataset", f"{one}:x=e@eV", *add, "x:E"])
    train.main(["--init=second", "--out=third", "--dataset", f"{two}:y=e@eV", *add, "y:E"])
    assert methods_of(read_checkpoint("third")["mfpyg"]) == {"dz": "ωB97X/6-31G(d)"}
    for source, target in (("third", "saved.ckpt"), ("saved.ckpt", "again.ckpt")):
        mfpyg.save(mfpyg.load(source), target)
        described = read_checkpoint(target)["mfpyg"]
        assert trained_labels(described) == {"dz": "EF", "x": "E", "y": "E"}
        assert described["data"]["methods"] == {"dz": "ωB97X/6-31G(d)"}
        assert described["init"] is described["config"]["init"] is None
    train.main(["--init=again.ckpt", "--fidelities", "dz:E", "--out=fourth", *BRIEF])
    assert mfpyg.load("fourth").fidelities == ("dz", "x", "y")


@pytest.mark.slow
def test_without_held_out_labels(tmp_path: Path) -> None:
    """The file is smaller, and standard deviations are the same."""
    from ase.build import molecule

    train.main(["--fidelities", "dz:EF", "cc:E", "--out", str(tmp_path / "run"), *TINY, *BRIEF])
    potential = mfpyg.load(tmp_path / "run")
    assert potential.held_out is not None
    whole, bare = tmp_path / "whole.ckpt", tmp_path / "bare.ckpt"
    mfpyg.save(potential, whole)
    potential.held_out = None
    mfpyg.save(potential, bare)
    assert bare.stat().st_size < whole.stat().st_size < (tmp_path / "run/best.ckpt").stat().st_size
    assert mfpyg.load(whole).held_out is not None
    assert mfpyg.load(bare).held_out is None
    wanted, methanol = {"dz": "EF", "cc": "EF"}, data_of(molecule("CH3OH"))
    found = [predict_with_std(mfpyg.load(path), methanol, wanted) for path in (tmp_path / "run", bare)]
    for level in wanted:
        for name in ("energy", "forces", "energy_std", "forces_std"):
            one, two = (getattr(of[level], name) for of in found)
            np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert list(mfpyg.load(bare).quantiles) == ["dz", "cc"]
