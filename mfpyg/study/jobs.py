"""Runs of a study as parallel processes of mfpyg-train, and their progress."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mfpyg.errors import MFPyGError
from mfpyg.files import make_folder
from mfpyg.training.folder import RunFolder

_SECONDS_TO_STOP = 60
_PAUSE = 0.5


@dataclass
class Job:
    """A run and its state.

    Attributes:
        name: name to display.
        folder: folder of the run.
        arguments: arguments of mfpyg-train for a new run.
        epochs: maximum number of epochs.
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        error: last line that a failed run printed.
        process: process of the run, once started.
        place: CUDA device, or job on a cluster.
        printed_before: size of the log when the run was started.
        data: arguments that give the location of the data when the run is resumed.
    """

    name: str
    folder: Path
    arguments: list[str]
    epochs: int = 0
    state: str = "waiting"
    error: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    place: str | None = None
    printed_before: int = 0
    data: list[str] = field(default_factory=list)

    result: ClassVar[str] = "metrics.json"
    """File that a finished job has written."""

    @property
    def log(self) -> Path:
        """File with the output of all processes of the run."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def finished(self) -> bool:
        """True if the run has written its metrics."""
        return RunFolder(self.folder).metrics.is_file()

    def epochs_done(self) -> int:
        """Number of epochs in the run's log."""
        with contextlib.suppress(OSError):
            return max(RunFolder(self.folder).log.read_text().count("\n") - 1, 0)
        return 0

    def command(self) -> list[str]:
        """Command that starts the run, or resumes it if it has a checkpoint."""
        started = RunFolder(self.folder).last.is_file()
        resumed = ["--resume", str(self.folder), *self.data] if started else self.arguments
        return [sys.executable, "-m", "mfpyg.cli.train", *resumed]


def run_jobs(
    jobs: Sequence[Job],
    at_a_time: int,
    gpus: Sequence[str] = (),
    shown: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> None:
    """Run all jobs that are not finished; a failed job does not stop the others.

    Args:
        jobs: jobs in the order in which they start; their states are updated.
        at_a_time: maximum number of parallel jobs, at least 1.
        gpus: CUDA devices for one job each; empty for the CPU.
        shown: called twice a second, and whenever a job has ended.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running jobs have saved a checkpoint.
    """
    free: list[str | None] = [None] * at_a_time
    free[:] = gpus[:at_a_time] or free
    at_once, waiting = len(free), []
    for job in jobs:
        job.state = "done" if job.finished() else "waiting"
        if job.state == "waiting":
            waiting.append(job)
    running: list[Job] = []
    try:
        while waiting or running:
            while waiting and free:
                running.append(waiting.pop(0))  # before starting it, so that it is stopped on an interrupt
                start(running[-1], free.pop(0), at_once)
            for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                running.remove(job)
                free.append(job.place)
                ended(job)
            shown(jobs)
            if running:
                time.sleep(_PAUSE)
    except BaseException:
        _stop(running)
        raise
    shown(jobs)


def start(job: Job, place: str | None, at_a_time: int) -> None:
    """Start a job on a GPU, or with its share of the cores."""
    make_folder(job.folder.parent)
    if job.log.is_symlink():  # do not write through a link
        raise MFPyGError(f"{job.log}: a link to another file; remove it")
    environment = dict(os.environ)
    if place is not None:
        environment["CUDA_VISIBLE_DEVICES"] = place
    # Otherwise each job uses all cores, which is slower.
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // at_a_time, 1)))
    with job.log.open("ab") as log:
        job.printed_before = log.tell()
        # In a new process group, or Ctrl-C would arrive twice: from the terminal, and from here.
        job.process = subprocess.Popen(
            job.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    job.place, job.state = place, "running"


def ended(job: Job) -> None:
    """Record how a job has ended."""
    assert job.process is not None
    if job.process.returncode == 0 and job.finished():
        job.state = "done"
        return
    job.state = "failed"
    with job.log.open("rb") as log:
        log.seek(job.printed_before)
        lines = log.read().decode(errors="replace").strip().splitlines()
    code = job.process.returncode
    if code < 0:
        job.error = f"ended by {signal.Signals(-code).name}"
    elif code == 0 or not lines:
        job.error = f"ended with status {code} and no {job.result}; see {job.log}"
    else:
        job.error = lines[-1].strip()


def _stop(running: Sequence[Job]) -> None:
    """Ask running jobs to save and stop, and wait; a second Ctrl-C or a timeout kills them."""
    alive = [job.process for job in running if job.process is not None and job.process.poll() is None]
    # Processes started with SIGINT ignored, as by a shell in the background, have children that ignore it.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    try:
        for process in alive:
            process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
        end = time.monotonic() + _SECONDS_TO_STOP
        while time.monotonic() < end and any(process.poll() is None for process in alive):
            time.sleep(0.1)
    finally:
        for process in alive:
            if process.poll() is None:
                process.kill()
            process.wait()


class StudyProgress:
    """Progress bars of the study, in epochs of all its runs, and of each running job.

    Args:
        console: console to print to.
        jobs: jobs of the study.
    """

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = self.bars.add_task("", total=sum(job.epochs for job in jobs))
        self.of_job: dict[str, TaskID] = {}
        self.told: set[str] = set()

    def __enter__(self) -> StudyProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Update the bars."""
        epochs = 0
        for job in jobs:
            done = job.epochs if job.state in ("done", "failed") else job.epochs_done()
            epochs += done
            if job.state == "running" and self.console.is_terminal:
                if job.name not in self.of_job:
                    self.of_job[job.name] = self.bars.add_task(job.name, total=job.epochs)
                self.bars.update(self.of_job[job.name], completed=done)
            elif job.name in self.of_job:
                self.bars.remove_task(self.of_job.pop(job.name))
            if job.state in ("done", "failed") and job.name not in self.told:
                self.told.add(job.name)
                self.console.print(f"{job.state}: {job.name}", highlight=False, soft_wrap=True)
        ended = sum(job.state in ("done", "failed") for job in jobs)
        self.bars.update(self.total, completed=epochs, description=f"{ended} of {len(jobs)} runs")
