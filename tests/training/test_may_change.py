"""What a resumed run may change, and that it names all else."""

from __future__ import annotations

import dataclasses
import json
import shutil
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mfpyg import settings as s
from mfpyg.cli import train
from mfpyg.datasets.minichno import bundled_file
from mfpyg.errors import MFPyGError
from mfpyg.options import alternatives, choices_of
from mfpyg.training.folder import MAY_CHANGE, check_same

TINY = (
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=128",
    "--compile=off",
)  # fmt: skip

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def every_setting(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Another value for each setting, by its dotted name."""
    others: dict[str, Any] = {}
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            others.update(every_setting(value, f"{name}."))
            continue
        kinds = [kind for kind in alternatives(hints[field.name]) if kind is not type(None)]
        choices = [choice for choice in choices_of(field) if choice != value]
        if choices:
            others[name] = choices[0]
        elif typing.get_origin(kinds[0]) is list:
            others[name] = [*value, "other"]
        else:
            others[name] = {bool: not value, int: 3 if value != 3 else 4, float: 0.73, str: "other"}[kinds[0]]
    return others


SETTINGS = every_setting(s.TrainSettings())


def changed(name: str, value: Any) -> tuple[s.TrainSettings, s.TrainSettings, Any]:
    before, now = s.TrainSettings(), s.TrainSettings()
    *groups, last = name.split(".")
    place: Any = now
    for group in groups:
        place = getattr(place, group)
    old = getattr(place, last)
    setattr(place, last, value)
    return before, now, old


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_may_change_or_is_named(name: str) -> None:
    before, now, old = changed(name, SETTINGS[name])
    assert SETTINGS[name] != old
    if name in (*MAY_CHANGE, "out"):
        check_same(before, now)
        return
    with pytest.raises(MFPyGError) as error:
        check_same(before, now)
    assert f"but {name} was {old}, now {SETTINGS[name]} (only {', '.join(MAY_CHANGE)} may change)" in str(error.value)


def test_list_of_what_may_change_is_that_of_the_document() -> None:
    assert set(MAY_CHANGE) < set(SETTINGS)
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("| may change |") :].split("\n\n")[0]
    assert {row.split("`")[1] for row in table.splitlines()[2:]} == set(MAY_CHANGE)


def test_all_differences_are_named_at_once() -> None:
    before, now = s.TrainSettings(), s.TrainSettings(seed=5, devices=2, batch_size=3, fidelities=["dz:E"])
    now.optim.lr = 0.5
    with pytest.raises(MFPyGError) as error:
        check_same(before, now)
    named = "fidelities was [], now ['dz:E']; batch_size was 256, now 3; seed was 0, now 5; optim.lr was 0.001, now 0.5"
    assert f"but {named} (only" in str(error.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on a file of its own, and another with another seed."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(bundled_file(), folder / "data.h5")
    data = ["--dataset", f"minichno:{folder / 'data.h5'}"]
    train.main(["--fidelities", "dz:E", *data, "--epochs=1", *TINY, "--out", str(folder / "run")])
    train.main(["--fidelities", "cc:E", *data, "--seed=3", "--epochs=1", *TINY, "--out", str(folder / "other")])
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> str:
    files = {path.name: path.read_bytes() for path in run.iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(["--resume", str(run), "--epochs=2", *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert {path.name: path.read_bytes() for path in run.iterdir()} == files, "a refused run has changed its folder"
    return error


@pytest.mark.slow
def test_checkpoint_of_another_run(run: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(made / "other" / "last.ckpt", run / "last.ckpt")
    error = refused(capsys, run)
    assert "fidelities was ['cc:E'], now ['dz:E']" in error
    assert "seed was 3, now 0" in error
    assert "split train had 604 conformations, now 604, " in error
    assert "split val had 67 conformations" in error
    assert "split test" not in error  # which the file says


@pytest.mark.slow
def test_edited_configuration(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["optim"]["lr"], values["weights"] = 0.3, ["dz:E=2"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    error = refused(capsys, run)
    assert "weights was ['F=10'], now ['dz:E=2']; optim.lr was 0.001, now 0.3" in error


@pytest.mark.slow
def test_edited_splits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = dict(np.load(run / "splits.npz"))
    moved = splits["test"][:5]
    splits["train"], splits["test"] = np.sort(np.append(splits["train"], moved)), splits["test"][5:]
    np.savez(run / "splits.npz", **splits)
    error = refused(capsys, run)
    assert "split train had 604 conformations, now 609, 5 of them new" in error
    assert "split test had 72 conformations, now 67, 0 of them new" in error


@pytest.mark.slow
def test_other_data_under_the_same_name(run: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import h5py

    path = made / "data.h5"
    content = path.read_bytes()
    with h5py.File(path, "r+") as file:
        group = file[next(iter(file))]
        name = next(key for key in group if key.startswith("wb97x_dz") and key.endswith("energy"))
        group[name][0] += 1e-3
    try:
        error = refused(capsys, run, "--seed=4")
        assert "seed was 0, now 4" in error
        error = refused(capsys, run)
        assert "the data are not those the run was started on (other labels; fingerprint was" in error
    finally:
        path.write_bytes(content)
    train.main(["--resume", str(run), "--epochs=2", "--threads=2"])


@pytest.mark.slow
def test_other_versions_are_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = json.loads((run / "versions.json").read_text())
    now, versions["torch"] = versions["torch"], "1.0"
    (run / "versions.json").write_text(json.dumps(versions))
    train.main(["--resume", str(run), "--epochs=2"])
    assert f"note: torch was 1.0, now {now}: the weights may differ" in capsys.readouterr().out
