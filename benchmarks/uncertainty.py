"""Calibration of the standard deviations of energies and forces, of single potentials and of their ensemble.

Trains ``dz:EF cc:E`` on the bundled data with several seeds and one split, and prints the coverage of intervals, the
rank correlation with the error, and the error of the least certain tenth on test conformations and on larger molecules
(``ood``); cc forces are never trained on:

    python benchmarks/uncertainty.py --seeds 0 1 2 3 4 --figures docs/images

Runs that are there already are not repeated. ``--cost`` prints what standard deviations add to the processor time of
predictions instead.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from mfpyg.datasets import BatchLoader, MiniCHNO
from mfpyg.datasets.batches import by_size
from mfpyg.evaluation import coverage
from mfpyg.evaluation.features import last_features_of
from mfpyg.inference.ensemble import Ensemble
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.models.calibration import NORMAL, PROBABILITIES
from mfpyg.models.last_layer import LastLayer, whitening
from mfpyg.properties import ENERGY, FORCES
from mfpyg.settings import defaults, from_dict

SPLITS = {"test": 1, "ood": 2}
LEVELS = ("dz", "cc")
COLOURS = {"dz:E": "C0", "dz:F": "C2", "cc:E": "C1", "cc:F": "C3"}


class Quantity(NamedTuple):
    """Errors and standard deviations of the labels of one split, (n,) each, and quantiles of their ratio, (99,)."""

    errors: np.ndarray
    std: np.ndarray
    quantiles: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/uncertainty"))
    parser.add_argument("--figures", type=Path, help="folder for calibration.png")
    parser.add_argument("--cost", action="store_true", help="measure the cost of standard deviations, and no more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cost:
        print(cost())
        return
    runs = [options.out / f"seed-{seed}" for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(train, options.seeds, runs))
    dataset = MiniCHNO()
    singles = [quantities(Ensemble(run), dataset) for run in runs]
    ensemble = quantities(Ensemble(runs), dataset) if len(runs) > 1 else None
    print(table(singles, ensemble))
    if options.figures is not None:
        draw(singles, ensemble, options.figures / "calibration.png")


def train(seed: int, run: Path) -> None:
    """Train a seed, if it is not there yet."""
    if not (run / "metrics.json").is_file():
        command = ["mfpyg-train", "--fidelities", "dz:EF", "cc:E", "--seed", str(seed), "--split.seed", "0"]
        subprocess.run([*command, "--threads", "1", "--out", str(run)], check=True, stdout=subprocess.DEVNULL)


def quantities(ensemble: Ensemble, dataset: MiniCHNO) -> dict[tuple[str, str], Quantity]:
    """By split and label, as ``("test", "cc:F")``."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    n_atoms = dataset.slices["z"].diff().numpy()
    for split, number in SPLITS.items():
        rows = np.flatnonzero(dataset.given_split() == number)
        for batch in BatchLoader(dataset, plan=by_size(rows, n_atoms, 128, 4096)):
            mean, spread = ensemble.predict(batch, dict.fromkeys(LEVELS, "EF"), std=True)
            assert spread is not None
            for name in LEVELS:
                column = dataset.fidelities.index(name)
                for p in (ENERGY, FORCES):
                    mask = batch[p.mask][:, column]
                    mask = mask[batch.batch] if p is FORCES else mask
                    values, std = getattr(mean[name], p.name)[mask], getattr(spread[name], p.name)[mask]
                    pair = torch.stack([values - batch[p.name][mask, column], std]).double().flatten(1)
                    found.setdefault((split, f"{name}:{p.letter}"), []).append(pair.numpy())
    result = {}
    for (split, label), parts in found.items():
        name, letter = label.split(":")
        of_level = ensemble.quantiles(name)
        quantiles = NORMAL if of_level is None else of_level["EF".index(letter)]
        result[split, label] = Quantity(*np.concatenate(parts, axis=1), quantiles)
    return result


def table(
    singles: Sequence[Mapping[tuple[str, str], Quantity]], ensemble: Mapping[tuple[str, str], Quantity] | None
) -> str:
    """Markdown: means over the single potentials, and the ensemble."""
    kinds = [(f"single, {len(singles)} seeds", singles)] + ([("ensemble", [ensemble])] if ensemble is not None else [])
    heads = ["split", "label", "potential", "RMSE", "std", "50 %", "80 %", "95 %", "area", "rank", "10 %", "rest"]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for key in singles[0]:
        for kind, members in kinds:
            each = [coverage.statistics(*of[key]) for of in members]  # type: ignore[index]
            errors = [float(np.sqrt(np.mean(of[key].errors ** 2))) for of in members]  # type: ignore[index]
            cells = [f"{np.mean(errors):.2f}", shown(each, "rms_std", 2)]
            cells += [f"{100 * np.mean([one['coverage'][p] for one in each]):.0f}" for p in ("50", "80", "95")]
            cells += [shown(each, "miscalibration_area", 3), shown(each, "rank_correlation", 2)]
            cells += [shown(each, name, 2) for name in ("rmse_least_certain", "rmse_rest")]
            lines.append(f"| {' | '.join([*key, kind, *cells])} |")
    return "\n".join(lines)


def shown(each: Iterable[Mapping[str, Any]], key: str, digits: int) -> str:
    return f"{np.mean([one[key] for one in each]):.{digits}f}"


def draw(
    singles: Sequence[Mapping[tuple[str, str], Quantity]],
    ensemble: Mapping[tuple[str, str], Quantity] | None,
    path: Path,
) -> None:
    """Observed against expected coverage: thin lines of single potentials, thick ones of the ensemble."""
    figure = Figure(figsize=(7.6, 4.0))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (split, title) in zip(axes, (("test", "test"), ("ood", "larger molecules")), strict=True):
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
        for label, colour in COLOURS.items():
            for of in singles:
                observed = coverage.observed_coverage(*of[split, label])
                axis.plot(PROBABILITIES, observed, color=colour, linewidth=0.8, alpha=0.6)
            of_last = singles[0] if ensemble is None else ensemble
            observed = coverage.observed_coverage(*of_last[split, label])
            never = " (never trained on)" if label == "cc:F" else ""
            axis.plot(PROBABILITIES, observed, color=colour, linewidth=2.2, label=f"{label}{never}")
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title, xlabel="expected coverage")
    axes[0].set_ylabel("observed coverage")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def cost(repeats: int = 20) -> str:
    """Processor time that standard deviations add to predictions of 256 test molecules, in per cent."""
    dataset = MiniCHNO()
    batch = next(iter(BatchLoader(dataset, plan=lambda _: [np.arange(256)])))
    lines = ["| network | energies | energies and forces |", "| --- | --- | --- |"]
    for preset in ("small", "published"):
        settings = from_dict({**defaults(preset, "hipnn"), "fidelities": ["dz:EF", "cc:E"]})
        potential = build_potential(settings, [1, 6, 7, 8], ["dz", "cc"]).eval()
        give_std(potential, batch)
        cells = [f"{100 * added(potential, batch, letters, repeats):+.1f} %" for letters in ("E", "EF")]
        lines.append(f"| {preset} | {' | '.join(cells)} |")
    return "\n".join(lines)


def give_std(potential: MultiFidelityPotential, batch: Any) -> None:
    features = last_features_of(potential, batch, "cc")
    grams = (of.double().mT @ of.double() for of in (features.graphs, features.atoms))
    potential.uncertainty["cc"] = LastLayer(*(whitening(gram).float() for gram in grams), torch.ones(2))  # type: ignore[index]


def added(potential: MultiFidelityPotential, batch: Any, letters: str, repeats: int) -> float:
    """Median over pairs of predictions, one after the other, with and without."""
    ratios = []
    for _ in range(repeats + 1):
        times = []
        for std in (False, True):
            before = time.process_time()
            potential.predict(batch, {"cc": letters}, std=std)
            times.append(time.process_time() - before)
        ratios.append(times[1] / times[0] - 1)
    return statistics.median(ratios[1:])


if __name__ == "__main__":
    main()
