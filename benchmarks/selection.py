"""Label efficiency on the bundled pool: coupled-cluster forces against the cost of labels, for each choice of labels.

Labels of the pool are there, so that they are looked up and not computed. A round chooses labels with ``mfpyg-select``
and the potential of the round before, and trains anew on all labels so far; the budgets double. The error is that of
cc forces on the test split, which no round uses:

    python benchmarks/selection.py --seeds 0 1 2 3 4 --out runs/selection --figure docs/images/selection.png

prints a table for each ratio of costs, with means over the seeds and 95 % intervals. Runs that are there already are
not repeated. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.units import kcal, mol
from claim import parted
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mfpyg.datasets import MiniCHNO
from mfpyg.evaluation.ensemble import mean_estimate
from mfpyg.study.figures import COLOURS

METHODS = ("random", "random halves", "uncertainty", "diverse", "multi-fidelity")
"""Methods of mfpyg-select, and random frames for each level with half of the budget."""

LEVELS = {"dz": "EF", "cc": "E"}
SPEC = "dz=dz_energy?,dz_forces?@eV:cc=cc_energy?@eV"
BATCH = 8
Labels = dict[int, set[str]]
"""Levels of each labelled conformation."""


class Labelled:
    """Bundled conformations and their labels."""

    def __init__(self) -> None:
        self.dataset = MiniCHNO()
        self.pool: list[int] = np.flatnonzero(self.dataset.given_split() == 0).tolist()
        self.columns = {name: self.dataset.fidelities.index(name) for name in LEVELS}

    def initial(self, seed: int, n_dz: int, n_cc: int) -> Labels:
        """Labels at the start: random conformations with dz labels, the first of them with cc labels, too."""
        order = np.random.default_rng(seed).permutation(self.pool)[:n_dz].tolist()
        return {row: {"dz", "cc"} if number < n_cc else {"dz"} for number, row in enumerate(order)}

    def write(self, path: Path, labels: Labels) -> None:
        """Write conformations with their labels, in eV and eV/Å, and their numbers."""
        frames = []
        for row, levels in labels.items():
            data = self.dataset[row]
            atoms = ase.Atoms(data.z.numpy(), data.pos.double().numpy(), info={"row": row})
            for level in levels:
                atoms.info[f"{level}_energy"] = float(data.energy[0, self.columns[level]]) * kcal / mol
            if "dz" in levels:
                atoms.arrays["dz_forces"] = data.forces[:, self.columns["dz"]].double().numpy() * kcal / mol
            frames.append(atoms)
        path.parent.mkdir(parents=True, exist_ok=True)
        ase.io.write(path, frames, format="extxyz")


@dataclass(frozen=True)
class Case:
    """A seed, a method, and the cost of a cc label over that of a dz label."""

    seed: int
    method: str
    ratio: float

    def folder(self, out: Path, number: int) -> Path:
        """Folder of a round; all methods start with the same run."""
        start = out / f"seed{self.seed}"
        return (
            start / "start"
            if number == 0
            else start / f"{self.method.replace(' ', '-')}-{self.ratio:g}" / f"round{number}"
        )


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[10.0, 100.0], help="costs of cc:E over dz:EF")
    parser.add_argument("--initial", type=int, nargs=2, default=(40, 20), help="conformations with dz, and with cc")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, the budget of each twice that before")
    parser.add_argument("--first", type=float, default=10.0, help="budget of the first in cc labels")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of a training, rounded up to epochs")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/selection"))
    parser.add_argument("--figure", type=Path, help="file for the figure")
    options = parser.parse_args(own)
    data = Labelled()
    data.write(options.out / "pool.xyz", {row: set() for row in data.pool})
    starts = [Case(seed, options.methods[0], options.ratios[0]) for seed in options.seeds]
    of_methods = [(seed, method) for seed in options.seeds for method in options.methods]
    cases = [Case(*one, ratio) for ratio in options.ratios for one in of_methods]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(
            pool.map(
                lambda case: train(case, 0, data.initial(case.seed, *options.initial), options, data, extra), starts
            )
        )
        list(pool.map(lambda case: replay(case, options, data, extra), cases))
    for ratio in options.ratios:
        print(table(ratio, options), "\n")
    if options.figure:
        draw(options)


def train(
    case: Case, number: int, labels: Labels, options: argparse.Namespace, data: Labelled, extra: Sequence[str]
) -> None:
    """Train on labels, and evaluate on the test split, unless it is done."""
    folder = case.folder(options.out, number)
    run, labelled = folder / "run", folder / "labelled.xyz"
    if (folder / "test.json").is_file():
        return
    data.write(labelled, labels)
    (folder / "labels.json").write_text(json.dumps({row: sorted(levels) for row, levels in labels.items()}))
    epochs = math.ceil(options.steps / math.ceil(0.9 * len(labels) / BATCH))
    command = ["mfpyg-train", "--fidelities", *(f"{name}:{letters}" for name, letters in LEVELS.items())]
    command += ["--dataset", f"{labelled}:{SPEC}", "--preset", "small", "--split.test", "0", "--batch-size", str(BATCH)]
    command += ["--epochs", str(epochs), "--seed", str(case.seed), "--out", str(run), "--compile", "off", *extra]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    command = ["mfpyg-evaluate", str(run), "--dataset", "minichno", "--split", "test", "--json", f"{folder}/test.json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def replay(case: Case, options: argparse.Namespace, data: Labelled, extra: Sequence[str]) -> None:
    """All rounds of a case."""
    for number in range(1, options.rounds + 1):
        before, folder = case.folder(options.out, number - 1), case.folder(options.out, number)
        labels = labels_of(before)
        budget = options.first * case.ratio * 2 ** (number - 1)
        parts = {"cc dz": budget}
        if case.method == "random halves":  # what dz does not need, as all have it, is for cc
            of_dz = min(budget / 2, sum("dz" not in labels.get(row, ()) for row in data.pool))
            parts = {"dz": of_dz, "cc": budget - of_dz}
        for levels, part in parts.items():
            if part > 0:
                chosen = select(case, before / "run", folder, levels.split(), part, options)
                for atoms in ase.io.iread(chosen, ":"):
                    labels.setdefault(int(atoms.info["row"]), set()).update(atoms.info["levels"].split())
        train(case, number, labels, options, data, extra)


def select(case: Case, run: Path, folder: Path, levels: list[str], budget: float, options: argparse.Namespace) -> Path:
    """File of the frames that mfpyg-select chooses, unless they are chosen already."""
    chosen = folder / f"next-{'-'.join(levels)}.xyz"
    if not chosen.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mfpyg-select", str(run), str(options.out / "pool.xyz"), "-o", str(chosen), "--target", "cc"]
        command += ["--method", case.method.removesuffix(" halves"), "--seed", str(case.seed), "--levels", *levels]
        command += ["--cost", f"cc={case.ratio}", "dz=1", "--budget", str(budget)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return chosen


def labels_of(folder: Path) -> Labels:
    """Labels that a round was trained on."""
    return {int(row): set(levels) for row, levels in json.loads((folder / "labels.json").read_text()).items()}


def spent(case: Case, number: int, options: argparse.Namespace) -> tuple[float, int, int, float]:
    """Cost of all labels after a round, numbers of dz and cc labels, and RMSE of cc forces in kcal/mol/Å."""
    folder = case.folder(options.out, number)
    n_dz, n_cc = (sum(name in levels for levels in labels_of(folder).values()) for name in ("dz", "cc"))
    found = json.loads((folder / "test.json").read_text())["test"]["cc"]["forces"]["rmse"]
    return n_dz + case.ratio * n_cc, n_dz, n_cc, found


def curves(method: str, ratio: float, options: argparse.Namespace) -> np.ndarray:
    """Results of :func:`spent` for all seeds and rounds, (n_seeds, n_rounds + 1, 4)."""
    rounds = range(options.rounds + 1)
    return np.array([[spent(Case(seed, method, ratio), n, options) for n in rounds] for seed in options.seeds])


def table(ratio: float, options: argparse.Namespace) -> str:
    """Markdown: a row for each method, with the error after each round, and the cost of random's final error."""
    of = {method: curves(method, ratio, options) for method in options.methods}
    costs = [f"{cost:,.0f}" for cost in of[options.methods[0]][..., 0].mean(axis=0)]
    heads = [
        f"cost of cc {ratio:g}, of dz 1; total:",
        *costs,
        "labels of dz, cc",
        f"cost for {options.methods[0]}'s last",
    ]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    goal = of[options.methods[0]][:, -1, 3].mean()
    for method, found in of.items():
        errors = [shown(found[:, n, 3]) for n in range(options.rounds + 1)]
        labels = ", ".join(f"{n:.0f}" for n in found[:, -1, 1:3].mean(axis=0))
        lines.append(f"| {' | '.join([method, *errors, labels, cost_of(goal, found)])} |")
    return "\n".join(lines)


def shown(values: np.ndarray) -> str:
    estimate = mean_estimate(values.tolist())
    return f"{estimate.value:.1f}" + ("" if estimate.high is None else f" ± {estimate.high - estimate.value:.1f}")


def cost_of(goal: float, found: np.ndarray) -> str:
    """Cost at which the mean error reaches a goal, between rounds by powers."""
    cost, error = np.log(found[..., 0].mean(axis=0)), np.log(np.minimum.accumulate(found[..., 3].mean(axis=0)))
    if error[-1] > np.log(goal) + 1e-9:
        return "not reached"
    return f"{np.exp(np.interp(-np.log(goal), -error, cost)):,.0f}"


def draw(options: argparse.Namespace) -> None:
    """Error against cost of each method, with 95 % intervals, for each ratio of costs."""
    figure = Figure(figsize=(4.2 * len(options.ratios), 3.6), layout="constrained")
    for axes, ratio in zip(figure.subplots(1, len(options.ratios), squeeze=False)[0], options.ratios, strict=True):
        for method, colour in zip(options.methods, COLOURS, strict=False):
            found = curves(method, ratio, options)
            cost, mean = found[..., 0].mean(axis=0), found[..., 3].mean(axis=0)
            axes.plot(cost, mean, "o-", color=colour, label=method)
            if len(options.seeds) > 1:
                estimates = [mean_estimate(found[:, n, 3].tolist()) for n in range(len(cost))]
                axes.fill_between(
                    cost, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.15
                )
        axes.set(xscale="log", yscale="log", xlabel=f"cost of all labels (dz 1, cc {ratio:g})")
        axes.set_ylabel("RMSE of cc forces (kcal/mol/Å)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=150)


if __name__ == "__main__":
    main()
