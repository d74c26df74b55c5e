"""Force errors of trainings on energies alone, as near pairs show them, and what training on pairs brings.

Samples geometries of four molecules, each with a near partner, and labels them with GFN2-xTB, which stands for an
expensive level whose forces are known here. All trainings have equally many energies and optimiser steps: of single
geometries, or of pairs, half as many geometries with their partners. The table has RMSE on pairs that nobody trained
on, the first three columns from energies alone:

    python benchmarks/pairs.py --seeds 0 1 2 --out runs/pairs

A seed decides which geometries are trained on, and the initial weights. Files and runs that are there already are not
made again. Options after ``--`` go to mfpyg-train.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from claim import parted, spread

MOLECULES = ("CO", "C=O", "CC", "CCO")
LEVEL = "xtb=xtb_energy,xtb_forces@eV"
MODELS = {
    "`xtb:E`, single geometries": ("single", ["--fidelities", "xtb:E"]),
    "`xtb:E`, pairs": ("pairs", ["--fidelities", "xtb:E"]),
    "`xtb:E`, pairs, `--pair-weight 1`": ("pairs", ["--fidelities", "xtb:E", "--pair-weight", "1"]),
    "`xtb:EF`, single geometries": ("single", ["--fidelities", "xtb:EF"]),
}


def main() -> None:
    own, extra = parted(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--energies", type=int, default=400, help="of the training, an even number")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    options = parser.parse_args(own)
    options.out.mkdir(parents=True, exist_ok=True)
    frames = labelled(options.out)
    print(f"| {options.energies:,} energies of | energy | directional force | estimated | force components |")
    print("| --- | --- | --- | --- | --- |")
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in MODELS}
    for seed in options.seeds:
        write_splits(frames, options.energies, seed, options.out / f"data-{seed}")
        for number, (name, (kind, arguments)) in enumerate(MODELS.items()):
            run = options.out / f"{number}-{options.energies}-seed{seed}"
            files = [f"{split}=data-{seed}/{split}-{kind}.xyz:{LEVEL}" for split in ("train", "val")]
            files.append(f"test=data-{seed}/test.xyz:{LEVEL}")
            preset = ["--preset", "small", "--epochs", str(options.epochs), "--seed", str(seed), "--out", run.name]
            if not (run / "metrics.json").is_file():
                command = ["mfpyg-train", *arguments, *preset, "--split.files", *files, *extra]
                subprocess.run(command, check=True, cwd=options.out)
            found[name].append(json.loads((run / "metrics.json").read_text())["test"]["xtb"])
    for name, of_seeds in found.items():
        columns = (("energy", "rmse"), ("directional_force", "rmse"), ("directional_force", "component_rmse"))
        cells = [spread([one[quantity][key] for one in of_seeds]) for quantity, key in (*columns, ("forces", "rmse"))]
        print(f"| {name} | {' | '.join(cells)} |")


def labelled(out: Path) -> list[list[Atoms]]:
    """Geometries with energies and forces, each with its partner; a geometry without one is left out."""
    sampled, path = out / "sampled.xyz", out / "labelled.xyz"
    if not sampled.exists():
        numbers = ["--modes", "150", "--dynamics", "150", "--pairs", "300"]
        subprocess.run(["mfpyg-sample", *MOLECULES, "-o", str(sampled), *numbers], check=True)
    if not path.exists():
        subprocess.run(["mfpyg-label", str(sampled), "-o", str(path), "--level", "xtb=tblite:GFN2-xTB:EF"], check=True)
    pairs: dict[str, list[Atoms]] = {}
    for atoms in ase.io.iread(path):
        if "pair" in atoms.info:
            pairs.setdefault(atoms.info["pair"], []).append(atoms)
    return list(pairs.values())


def write_splits(pairs: list[list[Atoms]], n_train: int, seed: int, folder: Path) -> None:
    """Pairs for the test, and from the others single geometries or pairs for training and validation."""
    folder.mkdir(exist_ok=True)
    order, n_val = np.random.default_rng(seed).permutation(len(pairs)).tolist(), max(2, n_train // 20 * 2)
    test, rest = order[:200], order[200:]
    if len(rest) < n_train + n_val:
        raise SystemExit(f"{len(rest)} geometries are left to train and validate on, expected {n_train + n_val}")
    for split, numbers in (("train", rest[:n_train]), ("val", rest[n_train : n_train + n_val])):
        half = numbers[: len(numbers) // 2]
        ase.io.write(folder / f"{split}-single.xyz", [pairs[number][0] for number in numbers])
        ase.io.write(folder / f"{split}-pairs.xyz", [atoms for number in half for atoms in pairs[number]])
    ase.io.write(folder / "test.xyz", [atoms for number in test for atoms in pairs[number]])


if __name__ == "__main__":
    main()
