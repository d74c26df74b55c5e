"""Noise of labels in the model of ``mfpyg-select --method multi-fidelity``, chosen without the test split.

Trains on 40 to 320 conformations of the bundled pool with dz labels, 20 to 160 of them with cc labels, and takes the
errors on the conformations of the pool without any of these labels: of dz forces, and of differences of cc and dz
energies. Each noise η implies a scale of the errors (:mod:`mfpyg.selection.posterior`). The best η is that whose scale
depends least on the number of labels:

    python benchmarks/selection_noise.py --out runs/selection_noise

prints for each η the standard deviation of the logarithm of the scale over the trainings. Those that are there already
are not repeated.
"""

from __future__ import annotations

import argparse
import math
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from selection import BATCH, LEVELS, SPEC, Labelled

import mfpyg
from mfpyg.inference.dataset import predict_rows
from mfpyg.selection.features import features_of_rows
from mfpyg.selection.multi_fidelity import OFFSET
from mfpyg.selection.posterior import Features

SIZES = ((40, 20), (40, 40), (80, 20), (80, 80), (160, 20), (160, 80), (160, 160), (320, 20), (320, 80), (320, 160))
FORCE_GRID = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 1e1)
ENERGY_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/selection_noise"))
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of a training, rounded up to epochs")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    options = parser.parse_args()
    data = Labelled()
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(lambda size: train(data, size, options), SIZES))
    found = [scales(data, size, run) for size, run in zip(SIZES, runs, strict=True)]
    for name, grid in (("forces", FORCE_GRID), ("energies", ENERGY_GRID)):
        for number, noise in enumerate(grid):
            values = [of_run[name][number] for of_run in found]
            print(f"{name}, η = {noise:g}: {np.std(np.log(values)):.3f}")


def train(data: Labelled, size: tuple[int, int], options: argparse.Namespace) -> Path:
    """Train on random conformations, unless it is done; returns the run."""
    folder = options.out / "-".join(map(str, size))
    if not (folder / "run" / "metrics.json").is_file():
        data.write(folder / "labelled.xyz", data.initial(0, *size))
        epochs = math.ceil(options.steps / math.ceil(0.9 * size[0] / BATCH))
        command = ["mfpyg-train", "--fidelities", *(f"{name}:{letters}" for name, letters in LEVELS.items())]
        command += ["--dataset", f"{folder}/labelled.xyz:{SPEC}", "--preset", "small", "--split.test", "0"]
        command += ["--batch-size", str(BATCH), "--epochs", str(epochs), "--seed", "0", "--compile", "off"]
        subprocess.run([*command, "--out", str(folder / "run")], check=True, stdout=subprocess.DEVNULL)
    return Path(folder / "run")


def scales(data: Labelled, size: tuple[int, int], run: Path) -> dict[str, list[float]]:
    """Scale of the errors for each η."""
    potential, labels = mfpyg.load(run), data.initial(0, *size)
    trained = np.array(list(labels))[np.load(run / "splits.npz")["train"]]
    unseen = np.array([row for row in data.pool if row not in labels])

    def of(rows: np.ndarray) -> list[Features]:
        return features_of_rows(potential, data.dataset, rows, "cc", jacobian=True)

    known, others = of(trained), of(unseen)
    metric = sum(one.of("F").T @ one.of("F") for one in others) / sum(len(one.of("F")) for one in others)
    constant = np.diag(metric) == 0
    prior = np.diag(1 / np.where(constant, OFFSET, 1 / np.trace(metric)))
    both = [one for one, row in zip(known, trained.tolist(), strict=True) if "cc" in labels[row]]
    of_forces, of_energies = sum(one.of("F").T @ one.of("F") for one in known), gram(both)
    errors = error_of(data, potential, unseen)
    rows = np.stack([one.energy for one in others])
    covariances = [np.linalg.inv(prior + of_forces / noise + gram(known) / (0.01 * noise)) for noise in FORCE_GRID]
    by_forces = [scale_of(errors["forces"], float(np.sum(metric * one))) for one in covariances]
    covariances = [np.linalg.inv(prior + of_energies / noise) for noise in ENERGY_GRID]
    variances = [float(np.einsum("nd,de,ne->n", rows, one, rows).mean()) for one in covariances]
    return {"forces": by_forces, "energies": [scale_of(errors["energies"], one) for one in variances]}


def scale_of(errors: np.ndarray, expected: float) -> float:
    """RMS error over the RMS that is expected with a scale of 1."""
    return float(np.sqrt(np.mean(errors**2) / expected))


def gram(features: list[Features]) -> np.ndarray:
    """Σ Φᵀ Φ, (d, d)."""
    energies = np.stack([one.energy for one in features])
    return energies.T @ energies


def error_of(data: Labelled, potential: mfpyg.models.Potential, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Errors of dz forces, and of differences of cc and dz energies, in kcal/mol and kcal/mol/Å."""
    dataset, found = data.dataset, predict_rows(potential, data.dataset, rows)
    energy, atoms = dataset._data.energy.numpy()[rows], dataset.slices["z"].numpy()
    forces = np.concatenate([dataset._data.forces[atoms[r] : atoms[r + 1], data.columns["dz"]].numpy() for r in rows])
    of_cc, of_dz = (found.values[name, "energy"].values - energy[:, data.columns[name]] for name in ("cc", "dz"))
    return {"forces": (found.values["dz", "forces"].values - forces).ravel(), "energies": of_cc - of_dz}


if __name__ == "__main__":
    main()
