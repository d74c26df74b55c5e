"""``mfpyg-inspect``: what it says is what the run, its checkpoint and the data say themselves."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mfpyg
from mfpyg.checkpoint import describe
from mfpyg.cli import inspection, train
from mfpyg.datasets import ANI1x, MiniCHNO
from mfpyg.graph import RadiusGraph
from mfpyg.inspection import inspect
from mfpyg.inspection.trained import split_hash
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.settings import defaults, from_dict

TINY = ["--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=128"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train.main(["--fidelities", "dz:EF", "cc:E", "--out", str(out), "--epochs=2", *TINY])
    return out


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "delta"
    train.main(["--fidelities", "dz:EF", "cc:E", "--out", str(out), "--epochs=2", "--strategy=delta", *TINY])
    return out


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """``changed(change)``: a checkpoint whose contents a function has changed."""

    def write(change: Callable[[dict[str, Any]], Any]) -> Path:
        checkpoint = torch.load(run / "best.ckpt", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        inspection.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.startswith("mfpyg-inspect: error: ")
    assert err.count("\n") == 1
    return err


# Checkpoints and runs


def test_values_are_those_of_the_run(run: Path) -> None:
    found, potential = inspect(run), mfpyg.load(run)
    assert (found["kind"], found["format"]) == ("run", 1)
    assert found["config"] == yaml.safe_load((run / "config.yaml").read_text())
    assert found["metrics"] == json.loads((run / "metrics.json").read_text())
    assert found["versions"] == {"trained": json.loads((run / "versions.json").read_text()), "different": {}}
    assert {name: level["labels"] for name, level in found["fidelities"].items()} == {"dz": "EF", "cc": "E"}
    for name, level in found["fidelities"].items():
        assert list(level["reference_energies"]) == ["H", "C", "N", "O"]
        assert list(level["reference_energies"].values()) == potential.reference(name).tolist()
    assert found["fidelities"]["cc"]["method"] == "CCSD(T)/cc-pVDZ"
    about = found["potential"]
    assert about["n_parameters"] == sum(p.numel() for p in potential.parameters())
    assert (about["backbone"], about["missing"], about["cutoff"]) == ("hipnn", None, potential.cutoff)
    assert about["units"] == {"energy": "kcal/mol", "forces": "kcal/mol/Å", "length": "Å"}


def test_standard_deviations_and_their_calibration(
    run: Path, delta: Path, changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found, potential = inspect(run)["fidelities"], mfpyg.load(run)
    assert isinstance(potential, MultiFidelityPotential)
    for name, n_forces in (("dz", 67), ("cc", 0)):
        energy_scale, forces_scale = potential.uncertainty[name].scale.tolist()
        assert found[name]["standard_deviations"] == {
            "held_out_energies": 67,
            "held_out_with_forces": n_forces,
            "energy_scale": energy_scale,
            "forces_scale": forces_scale,
        }
    of_target = inspect(delta)["fidelities"]["cc"]["standard_deviations"]
    assert [of_target["energy_scale"], of_target["forces_scale"]] == mfpyg.load(delta).std_scale.tolist()
    assert of_target["held_out_energies"] == 67
    inspection.main([str(run)])
    words = " ".join(capsys.readouterr().out.split())
    assert "standard deviations dz: calibrated by 67 energies and forces of 67 conformations, scales" in words
    assert "; cc: calibrated by 67 energies and expected errors of forces, scales" in words
    bare = changed(lambda checkpoint: checkpoint.pop("uncertainty"))
    assert inspect(bare)["fidelities"]["cc"]["standard_deviations"] is None
    inspection.main([str(bare)])
    assert "standard deviations dz: none; cc: none" in " ".join(capsys.readouterr().out.split())


def test_data_and_training_are_those_of_the_run(run: Path) -> None:
    found = inspect(run)
    with np.load(run / "splits.npz") as stored:
        splits = {name: stored[name] for name in stored.files}
    assert found["data"]["name"] == ["minichno"]
    assert found["data"]["fingerprint"] == MiniCHNO().fingerprint
    assert found["data"]["splits"] == {name: len(rows) for name, rows in splits.items()}
    assert found["data"]["split_hash"] == split_hash(splits)
    with (run / "metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    training = found["training"]
    assert training["best_epoch"] == int(np.argmin(losses))
    assert training["best_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert (training["epochs"], training["epochs_asked"], training["steps"]) == (2, 2, 10)
    assert training["finished"]
    assert training["resumable"]


def test_changed_settings_are_those_given(run: Path) -> None:
    assert inspect(run)["changed"] == {
        "fidelities": ["dz:EF", "cc:E"],
        "out": str(run),
        "epochs": 2,
        "batch_size": 128,
        "compile": "off",
        "model.n_features": 6,
        "model.n_atom_layers": 1,
        "model.n_sensitivities": 5,
    }


def test_checkpoint_is_that_of_the_run(run: Path) -> None:
    of_run, alone = inspect(run), inspect(run / "best.ckpt")
    assert alone["kind"] == "checkpoint"
    assert alone["metrics"] is None
    for name in ("potential", "fidelities", "data", "config", "changed", "versions"):
        assert alone[name] == of_run[name]


def test_difference_says_its_base(delta: Path) -> None:
    found, potential = inspect(delta), mfpyg.load(delta)
    assert (found["potential"]["strategy"], found["potential"]["base_level"]) == ("delta", "dz")
    assert list(found["fidelities"]) == ["dz", "cc"]
    assert found["training"]["stage"] == 1
    assert found["potential"]["n_parameters"] == sum(p.numel() for p in potential.parameters())


def test_split_hash_tells_splits_apart() -> None:
    splits = {"train": np.array([1, 2]), "val": np.array([3])}
    same = {"val": np.array([3], np.int32), "train": np.array([1, 2], np.int32)}
    assert split_hash(splits) == split_hash(same)
    for other in ({"train": np.array([1]), "val": np.array([2, 3])}, {"train": np.array([2, 1]), "val": np.array([3])}):
        assert split_hash(other) != split_hash(splits)


@pytest.mark.parametrize("backbone", ["hipnn", "schnet", "painn", "visnet", "nequip", "mace"])
def test_number_of_parameters(tmp_path: Path, backbone: str) -> None:
    settings = from_dict({**defaults("small", backbone), "fidelities": ["dz:E"]})
    potential = build_potential(settings, [1, 8], ["dz"])
    described = describe(potential, settings, {"name": "x", "fingerprint": "", "methods": {}}, {})
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    number = sum(p.numel() for p in potential.parameters())
    torch.save({"state_dict": weights, "mfpyg": described}, tmp_path / "x.ckpt")
    assert inspect(tmp_path / "x.ckpt")["potential"]["n_parameters"] == number
    del described["n_parameters"]  # of an older version: counted, which takes buffers for parameters
    torch.save({"state_dict": weights, "mfpyg": described}, tmp_path / "x.ckpt")
    counted = inspect(tmp_path / "x.ckpt")["potential"]["n_parameters"]
    assert counted == number if backbone in ("hipnn", "painn") else number <= counted < 1.1 * number


def test_run_that_was_stopped(run: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "run"
    shutil.copytree(run, stopped)
    (stopped / "metrics.json").unlink()
    found = inspect(stopped)
    assert not found["training"]["finished"]
    assert found["training"]["resumable"]
    (stopped / "best.ckpt").unlink()
    assert inspect(stopped)["checkpoint"] == str(stopped / "last.ckpt")


def test_other_versions_are_told(changed: Callable[..., Path]) -> None:
    trained = {"torch": "1.0", "python": "3.0", "gone-package": "2"}
    path = changed(lambda c: c["mfpyg"]["versions"].update(trained))
    versions = inspect(path)["versions"]
    assert versions["trained"]["torch"] == "1.0"
    assert set(versions["different"]) == {"torch", "python", "gone-package"}
    assert versions["different"]["torch"] == importlib.metadata.version("torch")
    assert versions["different"]["gone-package"] is None


def test_backbone_that_is_not_installed_is_described(
    changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["mfpyg"]["backbone_package"] = "wide_networks"
        checkpoint["mfpyg"]["config"].update(backbone="wide", model={"width": 7, "cutoff": 3.5})

    path = changed(change)
    found = inspect(path)
    assert "comes from package wide_networks, which is not installed here" in found["potential"]["missing"]
    assert found["potential"]["cutoff"] == 3.5
    assert found["changed"]["model.width"] == 7
    inspection.main([str(path)])
    assert "wide of package wide_networks" in capsys.readouterr().out


# The command


def test_table_shows_what_matters(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(run)
    inspection.main([str(run)])
    out = capsys.readouterr().out
    for text in ("dz:EF", "cc:E", found["data"]["fingerprint"], found["data"]["split_hash"], "CCSD(T)/cc-pVDZ",
                 f"{found['potential']['n_parameters']:,}", "best epoch", "604 train", "can be resumed"):  # fmt: skip
        assert text in out
    assert f"{found['metrics']['test']['cc']['energy']['rmse']:.3f}" in out
    assert "model.n_features" in out
    assert "model.tensor_order" not in out
    inspection.main([str(run), "--all"])
    assert "model.tensor_order" in capsys.readouterr().out


def test_json_is_the_same_on_standard_output_and_in_a_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspection.main([str(run), "--json", "-"])
    out = capsys.readouterr().out
    assert json.loads(out) == inspect(run)
    inspection.main([str(run), "--json", str(tmp_path / "x.json")])
    assert (tmp_path / "x.json").read_text() == out
    assert "dz:EF" in capsys.readouterr().out


@pytest.mark.slow
def test_json_can_be_piped(run: Path) -> None:
    command = [sys.executable, "-m", "mfpyg.cli.inspection", str(run), "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout)["kind"] == "run"
    assert done.stderr == ""


def test_what_has_no_number_becomes_null(changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"] = {"RunCheckpoint": {"best": float("inf"), "best_epoch": -1}, "x": 3}
        del checkpoint["epoch"], checkpoint["global_step"], checkpoint["progress"]

    inspection.main([str(changed(change)), "--json", "-"])
    training = json.loads(capsys.readouterr().out)["training"]
    assert set(training.values()) == {None, 2}  # but the epochs asked for


# Data


def test_data_set_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    found, dataset = inspect("minichno"), MiniCHNO()
    assert Path(found["path"]).parent == Path(dataset.processed_dir)
    assert found["fingerprint"] == dataset.fingerprint
    assert (found["conformations"], found["molecules"], found["atoms"]) == (788, 21, len(dataset._data.z))
    assert found["elements"] == ["H", "C", "N", "O"]
    assert found["splits"] == {"pool": 671, "test": 72, "ood": 45, "not said": 0}
    assert found["edges"] is None
    for row in dataset.label_counts():
        level = found["fidelities"][row["name"]]
        assert {**row, "incomplete_forces": 0} == {"name": row["name"], **level}
    inspection.main([found["path"]])
    assert "788 of 21 molecules" in capsys.readouterr().out


def test_processed_file_and_its_folder_are_described(release_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    dataset = ANI1x(root, ["dz", "cc"], file=release_file, pre_transform=RadiusGraph(2.0))
    found = inspect(dataset.processed_paths[0])
    assert inspect(root) == inspect(root / "processed") == found
    assert list(found["fidelities"]) == ["dz", "cc"]
    assert [found["fidelities"]["cc"][name] for name in ("energies", "forces")] == [6, 0]
    assert found["edges"] == {"cutoff": 2.0, "number": dataset._data.edge_index.shape[1]}
    assert found["splits"]["not said"] == 9
    ANI1x(root, ["dz"], file=release_file)
    with pytest.raises(mfpyg.MFPyGError, match="holds 2 processed data sets; name one: "):
        inspect(root)


def test_study_is_counted(run: Path, tmp_path: Path) -> None:
    plan = {"models": ["SF-DZ/E"], "strategies": ["mfl"], "fractions": [1.0], "members": 2, "options": [],
            "levels": ["dz", "cc"], "epochs": 2}  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plan))
    shutil.copytree(run, tmp_path / "runs/SF-DZ_E/mfl-1/seed-0")
    found = inspect(tmp_path)
    assert found["plan"] == plan
    assert sorted(found["runs"].values()) == ["finished", "missing"]


# Wrong input


def test_what_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "none.ckpt: no such file" in refusal(capsys, str(tmp_path / "none.ckpt"))
    assert "unknown data set 'minichn'" in refusal(capsys, "minichn")
    assert "not a run folder, a study or a processed data set" in refusal(capsys, str(tmp_path))
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    assert "no checkpoint" in refusal(capsys, str(tmp_path))
    refusal(capsys)


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.h5", "x"])
@pytest.mark.parametrize("content", [b"", b"words", bytes(range(256)) * 20, b"PK\x03\x04" + bytes(100)])
def test_file_that_is_something_else_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name}: damaged" in refusal(capsys, str(tmp_path / name))


class Code:
    def __init__(self, made: str) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.made,)


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt"])
def test_code_in_a_file_is_not_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    torch.save({"mfpyg": Code(str(tmp_path / "made")), "state_dict": {}}, tmp_path / name)
    assert f"{name}: damaged" in refusal(capsys, str(tmp_path / name))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["config"].update(model=3),
        lambda m: m["config"].update(model={"nonsense": 3}),
        lambda m: m["config"].update(fidelities=["dz"]),
        lambda m: m["config"].update(preset=[]),
        lambda m: m["config"].pop("backbone"),
        lambda m: m["config"].update(backbone="hipn"),
        lambda m: m.update(n_parameters="many"),
        lambda m: m.update(species=[0]),
    ],
)
def test_wrong_description_is_one_line(
    changed: Callable[..., Path], capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], Any]
) -> None:
    assert "changed.ckpt: " in refusal(capsys, str(changed(lambda c: change(c["mfpyg"]))))


@pytest.mark.parametrize("text", ["{", "[]", '{"test": 3}', '{"test": {"cc": {"energy": {"n": 3}}}}'])
def test_damaged_table_of_errors_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(text)
    assert "metrics.json: " in refusal(capsys, str(tmp_path / "run"))


def test_place_for_json_is_checked_first(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such folder" in refusal(capsys, str(run), "--json", str(tmp_path / "none" / "x.json"))
    assert "expected the name of a file" in refusal(capsys, str(run), "--json", str(tmp_path))
    assert "unknown option --jsn; did you mean '--json'" in refusal(capsys, str(run), "--jsn", "-")
