"""A coupled-cluster level with few labels, added to a potential of cheap forces: what each way of doing it gives.

Trains a potential on energies and forces of ``dz``, then adds ``cc`` to it with a part of its energies, once for each
value of ``--finetune.old``, and trains both levels from scratch for as many epochs as the second part, and as both:

    python benchmarks/finetune.py --seeds 0 1 2 --epochs 40 --fraction 0.1 --out runs/finetune

A seed decides the first potential, the split, and which labels are kept; RMSE are means and standard deviations over
the seeds.

Runs that are there already are not repeated. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from claim import parted, spread


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--fraction", type=float, default=0.1, help="of the cc labels")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    options = parser.parse_args(own)
    print("| training | cc energy, test | cc forces, test | dz energy, test | dz forces, test |")
    print("| --- | --- | --- | --- | --- |")
    found: dict[str, list[dict[str, dict[str, dict[str, float]]]]] = {}
    for seed in options.seeds:
        out = options.out / f"seed{seed}"
        for name, arguments in trainings(options.epochs, options.fraction, out / "dz").items():
            errors = trained(out / name, [*arguments, "--seed", str(seed), *extra])
            found.setdefault(name, []).append(errors)
    for name, of_seeds in found.items():
        print(row(name, of_seeds))


def trainings(epochs: int, fraction: float, model: Path) -> dict[str, list[str]]:
    """Arguments of mfpyg-train by the name of the run."""
    labels = ["--label-fraction", f"cc={fraction:g}"]
    further = ["--init", str(model), "--add-fidelity", "cc:E", *labels, "--epochs", str(epochs)]
    scratch = ["--fidelities", "dz:EF", "cc:E", *labels]
    return {
        "dz": ["--fidelities", "dz:EF", "--epochs", str(epochs)],
        **{old: [*further, "--finetune.old", old] for old in ("frozen", "kept", "replayed")},
        "scratch": [*scratch, "--epochs", str(epochs)],
        "scratch, both parts": [*scratch, "--epochs", str(2 * epochs)],
    }


def trained(run: Path, arguments: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Errors on the test split, of a run that is trained if it is not there yet."""
    if not (run / "metrics.json").is_file():
        command = [sys.executable, "-m", "mfpyg.cli.train", *arguments, "--out", str(run)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, dict[str, dict[str, float]]] = json.loads((run / "metrics.json").read_text())["test"]
    return found


def row(name: str, of_seeds: list[dict[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown: RMSE of energies and forces at both levels."""
    cells = [
        spread([errors[level][kind]["rmse"] for errors in of_seeds]) if level in of_seeds[0] else "-"
        for level in ("cc", "dz")
        for kind in ("energy", "forces")
    ]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
