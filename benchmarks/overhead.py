"""Cost of training beside the network: a short training as of ``mfpyg-train``, with a clock in it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from clock import Clock
from jobs import Job, given_job


def measure_overhead(job: Job) -> dict[str, Any]:
    """A short training in a process of its own."""
    print(job.case, file=sys.stderr, flush=True)
    done = subprocess.run(job.command("overhead.py"), text=True, capture_output=True, env=job.environment())
    if done.returncode:
        sys.exit(f"{job.case} failed: {done.stderr}")
    return {"case": job.case, "compile": job.compile, **json.loads(done.stdout.splitlines()[-1])}


def overhead(job: Job) -> dict[str, Any]:
    """Milliseconds of a step of :func:`mfpyg.training.run.train`, and of the network, loss and optimiser in it.

    As ``mfpyg-train`` does it, compiled as its long runs are.
    """
    from data import write_file
    from rich.console import Console

    from mfpyg.errors import MFPyGWarning
    from mfpyg.settings import defaults, from_dict
    from mfpyg.training.folder import RunFolder
    from mfpyg.training.run import train

    warnings.filterwarnings("error", category=MFPyGWarning)
    clock, n_epochs = Clock(job.device), max(2, job.repeats)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MFPYG_CACHE"] = folder
        file = Path(folder) / "synthetic.h5"
        write_file(file, 16 * job.size)
        settings = {
            **defaults("published", "hipnn"),
            "fidelities": ["dz:EF"],
            "dataset": [f"ani1x:{file}"],
            "epochs": n_epochs,
            "batch_size": job.size,
            "threads": job.threads,
            "accelerator": job.device,
            "compile": "on" if job.compile else "off",
        }
        settings["model"]["kernel"] = job.kernel
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            train(from_dict(settings), RunFolder(Path(folder) / "run"), Console(file=nowhere))
    steps = clock.steps[len(clock.steps) // n_epochs :]  # without the first epoch
    walls, insides = zip(*steps, strict=True)
    outside = [wall - inside for wall, inside in steps]
    median = statistics.median
    return {
        "step_ms": 1e3 * median(walls),
        "network_ms": 1e3 * median(insides),
        "outside_ms": 1e3 * median(outside),
        "percent": 100 * median(o / wall for o, wall in zip(outside, walls, strict=True)),
        "raw_s": steps,
    }


if __name__ == "__main__":
    print(json.dumps(overhead(given_job())))
