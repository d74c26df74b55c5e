"""Commands on all properties: crystals with stresses beside molecules with dipoles, charges and Hessians."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

import mfpyg
from mfpyg.cli import evaluate, inspection, predict, train
from mfpyg.datasets import MiniCHNO

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=16",
    "--compile=off", "--preset=small",
]  # fmt: skip
LEVEL = "lj=energy,forces,S=stress?,D=dipole?,Q=charges?@eV"


def labelled(atoms: Atoms, random: np.random.Generator) -> Atoms:
    """Energies, forces and stresses of Lennard-Jones; dipoles and charges at random, which add up to zero."""
    atoms.rattle(0.05, rng=random)
    results = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
    calculator = LennardJones(sigma=1.2, rc=4.0)
    values = {name: calculator.get_property(name, atoms) for name in results}
    if not atoms.pbc.any():
        charges = random.normal(size=len(atoms))
        values |= {"dipole": random.normal(size=3), "charges": charges - charges.mean()}
    atoms.calc = SinglePointCalculator(atoms, **values)
    return atoms


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    crystals = [labelled(bulk("C", "sc", a=1.5).repeat((1, 1, 1 + i % 2)), random) for i in range(20)]
    molecules = [labelled(molecule("CO2"), random) for _ in range(20)]
    path = tmp_path_factory.mktemp("data") / "mixed.xyz"
    ase.io.write(path, [atoms for pair in zip(crystals, molecules, strict=True) for atoms in pair], format="extxyz")
    return path


def counts(metrics: dict[str, dict[str, dict[str, dict[str, int]]]], level: str) -> dict[str, int]:
    """Labelled components over all splits."""
    found: dict[str, int] = {}
    for rows in metrics.values():
        for name, values in rows.get(level, {}).items():
            found[name] = found.get(name, 0) + values["n"]
    return found


def test_crystals_and_molecules_in_one_training(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(["--dataset", f"{frames}:{LEVEL}", "--fidelities", "lj:EFSDQ", "--epochs=2", "--out=run", *TINY])
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert counts(metrics, "lj") == {
        "energy": 40, "forces": 3 * (30 + 60), "stress": 9 * 20, "dipole": 3 * 20, "charges": 60,
    }  # fmt: skip
    with open("run/metrics.csv", newline="") as file:
        (first, last) = csv.DictReader(file)
    for name in ("stress", "dipole", "charges"):
        assert float(last[f"train/lj/{name}_rmse"]) < float(first[f"train/lj/{name}_rmse"])
        assert float(last[f"val/lj/{name}_rmse"]) > 0
        assert int(last[f"train/lj/{name}_labels"]) > 0
    table = Path("run/metrics.txt").read_text()
    assert "stresses in kcal/mol/Å³, dipoles in e·Å, charges in e" in table
    evaluate.main(["run", "--json=errors.json", "--plot"])
    assert json.loads(Path("errors.json").read_text()) == metrics
    predict.main(["run", str(frames), "-o", "out.xyz", "--properties", "EFSDQ"])
    crystal, found = ase.io.read("out.xyz", ":2")
    assert crystal.get_stress().shape == (6,)
    assert found.get_charges().sum() == pytest.approx(0, abs=1e-6)
    with pytest.raises(Exception, match=r"not present|not available|not implemented"):
        found.get_stress()


def test_hessians_and_dipoles_of_a_cheap_level(
    untrained: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(["--fidelities", "dz:EFHD", "cc:E", "--weights", "dz:H=0.1", "--epochs=1", "--out=run", *TINY])
    metrics = json.loads(Path("run/metrics.json").read_text())
    labels = MiniCHNO(properties="HD").label_counts()[0]
    found = counts(metrics, "dz")
    assert (found["hessian"], found["dipole"]) == (labels["Hessian_components"], 3 * labels["dipoles"])
    potential = mfpyg.load("run")
    assert potential.letters("dz") == "EFSHDQ"
    assert potential.letters("cc") == "EFSH"
    capsys.readouterr()
    inspection.main(["run"])
    assert "dz:EFHD" in capsys.readouterr().out

    start = str(untrained("dz:EF"))
    train.main(["--init", start, "--fidelities", "dz:EFD", "--epochs=1", "--out=further", "--compile=off"])
    assert mfpyg.load("further").letters("dz") == "EFSHDQ"
    evaluate.main(["further", "--split=ood", "--properties=EFH"])
    of_level = json.loads(Path("further/evaluation-ood-EFH.json").read_text())["ood"]["dz"]
    assert of_level.keys() == {"energy", "forces", "hessian"}
    with pytest.raises(SystemExit):
        evaluate.main(["further", "--properties=EFS"])
    assert "minichno has no stresses; leave them out of --properties" in capsys.readouterr().err
