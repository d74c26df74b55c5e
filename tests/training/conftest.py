"""A tiny network, and ways to train it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.sampling import Sampling
from mfpyg.training.stage import Stage

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64",
]  # fmt: skip
MAIN = ["--fidelities", "dz:EF", "cc:E"]


def stage_of(loss: MultiFidelityLoss, lr: float = 1e-3, decay: float = 0.0) -> Stage:
    """A stage for a module that gets its batches from somebody else."""
    none = np.arange(0)
    return Stage(
        name="all", fidelities=loss.fidelities, epochs=1, loss=loss, lr=lr, weight_decay=decay, val=none,
        dataset=None, train=Sampling(none, np.ones((0, 1), bool), seed=0),  # type: ignore[arg-type]
    )  # fmt: skip


KILLED = '''
"""mfpyg-train that is killed at a given moment of a given step."""
import os, signal, sys
import lightning
from mfpyg.cli.train import main
from mfpyg.files import replace_file
from mfpyg.training.callbacks import EpochLog, RunCheckpoint
from mfpyg.training.module import MultiFidelityModule

moment, step = sys.argv[1].split(":")
cls, hook = {
    "batch": (RunCheckpoint, "on_train_batch_end"),
    "validation": (MultiFidelityModule, "validation_step"),
    "log": (EpochLog, "on_train_epoch_end"),
    "best": (lightning.Trainer, "save_checkpoint"),
    "last": (lightning.Trainer, "save_checkpoint"),
}[moment]
original = getattr(cls, hook)

def then_die(self, *rest, **more):
    result = original(self, *rest, **more)
    trainer = self if cls is lightning.Trainer else self.trainer if moment == "validation" else rest[0]
    if trainer.lightning_module.step == int(step) and (cls is not lightning.Trainer or rest[0].stem == moment):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(cls, hook, then_die)
main(sys.argv[2:])
'''


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

    def killed(self, moment: str, *arguments: str) -> None:
        """Run the command until it kills itself at a moment such as ``batch:3``, when step 3 has been made."""
        script = self.folder / "killed.py"
        script.write_text(KILLED)
        process = subprocess.run(
            [sys.executable, str(script), moment, *arguments],
            cwd=self.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True, timeout=300,
        )  # fmt: skip
        assert process.returncode == -signal.SIGKILL, process.stdout + process.stderr

    def new(self, out: str, *arguments: str) -> list[str]:
        """Arguments of a new run."""
        return [*MAIN, *TINY, "--out", out, *arguments]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)
