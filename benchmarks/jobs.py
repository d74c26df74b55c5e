"""Jobs of the speed benchmark, and their transfer to its processes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

SIDES = ("hippynn", "mfpyg")
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Job:
    """One case for one side.

    Attributes:
        case: its kind and its size, as ``train-32``.
        device: ``cpu`` or ``cuda``.
        threads: of every library.
        repeats: blocks of steps; of an overhead case, epochs.
        memory_gb: limit of the process on a CPU; 0: none.
        kernel: of the side's own kernels.
        compile: whether ours goes through ``torch.compile``.
        side: one of SIDES; an overhead case is ours alone.
        weights: file of hippynn's weights, which the first process of hippynn writes.
        pairs: hippynn's periodic pair finder.
        task: what a step is, a method of the side; else what the kind of the case says.
    """

    case: str
    device: str
    threads: int
    repeats: int
    memory_gb: float
    kernel: str
    compile: bool
    side: str = "mfpyg"
    weights: str = ""
    pairs: str | None = None
    task: str | None = None

    @property
    def kind(self) -> str:
        """Of the case: train, predict, liquid, md or overhead."""
        return self.case.split("-")[0]

    @property
    def size(self) -> int:
        """Of the case: molecules, or atoms of a liquid or of benzene."""
        return int(self.case.split("-")[1])

    def command(self, script: str) -> list[str]:
        """Command that runs a script of this folder on this job, which it reads with ``given_job``."""
        return [sys.executable, str(Path(__file__).with_name(script)), json.dumps(dataclasses.asdict(self))]

    def environment(self) -> dict[str, str]:
        """Of the process, with a quiet hippynn."""
        quiet = {
            "HIPPYNN_WARN_LOW_DISTANCES": "False",
            "HIPPYNN_USE_CUSTOM_KERNELS": "False",
            "PYTHONWARNINGS": "ignore",
        }
        return {**environment_with(self.threads), **quiet}


def environment_with(threads: int) -> dict[str, str]:
    """Environment of a process with as many threads for every library."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def our_job(case: str, options: argparse.Namespace) -> Job:
    """Of mfpyg, from the command line.

    ``--compile auto`` is what users get: ``mfpyg-train`` compiles long runs on a CPU, and nothing else compiles.
    """
    training = case.startswith(("train", "overhead")) and options.device == "cpu"
    return Job(
        case=case,
        device=options.device,
        threads=options.threads,
        repeats=options.repeats,
        memory_gb=options.memory_gb,
        kernel=options.kernel,
        compile=training if options.compile == "auto" else options.compile == "on",
    )


def given_job() -> Job:
    """Job of this process, from its command line."""
    return Job(**json.loads(sys.argv[1]))


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
