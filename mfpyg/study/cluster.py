"""Runs of a study as jobs of a SLURM cluster, by submitit; importable without either.

Each run is a task of a job array, and continues from its last checkpoint when it is started again: requeued by SLURM
after preemption, requeued by submitit at its time limit, or started by the same study again. Submitted jobs are
recorded in the study's folder, so that none is queued twice.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.errors import INTERRUPT_STATUS, MFPyGError, unknown_name
from mfpyg.files import make_folder, write_text
from mfpyg.interrupt import Postponed
from mfpyg.study.jobs import Job, ended, start

if TYPE_CHECKING:
    import submitit

_PAUSE, _LOOK = 2.0, 0.2
"""Seconds between looks at the queue, and at a process."""
_SECONDS_TO_BE_ENDED, _SECONDS_TO_SAVE = 600, 60
"""SLURM's signal comes 90 seconds before the end."""
_TIMEOUTS = 50
"""Maximum number of times that a run reaches its time limit and continues in another job."""
_RESERVED = {
    *("array_parallelism", "nodes", "ntasks_per_node", "num_gpus", "gpus_per_task", "cpus_per_gpu"),
    *("additional_parameters", "srun_args", "use_srun", "stderr_to_stdout"),
}
"""Parameters of submitit that a study sets itself, that make several tasks per run, or have no plain value."""


LAUNCHERS = ("local", "slurm")


@dataclass(frozen=True)
class Slurm:
    """Resources that each run requests from SLURM.

    Attributes:
        parameters: parameters of ``submitit.SlurmExecutor``, which are those of sbatch.
    """

    parameters: dict[str, Any]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Slurm:
        """Parse ``["partition=gpu", "time=240"]``.

        Raises:
            MFPyGError: for an unknown parameter, a malformed value, or if submitit or SLURM is missing.
        """
        known = _known_parameters()
        parameters: dict[str, Any] = {"job_name": "mfpyg"}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not value:
                raise MFPyGError(f"slurm is '{text}', expected a name and a value, as partition=gpu")
            if name not in known:
                raise unknown_name("parameter of slurm", name, known)
            parameters[name] = _value(name, value)
        minutes = parameters.get("time", "not given")
        if not isinstance(minutes, int):
            raise MFPyGError(
                f"slurm has time {minutes}, expected the minutes after which a run is requeued, as time=240"
            )
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise MFPyGError("launcher is slurm, but sbatch was not found; use a login node of the cluster")
        return cls(parameters)

    def executor(self, folder: Path, at_a_time: int | None) -> submitit.SlurmExecutor:
        """Executor of submitit with its files in ``slurm/`` of the study's folder; by default runs all jobs at once."""
        import submitit

        executor = submitit.SlurmExecutor(folder=folder / "slurm", max_num_timeout=_TIMEOUTS)
        more = {} if at_a_time is None else {"array_parallelism": at_a_time}
        executor.update_parameters(**self.parameters, **more)
        return executor

    @staticmethod
    def to_cancel(jobs: Iterable[Job]) -> str:
        """Command that cancels all queued jobs."""
        return " ".join(["scancel", *dict.fromkeys(job.place for job in jobs if job.place and job.state != "done")])


def cluster_of(launcher: str, slurm: Sequence[str]) -> Slurm | None:
    """Cluster of the options ``--launcher`` and ``--slurm``; ``None`` for this machine.

    Raises:
        MFPyGError: for an unknown launcher, or options of the other one.
    """
    if launcher not in LAUNCHERS:
        raise unknown_name("launcher", launcher, LAUNCHERS)
    if launcher == "slurm":
        return Slurm.parse(slurm)
    if slurm:
        raise MFPyGError("slurm is given, but launcher is local; set launcher to slurm")
    return None


def _value(name: str, text: str) -> int | str | list[str]:
    if name in ("setup", "teardown"):  # lines of the job's script
        return [text]
    return int(text) if text.isdecimal() else text


def _known_parameters() -> list[str]:
    try:
        import submitit
    except ImportError as error:
        raise MFPyGError("launcher slurm needs submitit; install it with: pip install 'mfpyg[slurm]'") from error
    return sorted(submitit.SlurmExecutor._valid_parameters() - _RESERVED)


class JobOnCluster:
    """Callable that submitit pickles and calls on a node.

    Args:
        job: job to run.
    """

    def __init__(self, job: Job) -> None:
        self.job = dataclasses.replace(job, state="waiting", process=None, place=None)
        self._over = False

    def __call__(self) -> tuple[str, str]:
        """Train, and return the job's state and error."""
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        start(self.job, None, 1)
        # In a thread, as checkpoint() runs in a signal handler, where waiting for the process could deadlock.
        threading.Thread(target=self._wait, daemon=True).start()
        while not self._over:
            time.sleep(_LOOK)
        assert self.job.process is not None
        if self.job.process.returncode == INTERRUPT_STATUS:  # the system is stopping the job, which is not its result
            time.sleep(_SECONDS_TO_BE_ENDED)
        ended(self.job)
        return self.job.state, self.job.error

    def _wait(self) -> None:
        assert self.job.process is not None
        self.job.process.wait()
        self._over = True

    def checkpoint(self) -> Any:
        """Called by submitit before the time limit: let the run save, and continue it in another job."""
        import submitit

        assert self.job.process is not None
        if not self._over:
            os.kill(self.job.process.pid, signal.SIGTERM)
        end = time.monotonic() + _SECONDS_TO_SAVE
        while not self._over and time.monotonic() < end:
            time.sleep(_LOOK)
        return submitit.helpers.DelayedSubmission(JobOnCluster(self.job))


def run_on_cluster(
    jobs: Sequence[Job],
    executor: submitit.Executor,
    folder: Path,
    shown: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> None:
    """Submit all jobs that are neither finished nor queued, and follow them until they have ended.

    Args:
        jobs: jobs to run; their states are updated.
        executor: executor of submitit.
        folder: folder of the study, which records submitted jobs.
        shown: called every two seconds.

    Raises:
        MFPyGError: if SLURM refuses a job, or does not answer.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; queued jobs stay in the queue.
    """
    record = folder / "slurm.json"
    submitted = _read(record)
    for job in jobs:
        job.state = "done" if job.finished() else "waiting"
    left = [job for job in jobs if job.state == "waiting"]
    queued = _in_queue() if any(job.name in submitted for job in left) else set()
    following: dict[str, Any] = {}
    for job in left:
        job.place = submitted.get(job.name)
        known = executor.job_class(executor.folder, job.place) if job.place in queued else None
        if known is not None and not known.paths.result_pickle.exists():  # otherwise it is about to leave the queue
            following[job.name] = known
    new = [job for job in left if job.name not in following]
    interrupts = Postponed()  # submitted jobs must be recorded
    interrupts.begin()
    try:
        for job, known in zip(new, _submit(new, executor), strict=True):
            following[job.name], job.place = known, known.job_id
        write_text(record, json.dumps({**submitted, **{job.name: job.place for job in left}}, indent=2) + "\n")
    finally:
        interrupts.end()
    if interrupts.asked:
        raise KeyboardInterrupt
    while left:
        for job in list(left):
            if following[job.name].done():
                left.remove(job)
                _outcome(job, following[job.name])
            elif following[job.name].state.upper() == "RUNNING":
                job.state = "running"
        shown(jobs)
        if left:
            time.sleep(_PAUSE)
    shown(jobs)


def _submit(jobs: Sequence[Job], executor: submitit.Executor) -> list[Any]:
    if not jobs:
        return []
    make_folder(Path(executor.folder))
    try:
        with executor.batch():
            return [executor.submit(JobOnCluster(job)) for job in jobs]
    except (RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MFPyGError(f"sbatch refused the runs: {lines[-1][:200]}; check --slurm") from error


def _outcome(job: Job, known: Any) -> None:
    """Record how a job has ended, by its own result or by SLURM's state."""
    if job.finished():
        job.state = "done"
        return
    job.state = "failed"
    if known.paths.result_pickle.exists() and known.exception() is None:
        job.error = known.result()[1]
    else:
        job.error = f"job {known.job_id} ended as {known.state}; see {job.log} and {known.paths.stderr}"


def _in_queue() -> set[str]:
    """Identifiers of the user's queued and running jobs, each task of an array separately."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or ["no answer"]
        raise MFPyGError(f"squeue failed ({said[-1][:200]}); try again later") from error


def _read(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MFPyGError(f"{path}: damaged, expected the jobs in the queue; check squeue, and remove it") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise MFPyGError(f"{path}: damaged, expected names of runs and numbers of jobs; check squeue, and remove it")
    return found
