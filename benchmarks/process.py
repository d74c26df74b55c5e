"""Processes of benchmarks: the parent's end of ``worker.py``, and the processor time of a command."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import OUT_OF_MEMORY, Job, environment_with


class Worker:
    """A side in a process of its own, which answers one question at a time.

    Args:
        job: what it will measure.
    """

    def __init__(self, job: Job) -> None:
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self.process = subprocess.Popen(
            job.command("worker.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            env=job.environment(),
        )
        self.failure: str | None = None
        self._answer(None)

    def ask(self, *words: object, timeout: float | None = None) -> dict[str, Any]:
        """The answer to a command; none, with ``failure`` set, if the worker failed or took longer."""
        if self.failure is None:
            assert self.process.stdin is not None
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            return self._answer(timeout)
        return {}

    def _answer(self, timeout: float | None) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.failure = "too slow"
            self.process.kill()
            return {}
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        self.failure = answer.get("error")
        return answer

    def _last_words(self) -> str:
        code = self.process.wait()
        self.stderr.seek(0)
        words = self.stderr.read()
        if code == -9 or "bad_alloc" in words or "allocate memory" in words:
            return OUT_OF_MEMORY
        return words.strip().splitlines()[-1] if words.strip() else f"exit status {code}"

    def close(self) -> None:
        if self.process.stdin is not None and self.failure is None:
            self.process.stdin.close()
            self.process.wait()
        self.process.kill()
        self.process.wait()
        self.stderr.close()


class Failure(Exception):
    """A command that has failed."""


def processor_seconds(command: Sequence[str], log: Path) -> float:
    """Run a command with one thread; processor seconds of it and of the processes that it has waited for.

    Args:
        command: the command.
        log: file for what it prints.

    Raises:
        Failure: if it fails, with the last line that it has printed.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment_with(1))
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = log.read_text(errors="replace").strip().splitlines()
        raise Failure(f"{log}: exit status {process.returncode}: {words[-1] if words else 'no message'}")
    return usage.ru_utime + usage.ru_stime
