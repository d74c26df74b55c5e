"""Memory does not grow with training steps, nor with predicted frames.

``MFPYG_MEMORY_STEPS`` and ``MFPYG_MEMORY_FRAMES`` are how many; a few, if they are not set. Each is measured in a
process of its own, from its first third on. What grows is told by the memory in use, of which C's allocator keeps
account, and by the number of blocks that Python has given out: a leak shows in them at once, but in the resident memory
only when it has used up what the process has in reserve, so that of this the whole growth is bounded.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

STEPS = int(os.environ.get("MFPYG_MEMORY_STEPS", "300"))
FRAMES = int(os.environ.get("MFPYG_MEMORY_FRAMES", "3000"))

RESIDENT_GROWTH = 64 << 20
"""Bytes that the resident memory may grow by, however long it takes: the reserve of C's allocator."""

_WORKER = '''
"""Prints memory in use and resident memory in bytes along the way: training N FOLDER, or predicting N FOLDER."""
import array, ctypes, gc, json, math, resource, sys

what, n, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
every = max(n // 30, 1)
rows, n_rows = array.array("d", bytes(8 * 4 * 100)), 0  # no objects of its own along the way

class Usage(ctypes.Structure):
    """mallinfo2 of glibc's <malloc.h>."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]

usage = ctypes.CDLL(None).mallinfo2
usage.restype = Usage

def measure(count):
    global n_rows
    gc.collect()
    found = usage()
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    values = count, found.uordblks + found.hblkhd, sys.getallocatedblocks(), resident
    for column, value in enumerate(values):
        rows[4 * n_rows + column] = value
    n_rows += 1

if what == "training":
    from mfpyg.cli import train
    from mfpyg.training.callbacks import RunCheckpoint

    end = RunCheckpoint.on_train_batch_end
    def measured(self, trainer, *arguments):
        end(self, trainer, *arguments)
        if trainer.global_step % every == 0:
            measure(trainer.global_step)
    RunCheckpoint.on_train_batch_end = measured
    arguments = ["--fidelities", "dz:EF", "cc:E", "--compile=off", "--optim.schedule=constant", "--out", folder]
    train.main([*arguments, f"--epochs={math.ceil(n / 76)}"])
else:
    import torch
    from ase import Atoms
    from mfpyg import backbones
    from mfpyg.datasets import MiniCHNO
    from mfpyg.inference.ensemble import Ensemble
    from mfpyg.inference.frames import predict_frames
    from mfpyg.models import MultiFidelityPotential

    kind = backbones.find("hipnn")
    ensemble = Ensemble(MultiFidelityPotential(kind.make([1, 6, 7, 8], kind.small), ["dz", "cc"]))
    dataset = MiniCHNO()
    def frames():
        for number in range(n):
            data = dataset[number % len(dataset)]
            yield Atoms(data.z.numpy(), data.pos.numpy())
    for number, prediction in enumerate(predict_frames(ensemble, frames(), ["dz", "cc"])):
        if number % every == every - 1:
            measure(number + 1)
print(json.dumps(list(rows[: 4 * n_rows])))
'''


def slope(counts: np.ndarray, used: np.ndarray) -> float:
    """Bytes a count: the median of the slopes between measurements a third of all apart, and farther."""
    one, two = np.triu_indices(len(counts), k=max(len(counts) // 3, 1))
    return float(np.median((used[two] - used[one]) / (counts[two] - counts[one])))


def growth(folder: Path, what: str, n: int) -> float:
    """Bytes in use that each step or frame leaves behind, Python's own blocks apart."""
    script = folder / "worker.py"
    script.write_text(_WORKER)
    command = [sys.executable, str(script), what, str(n), str(folder / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = np.array(json.loads(done.stdout.splitlines()[-1])).reshape(-1, 4)
    counts, used, blocks, resident = rows[rows[:, 0] > n / 3].T
    found, objects = slope(counts, used), slope(counts, blocks)
    print(
        f"{what} {int(counts[-1])}: {found:.0f} bytes and {objects:.2f} Python blocks each in use, resident "
        f"{resident[0] / 2**20:.1f} MiB at a third, {resident[-1] / 2**20:.1f} MiB at the end"
    )
    assert objects < 3  # a batch left behind is dozens
    assert resident[-1] - resident[0] < RESIDENT_GROWTH
    return found


accounted = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs the accounts of glibc 2.33"
)


@accounted
@pytest.mark.slow
def test_training_steps_leave_nothing_behind(tmp_path: Path) -> None:
    assert growth(tmp_path, "training", STEPS) < 500  # a batch is 10 kB, its gradients half a megabyte


@accounted
@pytest.mark.slow
def test_predicted_frames_leave_nothing_behind(tmp_path: Path) -> None:
    assert growth(tmp_path, "predicting", FRAMES) < 50  # a frame and its prediction are more than a kilobyte


def test_a_leak_is_a_slope_and_a_jump_is_none() -> None:
    counts = np.arange(1000.0, 3000.0, 10)
    noise = np.random.default_rng(0).normal(scale=4096, size=len(counts))
    assert abs(slope(counts, 1e9 + noise)) < 10
    assert slope(counts, 1e9 + noise + 300 * counts) == pytest.approx(300, abs=10)
    assert abs(slope(counts, 1e9 + noise + 5e7 * (counts > 2800))) < 20
