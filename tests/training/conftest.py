"""A tiny network, and ways to train it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64",
]  # fmt: skip
MAIN = ["--fidelities", "dz:EF", "cc:E"]


class Trainer:
    """Runs ``mfpyg-train`` on a tiny network in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # One thread: sums in one order, so that runs can be compared bit for bit.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        return subprocess.Popen(
            [sys.executable, "-m", "mfpyg.cli.train", *arguments],
            cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str) -> str:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    def new(self, out: str, *arguments: str) -> list[str]:
        """Arguments of a new run."""
        return [*MAIN, *TINY, "--out", out, *arguments]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)
