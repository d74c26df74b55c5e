"""Settings of a backbone, compared on validation errors of the bundled data.

Each try is a name and options of mfpyg-train, added to ``--fidelities dz:EF cc:E``:

    python benchmarks/presets.py default "cusp=--model.cusp 0.05" --seeds 0 1 --out runs/presets

prints, for each, means over the seeds of the validation errors (RMSE in kcal/mol and kcal/mol/Å) and of the processor
time of one thread. The errors of cc forces, which validation has no labels of, are about those of the dz forces and
of the derivatives of E_cc - E_dz, so that small errors of the dz forces and of that difference are what to look for.
Errors on the test split are not shown. Tries that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import mfpyg
from mfpyg.datasets import MiniCHNO
from mfpyg.inference.dataset import predict_rows

SHOWN = (("dz", "forces"), ("dz", "energy"), ("cc", "energy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tries", nargs="+", metavar="NAME[=OPTIONS]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/presets"))
    options = parser.parse_args()
    tries = dict(given.partition("=")[::2] for given in options.tries)
    cases = [(name, seed) for seed in options.seeds for name in tries]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda case: train(options.out / f"{case[0]}-{case[1]}", tries[case[0]], case[1]), cases))
    heads = [*(" ".join(key) for key in SHOWN), "cc-dz energy", "minutes"]
    print(f"{'':24s}" + "".join(f"{head:>14s}" for head in heads))
    for name in tries:
        found = np.mean([errors(options.out / f"{name}-{seed}") for seed in options.seeds], axis=0)
        print(f"{name:24s}" + "".join(f"{value:14.2f}" for value in found))


def train(out: Path, given: str, seed: int) -> None:
    """Train, unless it is done, and write the processor time."""
    if (out / "minutes.txt").is_file():
        return
    command = [Path(sys.executable).with_name("mfpyg-train"), "--fidelities", "dz:EF", "cc:E"]
    command += ["--seed", str(seed), "--out", str(out)]
    with subprocess.Popen([*command, *shlex.split(given)], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{out.name}: mfpyg-train ended with status {process.returncode}")
    (out / "minutes.txt").write_text(f"{(used.ru_utime + used.ru_stime) / 60:.2f}\n")


def errors(out: Path) -> list[float]:
    """Validation errors and minutes of a run."""
    found = json.loads((out / "metrics.json").read_text())["val"]
    minutes = float((out / "minutes.txt").read_text())
    return [*(found[level][name]["rmse"] for level, name in SHOWN), difference_error(out), minutes]


def difference_error(out: Path) -> float:
    """RMSE of E_cc - E_dz on the validation split."""
    data, rows = MiniCHNO(fidelities=["dz", "cc"]), np.load(out / "splits.npz")["val"]
    predicted = predict_rows(mfpyg.load(out), data, rows).values
    dz, cc = (predicted[level, "energy"].values.astype(float) for level in ("dz", "cc"))
    labels = data.energy[rows].numpy().astype(float)
    return float(np.sqrt(np.mean((cc - dz - (labels[:, 1] - labels[:, 0])) ** 2)))


if __name__ == "__main__":
    main()
