"""Runs of mfpyg-train that are hit by something, and whether they end as others do."""

from __future__ import annotations

import csv
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mfpyg.datasets.spec import open_dataset, parse_specs

FORKS = Path(__file__).with_name("forks.py")
WIDTH = 64


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        status: what it exited with, or the signal that killed it with a minus sign.
        output: what it printed, the errors included.
        phase: what it did when it was hit, or last.
        unfinished: files whose writing it had begun.
    """

    status: int
    output: str
    phase: str
    unfinished: list[str]


class Forks:
    """Starts mfpyg-train in a fork of one process that has imported it.

    Args:
        folder: to run in.
        server: of ``forks.py``.
    """

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self.folder, self._server = folder, server
        self._phase, self._output = folder / ".phase", folder / ".output"

    def run(self, *arguments: str, hit: Callable[[Running], None] | None = None, **request: Any) -> Ended:
        """One run from start to end.

        Args:
            arguments: of mfpyg-train.
            hit: called with the running process, to do something to it.
            request: ``aim``, ``limit``: see ``forks.py``; ``folder`` to run in.
        """
        self._phase.write_bytes(bytes(WIDTH))
        self._output.write_bytes(b"")
        values = {"folder": str(self.folder), "output": str(self._output), "phase": str(self._phase), **request}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({**values, "arguments": arguments}) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        running, done = Running(pid, self._phase, self._output), False
        try:
            if hit is not None:
                hit(running)
            done = True
        finally:
            if not done:
                running.send(signal.SIGKILL)
            status = os.waitstatus_to_exitcode(int(self._server.stdout.readline()))
        where = Path(values["folder"])
        unfinished = [path.name for path in where.glob("*/.*.tmp")]
        return Ended(status, self._output.read_text(), read_phase(self._phase), unfinished)

    def whole(self, *arguments: str) -> None:
        """A run that nothing happens to."""
        ended = self.run(*arguments)
        assert ended.status == 0, ended.output


@dataclass
class Running:
    """A run that goes on.

    Attributes:
        pid: its process.
        phase_file, output_file: what it does, and what it printed.
    """

    pid: int
    phase_file: Path
    output_file: Path

    def wait_for(self, phase: str) -> None:
        """Until it has come to a phase, or has ended."""
        while read_phase(self.phase_file) != phase and self.alive():
            time.sleep(0.005)

    def alive(self) -> bool:
        """Whether it has not ended."""
        state = Path(f"/proc/{self.pid}/stat")
        try:
            return state.read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def send(self, number: signal.Signals) -> None:
        """A signal, if it is still there."""
        if self.alive():
            os.kill(self.pid, number)


def read_phase(path: Path) -> str:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), WIDTH, access=mmap.ACCESS_READ)[:].rstrip(b"\0").decode()


@pytest.fixture(scope="session")
def fork_server(_own_cache: None) -> Iterator[subprocess.Popen[str]]:
    open_dataset(parse_specs(["minichno"]), ["dz", "cc"])  # processed once, before anything happens to who does it
    process = subprocess.Popen(
        [sys.executable, str(FORKS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums in one order, and nothing that a fork loses
    )
    yield process
    process.communicate(timeout=60)


@pytest.fixture
def forks(tmp_path: Path, fork_server: subprocess.Popen[str]) -> Forks:
    return Forks(tmp_path, fork_server)


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fork_server: subprocess.Popen[str]
) -> Path:
    """A run with the module's ``OPTIONS`` that nothing happened to; kernels are compiled after it."""
    forks = Forks(tmp_path_factory.mktemp("whole"), fork_server)
    forks.whole(*request.module.OPTIONS, "--out", "whole")
    return forks.folder / "whole"


def differences(one: Any, two: Any, name: str = "") -> list[str]:
    """Where two nested values are not the same, to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
        return [] if same else [name]
    if isinstance(one, dict) and isinstance(two, dict):
        names = dict.fromkeys([*one, *two])
        return [d for n in names for d in differences(one.get(n, "nothing"), two.get(n, "nothing"), f"{name}/{n}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [d for n, pair in enumerate(zip(one, two, strict=True)) for d in differences(*pair, f"{name}/{n}")]
    same = type(one) is type(two) and (one == two or (one != one and two != two))
    return [] if same else [f"{name}: {str(one)[:60]} and {str(two)[:60]}"]


def checkpoint_of(path: Path) -> dict[str, Any]:
    """All of a checkpoint but where its run lies."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["mfpyg"]["config"]["out"]
    return checkpoint


def log_of(run: Path) -> list[dict[str, str]]:
    """``metrics.csv`` but for the times."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(one: Path, two: Path) -> None:
    """Two runs have ended with the same files, the whole state of the training included."""
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    for name in ("last.ckpt", "best.ckpt"):
        assert not differences(checkpoint_of(one / name), checkpoint_of(two / name)), name
    assert log_of(one) == log_of(two)
    for name in ("metrics.json", "metrics.txt", "splits.npz", "versions.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.fixture(name="assert_same_run", scope="session")
def _assert_same_run() -> Callable[[Path, Path], None]:
    return assert_same_run


@pytest.fixture(name="differences", scope="session")
def _differences() -> Callable[..., list[str]]:
    return differences


@pytest.fixture(name="checkpoint_of", scope="session")
def _checkpoint_of() -> Callable[[Path], dict[str, Any]]:
    return checkpoint_of
