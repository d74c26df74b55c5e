"""Both sides of a case of the speed benchmark, taking turns, after hippynn's fastest ways have been found."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jobs import OUT_OF_MEMORY, SIDES, Job
from molecules import BENZENE
from process import Worker

PEER_KERNELS = {"cpu": ["numba", "pytorch", "sparse", "_pytorch_raw"], "cuda": ["triton", "cupy", "pytorch", "sparse"]}
COMPILED = ("numba", "pytorch", "triton", "cupy")
"""Kernels whose first steps take long for another reason than being slow."""
PAIR_FINDERS = ["KDTreePairs", "PeriodicPairIndexer", "DynamicPeriodicPairs"]
TOLERANCE = 1e-4


def measure(ours: Job, peer_kernel: str | None, folder: Path) -> dict[str, Any]:
    """Both sides of a case in turn.

    Args:
        ours: our side of it.
        peer_kernel: of hippynn, instead of its fastest.
        folder: for files that both read.
    """
    case = ours.case
    print(case, file=sys.stderr, flush=True)
    row: dict[str, Any] = {"case": case}
    ours = dataclasses.replace(ours, weights=str(folder / "weights.pt"))
    theirs = dataclasses.replace(ours, side="hippynn", kernel="pytorch")
    if theirs.kind == "liquid" or (theirs.kind == "md" and theirs.size != BENZENE):
        row["tried_pairs"] = fastest(dataclasses.replace(theirs, task="pairs"), "pairs", PAIR_FINDERS)
        theirs = dataclasses.replace(theirs, pairs=next(iter(row["tried_pairs"])))
    row["tried_kernels"] = fastest(theirs, "kernel", [peer_kernel] if peer_kernel else PEER_KERNELS[ours.device])
    kernel, best = next(iter(row["tried_kernels"].items()))
    if not isinstance(best, float) and best != OUT_OF_MEMORY:
        sys.exit(f"{case}: hippynn's {kernel} failed: {best}")
    theirs = dataclasses.replace(theirs, kernel=kernel)
    workers = {"hippynn": Worker(theirs), "mfpyg": Worker(ours)}
    agree(case, workers, folder)
    steps = {side: warm_up(worker) for side, worker in workers.items()}
    seconds: dict[str, list[Any]] = {side: [] for side in SIDES}
    for _ in range(ours.repeats):
        for side, worker in workers.items():
            seconds[side].append(worker.ask("run", steps[side]).get("seconds"))
    for side, worker in workers.items():
        memory = worker.ask("memory")
        if worker.failure is None:
            median = statistics.median(seconds[side])
            row[side] = {"ms": 1e3 * median, "raw_s": seconds[side], "steps_a_block": steps[side], **memory}
        elif worker.failure == OUT_OF_MEMORY:
            row[side] = {"ms": None, "failure": OUT_OF_MEMORY}
        else:
            sys.exit(f"{case}: {side} failed: {worker.failure}")
        worker.close()
    row["hippynn"].update(kernel=theirs.kernel, pairs=theirs.pairs)
    row["mfpyg"].update(kernel=ours.kernel, compile=ours.compile)
    return row


def fastest(job: Job, name: str, candidates: list[str]) -> dict[str, Any]:
    """Try out each of hippynn's ways to do something.

    Args:
        job: of hippynn.
        name: of what is to be chosen in it.
        candidates: for it.

    Returns:
        ``{candidate: seconds a step, or why there are none}``, the fastest first.
    """
    tried: dict[str, Any] = {}
    for candidate in candidates:
        known = [value for value in tried.values() if isinstance(value, float)]
        choice: dict[str, Any] = {name: candidate}
        worker = Worker(dataclasses.replace(job, **choice))
        steps = []
        for _ in range(4):
            hurry = known and candidate not in COMPILED
            steps.append(worker.ask("run", 1, timeout=max(10.0, 3 * min(known)) if hurry else 900.0).get("seconds"))
        tried[candidate] = min(steps[2:]) if worker.failure is None else worker.failure  # compilers work in the first
        worker.close()
        print(f"  hippynn {candidate}: {in_seconds(tried[candidate])}", file=sys.stderr)
    return dict(sorted(tried.items(), key=lambda item: item[1] if isinstance(item[1], float) else math.inf))


def in_seconds(value: Any) -> str:
    return f"{value:.3f} s a step" if isinstance(value, float) else str(value)


def warm_up(worker: Worker) -> int:
    """Two rounds through all sets, or one if that takes long; how many steps make a block of a third of a second."""
    first = worker.ask("run", 1)
    n = first.get("sets", 1)
    seconds = worker.ask("run", n).get("seconds", 0.0)
    if seconds < 2.0:
        seconds = worker.ask("run", n).get("seconds", 0.0)
    worker.ask("forget")
    return 1 if seconds > 1.0 else n * max(1, math.ceil(0.33 / (n * max(seconds, 1e-4))))


def agree(case: str, workers: dict[str, Worker], folder: Path) -> None:
    """Stop unless energies, forces and losses of both sides are the same to float32."""
    files = {side: folder / f"{side}.npz" for side in workers}
    for side, worker in workers.items():
        worker.ask("check", files[side])
        if worker.failure not in (None, OUT_OF_MEMORY):
            sys.exit(f"{case}: {side} failed: {worker.failure}")
    if any(worker.failure for worker in workers.values()):
        return  # nothing to compare
    theirs, ours = np.load(files["hippynn"]), np.load(files["mfpyg"])
    assert set(theirs) == set(ours)
    for name in theirs:
        difference = np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
        print(f"  {name}: {difference:.1e} of the largest apart", file=sys.stderr)
        if not difference < TOLERANCE:
            sys.exit(f"{case}: the {name} of hippynn and mfpyg differ by {difference:.1e} of the largest, not as one")
