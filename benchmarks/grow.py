"""From SMILES to coupled-cluster forces: mfpyg-grow, and other ways to spend the same budget of processor time.

Eight molecules with up to three heavy atoms are sampled; CCSD(T)/cc-pVDZ energies and ωB97X/6-31G(d) energies and
forces are computed within the budget, GFN2-xTB for all geometries. The error is that of CCSD(T) forces of sampled
geometries that are never used; these forces are computed for the test alone. Everything is computed here, labels once
for all:

    python benchmarks/grow.py --budget 2h --jobs 2 --out runs/grow

prints a table. What is there already is not repeated; the pool of the defaults, the test with its forces, which
take half an hour, and about half of the other labels of one seed come with the repository:

    mkdir -p runs/grow && tar xf benchmarks/grow-labels.tar.xz -C runs/grow

All but "Δ-learning" are growths with the same number of rounds and about the same number of steps, from the same pool
of geometries. The budget is that of labels, GFN2-xTB included; as a baseline this is a part of the training.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml

MOLECULES = ("CCO", "CC=O", "NC=O", "CC#N", "OC=O", "CN", "C=C", "CO")
LEVELS = {
    "xtb": "tblite:GFN2-xTB:EF",
    "dz": "pyscf:wB97X/6-31G*:EF",
    "cc": "pyscf:CCSD(T)/cc-pVDZ:E",
}
ROUNDS, TEST_SEED, POOL_SEED = 4, 11, 10


@dataclass(frozen=True)
class Way:
    """A way to spend the budget.

    Attributes:
        name: name in the table.
        levels: names of its levels.
        select, train: options of mfpyg-select and mfpyg-train.
        epochs: factor of the number of epochs: with fewer geometries an epoch has fewer steps.
    """

    name: str
    levels: Sequence[str]
    select: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    epochs: int = 1


RANDOM = {"method": "random"}
BASELINE = {"baseline": ["dz=tblite:GFN2-xTB", "cc=tblite:GFN2-xTB"]}
WAYS = (
    Way("multi-fidelity choice", ("xtb", "dz", "cc")),
    Way("random frames", ("xtb", "dz", "cc"), RANDOM),
    Way("random frames, xtb as baseline", ("dz", "cc"), RANDOM, BASELINE, epochs=6),
    Way("random frames, no dz", ("xtb", "cc"), RANDOM),
    Way("cc energies alone, random frames", ("cc",), RANDOM, epochs=2),
    Way("multi-fidelity choice, no dz", ("xtb", "cc")),
)
DELTA = "Δ-learning from xtb, random frames"


class Benchmark:
    """Files and settings of the benchmark."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.out, self.options = out, options
        out.mkdir(parents=True, exist_ok=True)

    def command(self, name: str, *arguments: str) -> None:
        print("+", name, *arguments, flush=True)
        subprocess.run([Path(sys.executable).with_name(name), *arguments], check=True)

    def sample(self, path: Path, seed: int, modes: int, dynamics: int) -> None:
        if not path.is_file():
            counts = (f"--modes={modes}", f"--dynamics={dynamics}", f"--seed={seed}")
            self.command("mfpyg-sample", *MOLECULES, "-o", str(path), *counts, f"--jobs={self.options.jobs}")

    def pool(self) -> Path:
        """Geometries to choose from, in random order."""
        path = self.out / "pool.xyz"
        if not path.is_file():
            each = math.ceil(1.05 * self.options.pool / (2 * len(MOLECULES)))
            self.sample(self.out / "sampled.xyz", POOL_SEED, each, each)
            frames = ase.io.read(self.out / "sampled.xyz", ":")
            order = np.random.default_rng(0).permutation(len(frames))[: self.options.pool]
            ase.io.write(path, [frames[number] for number in order])
        return path

    def test(self) -> str:
        """Test data with forces of all levels, as a value of ``--dataset``."""
        labelled = self.out / "test-labelled.xyz"
        if not labelled.is_file():
            self.sample(self.out / "test-sampled.xyz", TEST_SEED, 5, 5)
            by_molecule: dict[tuple[str, str], list[ase.Atoms]] = {}
            for frame in ase.io.read(self.out / "test-sampled.xyz", ":"):
                by_molecule.setdefault((frame.info["molecule"], frame.info["origin"]), []).append(frame)
            n = self.options.test
            chosen = [frame for (_, origin), of in by_molecule.items() if origin != "conformer" for frame in of[:n]]
            ase.io.write(self.out / "test.xyz", chosen)
            levels = [f"{name}={text}" for name, text in LEVELS.items()]
            levels[-1] += "F"
            self.link(labelled)
            arguments = (str(self.out / "test.xyz"), "-o", str(labelled), "--level", *levels)
            self.command("mfpyg-label", *arguments, f"--jobs={self.options.jobs}")
        return str(yaml.safe_load(Path(f"{labelled}.yaml").read_text())["dataset"])

    def link(self, labelled: Path) -> None:
        """Let an output share the store of computed labels."""
        store, link = (self.out / "labels").resolve(), Path(f"{labelled}.labels")
        store.mkdir(exist_ok=True)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(store)

    def grow(self, way: Way, seed: int) -> Path:
        folder = self.out / f"{way.name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        settings = {
            "out": str(folder), "pool": str(self.pool()), "levels": {name: LEVELS[name] for name in way.levels},
            "everywhere": [name for name in way.levels if name == "xtb"],
            "budget": self.options.budget, "rounds": ROUNDS, "test": [self.test()], "seed": seed,
            "train": {"preset": "small", "epochs": way.epochs * self.options.epochs, **way.train},
            "jobs": self.options.jobs, "select": way.select, "target": "cc",
        }  # fmt: skip
        config = folder.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(settings))
        self.link(folder / "labelled.xyz")
        self.command("mfpyg-grow", str(config))
        return folder

    def delta(self, seed: int) -> dict[str, Any]:
        """Errors of Δ-learning on the labels of the random growth without dz."""
        (way,) = (way for way in WAYS if way.name == "random frames, no dz")
        last, run = self.grow(way, seed) / f"round-{ROUNDS - 1}", self.out / f"delta-seed{seed}"
        if not (run / "metrics.json").is_file():
            trained = yaml.safe_load((last / "train.yaml").read_text())
            split = ("--split.method", "index", "--split.file", trained["split"]["file"])
            options = ("--strategy", "delta", "--epochs", str(2 * ROUNDS * self.options.epochs), "--seed", str(seed))
            arguments = ("--fidelities", "xtb:EF", "cc:E", "--preset", "small", "--dataset", *trained["dataset"])
            self.command("mfpyg-train", *arguments, *split, *options, "--out", str(run))
        errors = run / "test.json"
        if not errors.is_file():
            self.command("mfpyg-evaluate", str(run), "--dataset", self.test(), "--json", str(errors))
        (found,) = json.loads(errors.read_text()).values()
        return dict(found)


def _row(name: str, labels: dict[str, int], errors: dict[str, Any]) -> str:
    energy, forces = errors["cc"]["energy"], errors["cc"]["forces"]
    counts = ", ".join(f"{n} `{level}`" for level, n in labels.items() if level != "xtb")
    found = (energy["rmse"], forces["rmse"], forces["mae"], forces["calibration"]["rms_std"])
    covered = f"{100 * forces['calibration']['coverage']['80']:.0f}"
    return f"| {name} | {counts} | {' | '.join(f'{value:.1f}' for value in found)} | {covered} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/grow"))
    parser.add_argument("--budget", default="2h", help="processor time of all labels")
    parser.add_argument("--pool", type=int, default=4500, help="geometries to choose from")
    parser.add_argument("--test", type=int, default=2, help="test geometries per molecule and kind of sampling")
    parser.add_argument("--epochs", type=int, default=25, help="epochs of each round")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    benchmark, rows = Benchmark(options.out, options), []
    for seed in options.seeds:
        for way in WAYS:
            folder = benchmark.grow(way, seed)
            rounds = sorted(folder.glob("round-*/summary.json"))
            last = json.loads(rounds[-1].read_text())
            rows.append(_row(f"{way.name}, seed {seed}", last["labels"], last["test"]))
            if way.name == "random frames, no dz":
                rows.append(_row(f"{DELTA}, seed {seed}", last["labels"], benchmark.delta(seed)))
    heads = ("labels chosen by", "labels", "cc energy", "cc forces", "their MAE", "their std", "within 80 %")
    print(f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |", *rows, sep="\n")


if __name__ == "__main__":
    main()
