"""The command mfpyg-study: what it refuses, what it says of failures, and a small study from start to end."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mfpyg.cli import study
from mfpyg.study.jobs import Job
from tests.forks import Forks, Running

TrainingHere = Callable[[], AbstractContextManager[None]]

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=128",
    "--compile=off", "--model.kernel=padded", "--accelerator=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def instead_of_training(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, "-c", code, str(job.folder)])


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line of a command that must write nothing and start nothing."""

    def start(*_: Any) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(Job, "command", start)
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        study.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert err.startswith("mfpyg-study: error: ")
    assert (err.count("\n"), out) == (1, "")
    assert sorted(Path().rglob("*")) == before, "something was written"
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("SF-CCC/E --out new", "unknown level 'CCC' in model 'SF-CCC/E'"),
        ("SF-CC --out new", "malformed model 'SF-CC'"),
        ("--out new", "MODEL"),
        ("SF-CC/E", "--out is missing"),
        ("SF-CC/E --out", "--out"),
        ("SF-CC/E --out new --strategies joint", "unknown strategy 'joint' (known: mfl, tl, delta, meta)"),
        ("SF-CC/E --out new --epohcs 3", "unknown option --epohcs; did you mean '--epochs'?"),
        ("SF-CC/E --out new --seed 3", "option --seed cannot be given; a study sets it for each run"),
        ("SF-CC/E --out new --split.seed=3", "option --split.seed cannot be given"),
        ("SF-CC/E --out new --split_seed=3", "unknown option --split-seed"),
        ("SF-CC/E --out new --target dz", "option --target cannot be given"),
        ("SF-CC/E --out new --resume x", "option --resume cannot be given"),
        ("SF-CC/E --out new --members 0", "members is 0, expected at least 1"),
        ("SF-CC/E --out new --members x", "--members: invalid int value: 'x'"),
        ("SF-CC/E --out new --jobs 0", "jobs is 0, expected at least 1"),
        ("SF-CC/E --out new --gpus 0 0", "gpus are 0 0, expected different numbers"),
        ("SF-CC/E --out new --gpus a", "gpus are a, expected different numbers"),
        ("SF-CC/E --out new --label-fraction 0", "label-fraction is 0, expected a number above 0 and at most 1"),
        ("SF-CC/E --out new --label-fraction x", "label-fraction is 'x', expected a number"),
        ("SF-CC/E --out new --label-fraction dz=0.5", "label-fraction dz=0.5: the models' targets are cc"),
        ("SF-CC/E --out new --epochs 0", "epochs is 0"),
        ("SF-CC/E --out new --batch_size 0", "batch_size is 0"),
        ("MF-DZ/EF-CC/E --out new --strategies tl --epochs 1", "epochs is 1, expected at least one for each"),
        (
            "SF-CC/E --out new --delta.share 0.3",
            "--delta.share is an option of strategy delta, but the strategies are mfl",
        ),
        ("SF-CC/E --out new --evaluate minichno", "evaluate is 'minichno', expected a name and a data set"),
        ("SF-CC/E --out new --evaluate test=minichno", "there is a 'test' already"),
        ("SF-CC/E --out new --evaluate a=minichno a=minichno", "there is a 'a' already"),
        ("SF-CC/E --out new --evaluate far=comp6:nowhere", "nowhere: no such file"),
        ("SF-CC/E --out new --dataset ani1x:nowhere.h5", "nowhere.h5: no such file"),
        ("SF-CC/E --out file", "file exists and is not a study"),
        ("SF-CC/E --out file/new", "file/new: cannot create this folder"),
        ("SF-CC/E --out full", "full exists and is not a study"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    Path("file").touch()
    Path("full").mkdir()
    Path("full/other").touch()
    assert message in refused(capsys, monkeypatch, *arguments.split())


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom mfpyg.cli import study\n"
        "try:\n    study.main(['--help'])\nfinally:\n    assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--members", "--strategies", "--label-fraction", "--evaluate", "tables2-4"):
        assert option in done.stdout


def test_failures_are_named_and_other_options_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    instead_of_training(monkeypatch, "import sys; print('first'); raise SystemExit(f'no luck with {sys.argv[1]}')")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        study.main(["SF-CC/E", "--out", "new", "--members", "2", "--epochs", "3"])
    assert stop.value.code == 1
    assert signal.getsignal(signal.SIGTERM) is before
    lines = capsys.readouterr().out.splitlines()
    folders = [f"new/runs/SF-CC_E/mfl-1/seed-{seed}" for seed in (0, 1)]
    assert lines[-2:] == [f"failed: {folder}: no luck with {folder}" for folder in folders]
    page = Path("new/report.html").read_text(encoding="utf-8")
    assert all(f"no luck with {folder}" in page for folder in folders)
    assert "mfpyg-study SF-CC/E --strategies mfl --label-fraction 1 --members 2 --out new --epochs 3" in page
    message = refused(capsys, monkeypatch, "SF-CC/E", "--out", "new", "--epochs", "4")
    assert "new is a study with the options '--epochs 3', not '--epochs 4'" in message


@pytest.mark.parametrize(("given", "expected"), [([], ["cuda"]), (["--accelerator=cpu"], ["cpu"])])
def test_runs_on_gpus_compute_there_or_fail(
    monkeypatch: pytest.MonkeyPatch, given: list[str], expected: list[str]
) -> None:
    found: list[Job] = []

    def remember(jobs: list[Job], at_a_time: int, gpus: list[str]) -> None:
        found.extend(jobs)
        assert (at_a_time, gpus) == (2, ["4", "6"])
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "_train", remember)
    with pytest.raises(SystemExit):
        study.main(["SF-CC/E", "--out", "new", "--members", "1", "--gpus", "4", "6", *given])
    assert [study.train_options.parse(job.arguments)[0].accelerator for job in found] == expected


def test_a_grown_study_keeps_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_training(monkeypatch, "raise SystemExit(1)")
    for arguments in (["SF-CC/E", "--members", "2"], ["MF-DZ/EF-CC/E", "--members", "1", "--strategies", "tl"]):
        with pytest.raises(SystemExit) as stop:
            study.main([*arguments, "--out", "new"])
        assert stop.value.code == 1
    stored = yaml.safe_load(Path("new/study.yaml").read_text(encoding="utf-8"))
    assert stored["models"] == ["SF-CC/E", "MF-DZ/EF-CC/E"]
    assert (stored["strategies"], stored["members"]) == (["mfl", "tl"], 2)


@pytest.mark.slow
def test_small_study_from_start_to_end_and_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, training_here: TrainingHere
) -> None:
    command = [
        *("SF-CC/E", "MF-DZ/EF-CC/E", "--strategies", "tl", "--label-fraction", "1", "cc=0.3"),
        *("--members", "1", "--jobs", "2", "--out", "new", "--epochs", "2", "--evaluate", "all=minichno", *TINY),
    ]
    with training_here():
        study.main(command)
    assert capsys.readouterr().out.rstrip().endswith("report: new/report.html")
    with Path("new/table-energy.csv").open(encoding="utf-8", newline="") as file:
        table = {(r["model"], r["strategy"], r["labels"]): r for r in csv.DictReader(file)}
    assert {key: row["number"] for key, row in table.items()} == {
        (model, strategy, labels): number
        for model, strategy in (("SF-CC/E", "mfl"), ("MF-DZ/EF-CC/E", "tl"))
        for labels, number in (("100%", "604"), ("30%", "181"))
    }
    for row in table.values():
        for split in ("test", "ood", "all"):
            assert float(row[f"{split}: RMSE"].split()[0]) > 0
    assert {path.name for path in Path("new").glob("*.png")} >= {"learning-cc.png", "improvement.png"}
    instead_of_training(monkeypatch, "raise SystemExit('trained anew')")
    page = Path("new/report.html").read_bytes()
    study.main(command)
    assert Path("new/report.html").read_bytes() == page


@pytest.mark.slow
def test_interrupted_study_leaves_no_process_and_goes_on(
    tmp_path: Path, forks: Forks, training_here: TrainingHere
) -> None:
    command = ["SF-CC/E", "--members", "1", "--jobs", "2"]
    command += ["--out", str(tmp_path / "new"), "--epochs", "12", "--split.method", "random", *TINY]
    folder = tmp_path / "new/runs/SF-CC_E/mfl-1/seed-0"

    def interrupt(running: Running) -> None:
        end = time.monotonic() + 120
        while not (folder / "last.ckpt").is_file() and time.monotonic() < end:
            time.sleep(0.05)
        running.send(signal.SIGINT)

    ended = forks.run(*command, command="study", hit=interrupt)
    assert ended.status == 130
    assert ended.output.endswith("0 of 1 runs are done; the same command continues the study\n")
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if "mfpyg.cli.train" in line and str(folder) in line]
    assert 1 <= (folder / "metrics.csv").read_text().count("\n") - 1 < 12
    with training_here():
        study.main(command)
    assert (folder / "metrics.csv").read_text().count("\n") - 1 == 12
    assert (folder / "metrics.json").is_file()
    assert f"--resume {folder}" in folder.with_name("seed-0.log").read_text()
