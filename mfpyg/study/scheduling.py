"""Many runs of mfpyg-train at a time, each in a process of its own."""

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

from mfpyg.files import make_folder
from mfpyg.training.folder import RunFolder

_SECONDS_TO_STOP = 60
_PAUSE = 0.5


@dataclass
class Job:
    """A run and how far it is.

    Attributes:
        name: for people.
        folder: of the run.
        arguments: of mfpyg-train, from the beginning.
        epochs: that it will have at most.
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        error: last line that a failed run printed.
    """

    name: str
    folder: Path
    arguments: list[str]
    epochs: int = 0
    state: str = "waiting"
    error: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    place: str | None = None

    @property
    def log(self) -> Path:
        """What the run printed, of all its starts."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def finished(self) -> bool:
        """Whether the run has come to its table."""
        return RunFolder(self.folder).metrics.is_file()

    def epochs_done(self) -> int:
        """Lines of the run's log of epochs."""
        with contextlib.suppress(OSError):
            return max(RunFolder(self.folder).log.read_text().count("\n") - 1, 0)
        return 0

    def command(self) -> list[str]:
        """A new run, or the rest of one that has a checkpoint."""
        resumed = ["--resume", str(self.folder)] if RunFolder(self.folder).last.is_file() else self.arguments
        return [sys.executable, "-m", "mfpyg.cli.train", *resumed]


def run_jobs(
    jobs: Sequence[Job],
    at_a_time: int,
    gpus: Sequence[str] = (),
    shown: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> None:
    """Run all jobs that are not finished; a failed one does not keep the others from running.

    Args:
        jobs: in the order in which they start; their states say how they ended.
        at_a_time: how many run at once.
        gpus: CUDA devices, one job each at a time; none for the CPU.
        shown: called twice a second, and whenever a job has ended.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the running jobs have saved where they are.
    """
    free: list[str | None] = [*gpus][:at_a_time] or [None] * at_a_time
    waiting = []
    for job in jobs:
        job.state = "done" if job.finished() else "waiting"
        if job.state == "waiting":
            waiting.append(job)
    running: list[Job] = []
    try:
        while waiting or running:
            while waiting and free:
                _start(waiting[0], free.pop(0), len(free) + len(running) + 1)
                running.append(waiting.pop(0))
            for job in [job for job in running if job.process is not None and job.process.poll() is not None]:
                running.remove(job)
                free.append(job.place)
                _ended(job)
            shown(jobs)
            if running:
                time.sleep(_PAUSE)
    except BaseException:
        _stop(running)
        raise
    shown(jobs)


def _start(job: Job, place: str | None, at_a_time: int) -> None:
    make_folder(job.folder.parent)
    environment = dict(os.environ)
    if place is not None:
        environment["CUDA_VISIBLE_DEVICES"] = place
    # Otherwise each takes all cores, which is slower than sharing them.
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // at_a_time, 1)))
    with job.log.open("ab") as log:
        # A group of its own, as the terminal's Ctrl-C would come twice: from the terminal, and from here.
        job.process = subprocess.Popen(
            job.command(), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    job.place, job.state = place, "running"


def _ended(job: Job) -> None:
    assert job.process is not None
    if job.process.returncode == 0 and job.finished():
        job.state = "done"
        return
    job.state = "failed"
    lines = job.log.read_text(errors="replace").strip().splitlines()
    job.error = lines[-1] if lines else f"ended with status {job.process.returncode}"


def _stop(running: Sequence[Job]) -> None:
    """Ask running jobs to save and stop, and wait for it; what does not answer is killed."""
    alive = [job.process for job in running if job.process is not None and job.process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGINT)
    end = time.monotonic() + _SECONDS_TO_STOP
    while time.monotonic() < end and any(process.poll() is None for process in alive):
        time.sleep(0.1)
    for process in alive:
        if process.poll() is None:
            process.kill()
        process.wait()
