"""Runs whose folder or data have moved: they go on as if they had not, and nothing else is taken for their data."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mfpyg.cli import evaluate, inspection, study, train

TINY = (
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=32", "--compile=off",
)  # fmt: skip
LEVELS = "dz=dft@eV:cc=ccsd@eV"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_xyz: Callable[..., Path]) -> Path:
    """``data.xyz``, and runs of it with a relative path: ``whole`` of four epochs, ``part`` of the first two."""
    folder = tmp_path_factory.mktemp("made")
    write_xyz(folder / "data.xyz", range(0, 788, 8), dz="dft", cc="ccsd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for out, epochs in (("whole", 4), ("part", 2)):
            arguments = ["--fidelities", "dz:E", "cc:E", "--dataset", f"data.xyz:{LEVELS}", *TINY]
            train.main([*arguments, f"--epochs={epochs}", "--optim.schedule=constant", "--out", out])
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder, with the run as ``moved`` and the data as ``there/new.xyz``."""
    shutil.copytree(made / "part", tmp_path / "moved")
    (tmp_path / "there").mkdir()
    shutil.copy(made / "data.xyz", tmp_path / "there" / "new.xyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> str:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command.main(list(arguments))
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1), error
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return error


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_run_goes_on_where_folder_and_data_are_now(made: Path, here: Path) -> None:
    new = f"there/new.xyz:{LEVELS}"
    train.main(["--resume", "moved", "--epochs=4", "--dataset", new])
    for name in ("last.ckpt", "best.ckpt"):
        one, two = (torch.load(run / name, weights_only=True) for run in (made / "whole", Path("moved")))
        assert (one["epoch"], one["global_step"]) == (two["epoch"], two["global_step"])
        assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
        assert one["callbacks"] == two["callbacks"]
    assert rows(made / "whole") == rows(Path("moved"))
    assert (made / "whole" / "metrics.json").read_text() == Path("moved/metrics.json").read_text()
    # From now on the run itself says where its data are.
    assert yaml.safe_load(Path("moved/config.yaml").read_text())["dataset"] == [new]
    evaluate.main(["moved", "--json", "errors.json"])
    assert json.loads(Path("errors.json").read_text()) == json.loads(Path("moved/metrics.json").read_text())
    train.main(["--resume", "moved", "--epochs=5"])


def test_run_that_has_ended_says_where_its_data_are_now(made: Path, here: Path) -> None:
    train.main(["--resume", "moved", "--dataset", f"there/new.xyz:{LEVELS}"])
    assert (made / "part" / "last.ckpt").read_bytes() == Path("moved/last.ckpt").read_bytes()
    for what in ("moved", "moved/best.ckpt"):
        evaluate.main([what, "--json", "errors.json"])
        assert json.loads(Path("errors.json").read_text()) == json.loads((made / "part" / "metrics.json").read_text())


def test_path_that_leads_nowhere_is_said_with_its_folder_and_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"data.xyz: no such file or folder in the current folder, {here};"
    error = refused(capsys, train, "--resume", "moved", "--epochs=4")
    assert missing in error
    assert error.endswith("say where they are now: mfpyg-train --resume moved --dataset NEW\n")
    error = refused(capsys, evaluate, "moved")
    assert missing in error
    assert error.endswith("say where they are now: mfpyg-evaluate moved --dataset NEW\n")
    error = refused(capsys, train, "--resume", "moved", "--dataset", f"{here}/none.xyz:{LEVELS}")
    assert f"{here}/none.xyz: no such file or folder;" in error
    inspection.main(["moved"])  # which needs no data


def test_usual_place_of_a_data_set_is_one_of_the_current_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(Path("moved/config.yaml").read_text())
    Path("moved/config.yaml").write_text(yaml.safe_dump({**values, "dataset": ["ani1x"]}))
    error = refused(capsys, train, "--resume", "moved")
    assert f"data/ani1x: no such file or folder in the current folder, {here};" in error
    assert "--dataset NEW" in error


def test_moved_data_are_evaluated_on_the_splits_of_the_run(made: Path, here: Path) -> None:
    evaluate.main(["moved", "--dataset", f"there/new.xyz:{LEVELS}", "--json", "errors.json"])
    assert json.loads(Path("errors.json").read_text()) == json.loads((made / "part" / "metrics.json").read_text())


def test_moved_data_are_opened_as_in_training(here: Path) -> None:
    """A potential of the target alone was trained on more levels, which the splits' fingerprint is of."""
    old = ["--dataset", f"there/new.xyz:{LEVELS}"]
    levels = ["--fidelities", "hf_dz:E", "cc:E", "--strategy=tl"]
    shutil.copy(Path(train.__file__).parents[1] / "datasets" / "data" / "minichno.h5", "a.h5")
    train.main([*levels, "--dataset", "minichno:a.h5", *TINY, "--batch-size=302", "--epochs=2", "--out=tl"])
    Path("a.h5").rename("b.h5")
    evaluate.main(["tl", "--dataset", "minichno:b.h5", "--json", "errors.json"])
    assert json.loads(Path("errors.json").read_text()) == json.loads(Path("tl/metrics.json").read_text())
    evaluate.main(["tl", *old, "--json", "other.json"])
    assert list(json.loads(Path("other.json").read_text())) == ["all"]


def test_other_data_are_no_moved_ones(
    here: Path, write_xyz: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_xyz(Path("labels.xyz"), range(0, 788, 8), dz="ccsd", cc="dft")
    write_xyz(Path("fewer.xyz"), range(0, 788, 9), dz="dft", cc="ccsd")
    for name, which in (("labels", "labels"), ("fewer", "conformations or elements")):
        error = refused(capsys, train, "--resume", "moved", "--epochs=4", "--dataset", f"{name}.xyz:{LEVELS}")
        assert f"the data are not those the run was started on (other {which}; fingerprint was" in error
    # The same numbers, each taken for the other level's.
    swapped = "there/new.xyz:cc=dft@eV:dz=ccsd@eV"
    error = refused(capsys, train, "--resume", "moved", "--epochs=4", "--dataset", swapped)
    assert "levels of the data were dz, cc, now cc, dz" in error


def test_study_goes_on_where_folder_and_data_are_now(
    here: Path, capsys: pytest.CaptureFixture[str], training_here: Callable[[], AbstractContextManager[None]]
) -> None:
    shutil.copy("there/new.xyz", "old.xyz")
    options = ["--jobs=1", *TINY, "--epochs=2", "--split.method=random"]
    with training_here():
        study.main(["SF-CC/E", "--members=1", "--out=one", *options, "--dataset", f"old.xyz:{LEVELS}"])
    Path("old.xyz").unlink()
    Path("one").rename("two")
    again = ["SF-CC/E", "--members=2", "--out=two", *options]
    error = refused(capsys, study, *again, "--dataset", f"old.xyz:{LEVELS}")
    assert "old.xyz: no such file or folder in the current folder" in error
    assert error.endswith("say where they are now: the same command with --dataset NEW\n")
    other = Path("there/new.xyz").read_text().replace("ccsd=-", "ccsd=-1")
    Path("other.xyz").write_text(other)
    error = refused(capsys, study, *again, "--dataset", f"other.xyz:{LEVELS}")
    assert f"other.xyz:{LEVELS} is not the data that it was started on" in error
    # One run has to be finished, another to be begun.
    first = Path("two/runs/SF-CC_E/mfl-1/seed-0")
    (first / "metrics.json").unlink()
    with training_here():
        study.main([*again, "--dataset", f"there/new.xyz:{LEVELS}"])
    assert "report: two/report.html" in capsys.readouterr().out
    with Path("two/table-energy.csv").open(newline="") as file:
        assert [row["members"] for row in csv.DictReader(file)] == ["2"]
