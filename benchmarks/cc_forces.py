"""Coupled-cluster forces: errors of models that are not trained on them, against the time of their training.

    python benchmarks/cc_forces.py --seeds 0 1 2 3 4 --out runs/cc_forces --figure docs/images/cc-forces.png \\
        --mace-python MACE/bin/python --ani-python ANI/bin/python

prints a row a model and strategy, with means over the seeds and 95 % intervals of RMSE in kcal/mol and kcal/mol/Å:
energies of the target level, their differences between conformations of a molecule (ΔE), and forces, on the test split
and, if there are any, on molecules never seen; then the time of the training and of a prediction. The data are the
bundled ones, or others (``--dataset``). All programs train on the same conformations and never see the test.

=================================== ==================================================================================
row
=================================== ==================================================================================
BACKBONE, BACKBONE/STRATEGY         trained by mfpyg-train, with one of its strategies (``mfl`` unless named)
BACKBONE/xtb, BACKBONE/xtb+mfl      GFN2-xTB as the baseline: of the target alone, and of all levels
chno-1, chno-1/finetuned            potential that comes with the package, as it is, and trained further on the target
gfn2-xtb, ani-1ccx                  as they are
mace-torch, mace-torch@ROW          MACE at convergence, and in the time of another row
=================================== ==================================================================================

What is not installed is left out. Of rows without a training here, the zero of energy is fitted to the training labels,
a number an element.

Each training is repeated with fractions of its epochs, in which learning rates decay as in the whole: the figure has
the force error of all against processor time. Times are processor time of one thread, and of a training that of the
whole command, with imports and compilers.

A run that is there is not repeated: each is a JSON in OUT/results. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cc_forces_data import QUANTITIES, BenchmarkData
from cc_forces_figure import draw
from cc_forces_peers import MACE, ANI1ccx
from cc_forces_rows import CHNO, STRATEGIES, XTB, Pretrained, Row, Setting, Trained
from claim import parted
from hessian_labels import shown
from process import Failure, processor_seconds
from report import machine

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import mean_estimate
from mfpyg.settings import default_preset

ROWS = ("hipnn", "hipnn/tl", "hipnn/delta", "hipnn/xtb", "hipnn/xtb+mfl", "painn", "dimenet++", "mace")
ROWS += (CHNO, f"{CHNO}/finetuned", "gfn2-xtb", "mace-torch", "mace-torch@hipnn", "ani-1ccx")


@dataclass(frozen=True)
class Case:
    """A run: a row, the fraction of its epochs, and a seed; a row without a training has neither."""

    row: Row
    fraction: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        name = self.row.name.replace("/", "-")
        return f"{name}-x{self.fraction:g}-seed{self.seed}" if self.row.trained else name


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.125, 0.25, 0.5, 1.0], help="of the epochs")
    parser.add_argument("--dataset", default="minichno", help="as for mfpyg-train")
    parser.add_argument("--fidelities", nargs="+", default=["dz:EF", "cc:E"], help="the last one is the target")
    parser.add_argument("--split", default="auto", help="split.method of mfpyg-train; its seed is 0")
    parser.add_argument("--preset", help="of mfpyg-train (default: as there)")
    parser.add_argument("--epochs", type=int, help="of mfpyg-train (default: of the preset)")
    parser.add_argument("--mace-python", help="Python with mace-torch")
    parser.add_argument("--mace-epochs", type=int, default=120)
    parser.add_argument("--mace-options", nargs="+", default=[], help="of mace_run_train, such as energy_weight=40")
    parser.add_argument("--ani-python", help="Python with torchani")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; more than one makes times longer")
    parser.add_argument("--out", type=Path, default=Path("runs/cc_forces"))
    parser.add_argument("--figure", type=Path, help="PNG file of the figure")
    options = parser.parse_args(own)
    try:
        data = BenchmarkData(options.dataset, options.fidelities, options.split, options.out / "data")
    except MFPyGError as error:
        sys.exit(str(error))
    keep_settings(options, extra)
    if not data.path("references").is_file():
        data.write()
    setting = Setting(data, options.preset or default_preset([options.dataset]), options.epochs, extra)
    rows = available([row_of(name, setting, options) for name in options.rows])
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            for later in (False, True):
                cases = [case for row in rows if is_later(row) == later for case in cases_of(row, options)]
                list(pool.map(lambda case: run(case, options.out), cases))
    except Failure as failure:
        sys.exit(str(failure))
    results = {row.name: [result(case, options.out) for case in cases_of(row, options)] for row in rows}
    print(table(results, list(data.tested)))
    if options.figure:
        draw(results, options.figure)


def keep_settings(options: argparse.Namespace, extra: Sequence[str]) -> None:
    """Stop if the folder has runs with other settings."""
    names = ("dataset", "fidelities", "split", "preset", "epochs", "mace_epochs", "mace_options")
    settings = {**{name: getattr(options, name) for name in names}, "extra": list(extra)}
    path = options.out / "settings.json"
    if not path.is_file():
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
    elif (kept := json.loads(path.read_text())) != settings:
        changed = ", ".join(name for name in settings if settings[name] != kept.get(name))
        sys.exit(f"{options.out} has runs with other settings ({changed}); choose another --out")


def row_of(name: str, setting: Setting, options: argparse.Namespace) -> Row:
    """Row of a name."""
    base, _, rest = name.partition("/")
    program, _, equal_to = name.partition("@")
    if base == CHNO and rest in ("", "finetuned"):
        return Pretrained(name, setting, finetuned=bool(rest))
    if program == "mace-torch":
        extra = tuple(f"--{option}" for option in options.mace_options)
        return MACE(name, setting, options.mace_python, options.mace_epochs, extra, equal_to or None)
    if name == "ani-1ccx":
        return ANI1ccx(name, setting, options.ani_python)
    if name == "gfn2-xtb":
        return XTB(name, setting)
    if (rest or "mfl") not in STRATEGIES:
        sys.exit(f"row {name}: no strategy {rest}; expected one of {', '.join(STRATEGIES)}")
    return Trained(name, setting, base, rest or "mfl")


def is_later(row: Row) -> bool:
    """Whether a row needs the times of others."""
    return isinstance(row, MACE) and row.equal_to is not None


def available(rows: Sequence[Row]) -> list[Row]:
    """Rows that can be made; the others are named."""
    found, names = [], [row.name for row in rows]
    for row in rows:
        reason = row.missing()
        if isinstance(row, MACE) and row.equal_to and not {row.equal_to, "mace-torch"} <= set(names):
            reason = reason or f"it needs the rows {row.equal_to} and mace-torch"
        if reason:
            print(f"{row.name} is left out: {reason}", file=sys.stderr)
        else:
            found.append(row)
    return found


def cases_of(row: Row, options: argparse.Namespace) -> list[Case]:
    """Runs of a row; one in the time of another row has its full length only."""
    if not row.trained:
        return [Case(row)]
    fractions = [max(options.fractions)] if is_later(row) else options.fractions
    return [Case(row, fraction, seed) for seed in options.seeds for fraction in sorted(fractions)]


def path_of(case: Case, out: Path) -> Path:
    return out / "results" / f"{case.name}.json"


def result(case: Case, out: Path) -> dict[str, Any]:
    """Result of a run that is there."""
    found: dict[str, Any] = json.loads(path_of(case, out).read_text())
    return found


def epochs_of(case: Case, out: Path) -> int:
    """Epochs of a run: a fraction of the longest, or as many as take the time of another row."""
    row = case.row
    if not (isinstance(row, MACE) and row.equal_to):
        return max(2, round(case.fraction * row.epochs()))
    others = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    times = [one["training_s"] for one in others if one["row"] == row.equal_to and one["fraction"] == case.fraction]
    own = [one["training_s"] / one["epochs"] for one in others if one["row"] == "mace-torch"]
    return max(2, round(float(np.mean(times)) / min(own)))


def run(case: Case, out: Path) -> None:
    """Train and predict, unless it is done."""
    path, row = path_of(case, out), case.row
    if path.is_file():
        return
    folder = out / "runs" / case.name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    folder.mkdir(parents=True)
    found: dict[str, Any] = {"row": row.name, "fraction": case.fraction, "seed": case.seed, "epochs": 0}
    found["training_s"] = 0.0
    data = row.setting.data
    if row.trained:
        found["epochs"] = epochs_of(case, out)
        print(f"{case.name}: {found['epochs']} epochs", file=sys.stderr, flush=True)
        command = row.train(folder, found["epochs"], case.seed)
        found["training_s"] = processor_seconds(command, folder / "train.log")
        found["command"] = command
    predictions = folder / "predictions.npz"
    references = [] if row.trained else ["--references", str(data.path("references"))]
    command = [*row.predict(folder), *references, str(data.path("test")), str(predictions)]
    processor_seconds(command, folder / "predict.log")
    values = dict(np.load(predictions))
    found["errors"] = data.errors(values)
    found.update({name: values[name].item() for name in ("one_ms", "batch_ms", "n_parameters")})
    found["machine"] = machine(argparse.Namespace(threads=1, device="cpu", repeats=1))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


def table(results: dict[str, list[dict[str, Any]]], splits: Sequence[str]) -> str:
    """Markdown: a row a model, trained for the longest time."""
    names = {"energy": "energy", "conformers": "ΔE", "forces": "forces"}
    heads = ["model", *(f"{names[quantity]}, {split}" for split in splits for quantity in QUANTITIES)]
    heads += ["training, min", "one molecule, ms", "in a batch, ms", "parameters"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, runs in results.items():
        longest = [one for one in runs if one["fraction"] == max(r["fraction"] for r in runs)]
        cells = [f"`{name}`"]
        for split in splits:
            for quantity in QUANTITIES:
                values = [one["errors"][split][quantity] for one in longest if quantity in one["errors"][split]]
                cells.append(shown(mean_estimate(values)) if values else "–")
        minutes, one_ms, batch_ms = (
            float(np.mean([one[key] for one in longest])) for key in ("training_s", "one_ms", "batch_ms")
        )
        cells += [f"{minutes / 60:.1f}" if minutes else "–", f"{one_ms:.2g}", f"{batch_ms:.2g}"]
        cells.append(f"{longest[0]['n_parameters']:,}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
