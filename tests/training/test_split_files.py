"""Files of their own for training, validation and test: which rows are in which split, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mfpyg import settings as s
from mfpyg.cli import evaluate, study, train
from mfpyg.cli.train_options import default_out, parse
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.settings import SplitSettings

TINY = (
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=32", "--compile=off",
)  # fmt: skip
DFT = "dft=energy,forces@eV"


@pytest.fixture
def here(tmp_path: Path, write_xyz: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``a.xyz`` (40 conformations), ``b.xyz`` (10), ``c.xyz`` (8) and, without forces, ``d.xyz`` (6)."""
    monkeypatch.chdir(tmp_path)
    for name, first, n in (("a", 0, 40), ("b", 1, 10), ("c", 2, 8)):
        write_xyz(Path(f"{name}.xyz"), range(first, 788, 19)[:n], dz="energy,forces")
    write_xyz(Path("d.xyz"), range(3, 788, 19)[:6], dz="energy", cc="ccsd")
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> str:
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command.main(list(arguments))
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1), error
    assert sorted(Path().rglob("*")) == before
    return error


def splits_of(*files: str, **options: Any) -> dict[str, list[int]]:
    settings = s.from_dict({"fidelities": ["dft:EF"], "split": {"files": list(files), **options}})
    settings.check()
    dataset = open_dataset(parse_specs(settings.sources), ["dft"])
    return {name: rows.tolist() for name, rows in make_splits(dataset, settings.split, seed=3).items()}


def rows_by_source(*sizes: int) -> list[list[int]]:
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


# Which rows


@pytest.mark.usefixtures("here")
def test_a_split_is_what_its_files_hold() -> None:
    a, b, c = rows_by_source(40, 10, 8)
    assert splits_of(f"train=a.xyz:{DFT}", f"val=b.xyz:{DFT}", f"test=c.xyz:{DFT}") == {"train": a, "val": b, "test": c}
    # In whatever order they are given, training comes first, and what the user has named comes last.
    found = splits_of("hard=d.xyz:dft=energy@eV", f"test=c.xyz:{DFT}", f"val=b.xyz:{DFT}", f"train=a.xyz:{DFT}")
    a, b, c, d = rows_by_source(40, 10, 8, 6)
    assert found == {"train": a, "val": b, "test": c, "hard": d}
    assert list(found) == ["train", "val", "test", "hard"]
    a, c, b = rows_by_source(40, 8, 10)
    assert splits_of(f"train=a.xyz:{DFT}", f"val=b.xyz:{DFT}", f"train=c.xyz:{DFT}") == {"train": a + c, "val": b}


@pytest.mark.usefixtures("here")
def test_validation_that_is_not_named_is_a_part_of_each_training_file() -> None:
    a, c, b = rows_by_source(40, 8, 10)
    files = [f"train=a.xyz:{DFT}", f"train=c.xyz:{DFT}", f"test=b.xyz:{DFT}"]
    found = splits_of(*files, val=0.25)
    assert sorted(found["train"] + found["val"]) == a + c
    assert (len(set(found["val"]) & set(a)), len(set(found["val"]) & set(c))) == (10, 2)
    assert found["test"] == b
    assert splits_of(*files, val=0.25) == found
    alone = splits_of(files[0])
    assert {name: len(rows) for name, rows in alone.items()} == {"train": 36, "val": 4}


def test_division_that_a_file_gives_does_not_count() -> None:
    """MiniCHNO says itself what is for the test."""
    assert {name: len(rows) for name, rows in splits_of_minichno("train=minichno").items()} == {"train": 709, "val": 79}


def splits_of_minichno(*files: str) -> dict[str, np.ndarray]:
    return make_splits(open_dataset(parse_specs(["minichno"])), SplitSettings(files=list(files)), seed=0)


@pytest.mark.usefixtures("here")
def test_too_little_to_take_validation_from_is_refused() -> None:
    with pytest.raises(MFPyGError, match=r"split 'val' of 6 conformations is empty; give split.val another share"):
        splits_of("train=d.xyz:dft=energy@eV", val=0.05)


# Settings


@pytest.mark.usefixtures("here")
def test_settings_are_read_as_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"train=a.xyz:{DFT}", f"val=b.xyz:{DFT}"]
    arguments = ["--fidelities", "dft:EF", "--split.files", *files]
    with pytest.raises(SystemExit):
        train.main([*arguments, "--print-config"])
    Path("config.yaml").write_text(capsys.readouterr().out)
    values = yaml.safe_load(Path("config.yaml").read_text())
    assert (values["dataset"], values["split"]["files"]) == ([], files)
    settings, _ = parse(arguments)
    assert parse(["--config", "config.yaml"])[0] == settings
    assert s.from_dict(s.to_dict(settings)) == settings
    assert settings.preset == "published"
    assert default_out(settings) == "runs/a+b-dft_EF-seed0"
    # A file of the user's own, without what is not to be said.
    Path("mine.yaml").write_text(yaml.safe_dump({"fidelities": ["dft:EF"], "split": {"files": files}}))
    assert parse(["--config", "mine.yaml"])[0] == settings
    assert parse(["--fidelities", "dz:E", "--split.files", "train=minichno"])[0].preset == "small"


A = f"train=a.xyz:{DFT}"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([A, "--dataset", f"b.xyz:{DFT}"], f"dataset is b.xyz:{DFT}, but split.files names the data; leave one"),
        ([A, f"test=a.xyz:{DFT}"], f"data set a.xyz:{DFT} is given 2 times; give it once"),
        ([A, "test=a.xyz:dft=energy@eV"], "is given 2 times, again as a.xyz:dft=energy@eV; give it once"),
        ([A, "--split.method=random"], "split.method is random, but split.files divides the data"),
        ([A, "--split.file=x.npz"], "split.file is x.npz, but split.files divides the data"),
        ([A, "--split.test=0.3"], "split.test is 0.3, but split.files divides the data"),
        ([A, f"val=b.xyz:{DFT}", "--split.val=0.3"], "split.val is 0.3, but split.files divides the data"),
        ([f"val=b.xyz:{DFT}"], "split.files has no train=DATA (it has val)"),
        ([f"a.xyz:{DFT}"], f"split.files has 'a.xyz:{DFT}', expected a split and its data set, as train=FILE"),
        (["train="], "split.files has 'train=', expected a split and its data set"),
        ([A, f"all=b.xyz:{DFT}"], f"split.files has 'all=b.xyz:{DFT}', expected"),
        ([A, f"test=none.xyz:{DFT}"], "none.xyz: no such file or folder in the current folder"),
        ([A, "test=d.xyz:cc=ccsd@eV"], "d.xyz:cc=ccsd@eV has none of the fidelities dft (it has cc); leave it out"),
    ],
)
def test_what_contradicts_the_files_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in error_of(capsys, train, "--fidelities", "dft:EF", "--split.files", *arguments)


# Runs


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("files", "sizes"),
    [
        ([A, f"val=b.xyz:{DFT}", f"test=c.xyz:{DFT}"], {"train": 40, "val": 10, "test": 8}),
        ([A, f"hard=c.xyz:{DFT}", "--split.val=0.2"], {"train": 32, "val": 8, "hard": 8}),
    ],
    ids=["three files", "no val"],
)
def test_splits_are_the_files(capsys: pytest.CaptureFixture[str], files: list[str], sizes: dict[str, int]) -> None:
    train.main(["--fidelities", "dft:EF", "--split.files", *files, *TINY, "--epochs=1", "--out=run"])
    said = "split.files names no val; 20% of train is used for validation" in capsys.readouterr().out
    assert said == ("hard" in sizes)
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert {split: rows["dft"]["energy"]["n"] for split, rows in metrics.items()} == sizes
    train.main(["--resume", "run", "--epochs=2"])
    for split in (None, list(sizes)[-1]):
        evaluate.main(["run", "--json=errors.json", *([] if split is None else ["--split", split])])
        metrics = json.loads(Path("run/metrics.json").read_text())
        assert json.loads(Path("errors.json").read_text()) == (metrics if split is None else {split: metrics[split]})
    error = error_of(capsys, evaluate, "run", "--split=hadr")
    assert ("did you mean 'hard'?" in error) == ("hard" in sizes)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_run_goes_on_where_the_files_are_now_with_the_same_splits(capsys: pytest.CaptureFixture[str]) -> None:
    def files(folder: str, last: str = "hard") -> list[str]:
        places = {"train": "a.xyz", "val": "b.xyz", "test": "c.xyz", last: "d.xyz"}
        return [
            "--split.files",
            *(f"{n}={folder}{f}:{DFT if f != 'd.xyz' else 'dft=energy@eV'}" for n, f in places.items()),
        ]

    new = ["--fidelities", "dft:EF", *TINY, "--optim.schedule=constant", *files("")]
    train.main([*new, "--epochs=3", "--out=whole"])
    train.main([*new, "--epochs=2", "--out=run"])
    Path("there").mkdir()
    for name in "abcd":
        shutil.move(f"{name}.xyz", f"there/{name}.xyz")
    error = error_of(capsys, train, "--resume", "run", "--epochs=3")
    assert "a.xyz: no such file or folder in the current folder" in error
    assert error.endswith("mfpyg-train --resume run --split.files train=NEW …\n")
    error = error_of(capsys, train, "--resume", "run", "--epochs=3", *files("there/", "easy"))
    assert "split.files was ['train', 'val', 'test', 'hard'], now ['train', 'val', 'test', 'easy']" in error
    error = error_of(capsys, train, "--resume", "run", "--epochs=3", "--dataset", f"there/a.xyz:{DFT}")
    assert error.endswith("mfpyg-train --resume run --split.files train=NEW …\n")
    train.main(["--resume", "run", "--epochs=3", *files("there/")])
    one, two = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "run"))
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    assert Path("whole/metrics.json").read_text() == Path("run/metrics.json").read_text()
    evaluate.main(["run", "--json=errors.json"])
    assert json.loads(Path("errors.json").read_text()) == json.loads(Path("run/metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_potential_is_trained_further_on_files_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--fidelities", "dft:EF", "--dataset", f"a.xyz:{DFT}", *TINY, "--epochs=1", "--out=first"])
    # The same conformations again: the files say what they are for, not the first run.
    further = ["--init=first", "--fidelities", "dft:E", "--split.files", A, f"val=b.xyz:{DFT}", f"test=c.xyz:{DFT}"]
    train.main([*further, "--batch-size=32", "--epochs=1", "--compile=off", "--out=second"])
    with np.load("second/splits.npz") as splits:
        assert {name: len(splits[name]) for name in splits} == {"train": 40, "val": 10, "test": 8}
    new = ["--init=first", "--add-fidelity", "cc:E", "--finetune.old=frozen", "--split.files", "train=d.xyz:cc=ccsd@eV"]
    train.main([*new, "--split.val=0.3", "--batch-size=32", "--epochs=1", "--compile=off", "--out=third"])
    assert {split: set(rows) for split, rows in json.loads(Path("third/metrics.json").read_text()).items()} == {
        "train": {"cc"},
        "val": {"cc"},
    }
    assert "note: split.files names no val; 30% of train is used for validation" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_study_is_of_the_same_files_and_evaluates_further_splits(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--split.files", A, f"val=b.xyz:{DFT}", "--split.files", "hard=d.xyz:dft=energy@eV"]
    command = ["SF-DFT/EF", "--members=1", "--jobs=1", "--out=new", *TINY, "--epochs=1", *files]
    error = error_of(capsys, study, *command, "--evaluate", f"hard=c.xyz:{DFT}")
    assert "there is a 'hard' already" in error
    study.main(command)
    assert "hard: RMSE" in Path("new/table-energy.csv").read_text()
    assert set(json.loads(Path("new/runs/SF-DFT_EF/mfl-1/seed-0/metrics.json").read_text())) == {"train", "val", "hard"}
