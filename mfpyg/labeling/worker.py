"""A process that computes labels: ``python -m mfpyg.labeling.worker STORE``.

Jobs are lines of standard input, and each is answered with its key on standard output. When the input ends, because
whoever started the worker was killed, it ends at once, with all programs that it has started.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TextIO

import numpy as np

from mfpyg.errors import MFPyGError
from mfpyg.labeling.jobs import LabelJob
from mfpyg.labeling.store import LabelStore

if TYPE_CHECKING:
    from mfpyg.labeling.program import Program


def compute_all(lines: Iterable[str], store: LabelStore) -> Iterator[str]:
    """Compute and store the labels of jobs that have none yet; yields the key of each."""
    programs: dict[str, Program] = {}
    for line in lines:
        job = LabelJob.from_line(line)
        if store.read(job.key) is None:
            _compute(job, store, programs)
        yield job.key


def _compute(job: LabelJob, store: LabelStore, programs: dict[str, Program]) -> None:
    stopwatch = _Stopwatch()
    try:
        if job.level.name not in programs:
            programs[job.level.name] = job.level.open()
            stopwatch = _Stopwatch()
        program = programs[job.level.name]
        labels = program.compute(job.atoms(), job.charge, job.multiplicity, job.letters)
        seconds = stopwatch.seconds()
        for letter in job.letters:
            if not np.isfinite(labels[letter]).all():
                raise MFPyGError("the result is not a finite number; check for atoms that are much too close")
    except MFPyGError as error:
        store.fail(job, str(error), stopwatch.seconds())
    except Exception as error:  # programs raise anything
        store.fail(job, " ".join(f"{type(error).__name__}: {error}".split())[:300], stopwatch.seconds())
    else:
        store.write(job, {letter: labels[letter] for letter in job.letters}, program.version, seconds)


class _Stopwatch:
    """Processor time of this process and of its children that have ended; unlike wall time, of no other programs."""

    def __init__(self) -> None:
        self.began, self.used = time.perf_counter(), self._processor()

    @staticmethod
    def _processor() -> float:
        return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

    def seconds(self) -> float:
        """Processor time so far, or wall time if something else computes: no child, or one that still runs."""
        passed, used = time.perf_counter() - self.began, self._processor() - self.used
        return passed if used < 0.1 * passed else used


def _lines_until_end(stream: TextIO) -> Iterator[str]:
    """Lines of standard input, which is watched during the computations, too."""
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    """Compute the jobs of standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what programs print
    for key in compute_all(_lines_until_end(sys.stdin), LabelStore(Path(sys.argv[1]))):
        print(key, file=answers, flush=True)


if __name__ == "__main__":
    main()
