"""Forces of a level that has no force labels: their errors, and what a user without such labels can see of them.

Trains potentials for the cc level of the bundled data, whose cc forces are for the test only, and prints two tables:
the errors at the cc level, and diagnostics that need no cc forces. Draws each diagnostic against the error, and the
error along the directions in which the training data are narrow and wide. All trainings have one split and equally
many optimiser steps:

    python benchmarks/extrapolated_forces.py --seeds 0 1 2 --out runs/extrapolated --figures docs/images

Runs that are there already are not repeated. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claim import parted
from extrapolated_forces_figures import draw_diagnostics, draw_directions

import mfpyg
from mfpyg.datasets import BatchLoader, MiniCHNO
from mfpyg.evaluation.conformers import in_window, molecules_of_rows, pair_sums
from mfpyg.study.figures import COLOURS

N_TRAIN, BATCH = 604, 8
DIRECTIONS, DRAWS = 20, 2000
BLUE, ORANGE, GREEN, PINK, SKY, RED, _ = COLOURS
Run = dict[str, dict[str, np.ndarray]]
"""Energies (n,) and forces (n_atoms, 3) of all conformations by level."""


@dataclass(frozen=True)
class Model:
    """A training: its fidelities, the fractions of dz and cc labels, and its strategy."""

    fidelities: str
    colour: str = ""
    marker: str = ""
    dz: float = 1.0
    cc: float = 1.0
    strategy: str = "mfl"

    @property
    def name(self) -> str:
        fewer = [f"{round(part * N_TRAIN)} {level}" for level, part in (("dz", self.dz), ("cc", self.cc)) if part < 1]
        return ", ".join([self.fidelities, *fewer, *[self.strategy] * (self.strategy != "mfl")])

    def run(self, out: Path, seed: int) -> Path:
        return out / f"{'-'.join(self.name.replace(':', '_').replace(',', '').split())}-seed{seed}"

    def options(self, steps: int) -> list[str]:
        parts = {level: part for level, part in (("dz", self.dz), ("cc", self.cc)) if level in self.fidelities}
        epochs = math.ceil(steps / math.ceil(round(max(parts.values()) * N_TRAIN) / BATCH))
        kept = [f"{level}={part:g}" for level, part in parts.items() if part < 1]
        options = ["--fidelities", *self.fidelities.split(), "--epochs", str(epochs), "--strategy", self.strategy]
        return [*options, "--label-fraction", *kept] if kept else options


MODELS = (
    Model("cc:E", BLUE, "o"),
    Model("cc:E", BLUE, "s", cc=0.3),
    Model("cc:E", BLUE, "^", cc=0.1),
    Model("dz:E cc:E", SKY, "D"),
    Model("dz:EF cc:E", ORANGE, "o"),
    Model("dz:EF cc:E", ORANGE, "s", cc=0.3),
    Model("dz:EF cc:E", ORANGE, "^", cc=0.1),
    Model("dz:EF cc:E", RED, "v", dz=0.1),
    Model("dz:EF cc:E", GREEN, "P", strategy="tl"),
    Model("dz:EF cc:E", PINK, "X", strategy="delta"),
)
REHEARSALS = {0: Model("dz:E"), 1: Model("dz:E", dz=0.3), 2: Model("dz:E", dz=0.1)}
"""By the number of a model, the same training with dz in the place of cc, whose forces are known."""


class Labels:
    """Labels of all conformations, and their splits."""

    def __init__(self, splits: Path) -> None:
        self.dataset = MiniCHNO()
        data = self.dataset._data
        self.pos, self.starts = data.pos.double().numpy(), self.dataset.slices["z"].numpy()
        columns = {name: self.dataset.fidelities.index(name) for name in ("dz", "cc")}
        self.energy = {name: data.energy[:, t].numpy() for name, t in columns.items()}
        self.forces = {name: data.forces[:, t].double().numpy() for name, t in columns.items()}
        self.splits = dict(np.load(splits))
        with_forces = data.forces_mask[:, columns["cc"]].numpy()
        self.test, self.ood = (rows[with_forces[rows]] for rows in (self.splits["test"], self.splits["ood"]))
        self.molecule = molecules_of_rows(self.dataset, np.arange(len(self.dataset)))
        self.atoms = self.atoms_of(self.test)

    def atoms_of(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.arange(*self.starts[row : row + 2]) for row in rows])

    def force_error(self, run: Run, level: str, rows: np.ndarray) -> np.ndarray:
        atoms = self.atoms_of(rows)
        errors: np.ndarray = run[level]["forces"][atoms] - self.forces[level][atoms]
        return errors


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--steps", type=int, default=6080, help="optimiser steps of every run, rounded up to epochs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/extrapolated"))
    parser.add_argument("--figures", type=Path, default=Path("docs/images"))
    options = parser.parse_args(own)
    cases = [(model, seed) for seed in options.seeds for model in MODELS]
    cases += [(model, options.seeds[0]) for model in REHEARSALS.values()]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda case: train(case[0], case[1], options, extra), cases))
    torch.set_num_threads(1)
    labels = Labels(MODELS[0].run(options.out, options.seeds[0]) / "splits.npz")
    runs = {case: predict(case[0].run(options.out, case[1]), labels.dataset) for case in cases}
    found = []
    for number, model in enumerate(MODELS):
        found.append(diagnose(labels, [runs[model, seed] for seed in options.seeds]))
        if number in REHEARSALS:
            rehearsal = runs[REHEARSALS[number], options.seeds[0]]
            found[-1]["rehearsal"] = [rms(labels.force_error(rehearsal, "dz", labels.test))]
    print(tables(found, labels))
    options.figures.mkdir(parents=True, exist_ok=True)
    draw_diagnostics(MODELS, found, options.figures / "extrapolated-forces.png")
    draw_directions(MODELS, found, options.figures / "extrapolated-forces-directions.png")


def train(model: Model, seed: int, options: argparse.Namespace, extra: Sequence[str]) -> None:
    """Train a model if it is not there yet; all seeds have one split and one choice of labels."""
    run = model.run(options.out, seed)
    if not (run / "metrics.json").is_file():
        command = [sys.executable, "-m", "mfpyg.cli.train", *model.options(options.steps)]
        command += ["--seed", str(seed), "--split.seed", "0", "--out", str(run), "--compile", "off", *extra]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def predict(run: Path, dataset: MiniCHNO) -> Run:
    potential = mfpyg.load(run)
    batch = next(iter(BatchLoader(dataset, batch_size=len(dataset))))
    found = potential.predict(batch, dict.fromkeys(potential.fidelities, "EF"))
    return {
        level: {"energy": one.energy.numpy(), "forces": one.forces.double().numpy()}  # type: ignore[union-attr]
        for level, one in found.items()
    }


def diagnose(labels: Labels, runs: Sequence[Run]) -> dict[str, Any]:
    """Errors at the cc level and diagnostics without cc forces, a number per seed."""
    test, ood = labels.splits["test"], labels.splits["ood"]
    energies = [run["cc"]["energy"] - labels.energy["cc"] for run in runs]
    errors = np.stack([labels.force_error(run, "cc", labels.test) for run in runs])  # (n_seeds, n_atoms, 3)
    found: dict[str, Any] = {
        "energy": [rms(error[test]) for error in energies],
        "conformers": [conformers(labels, error) for error in energies],
        "forces": [rms(error) for error in errors],
        "ood energy": [rms(error[ood]) for error in energies],
        "ood forces": [rms(labels.force_error(run, "cc", labels.ood)) for run in runs],
        "slope": [slopes(labels, error) for error in energies],
        "spread": [math.sqrt(np.stack([run["cc"]["forces"][labels.atoms] for run in runs]).var(axis=0, ddof=1).mean())],
        "estimate": estimates(labels, errors[0]),
        "directions": along_directions(labels, errors),
    }
    if "dz" in runs[0]:
        found["dz"] = [rms(labels.force_error(run, "dz", labels.test)) for run in runs]
        found["dz for cc"] = [
            rms(run["dz"]["forces"][labels.atoms] - labels.forces["cc"][labels.atoms]) for run in runs
        ]
        found["difference"] = [rms((run["cc"]["forces"] - run["dz"]["forces"])[labels.atoms]) for run in runs]
    return found


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def conformers(labels: Labels, energy: np.ndarray) -> float:
    """RMS difference of energies (n,), or of their errors, between the test conformations of each molecule."""
    test = labels.splits["test"]
    inside = test[in_window(labels.energy["cc"][test], labels.molecule[test])]
    count, _, squared = pair_sums(energy[inside], labels.molecule[inside], labels.molecule.max() + 1).sum(axis=0)
    return math.sqrt(squared / count)


def slopes(labels: Labels, error: np.ndarray) -> float:
    """RMS error of the slope ΔE/|Δx| between each test conformation and the nearest one in training."""
    found = []
    for row in labels.splits["test"]:
        moved, same = displacements(labels, row)
        distance = np.sqrt(np.square(moved).sum(axis=1))
        found.append((error[row] - error[same[distance.argmin()]]) / distance.min())
    return rms(np.array(found))


def displacements(labels: Labels, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Displacements from a conformation to the training ones of its molecule, (m, 3n) in Å, and their rows."""
    train = labels.splits["train"]
    rows = train[labels.molecule[train] == labels.molecule[row]]
    x = labels.pos[labels.atoms_of(np.array([row]))]
    y = labels.pos[labels.atoms_of(rows)].reshape(len(rows), len(x), 3)
    x, y = x - x.mean(axis=0), y - y.mean(axis=1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("nai,aj->nij", y, x))
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]  # a rotation, not a reflection
    return (y @ u @ vt - x).reshape(len(rows), -1), rows


def along_directions(labels: Labels, errors: np.ndarray) -> dict[str, np.ndarray]:
    """Force errors along the principal directions of the training conformations, seen from each test conformation.

    Returns:
        ``width``, the standard deviation of the training conformations in Å, ``error``, the RMS error over the seeds,
        and ``label``, the cc force along each direction.
    """
    found: dict[str, list[np.ndarray]] = {"width": [], "error": [], "label": []}
    for row in labels.test:
        atoms = labels.atoms_of(np.array([row]))
        x, axes = labels.pos[atoms] - labels.pos[atoms].mean(axis=0), np.eye(3)
        rigid = [np.tile(axis, (len(x), 1)).ravel() for axis in axes] + [np.cross(axis, x).ravel() for axis in axes]
        basis, values, _ = np.linalg.svd(np.stack(rigid, axis=1), full_matrices=False)
        basis = basis[:, values > 1e-3]  # translations and rotations
        moved = displacements(labels, row)[0]
        moved -= moved.mean(axis=0)
        _, values, modes = np.linalg.svd(moved - moved @ basis @ basis.T, full_matrices=False)
        modes, values = modes[: x.size - basis.shape[1]], values[: x.size - basis.shape[1]]
        of_row = errors[:, np.isin(labels.atoms, atoms)].reshape(len(errors), -1)
        found["width"].append(values / math.sqrt(len(moved) - 1))
        found["error"].append(np.sqrt(np.square(of_row @ modes.T).mean(axis=0)))
        found["label"].append(modes @ labels.forces["cc"][atoms].ravel())
    return {key: np.concatenate(values) for key, values in found.items()}


def estimates(labels: Labels, error: np.ndarray) -> list[float]:
    """Quantiles 0.05, 0.5 and 0.95 of estimates of the force RMSE from a random direction for some test conformations.

    An estimate costs two cc energies per direction, at x ± h v with components of v of ±1: their difference is F·v.
    """
    random, found = np.random.default_rng(0), []
    parts = np.split(error, np.cumsum(np.diff(labels.starts)[labels.test])[:-1])
    for _ in range(DRAWS):
        chosen = [parts[i] for i in random.choice(len(parts), DIRECTIONS, replace=False)]
        squares = [np.sum(part * random.choice([-1.0, 1.0], part.shape)) ** 2 for part in chosen]
        found.append(math.sqrt(sum(squares) / sum(part.size for part in chosen)))
    return np.quantile(found, [0.05, 0.5, 0.95]).tolist()


def tables(found: Sequence[dict[str, Any]], labels: Labels) -> str:
    """Markdown: errors at the cc level, and diagnostics without cc forces."""
    dz, cc = (labels.forces[level][labels.atoms] for level in ("dz", "cc"))
    sizes = (
        f"cc ΔE {conformers(labels, labels.energy['cc']):.1f}, cc forces {rms(cc):.1f}, cc less dz {rms(cc - dz):.1f}"
    )
    lines = [f"RMS of the test labels: {sizes}"]
    lines += head(["energy", "ΔE", "forces", "`dz` for `cc`", "energy, ood", "forces, ood"])
    for model, one in zip(MODELS, found, strict=True):
        keys = ("energy", "conformers", "forces", "dz for cc", "ood energy", "ood forces")
        lines.append(f"| `{model.name}` | {' | '.join(shown(one.get(key)) for key in keys)} |")
    lines += head(["near pairs", "`dz` forces", "spread", "rehearsal", "`cc` less `dz`", "random directions"])
    for model, one in zip(MODELS, found, strict=True):
        numbers = ("slope", "dz", "spread", "rehearsal", "difference")
        low, _, high = one["estimate"]
        lines.append(
            f"| `{model.name}` | {' | '.join(shown(one.get(key)) for key in numbers)} | {low:.1f} to {high:.1f} |"
        )
    return "\n".join(lines)


def head(names: Sequence[str]) -> list[str]:
    return ["", f"| trained on | {' | '.join(names)} |", f"|{' --- |' * (len(names) + 1)}"]


def shown(values: Sequence[float] | None) -> str:
    """Mean ± standard deviation over the seeds."""
    if values is None:
        return "–"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


if __name__ == "__main__":
    main()
