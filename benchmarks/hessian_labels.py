"""Coupled-cluster forces with and without Hessians of the cheap level, for many and few labels of both levels.

Trains ``dz:EF cc:E`` and ``dz:EFH cc:E`` on the bundled data with the same seeds, splits and optimiser steps, and
prints a table with means over the seeds and 95 % intervals:

    python benchmarks/hessian_labels.py --seeds 0 1 2 3 4 --out runs/hessians

About every eighth conformation with dz labels has a Hessian. Runs that are there already are not repeated. Options
after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from claim import parted

from mfpyg.evaluation.ensemble import Estimate, mean_estimate

MODELS = {"dz:EF cc:E": ["dz:EF", "cc:E"], "dz:EFH cc:E": ["dz:EFH", "cc:E"]}
N_TRAIN, BATCH = 604, 8
FRACTIONS = (1.0, 0.3, 0.1)


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps of every run, rounded up to epochs")
    parser.add_argument("--weight", type=float, default=0.01, help="weight of the Hessians in the loss")
    parser.add_argument("--cc", type=float, nargs="+", default=FRACTIONS, help="fractions of the cc labels")
    parser.add_argument("--dz", type=float, nargs="+", default=FRACTIONS, help="fractions of the dz labels")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/hessians"))
    options = parser.parse_args(own)
    extra = ["--weights", f"dz:H={options.weight}", "--compile", "off", *extra]
    cells = list(itertools.product(options.dz, options.cc))
    cases = [(model, *cell, seed) for seed in options.seeds for cell in cells for model in MODELS]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda case: train(*case, options, extra), cases))
    print(table(cells, options))


def run_of(model: str, dz: float, cc: float, seed: int, out: Path) -> Path:
    return out / f"{model.replace(':', '_').replace(' ', '-')}-dz{dz:g}-cc{cc:g}-seed{seed}"


def train(model: str, dz: float, cc: float, seed: int, options: argparse.Namespace, extra: Sequence[str]) -> None:
    """Train a model if it is not there yet, and evaluate its Hessians."""
    run = run_of(model, dz, cc, seed, options.out)
    per_epoch = math.ceil(max(1, round(max(dz, cc) * N_TRAIN)) / BATCH)  # the fewer labels are a subset of the more
    if not (run / "metrics.json").is_file():
        weights = extra if "H" in model else extra[2:]
        command = ["mfpyg-train", "--fidelities", *MODELS[model], "--seed", str(seed), "--out", str(run)]
        command += ["--epochs", str(math.ceil(options.steps / per_epoch)), "--batch-size", str(BATCH), *weights]
        if min(dz, cc) < 1:
            command += ["--label-fraction", *[f"{name}={part}" for name, part in (("dz", dz), ("cc", cc)) if part < 1]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if not (run / "hessians.json").is_file():
        command = ["mfpyg-evaluate", str(run), "--properties", "EFH", "--json", str(run / "hessians.json")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def errors(model: str, dz: float, cc: float, options: argparse.Namespace, *path: str) -> np.ndarray:
    """RMSE of each seed, (n_seeds,), at a path such as ``("test", "cc", "forces")``."""
    found = []
    for seed in options.seeds:
        values = json.loads((run_of(model, dz, cc, seed, options.out) / "hessians.json").read_text())
        for key in path:
            values = values[key]
        found.append(values["rmse"])
    return np.array(found)


def table(cells: Sequence[tuple[float, float]], options: argparse.Namespace) -> str:
    """Markdown: a row for each pair of fractions; the change is that of each seed, so that splits are the same."""
    heads = ["dz labels", "cc labels", "cc forces, EF", "with H", "change", "unseen molecules, EF", "with H", "change"]
    heads += ["dz Hessians, EF", "with H"]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for dz, cc in cells:
        cells_of_row = [f"{round(dz * N_TRAIN)}", f"{round(cc * N_TRAIN)}"]
        for path in (("test", "cc", "forces"), ("ood", "cc", "forces"), ("test", "dz", "hessian")):
            without, with_them = (errors(model, dz, cc, options, *path) for model in MODELS)
            cells_of_row += [shown(mean_estimate(without.tolist())), shown(mean_estimate(with_them.tolist()))]
            if path[1] == "cc":
                cells_of_row.append(shown(mean_estimate((with_them - without).tolist()), "+"))
        lines.append(f"| {' | '.join(cells_of_row)} |")
    return "\n".join(lines)


def shown(estimate: Estimate, sign: str = "") -> str:
    half = "" if estimate.high is None else f" ± {estimate.high - estimate.value:.2f}"
    return f"{estimate.value:{sign}.2f}{half}"


if __name__ == "__main__":
    main()
