"""The commands on data in all formats that users bring: the same labels, the same findings, and training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import h5py
import numpy as np
import pytest
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

from mfpyg.cli import doctor, evaluate, preprocess, study, train
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.spec import DatasetSpec, open_dataset
from mfpyg.units import EV_TO_KCAL_MOL, HARTREE_TO_KCAL_MOL

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64", "--epochs=1",
    "--compile=off", "--model.kernel=padded", "--accelerator=cpu", "--preset=small",
]  # fmt: skip
SPECS = [
    "12:30/mine.npz:dz=E,F@kcal/mol",
    "npy:12:30/arrays:dz=E,F@kcal/mol",
    "md.traj:dz=energy,forces@eV",
    "md.xyz.gz:dz=energy,forces@eV",
    "pyanitools:by_size.h5:dz=energies,forces@Hartree",
    "ani2x:by_size.h5",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of the bundled data's conformations with their dz labels, in every format."""
    folder = tmp_path_factory.mktemp("data")
    items = list(MiniCHNO(fidelities=["dz"])[::4])
    n, size = len(items), max(len(item.z) for item in items)
    arrays: dict[str, Any] = {"Z": np.zeros((n, size), int), "E": np.array([item.energy.item() for item in items])}
    arrays |= {"R": np.zeros((n, size, 3)), "F": np.zeros((n, size, 3))}
    images = []
    for i, item in enumerate(items):
        k = len(item.z)
        arrays["Z"][i, :k], arrays["R"][i, :k], arrays["F"][i, :k] = item.z, item.pos, item.forces[:, 0]
        atoms = ase.Atoms(item.z.numpy(), item.pos.numpy())
        energy, forces = arrays["E"][i] / EV_TO_KCAL_MOL, arrays["F"][i, :k] / EV_TO_KCAL_MOL
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        images.append(atoms)
    (folder / "12:30" / "arrays").mkdir(parents=True)
    np.savez_compressed(folder / "12:30" / "mine.npz", N=(arrays["Z"] > 0).sum(axis=1), **arrays)
    for key, array in arrays.items():
        np.save(folder / "12:30" / "arrays" / f"chno-{key}.npy", array)
    ase.io.write(folder / "md.traj", images)
    ase.io.write(folder / "md.xyz.gz", images)
    sizes = (arrays["Z"] > 0).sum(axis=1)
    with h5py.File(folder / "by_size.h5", "w") as file:
        for k in np.unique(sizes):
            rows, group = sizes == k, file.create_group(f"{k:03}")
            group["species"], group["coordinates"] = arrays["Z"][rows, :k], arrays["R"][rows, :k].astype(np.float32)
            group["energies"] = arrays["E"][rows] / HARTREE_TO_KCAL_MOL
            group["forces"] = arrays["F"][rows, :k] / HARTREE_TO_KCAL_MOL
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))


def status(command: Any, *arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        command.main(list(arguments))
    return int(stop.value.code or 0)


def test_all_formats_hold_the_same() -> None:
    expected = MiniCHNO(fidelities=["dz"])[::4]
    energies = sorted(item.energy.item() for item in expected)
    forces = np.sort(np.concatenate([item.forces[:, 0].flatten() for item in expected]))
    for text in SPECS:
        data = open_dataset(DatasetSpec.parse(text))._data
        np.testing.assert_allclose(np.sort(data.energy[:, 0]), energies, rtol=1e-9)
        np.testing.assert_allclose(np.sort(data.forces[:, 0].flatten()), forces, atol=1e-4)


@pytest.mark.parametrize("text", SPECS)
def test_preprocess_says_what_there_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    preprocess.main([text])
    out = capsys.readouterr().out
    assert "197 conformations" in out
    assert re.search(r"dz .*197 +197", out)


@pytest.mark.slow
@pytest.mark.parametrize("text", SPECS)
def test_doctor_finds_gradients_in_all_formats(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([text])
    assert "197 conformations, fidelities dz: nothing found" in capsys.readouterr().out
    if "=" in text:
        assert status(doctor, re.sub(r",(\w+)@", r",-\1@", text)) == 1
        assert "the forces are" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize("text", SPECS)
def test_train_and_evaluate(text: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.main(["--fidelities", "dz:EF", "--dataset", text, "--out", str(run), *TINY])
    assert yaml.safe_load((run / "config.yaml").read_text())["dataset"] == [text]
    evaluate.main([str(run), "--dataset", text, "--split", "all", "--json", str(tmp_path / "errors.json")])
    assert "rmse" in (tmp_path / "errors.json").read_text()


@pytest.mark.slow
def test_paths_of_a_settings_file_may_begin_with_a_tilde_and_hold_colons(tmp_path: Path) -> None:
    dataset = ["~/12:30/mine.npz:dz=E,F@kcal/mol"]
    first, second = tmp_path / "first", tmp_path / "second"
    train.main(["--fidelities", "dz:EF", "--dataset", *dataset, "--out", str(first), *TINY])
    (Path("~").expanduser() / "splits:1.npz").write_bytes((first / "splits.npz").read_bytes())
    split = {"method": "index", "file": "~/splits:1.npz"}
    settings = {"fidelities": ["dz:EF"], "dataset": dataset, "split": split}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    train.main(["--config", str(tmp_path / "settings.yaml"), "--out", str(second), *TINY])
    splits = [np.load(run / "splits.npz")["train"] for run in (first, second)]
    assert np.array_equal(*splits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine=~/12:30/none.npz:dz=E,F@kcal/mol", "/12:30/none.npz: no such file"),
        ("mine=~/12:30/mine.npz:dz=E,F,G@kcal/mol", "malformed level 'dz=E,F,G@kcal/mol'"),
    ],
)
def test_study_evaluates_on_paths_with_colons(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(study, "SF-CC/E", "--out", "study", "--evaluate", text) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12:30/mine.npz:dz=Energy,F@eV", "12:30/mine.npz lacks the key 'Energy' of 'dz' (keys found: E, F, N, R, Z)"),
        ("npy:12:30:dz=E@eV", "12:30: no positions and atomic numbers (keys found: none)"),
        ("md.traj:dz=energies@eV", "md.traj: frame 0 lacks the key 'energies' of 'dz'"),
        ("pyanitools:by_size.h5:dz=energy@eV", "did you mean 'energies'?"),
        ("ani2x:12:30/none.h5", "12:30/none.h5: no such file"),
        ("md.trj:dz=energy@eV", "is the file md.trj missing?"),
    ],
)
@pytest.mark.parametrize("command", [preprocess, doctor])
def test_mistakes_are_one_line(command: Any, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(command, text) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.slow
def test_levels_with_labels_missing(
    tmp_path: Path, write_xyz: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_xyz(Path("mine.xyz"), range(0, 788, 16), half="cc", dz="dft_energy,dft_forces", cc="cc_energy")
    data = "mine.xyz:dft=dft_energy,dft_forces@eV:cc=cc_energy?@eV"
    train.main(["--fidelities", "dft:EF", "cc:E", "--dataset", data, *TINY, "--out=run"])
    metrics = json.loads(Path("run/metrics.json").read_text())
    counts = {
        name: sum(rows[name]["energy"]["n"] for rows in metrics.values() if name in rows) for name in ("dft", "cc")
    }
    assert counts == {"dft": 50, "cc": 25}
    evaluate.main(["run", "--json=errors.json", "--plot"])
    assert json.loads(Path("errors.json").read_text()) == metrics
