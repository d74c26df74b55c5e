"""From training to evaluation and loading, with a tiny network and in this process."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch

import mfpyg
from mfpyg.cli import evaluate, train
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.minichno import bundled_file
from mfpyg.errors import MFPyGError
from mfpyg.training.schedule import Schedule

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=128", "--epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train.main(["--fidelities", "dz:EF", "cc:E", "--out", str(out), *TINY])
    return out


def one_line_error(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        command.main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_run_folder_holds_everything(run: Path) -> None:
    tables = {"metrics.csv", "metrics.json", "metrics.txt"}
    expected = tables | {"config.yaml", "versions.json", "splits.npz", "best.ckpt", "last.ckpt"}
    assert expected <= {path.name for path in run.iterdir()}
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["train", "val", "test", "ood"]
    assert set(metrics["test"]) == {"dz", "cc"}
    of_energy = {"n", "mae", "rmse", "mae_per_atom", "rmse_per_atom", "calibration"}
    assert set(metrics["test"]["cc"]["energy"]) == of_energy
    assert set(metrics["test"]["cc"]["forces"]) == {"n", "mae", "rmse", "calibration"}
    of_validation = metrics["val"]["dz"]["energy"]["calibration"]
    assert of_validation["rms_std"] == pytest.approx(metrics["val"]["dz"]["energy"]["rmse"], rel=1e-4)
    assert of_validation["coverage"]["80"] == pytest.approx(0.8, abs=0.03)
    table = (run / "metrics.txt").read_text().splitlines()
    assert [line.split()[:3] for line in table if " cc:F " in line] == [
        ["test", "cc:F", "1068*"],
        ["ood", "cc:F", "132*"],
    ]
    assert "forces" not in metrics["train"]["cc"]
    assert json.loads((run / "versions.json").read_text())["torch"] == torch.__version__


def test_evaluation_repeats_the_final_table_of_the_training(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    evaluate.main([str(run), "--json", str(out), "--plot"])
    assert json.loads(out.read_text()) == json.loads((run / "metrics.json").read_text())
    for split in ("train", "val", "test", "ood"):
        assert (tmp_path / f"errors-{split}.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_on_a_file_is_of_all_of_it(run: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy.h5", tmp_path / "all.json"
    shutil.copy(bundled_file(), copy)
    evaluate.main([str(run), "--dataset", f"minichno:{copy}", "--split", "all", "--json", str(out)])
    everything = json.loads(out.read_text())["all"]
    parts = json.loads((run / "metrics.json").read_text())
    assert everything["dz"]["energy"]["n"] == 788
    total = sum(part["dz"]["forces"]["n"] * part["dz"]["forces"]["rmse"] ** 2 for part in parts.values())
    rmse = everything["dz"]["forces"]["rmse"]
    assert everything["dz"]["forces"]["n"] * rmse**2 == pytest.approx(total, rel=1e-6)


def test_loaded_potential_gives_the_energies_of_the_table(run: Path) -> None:
    potential = mfpyg.load(run)
    dataset = MiniCHNO()
    rows = (dataset._data.split == 1).nonzero().flatten().tolist()
    column = dataset.fidelities.index("cc")
    squares = [float(potential(dataset[i], fidelity="cc").energy - dataset[i].energy[:, column]) ** 2 for i in rows]
    metrics = json.loads((run / "metrics.json").read_text())
    assert (sum(squares) / len(squares)) ** 0.5 == pytest.approx(metrics["test"]["cc"]["energy"]["rmse"], rel=1e-5)
    with pytest.raises(MFPyGError, match=r"unknown fidelity 'ccc' .known: dz, cc.; did you mean 'cc'"):
        potential(dataset[0], fidelity="ccc")
    with pytest.raises(MFPyGError, match=r"several .dz, cc.; name one"):
        potential(dataset[0])


def test_best_checkpoint_carries_what_is_needed_and_opens_safely(run: Path) -> None:
    described = torch.load(run / "best.ckpt", weights_only=True)["mfpyg"]
    assert described["fidelities"] == ["dz", "cc"]
    assert described["units"] == {"energy": "kcal/mol", "forces": "kcal/mol/Å", "length": "Å"}
    assert described["reference_energies"]["cc"]["O"] == pytest.approx(-47000, abs=300)
    assert described["config"]["fidelities"] == ["dz:EF", "cc:E"]
    assert {name: len(rows) for name, rows in described["splits"].items()} == {
        "train": 604,
        "val": 67,
        "test": 72,
        "ood": 45,
    }


def test_checkpoint_whose_weights_do_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    checkpoint["mfpyg"]["fidelities"] = ["dz"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(MFPyGError, match="fidelities dz"):
        mfpyg.load(tmp_path / "other.ckpt")


def test_truncated_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    content = (run / "best.ckpt").read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / "cut.ckpt").write_bytes(content[:length])
        with pytest.raises(MFPyGError, match=r"cut\.ckpt: damaged"):
            mfpyg.load(tmp_path / "cut.ckpt")


def test_resume_refuses_other_settings_naming_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = one_line_error(capsys, train, "--resume", str(run), "--fidelities", "dz:EF", "--optim.lr", "0.5")
    assert "fidelities was ['dz:EF', 'cc:E'], now ['dz:EF']" in error
    assert "optim.lr was 0.001, now 0.5" in error


def test_resume_refuses_other_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    checkpoint = torch.load(copy / "last.ckpt", weights_only=True)
    checkpoint["mfpyg"]["data"]["fingerprint"] = "0" * 64
    torch.save(checkpoint, copy / "last.ckpt")
    assert "data are not those" in one_line_error(capsys, train, "--resume", str(copy), "--epochs", "3")


def test_no_common_fidelity_is_an_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tz"
    train.main(["--fidelities", "mp2_dz:E", "--out", str(out), *TINY, "--epochs=1"])
    capsys.readouterr()
    error = one_line_error(capsys, evaluate, str(run), "--dataset", f"ani1x:{_only_tz(tmp_path)}")
    assert "none of the potential's fidelities dz, cc (it has tz)" in error


def _only_tz(folder: Path) -> Path:
    import h5py

    path = folder / "tz.h5"
    with h5py.File(bundled_file()) as source, h5py.File(path, "w") as target:
        group = target.create_group("H2O1")
        for key in ("atomic_numbers", "coordinates", "wb97x_tz.energy", "wb97x_tz.forces"):
            group[key] = source["H2O1"][key][()]
    return path


def _with_rates(*rates: float) -> Any:
    """A schedule with these learning rates in epoch 0, 1, …"""

    def hook(self: Schedule, trainer: Any, module: Any, batch: Any, number: int) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rates[trainer.current_epoch]

    return hook


def test_loss_that_becomes_nan_stops_the_run_and_names_the_molecule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    monkeypatch.setattr(Schedule, "on_train_batch_start", _with_rates(1e-3, 1e-3, 1e30))
    error = one_line_error(capsys, train, "--fidelities", "dz:EF", "cc:E", "--out", str(out), *TINY, "--epochs=5")
    assert "loss became NaN in epoch 2" in error
    assert any(name in error for name in MiniCHNO().molecules)
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(out / name, weights_only=True)
        assert checkpoint["epoch"] <= 1
        assert all(torch.isfinite(w).all() for w in checkpoint["state_dict"].values())


def test_run_that_fails_before_its_first_epoch_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(Schedule, "on_train_batch_start", _with_rates(1e30))
    error = one_line_error(capsys, train, "--fidelities", "dz:EF", "--out", str(out), *TINY)
    assert "loss became NaN in epoch 0" in error
    assert not out.exists()


def test_stored_edges_train_to_the_same_errors(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "stored"
    train.main(["--fidelities", "dz:EF", "cc:E", "--out", str(out), *TINY, "--edges=stored"])
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (run, out))
    assert two["test"]["cc"]["forces"]["rmse"] == pytest.approx(one["test"]["cc"]["forces"]["rmse"], rel=1e-6)


def test_resume_refuses_a_checkpoint_of_other_fidelities(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, mixed = tmp_path / "other", tmp_path / "mixed"
    train.main(["--fidelities", "dz:EF", "tz:E", "--out", str(other), *TINY])
    shutil.copytree(run, mixed)
    shutil.copy(other / "last.ckpt", mixed / "last.ckpt")
    capsys.readouterr()
    error = one_line_error(capsys, train, "--resume", str(mixed), "--epochs", "3")
    assert "fidelities was ['dz:EF', 'tz:E'], now ['dz:EF', 'cc:E']" in error


def test_weights_of_another_fidelity_are_refused(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    checkpoint["mfpyg"]["fidelities"] = ["cc", "dz"]
    torch.save(checkpoint, tmp_path / "swapped.ckpt")
    with pytest.raises(MFPyGError, match="different reference energies of 'cc'"):
        mfpyg.load(tmp_path / "swapped.ckpt")


def test_checkpoint_in_other_units_is_refused(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    checkpoint["mfpyg"]["units"]["energy"] = "eV"
    torch.save(checkpoint, tmp_path / "ev.ckpt")
    with pytest.raises(MFPyGError, match="'energy': 'eV'"):
        mfpyg.load(tmp_path / "ev.ckpt")


def test_resume_of_a_run_that_stopped_early_trains_no_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(Schedule, "on_train_batch_start", _with_rates(1e-3, 0.5, 0.5, 0.5, 0.5, 0.5))
        train.main(["--fidelities", "dz:E", "--out", str(out), *TINY, "--epochs=6", "--optim.stop-after=1"])
    log, table = (out / "metrics.csv").read_text(), (out / "metrics.json").read_text()
    assert log.count("\n") < 7, "the run never stopped early"
    weights = (out / "last.ckpt").read_bytes()
    train.main(["--resume", str(out)])
    assert "stopped early" in capsys.readouterr().out
    assert (out / "metrics.csv").read_text() == log
    assert (out / "metrics.json").read_text() == table
    assert (out / "last.ckpt").read_bytes() == weights


def test_resume_for_fewer_epochs_than_there_are_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has 2 epochs already" in one_line_error(capsys, train, "--resume", str(run), "--epochs", "1")


def test_run_killed_before_its_first_checkpoint_can_be_started_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("config.yaml", "versions.json", "splits.npz", "metrics.csv"):
        shutil.copy(run / name, killed / name)
    assert "start a new run" in one_line_error(capsys, train, "--resume", str(killed))
    train.main(["--fidelities", "dz:E", "--out", str(killed), *TINY, "--epochs=1"])
    assert (killed / "metrics.csv").read_text().count("\n") == 2


def test_failing_run_leaves_a_folder_that_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    monkeypatch.setattr(Schedule, "on_train_batch_start", _with_rates(1e30))
    one_line_error(capsys, train, "--fidelities", "dz:EF", "--out", str(out), *TINY)
    assert list(out.iterdir()) == []


def test_monitor_without_validation_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--fidelities", "dz:E", "tz:E", "--split.val=0.01", "--seed=2", "--out", str(tmp_path / "run"), *TINY]
    assert "monitor tz has no labels" in one_line_error(capsys, train, *options, "--monitor=tz")
    train.main([*options, "--epochs=1"])
    assert "no tz energies in validation" in capsys.readouterr().out


def test_gpu_that_is_not_there_is_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "run"
    error = one_line_error(capsys, train, "--fidelities", "dz:E", "--out", str(out), *TINY, "--accelerator=cuda")
    assert "1 CUDA devices requested, 0 found" in error
    assert not out.exists()
    assert "0 found" in one_line_error(capsys, evaluate, str(run), "--accelerator", "cuda")


def test_evaluations_of_different_data_do_not_overwrite_each_other(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copy(bundled_file(), tmp_path / "copy.h5")
    evaluate.main([str(folder)])
    evaluate.main([str(folder), "--split", "test"])
    evaluate.main([str(folder / "best.ckpt"), "--dataset", f"minichno:{tmp_path / 'copy.h5'}", "--split", "all"])
    written = {path.name for path in folder.glob("evaluation*.json")}
    (other,) = written - {"evaluation.json", "evaluation-test.json"}
    assert re.fullmatch(r"evaluation-minichno-copy-[0-9a-f]{6}-all\.json", other)
    (tmp_path / "there").mkdir()
    shutil.copy(bundled_file(), tmp_path / "there" / "copy.h5")
    evaluate.main([str(folder), "--dataset", f"minichno:{tmp_path / 'there' / 'copy.h5'}", "--split", "all"])
    assert len(list(folder.glob("evaluation-minichno-copy-*-all.json"))) == 2
    assert list(json.loads((folder / "evaluation-test.json").read_text())) == ["test"]


def test_settings_file_of_the_user_survives_a_failing_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "config.yaml"
    mine.write_text("# precious\nfidelities: [dz:EF]\n")
    monkeypatch.setattr(Schedule, "on_train_batch_start", _with_rates(1e30))
    error = one_line_error(capsys, train, "--config", str(mine), "--out", str(tmp_path), *TINY)
    assert "choose another folder" in error
    assert mine.read_text().startswith("# precious")


def test_run_killed_while_it_wrote_its_first_checkpoints_can_be_started_anew(run: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("config.yaml", "versions.json", "splits.npz", "metrics.csv", "best.ckpt"):
        shutil.copy(run / name, killed / name)
    (killed / ".last.ckpt.ab12.tmp").write_bytes(b"half")
    train.main(["--fidelities", "dz:E", "--out", str(killed), *TINY, "--epochs=1"])
    assert not list(killed.glob(".*.tmp"))
    assert torch.load(killed / "best.ckpt", weights_only=True)["mfpyg"]["fidelities"] == ["dz"]


@pytest.mark.parametrize("name", ["best.ckpt", "splits.npz"])
def test_resume_misses_a_file_before_it_trains(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / name).unlink()
    assert name in one_line_error(capsys, train, "--resume", str(copy), "--epochs", "3")
    assert (copy / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


@pytest.mark.parametrize("log", ["", "epoch,sec", "epoch,seconds\nx,1\n"])
def test_resume_survives_a_damaged_log(run: Path, tmp_path: Path, log: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "metrics.csv").write_text(log)
    train.main(["--resume", str(copy), "--epochs", "3"])
    assert (copy / "metrics.csv").read_text().splitlines()[-1].startswith("2,")


def test_json_that_is_a_folder_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a folder" in one_line_error(capsys, evaluate, str(run), "--json", str(tmp_path))


@pytest.mark.parametrize("strategy", ["mfl", "tl", "delta", "meta"])
def test_every_strategy_is_evaluated_on_data_with_some_of_its_levels(
    write_xyz: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    out = tmp_path / "run"
    train.main(["--fidelities", "dz:E", "cc:E", "--strategy", strategy, "--out", str(out), *TINY])
    for level in ("dz", "cc"):
        data = f"{write_xyz(tmp_path / f'{level}.xyz', range(0, 788, 30), **{level: 'energy'})}:{level}=energy@eV"
        arguments = [str(out), "--dataset", data, "--json", str(tmp_path / "errors.json"), "--plot"]
        if level == "dz" and strategy in ("tl", "meta"):
            assert "none of the potential's fidelities cc (it has dz)" in one_line_error(capsys, evaluate, *arguments)
            continue
        evaluate.main(arguments)
        assert set(json.loads((tmp_path / "errors.json").read_text())["all"]) == {level}


def test_labels_left_out_are_of_a_level_that_other_data_may_lack(write_xyz: Any, tmp_path: Path) -> None:
    """The same numbers under another name are the same data, which lack a level all the same."""
    path, out = write_xyz(tmp_path / "two.xyz", range(0, 788, 8), dz="dft", cc="ccsd"), tmp_path / "run"
    data = ["--dataset", f"{path}:dz=dft@eV:cc=ccsd@eV", "--label-fraction", "cc=0.5"]
    train.main(["--fidelities", "dz:E", "cc:E", *data, "--out", str(out), *TINY])
    evaluate.main([str(out), "--dataset", f"{path}:dz=dft@eV:other=ccsd@eV", "--json", str(tmp_path / "errors.json")])
    trained, found = (json.loads(p.read_text()) for p in (out / "metrics.json", tmp_path / "errors.json"))
    assert found == {split: {"dz": rows["dz"]} for split, rows in trained.items()}


def test_split_without_labels_is_not_drawn(write_xyz: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_xyz(tmp_path / "some.xyz", range(0, 788, 8), cc="energy")
    frames = ase.io.read(path, ":")
    for number, atoms in enumerate(frames):
        atoms.calc, atoms.info["split"] = None, int(number > 80)
        atoms.info |= {} if number > 80 else {"cc": -1.0 * len(atoms)}
    ase.io.write(path, frames)
    out = tmp_path / "run"
    train.main(["--fidelities", "cc:E", "--dataset", f"{path}:cc=cc?@eV", "--out", str(out), *TINY])
    evaluate.main([str(out), "--plot"])
    assert "note: no labels in test to plot" in capsys.readouterr().out
    assert sorted(p.name for p in out.glob("*.png")) == ["evaluation-train.png", "evaluation-val.png"]


def test_labels_beside_energies_and_forces_are_left_alone(tmp_path: Path, untrained: Any, capsys: Any) -> None:
    atoms = ase.Atoms("OH2", [[0, 0, 0], [0, 0, 1.0], [0.9, 0, 0]])
    atoms.info = {"e": -2000.0, "mu": [0.1, 0.2, 0.3]}
    ase.io.write(tmp_path / "water.xyz", [atoms, atoms], format="extxyz")
    spec = f"{tmp_path / 'water.xyz'}:dz=e,D=mu@eV"
    evaluate.main([str(untrained("dz:E")), "--dataset", spec, "--json", str(tmp_path / "errors.json")])
    assert json.loads((tmp_path / "errors.json").read_text())["all"]["dz"]["energy"]["n"] == 2
