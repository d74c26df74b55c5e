"""Preprocessing, opening and loading at the size of ANI-1ccx: 500,000 conformations of 14 atoms on average.

A synthetic file in the ANI-1x release layout (four energy levels, two of them with forces) is processed, opened and
loaded, each in a process of its own whose peak memory is the system's own figure. The loader is compared with
PyTorch Geometric's ``DataLoader`` on the same data set in the same process, in turn, and with a training step of
the published network.

    python benchmarks/data.py [--sizes 50000 500000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

N_GROUPS = 1500
BATCH_SIZE = 256
MIB = 1024.0


def write_file(path: Path, n: int, seed: int = 0) -> None:
    """A file in the release layout with n conformations of 5 to 23 atoms, cc energies on all of them."""
    random = np.random.default_rng(seed)
    lattice = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) * 1.4
    counts = np.full(N_GROUPS, n // N_GROUPS)
    counts[: n % N_GROUPS] += 1
    with h5py.File(path, "w") as file:
        for number, count in enumerate(counts):
            size = 5 + number % 19
            z = np.sort(random.choice([1, 6, 7, 8], size))[::-1]
            group = file.create_group(f"G{number:04d}")
            group["atomic_numbers"] = z.astype(np.uint8)
            shape = (int(count), size, 3)
            group["coordinates"] = lattice[:size] + 0.1 * random.standard_normal(shape, np.float32)
            total = -0.6 * float((z**2).sum())
            for key in ("wb97x_dz", "wb97x_tz"):
                group[f"{key}.energy"] = total + 0.1 * random.standard_normal(count)
                group[f"{key}.forces"] = 0.05 * random.standard_normal(shape, np.float32)
            group["hf_tz.energy"] = total + 0.1 * random.standard_normal(count)
            group["mp2_tz.corr_energy"] = -0.2 + 0.01 * random.standard_normal(count)
            group["ccsd(t)_cbs.energy"] = total + 0.1 * random.standard_normal(count)


def in_own_process(task: str, *arguments: str) -> dict[str, float]:
    """Results of a task of this script in a fresh process, with its wall time and peak resident memory."""
    command = [sys.executable, __file__, "--task", task, *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    wall = time.perf_counter() - start
    return {"wall_s": wall, "peak_mib": usage.ru_maxrss / MIB, **json.loads(output)}


def task_preprocess(file: str, root: str) -> dict[str, float]:
    """Process the file."""
    from mfpyg.datasets import ANI1x

    own = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            own[0] = max(own[0], _own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    ANI1x(root, file=file)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"process_s": seconds, "own_peak_mib": own[0]}


def task_open(file: str, root: str) -> dict[str, float]:
    """Open the processed data set, as a training does."""
    from mfpyg.datasets import ANI1x

    imported = _resident()
    start = time.perf_counter()
    dataset = ANI1x(root, file=file)
    seconds = time.perf_counter() - start
    assert len(dataset) > 0
    return {"open_s": seconds, "resident_mib": _resident(), "imports_mib": imported}


def task_load(file: str, root: str) -> dict[str, float]:
    """Batches a second of this loader and of PyG's, and the time of a training step of the published network."""
    import torch
    from torch_geometric.data import InMemoryDataset
    from torch_geometric.loader import DataLoader

    from mfpyg.datasets import ANI1x, BatchLoader

    torch.set_num_threads(1)
    dataset = ANI1x(root, file=file)
    n_batches = min(40, len(dataset) // BATCH_SIZE)
    order = np.random.default_rng(0).permutation(len(dataset))[: n_batches * BATCH_SIZE]
    chosen = [batch.tolist() for batch in np.split(order, n_batches)]

    def ours() -> Iterator[Any]:
        return iter(BatchLoader(dataset, plan=lambda epoch: [np.array(batch) for batch in chosen]))

    def theirs() -> Iterator[Any]:
        return iter(DataLoader(dataset, batch_sampler=chosen))

    mine, fresh = [], []
    for _ in range(5):  # A B A B …
        mine.append(_seconds_a_batch(ours))
        fresh.append(_seconds_a_batch(theirs))
    small = dataset.copy(order)  # of which PyG keeps every item as an object once it was made
    assert isinstance(small, InMemoryDataset)
    numbers = [list(range(start, start + BATCH_SIZE)) for start in range(0, len(small), BATCH_SIZE)]
    for item in range(len(small)):
        small[item]
    cached = [_seconds_a_batch(lambda: iter(DataLoader(small, batch_sampler=numbers))) for _ in range(5)]
    return {
        "ours_ms": 1e3 * statistics.median(mine),
        "pyg_ms": 1e3 * statistics.median(fresh),
        "pyg_cached_ms": 1e3 * statistics.median(cached),
        "step_ms": 1e3 * _training_step(next(ours())),
    }


def _seconds_a_batch(loader: Callable[[], Iterator[Any]]) -> float:
    start = time.perf_counter()
    n = sum(1 for _ in loader())
    return (time.perf_counter() - start) / n


def _training_step(batch: Any) -> float:
    """Median seconds of energies, forces, loss, backward and optimiser of the published network."""
    import torch

    from mfpyg.fidelity import parse_fidelities, parse_weights
    from mfpyg.models import HIPNN, MultiFidelityPotential
    from mfpyg.training.loss import MultiFidelityLoss

    fidelities = parse_fidelities(["dz:EF", "cc:E"])
    potential = MultiFidelityPotential(HIPNN(species=[1, 6, 7, 8]), ["dz", "cc"]).train()
    loss = MultiFidelityLoss(fidelities, {"dz": 0, "cc": 3}, parse_weights([], fidelities), 1.0)
    optimiser = torch.optim.Adam(potential.parameters(), lr=1e-9, fused=True)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        optimiser.zero_grad()
        value, _ = loss(loss.predict(potential, batch), batch)
        value.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _own_memory() -> float:
    """Resident memory that is not pages of files, which the system takes back when it needs them."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / MIB


def _resident() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 500_000], help="conformations")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        name, *arguments = options.task
        print(json.dumps(globals()[f"task_{name}"](*arguments)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in options.sizes:
            file, root = Path(folder) / f"synthetic-{n}.h5", Path(folder) / f"root-{n}"
            write_file(file, n)
            row: dict[str, Any] = {"conformations": n, "file_mib": file.stat().st_size / 2**20}
            row["preprocess"] = in_own_process("preprocess", str(file), str(root))
            row["open"] = in_own_process("open", str(file), str(root))
            row["load"] = in_own_process("load", str(file), str(root))
            print(_in_words(row), flush=True)
            rows.append(row)
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        times = last["preprocess"]["process_s"] / first["preprocess"]["process_s"]
        exponent = math.log(times) / math.log(last["conformations"] / first["conformations"])
        rows[-1]["exponent"] = exponent
        print(f"preprocessing grows with the power {exponent:.2f} of the number of conformations")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _in_words(row: dict[str, Any]) -> str:
    preprocess, opened, load = row["preprocess"], row["open"], row["load"]
    return "\n".join(
        [
            f"{row['conformations']:,} conformations, {row['file_mib']:.0f} MiB",
            f"  preprocess  {preprocess['process_s']:.1f} s, {preprocess['wall_s']:.1f} s with imports, "
            f"{preprocess['peak_mib']:.0f} MiB peak resident, {preprocess['own_peak_mib']:.0f} without pages of files",
            f"  open        {opened['open_s']:.2f} s, {opened['resident_mib']:.0f} MiB resident "
            f"({opened['imports_mib']:.0f} after imports)",
            f"  load        {load['ours_ms']:.2f} ms a batch of {BATCH_SIZE}; PyG {load['pyg_ms']:.1f} ms "
            f"({load['pyg_ms'] / load['ours_ms']:.0f} times), with items kept {load['pyg_cached_ms']:.1f} ms "
            f"({load['pyg_cached_ms'] / load['ours_ms']:.0f} times)",
            f"  train       {load['step_ms']:.0f} ms a step of the published network on one core: "
            f"loading is {100 * load['ours_ms'] / load['step_ms']:.2f} % of it",
        ]
    )


if __name__ == "__main__":
    main()
