"""Shipped models by name: everything that takes a checkpoint takes one, and what a name means is never in doubt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

import mfpyg
from mfpyg.checkpoint import checkpoint_file
from mfpyg.cli import evaluate, inspection, predict, selection, train
from mfpyg.cli.train import parse
from mfpyg.errors import MFPyGWarning
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inspection import inspect
from mfpyg.interop.ase import MFPyGCalculator, data_of
from mfpyg.interop.lammps import UnifiedPotential
from mfpyg.labeling.level import open_program
from mfpyg.pretrained import names
from mfpyg.training.initial import read_initial
from mfpyg.units import KCAL_MOL_TO_EV

Make = Callable[..., Path]


@pytest.fixture
def water() -> Atoms:
    return molecule("H2O")


def energy_of(potential: Any, atoms: Atoms) -> float:
    """Energy of ``cc`` in kcal/mol."""
    return float(potential(data_of(atoms), "cc").energy)


@pytest.fixture
def expected(shipped: Path, water: Atoms) -> float:
    """Energy of water by the shipped file itself."""
    return energy_of(mfpyg.load(shipped), water)


def test_python(shipped: Path, water: Atoms, expected: float) -> None:
    assert names() == ["tiny-1"]
    assert checkpoint_file("tiny-1") == shipped
    assert energy_of(mfpyg.load("tiny-1"), water) == expected
    assert energy_of(Ensemble("tiny-1").members[0], water) == expected
    assert energy_of(Ensemble(["tiny-1", shipped]).members[0], water) == expected
    water.calc = MFPyGCalculator("tiny-1", "cc")
    assert water.get_potential_energy() == pytest.approx(expected * KCAL_MOL_TO_EV, rel=1e-12)
    assert energy_of(UnifiedPotential(None, "tiny-1", "cc", device=None).ensemble.members[0], water) == expected
    label = open_program("mfpyg:tiny-1@cc").compute(water, 0, 1, "E")["E"]
    assert label == pytest.approx(expected * KCAL_MOL_TO_EV, rel=1e-12)


def test_torchsim(shipped: Path, water: Atoms, expected: float) -> None:
    ts = pytest.importorskip("torch_sim")
    from mfpyg.interop.torchsim import MFPyGModel

    model = MFPyGModel("tiny-1", "cc")
    found = model(ts.io.atoms_to_state([water], model.device, model.dtype))["energy"]
    assert float(found[0]) == pytest.approx(expected * KCAL_MOL_TO_EV, rel=1e-9)


def test_commands(shipped: Path, water: Atoms, expected: float, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write("water.xyz", water)
    predict.main(["tiny-1", "water.xyz", "-o", "out.xyz", "--fidelity", "cc"])
    assert ase.io.read("out.xyz").get_potential_energy() == pytest.approx(expected * KCAL_MOL_TO_EV, rel=1e-7)
    evaluate.main(["tiny-1", "--split", "test", "--dataset", "minichno"])
    written = Path("evaluation-tiny-1-minichno-test.json")  # here, not where packages are installed
    assert json.loads(written.read_text())["test"]["cc"]["energy"]["n"] > 0
    assert sorted(path.name for path in shipped.parent.iterdir()) == ["tiny-1.ckpt", "tiny-1.yaml"]
    capsys.readouterr()
    inspection.main(["tiny-1"])
    assert str(shipped) in "".join(capsys.readouterr().out.split())


def test_init(shipped: Path) -> None:
    settings, _ = parse(["--init", "tiny-1", "--add-fidelity", "mp2:E"])
    assert settings.init == "tiny-1"
    assert settings.fidelities == ["dz:EF", "cc:E", "mp2:E"]
    assert settings.finetune.sha256 == read_initial(str(shipped)).sha256
    train.main(["--init", "tiny-1", "--fidelities", "dz:EF", "--epochs=1", "--batch-size=256", "--out=run"])
    assert mfpyg.load("run").fidelities == ("dz", "cc")


def test_names_win_over_the_current_folder(untrained: Make, shipped: Path, water: Atoms, expected: float) -> None:
    Path("tiny-1").mkdir()
    own = Path("tiny-1/best.ckpt")
    untrained("dz:EF", "cc:E", seed=1).rename(own)
    of_own = energy_of(mfpyg.load(own), water)
    assert of_own != expected
    with pytest.warns(MFPyGWarning, match=r"^tiny-1 is the model that .* not the folder .* here; for that, ./tiny-1$"):
        assert energy_of(mfpyg.load("tiny-1"), water) == expected
    for path in ("./tiny-1", "tiny-1/", Path("tiny-1"), str(Path("tiny-1").resolve())):
        assert energy_of(mfpyg.load(path), water) == of_own
    assert inspect("./tiny-1")["kind"] == "run"
    ase.io.write("water.xyz", water)
    for name, energy in (("./tiny-1", of_own), ("tiny-1", expected)):
        predict.main([name, "water.xyz", "-o", "out.xyz", "--fidelity", "cc"])
        assert ase.io.read("out.xyz").get_potential_energy() == pytest.approx(energy * KCAL_MOL_TO_EV, rel=1e-7)
    evaluate.main(["./tiny-1", "--split", "test"])
    assert Path("tiny-1/evaluation-test.json").is_file()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (evaluate, ["tiny-2"]),
        (inspection, ["tiny-2"]),
        (predict, ["tiny-2", "water.xyz", "-o", "out.xyz"]),
        (selection, ["tiny-2", "water.xyz", "-o", "out.xyz", "--target", "cc", "--cost", "cc=1", "--budget", "9"]),
        (train, ["--init", "tiny-2"]),
    ],
)
def test_similar_names(
    shipped: Path, water: Atoms, command: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ase.io.write("water.xyz", water)
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    expected = (
        "tiny-2: no such checkpoint; expected a run folder of mfpyg-train or a .ckpt file; did you mean 'tiny-1'?"
    )
    assert capsys.readouterr().err.endswith(f"error: {expected}\n")


def test_other_names_have_no_suggestion(shipped: Path) -> None:
    with pytest.raises(mfpyg.MFPyGError, match=r"or a \.ckpt file$"):
        mfpyg.load("runs/first")


def test_forces_of_an_ensemble_with_a_run(untrained: Make, shipped: Path, water: Atoms) -> None:
    """A shipped model is a member like any other."""
    other = untrained("dz:EF", "cc:E", seed=1)
    water.calc = MFPyGCalculator(["tiny-1", other], "cc")
    forces = water.get_forces()
    single = []
    for model in ("tiny-1", other):
        water.calc = MFPyGCalculator(model, "cc")
        single.append(water.get_forces())
    np.testing.assert_allclose(forces, np.mean(single, axis=0), atol=1e-6)
