"""Several processes that compute labels; ``python -m mfpyg.labeling.pool STORE JOBS THREADS`` runs those of a file."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mfpyg.errors import INTERRUPT_STATUS
from mfpyg.labeling.jobs import LabelJob
from mfpyg.labeling.store import LabelStore

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_SCRATCH = ("TMPDIR", "PYSCF_TMPDIR")

Shown = Callable[[LabelJob], None]


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables that give each program a number of threads; they are read when a program is loaded."""
    return dict.fromkeys(_THREADS, str(threads))


def compute_labels(
    jobs: Sequence[LabelJob], store: LabelStore, at_a_time: int, threads: int, shown: Shown = lambda job: None
) -> dict[str, str]:
    """Compute the labels of all jobs, or store why they cannot be computed.

    Args:
        jobs: jobs in the order in which they are started.
        store: where the results go, at once.
        at_a_time: maximum number of processes.
        threads: threads of each process.
        shown: called when a job has ended.

    Returns:
        Reasons why jobs have no result, by key: their processes were stopped from outside; a later call computes them.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with all processes stopped.
    """
    waiting = deque(jobs)
    workers: list[_Worker] = []
    lost: dict[str, str] = {}
    place = os.environ.get("PYSCF_TMPDIR") or None
    with (
        tempfile.TemporaryDirectory(prefix="mfpyg-label-", dir=place) as scratch,
        selectors.DefaultSelector() as answers,
    ):
        try:
            while waiting or workers:
                while waiting and len(workers) < at_a_time:
                    worker = _Worker.start(store.folder, threads, Path(scratch))
                    workers.append(worker)
                    answers.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                    worker.give(waiting.popleft())
                for event, _ in answers.select():
                    worker = event.data
                    alive, done = worker.answered(), worker.job
                    assert done is not None
                    if not alive and store.read(done.key) is None:
                        reason = worker.how_it_ended()
                        if worker.was_stopped:
                            lost[done.key] = reason
                        else:
                            store.fail(done, reason)
                    if alive and waiting:
                        worker.give(waiting.popleft())
                    else:
                        answers.unregister(event.fileobj)
                        workers.remove(worker)
                        worker.stop()
                    shown(done)
        finally:
            for worker in workers:
                worker.stop()
    return lost


@dataclass
class _Worker:
    """A process and what it computes."""

    process: subprocess.Popen[str]
    log: Path
    job: LabelJob | None = None

    @classmethod
    def start(cls, folder: Path, threads: int, scratch: Path) -> _Worker:
        handle, log = tempfile.mkstemp(dir=scratch, suffix=".log")
        environment = {**os.environ, **worker_environment(threads), **dict.fromkeys(_SCRATCH, str(scratch))}
        with os.fdopen(handle, "wb") as printed:
            # In a process group of its own: Ctrl-C does not reach it, and what it has started is stopped with it.
            process = subprocess.Popen(
                [sys.executable, "-m", "mfpyg.labeling.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
                env=environment,
                start_new_session=True,
            )
        return cls(process, Path(log))

    def give(self, job: LabelJob) -> None:
        assert self.process.stdin is not None
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it has ended, as its standard output will say
            self.process.stdin.write(job.as_line() + "\n")
            self.process.stdin.flush()

    def answered(self) -> bool:
        """Read an answer; ``False`` if the process has ended instead."""
        assert self.process.stdout is not None
        return bool(self.process.stdout.readline())

    @property
    def was_stopped(self) -> bool:
        """True if it was ended by SIGTERM, as all processes are where a job of a cluster is cancelled."""
        return self.process.returncode == -signal.SIGTERM

    def how_it_ended(self) -> str:
        code = self.process.wait()
        if code < 0:
            memory = "; perhaps it ran out of memory" if -code == signal.SIGKILL else ""
            again = "; the same command computes it" if self.was_stopped else ""
            return f"its process was ended by {signal.Signals(-code).name}{memory}{again}"
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        return f"its process ended with status {code}: {lines[-1].strip()[:300]}"

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    """Compute the jobs of a file, lines of :meth:`LabelJob.as_line`, with all cores that SLURM has given."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(INTERRUPT_STATUS))
    folder, file, threads = sys.argv[1:]
    store = LabelStore(Path(folder))
    jobs = [LabelJob.from_line(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    left = [job for job in jobs if not store.has(job.key)]
    compute_labels(left, store, max(cores // int(threads), 1), int(threads))


if __name__ == "__main__":
    main()
