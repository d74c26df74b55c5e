"""A process of the speed benchmark: measures one side of one case, on command, a line of JSON for each."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
import resident
from jobs import OUT_OF_MEMORY, Job, given_job, synchronise
from sides import Hippynn, MFPyG


def work(job: Job) -> None:
    """Answer each line of standard input with a line of JSON, until the end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    try:
        side = _prepare(job)
        say(answers, ready=True)
        for line in sys.stdin:
            name, *arguments = line.split()
            say(answers, **getattr(side, name)(*arguments))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say(answers, error=OUT_OF_MEMORY)


def say(answers: TextIO, **answer: Any) -> None:
    """A line of JSON, at once."""
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def is_out_of_memory(error: Exception) -> bool:
    """Of any library's: Python's, numpy's, torch's on a CPU and on a GPU."""
    words = f"{type(error).__name__} {error}"
    return bool(re.search(r"MemoryError|OutOfMemory|out of memory|allocate memory|not enough memory|bad_alloc", words))


def _prepare(job: Job) -> Commands:
    """Import, read the resident memory, build the side.

    What the package would only warn of, a compiler that fails, is an error here.
    """
    import torch

    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if job.device == "cpu" and job.memory_gb:
        resource.setrlimit(resource.RLIMIT_AS, (int(job.memory_gb * 1e9),) * 2)
    if job.side == "hippynn":
        import hippynn  # noqa: F401
    else:
        import mfpyg.models
        import mfpyg.training.loss  # noqa: F401
        from mfpyg.errors import MFPyGWarning

        warnings.filterwarnings("error", category=MFPyGWarning)
    if job.kernel == "pytorch" or (job.side == "mfpyg" and job.compile):
        torch.compile(lambda x: x.exp() + 1)(torch.ones(3))  # so that the compiler is among the imports
    imports = resident.now()
    return Commands(Hippynn(job) if job.side == "hippynn" else MFPyG(job), job, imports)


class Commands:
    """Tasks of a worker; arguments come as text, answers go as JSON."""

    def __init__(self, side: Any, job: Job, imports: float) -> None:
        self.side, self.job, self.imports = side, job, imports
        task = job.task or (job.kind if job.kind in ("train", "md") else "predict")
        self.step: Callable[[int], Any] = getattr(side, task)
        self.done = 0

    def check(self, path: str) -> dict[str, Any]:
        """Write energies, forces and, in training, the loss of the first set to a file."""
        energies, forces = self.side.predict(0)
        found = {"energies": energies, "forces": forces}
        if self.job.kind == "train":
            found["loss"] = self.side.loss(0)
        np.savez(path, **{name: value.detach().cpu().numpy() for name, value in found.items()})
        return {}

    def run(self, n: str) -> dict[str, Any]:
        """Seconds a step of n steps, going through the sets in turn."""
        synchronise(self.job.device)
        start = time.perf_counter()
        for _ in range(int(n)):
            self.step(self.done % len(self.side.sets))
            self.done += 1
        synchronise(self.job.device)
        return {"seconds": (time.perf_counter() - start) / int(n), "sets": len(self.side.sets)}

    def forget(self) -> dict[str, Any]:
        """Start again from the first set, and with the peak of memory."""
        self.done = 0
        if self.job.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            resident.forget_peak()
        return {}

    def memory(self) -> dict[str, Any]:
        """MiB: resident after imports, and the most above it since ``forget``; of a GPU, the most allocated."""
        if self.job.device == "cuda":
            import torch

            return {"gpu": torch.cuda.get_device_name(), "peak_mib": torch.cuda.max_memory_allocated() / 2**20}
        return {"imports_mib": self.imports, "peak_mib": resident.peak() - self.imports}


if __name__ == "__main__":
    work(given_job())
