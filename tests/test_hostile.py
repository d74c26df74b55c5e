"""Files of others: no code in them is run, and no name in them leads to a place outside the run's folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mfpyg
from mfpyg.checkpoint import read_checkpoint
from mfpyg.cli import convert, evaluate, inspection, predict, study, train
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.storage import read_processed
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.files import read_npz
from mfpyg.inference.dataset import run_predictions
from mfpyg.inspection import inspect
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.interop.hippynn import load_hippynn
from mfpyg.settings import from_dict
from mfpyg.strict_yaml import read_yaml
from mfpyg.study.jobs import Job, run_jobs
from mfpyg.study.plan import StudyPlan, read_plan, store
from mfpyg.training.callbacks import SafeCheckpointIO
from mfpyg.training.initial import read_initial

RUN = sorted(Path(__file__).with_name("checkpoints").iterdir())[0]


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder in which nothing may be made but by the test, with a run beside it."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(RUN, work / "run")
    for name in ("config.yaml", "splits.npz"):  # as a run of today
        assert (work / "run" / name).is_file()
    monkeypatch.chdir(work)
    monkeypatch.setenv("MFPYG_CACHE", str(tmp_path / "cache"))
    yield work
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "cache"}


def refused(call: Callable[[], Any]) -> bool:
    """Whether a call ends as the user's mistakes do."""
    try:
        call()
    except MFPyGError:
        return True
    except SystemExit as stop:
        return stop.code == 2
    return False


# Every way of opening a file that might carry code: what is read, and where the file lies

OPENINGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "mfpyg.load": ("x.ckpt", lambda: mfpyg.load("x.ckpt")),
    "mfpyg.load of a run": ("run/best.ckpt", lambda: mfpyg.load("run")),
    "read_initial": ("x.ckpt", lambda: read_initial("x.ckpt")),
    "calculator": ("x.ckpt", lambda: MFPyGCalculator("x.ckpt", fidelity="cc")),
    "--init": ("x.ckpt", lambda: train.main(["--init", "x.ckpt", "--out", "new"])),
    "--init of a run": ("run/best.ckpt", lambda: train.main(["--init", "run", "--out", "new"])),
    "--resume, last": ("run/last.ckpt", lambda: train.main(["--resume", "run", "--epochs", "3"])),
    "--resume, best": ("run/best.ckpt", lambda: train.main(["--resume", "run", "--epochs", "3"])),
    "Lightning": ("x.ckpt", lambda: SafeCheckpointIO().load_checkpoint("x.ckpt")),
    "mfpyg-inspect": ("x.ckpt", lambda: inspection.main(["x.ckpt"])),
    "mfpyg-inspect, run": ("run/best.ckpt", lambda: inspection.main(["run"])),
    "mfpyg-inspect, last": ("run/last.ckpt", lambda: inspection.main(["run"])),
    "mfpyg-inspect, processed": ("x.pt", lambda: inspection.main(["x.pt"])),
    "mfpyg-evaluate": ("x.ckpt", lambda: evaluate.main(["x.ckpt"])),
    "mfpyg-predict": ("x.ckpt", lambda: predict.main(["x.ckpt", "in.xyz", "-o", "out.xyz"])),
    "mfpyg-convert": (
        "x.pt",
        lambda: convert.main(["x.pt", "y.ckpt", "--cutoff", "5", "--fidelities", "cc", "--energy-unit", "eV"]),
    ),
    "load_hippynn": ("x.pt", lambda: load_hippynn("x.pt", cutoff=5.0, fidelities=["cc"], energy_unit="eV")),
    "processed": ("x.pt", lambda: read_processed(Path("x.pt"))),
    "splits": ("run/splits.npz", lambda: train.main(["--resume", "run", "--epochs", "3"])),
    "split.file": (
        "x.npz",
        lambda: train.main(
            ["--fidelities", "dz:E", "--split.method", "index", "--split.file", "x.npz", "--out", "new"]
        ),
    ),
    "npz": ("x.npz", lambda: read_npz(Path("x.npz"))),
    "trajectory": ("x.traj", lambda: predict.main(["run", "x.traj", "-o", "out.xyz", "--fidelity", "cc"])),
    "pickled atoms": ("x.pckl", lambda: predict.main(["run", "x.pckl", "-o", "out.xyz", "--fidelity", "cc"])),
}


def written(path: Path, how: str, payload: Any) -> None:
    """A file with a payload within, in one of the ways in which Python's programs write such files."""
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload))
    elif how == "numpy":
        with path.open("wb") as file:
            np.savez(file, train=np.array([payload], dtype=object), val=np.arange(3), test=np.arange(3))
    else:
        good = torch.load(RUN / "best.ckpt", weights_only=True)
        good["hyper_parameters"] = payload  # a place that nobody looks at
        torch.save(good, path, _use_new_zipfile_serialization=how == "torch")


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "numpy"])
@pytest.mark.parametrize("opening", OPENINGS)
def test_code_in_a_file_is_never_run(place: Path, opening: str, how: str) -> None:
    made = place / "made"
    name, call = OPENINGS[opening]
    (place / "in.xyz").write_text("1\n\nH 0 0 0\n", encoding="utf-8")
    written(place / name, how, Code(made))
    try:
        assert refused(call)
    except (pickle.UnpicklingError, RuntimeError):
        assert opening == "Lightning"  # which comes to it after the checks only
    assert not made.exists()
    pickle.loads(pickle.dumps(Code(made)))
    assert made.exists()  # which would have been seen


@pytest.mark.parametrize(
    "text",
    [
        "epochs: !!python/object/apply:os.mkdir [made]",
        "!!python/object/apply:os.mkdir [made]",
        "epochs: !!python/name:os.mkdir ''",
        "epochs: !!python/object/new:os.mkdir [made]",
        "? !!python/object/apply:os.mkdir [made]\n: 1",
    ],
)
def test_tags_in_settings_make_nothing(place: Path, text: str) -> None:
    Path("x.yaml").write_text(f"fidelities: [dz:E]\n{text}\n", encoding="utf-8")
    Path("run/config.yaml").write_text(Path("x.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    Path("study").mkdir()
    shutil.copy("x.yaml", "study/study.yaml")
    assert refused(lambda: train.main(["--config", "x.yaml"]))
    assert refused(lambda: train.main(["--resume", "run"]))
    assert refused(lambda: inspect("study"))
    assert refused(lambda: study.main(["SF-CC/E", "--out", "study"]))
    assert not Path("made").exists()


# Settings that are not what they seem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epochs: 1\nepochs: 1000", "'epochs' is given twice"),
        ("optim: {lr: 0.1, lr: 0.2}", "'lr' is given twice"),
        ("[1]: 2", "not readable as YAML"),
        ("out: 2001-02-30", "not readable as YAML"),
        ("out: " + "[" * 1100, "not readable as YAML"),
    ],
)
def test_settings_that_are_not_plain_are_refused(place: Path, text: str, reason: str) -> None:
    Path("x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MFPyGError, match=rf"x\.yaml: .*{reason}"):
        read_yaml(Path("x.yaml"))


@pytest.mark.parametrize("nothing", [0, 0.0, "", [], False])
def test_a_group_of_settings_that_is_none_is_refused(nothing: Any) -> None:
    with pytest.raises(MFPyGError, match=r"optim is .*expected settings"):
        from_dict({"fidelities": ["dz:E"], "optim": nothing})


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(MFPyGError) as error:
        from_dict({"fidelities": ["dz:E"], "epochs": "x" * 10**6})
    assert len(str(error.value)) < 200
    assert len(str(MFPyGError("x" * 10**6))) == 1500


# Names that lead to other places

ESCAPES = ["../../x", "/tmp/x", "a/b", "..", ".", "", "a\0b", "a\nb", "x" * 300]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_of_fidelities_and_splits_are_names(place: Path, name: str) -> None:
    with pytest.raises(MFPyGError, match="malformed fidelity"):
        Fidelity(name)
    assert refused(lambda: train.main(["--fidelities", f"{name}:E"]))
    if len(name) > 255:
        assert refused(lambda: train.main(["--fidelities", "dz:E", "--out", name]))
        assert refused(lambda: predict.main([name, name, "-o", "out.xyz"]))
    assert refused(lambda: train.main(["--fidelities", "dz:E", "--dataset", f"{name}.xyz:{name}=e@eV"]))
    good = read_checkpoint("run")
    for change in ({"fidelities": [name, "cc"]}, {"splits": {name: torch.arange(3)}}):
        torch.save({**good, "mfpyg": {**good["mfpyg"], **change}}, "x.ckpt")
        with pytest.raises(MFPyGError, match=rf"x\.ckpt: damaged, its {next(iter(change))}"):
            mfpyg.load("x.ckpt")
        assert refused(lambda: evaluate.main(["x.ckpt", "--plot"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"models": ["../../x"]},
        {"models": ["SF-CC/E/../../x"]},
        {"strategies": ["../../../../x"]},
        {"members": 10**9},
        {"members": True},
        {"members": -1},
        {"epochs": 0},
        {"fractions": [float("nan")]},
        {"levels": ["../x"]},
    ],
)
def test_study_files_name_no_other_places(place: Path, changes: dict[str, Any]) -> None:
    plan = StudyPlan(["SF-CC/E", "MF-DZ/EF-CC/E"], members=1, levels=["dz", "tz", "mp2", "cc"], epochs=3)
    store(plan, Path("study"))
    stored = yaml.safe_load(Path("study/study.yaml").read_text(encoding="utf-8"))
    Path("study/study.yaml").write_text(yaml.safe_dump({**stored, **changes}), encoding="utf-8")
    with pytest.raises(MFPyGError, match=r"study\.yaml"):
        read_plan(Path("study"))
    assert refused(lambda: inspect("study"))
    assert refused(lambda: study.main(["SF-CC/E", "--members", "1", "--out", "study"]))


@pytest.mark.slow
def test_a_resumed_run_writes_where_it_lies_and_not_where_it_says(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    settings = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))
    Path("run/config.yaml").write_text(yaml.safe_dump({**settings, "out": str(elsewhere)}), encoding="utf-8")
    for name in ("last.ckpt", "best.ckpt", "metrics.csv", "metrics.json", "versions.json"):  # links to other files
        target = elsewhere / name
        shutil.copy(f"run/{name}", target)
        Path(f"run/{name}").unlink()
        Path(f"run/{name}").symlink_to(target)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    train.main(["--resume", "run", "--epochs", "3"])
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before
    assert not any(path.is_symlink() for path in Path("run").iterdir() if path.name != "versions.json")
    assert yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))["out"] == "run"


def test_links_to_folders_and_logs_outside_are_refused(place: Path) -> None:
    (place / "elsewhere").mkdir()
    Path("run/tensorboard").symlink_to(place / "elsewhere")
    with pytest.raises(SystemExit):
        train.main(["--resume", "run", "--epochs", "3"])
    assert not list((place / "elsewhere").iterdir())
    notes = place / "notes"
    notes.write_text("mine", encoding="utf-8")
    Path("study").mkdir()
    Path("study/seed-0.log").symlink_to(notes)
    job = Job("one", Path("study/seed-0"), ["--fidelities", "dz:E", "--epochs", "0"])
    with pytest.raises(MFPyGError, match=r"seed-0\.log: a link"):
        run_jobs([job], 1)
    assert notes.read_text(encoding="utf-8") == "mine"


def test_predictions_of_a_run_stay_in_its_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = MiniCHNO(place / "data")
    dataset.fingerprint = "../../x" + dataset.fingerprint
    with pytest.raises(MFPyGError):
        run_predictions(Path("run"), dataset, np.arange(2))


@pytest.mark.slow
def test_splits_of_others_are_refused(place: Path) -> None:
    arrays = read_npz(Path("run/splits.npz"))
    np.savez("run/splits.npz", **{**arrays, "test": arrays["test"][::-1]})
    assert refused(lambda: train.main(["--resume", "run", "--epochs", "3"]))


# Numbers that do not fit


@pytest.mark.slow
def test_run_gone_on_with_where_numbers_round_otherwise_stays_readable(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference energies are fitted anew, with another library's last digit; the checkpoint's stay."""
    from mfpyg.training import inputs

    fit = inputs.fit_references

    def otherwise(*arguments: Any) -> Any:
        found = fit(*arguments)
        for references in found.values():
            references.energies *= 1 + 1e-13
        return found

    before = {name: mfpyg.load("run").reference(name) for name in ("dz", "cc")}
    monkeypatch.setattr(inputs, "fit_references", otherwise)
    train.main(["--resume", "run", "--epochs", "3"])
    for name, reference in before.items():
        assert torch.equal(mfpyg.load("run").reference(name), reference)
        assert torch.equal(mfpyg.load("run/last.ckpt").reference(name), reference)


@pytest.mark.slow
def test_damaged_log_does_not_end_a_run(place: Path) -> None:
    data = Path("run/metrics.csv").read_bytes()
    Path("run/metrics.csv").write_bytes(data[:-9] + b'\xff\0"' + data[-9:])
    train.main(["--resume", "run", "--epochs", "3"])
    rows = Path("run/metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows if row[0].isalnum()][-1] == "2"


def test_formulas_of_databases_are_right(place: Path) -> None:
    """ASE's databases hold atomic numbers in four bytes."""
    import ase.build
    import ase.db

    with ase.db.connect("x.db") as database:
        database.write(ase.build.molecule("H2O"))
        database.write(ase.build.molecule("HCN"))
        database.write(ase.build.molecule("N2"))
    predict.main(["run", "x.db", "-o", "x.json", "--fidelity", "cc"])
    frames = json.loads(Path("x.json").read_text(encoding="utf-8"))["frames"]
    assert [frame["formula"] for frame in frames] == ["H2O", "CHN", "N2"]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["state"][3].update(exp_avg=torch.zeros(1)),
        lambda state: state["state"][3].update(exp_avg_sq=torch.full((8, 8), float("nan"))),
        lambda state: state["state"].update({3: state["state"][0]}),
        lambda state: state["param_groups"][0].update(betas=(0.5, 0.9)),
        lambda state: state["param_groups"][0].update(lr="much"),
    ],
)
@pytest.mark.slow
def test_state_of_an_optimiser_has_to_fit(place: Path, change: Callable[[Any], Any]) -> None:
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    change(checkpoint["optimizer_states"][0])
    torch.save(checkpoint, "run/last.ckpt")
    before = Path("run/last.ckpt").read_bytes()
    assert refused(lambda: train.main(["--resume", "run", "--epochs", "3"]))
    assert Path("run/last.ckpt").read_bytes() == before


def _counts(checkpoint: Any) -> Any:
    return checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["zero_grad"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: _counts(checkpoint)["total"].update(completed={"": {}}), "counts of steps and epochs"),
        (
            lambda checkpoint: checkpoint.update(progress={"epochs": 2, "sums": {"train": torch.zeros(3)}}),
            "error sums",
        ),
        (
            lambda checkpoint: checkpoint.update(progress={"epochs": 2, "sums": {"train": torch.zeros(9, 3).double()}}),
            "error sums",
        ),
    ],
)
@pytest.mark.slow
def test_progress_of_a_training_has_to_fit(
    place: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], Any], message: str
) -> None:
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, "run/last.ckpt")
    assert refused(lambda: train.main(["--resume", "run", "--epochs", "3"]))
    assert message in capsys.readouterr().err
