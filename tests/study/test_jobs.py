"""Many processes at a time, with short scripts in place of training."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mfpyg.study.jobs import Job, run_jobs

FINISH = "import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.mkdir(); (f / 'metrics.json').touch()\n"

TOGETHER = (
    FINISH
    + """
import os, time
begin, end = time.monotonic(), time.monotonic() + 30
(f.parent / f"started-{f.name}").touch()
while len(list(f.parent.glob("started-*"))) < 2 and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.1)
(f.parent / f"times-{f.name}").write_text(f"{begin} {time.monotonic()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
"""
)
"""Ends when a second one has begun."""

STOPPED = """
import pathlib, signal, sys, time
f = pathlib.Path(sys.argv[1])
def save(number, frame):
    f.with_suffix(".saved").touch()
    raise SystemExit(130)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, HANDLER)
f.with_suffix(".ready").touch()
time.sleep(60)
"""


@dataclass
class Script(Job):
    """Runs a script, which is given the folder."""

    code: str = FINISH

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code, str(self.folder)]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfpyg.study.jobs._PAUSE", 0.02)


def scripts(folder: Path, *codes: str) -> list[Script]:
    return [Script(f"job {n}", folder / f"run{n}", [], code=code) for n, code in enumerate(codes)]


def test_failed_job_does_not_keep_others_from_running(tmp_path: Path) -> None:
    jobs = scripts(tmp_path, "print('first'); raise SystemExit('out of luck')", FINISH, FINISH)
    run_jobs(jobs, 1)
    assert [job.state for job in jobs] == ["failed", "done", "done"]
    assert jobs[0].error == "out of luck"
    assert jobs[0].log.read_text().splitlines() == ["first", "out of luck"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os, signal; print('epoch 3', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
        ("raise SystemExit(3)", "ended with status 3 and no metrics.json"),
        ("print('nothing to do')", "ended with status 0 and no metrics.json"),
    ],
)
def test_why_a_job_failed_is_of_its_last_start(tmp_path: Path, code: str, error: str) -> None:
    (job,) = scripts(tmp_path, code)
    job.log.write_text("error of an earlier start\n")
    run_jobs([job], 1)
    assert job.state == "failed"
    assert job.error.startswith(error)
    assert job.log.read_text().startswith("error of an earlier start\n")


def test_finished_jobs_are_not_started(tmp_path: Path) -> None:
    (job,) = scripts(tmp_path, FINISH)
    job.folder.mkdir()
    (job.folder / "metrics.json").touch()
    run_jobs([job], 1)
    assert (job.state, job.process) == ("done", None)


def test_failed_job_is_started_again(tmp_path: Path) -> None:
    (job,) = scripts(tmp_path, "raise SystemExit('no')")
    run_jobs([job], 1)
    job.code = FINISH
    run_jobs([job], 1)
    assert job.state == "done"


def test_command_begins_or_resumes(tmp_path: Path) -> None:
    job = Job("job", tmp_path / "run", ["--fidelities", "cc:E"])
    assert job.command() == [sys.executable, "-m", "mfpyg.cli.train", "--fidelities", "cc:E"]
    job.folder.mkdir()
    (job.folder / "last.ckpt").touch()
    assert job.command() == [sys.executable, "-m", "mfpyg.cli.train", "--resume", str(job.folder)]


def test_epochs_are_those_of_the_log(tmp_path: Path) -> None:
    job = Job("job", tmp_path, [])
    assert job.epochs_done() == 0
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,2\n1,1\n")
    assert job.epochs_done() == 2


def _times(folder: Path) -> list[tuple[float, float, str]]:
    found = [path.read_text().split() for path in folder.glob("times-*")]
    return [(float(begin), float(end), gpu) for begin, end, gpu in found]


def test_no_more_than_asked_for_at_a_time(tmp_path: Path) -> None:
    jobs = scripts(tmp_path, *[TOGETHER] * 5)
    seen: list[int] = []
    run_jobs(jobs, 2, shown=lambda jobs: seen.append(sum(job.state == "running" for job in jobs)))
    assert {job.state for job in jobs} == {"done"}
    times = _times(tmp_path)
    assert len(times) == 5
    assert max(sum(b <= begin < e for b, e, _ in times) for begin, _, _ in times) == max(seen) == 2
    assert seen[-1] == 0


def test_each_gpu_has_one_job_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run_jobs(scripts(tmp_path, *[TOGETHER] * 4), 8, ["3", "5"])
    times = _times(tmp_path)
    assert len(times) == 4
    assert {gpu for *_, gpu in times} == {"3", "5"}
    for begin, _, gpu in times:
        assert sum(b <= begin < e and other == gpu for b, e, other in times) == 1


@pytest.mark.parametrize("given", [None, "7"])
def test_jobs_share_the_cores_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    jobs = scripts(tmp_path, *["import os; raise SystemExit('threads ' + os.environ['OMP_NUM_THREADS'])"] * 2)
    run_jobs(jobs, 4)
    assert [job.error for job in jobs] == [f"threads {given or 3}"] * 2


def _interrupted(jobs: Sequence[Script]) -> None:
    """Raise as Ctrl-C does, when the first two jobs are ready."""
    end = time.monotonic() + 30
    while not all(job.folder.with_suffix(".ready").exists() for job in jobs[:2]) and time.monotonic() < end:
        time.sleep(0.02)
    raise KeyboardInterrupt


def test_ctrl_c_lets_running_jobs_save_and_leaves_none(tmp_path: Path) -> None:
    jobs = scripts(tmp_path, *[STOPPED.replace("HANDLER", "save")] * 3)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, shown=lambda _: _interrupted(jobs))
    processes = [job.process for job in jobs if job.process is not None]
    assert [process.returncode for process in processes] == [130, 130]
    assert all(job.folder.with_suffix(".saved").exists() for job in jobs[:2])
    assert jobs[2].state == "waiting"


def test_what_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfpyg.study.jobs._SECONDS_TO_STOP", 0.3)
    jobs = scripts(tmp_path, *[STOPPED.replace("HANDLER", "signal.SIG_IGN")] * 2)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, shown=lambda _: _interrupted(jobs))
    assert [job.process.returncode for job in jobs if job.process is not None] == [-signal.SIGKILL] * 2
