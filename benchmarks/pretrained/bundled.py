"""Conformations of the bundled data with their dz and cc labels, as extended XYZ in eV, to be labelled at other levels.

    python benchmarks/pretrained/bundled.py --out runs/chno

writes ``bundled.xyz``, the pool for training, and ``bundled-larger.xyz``, the larger molecules out of sample.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from mfpyg.datasets import MiniCHNO
from mfpyg.units import KCAL_MOL_TO_EV

PARTS = {"bundled": 0, "bundled-larger": 2}
"""Number of the part in the data's own split."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/chno"))
    options = parser.parse_args()
    data = MiniCHNO(fidelities=["dz", "cc"])
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        rows = np.flatnonzero(data.given_split() == part)
        write(options.out / f"{name}.xyz", [frame(data, row) for row in rows], format="extxyz")
        print(f"written: {options.out / name}.xyz, {len(rows)} frames")


def frame(data: MiniCHNO, row: int) -> Atoms:
    """One conformation; labels that are not there are left out."""
    one = data[int(row)]
    atoms = Atoms(one.z.numpy(), one.pos.double().numpy())
    for column, level in enumerate(data.fidelities):
        energy, forces = (KCAL_MOL_TO_EV * of.double().numpy() for of in (one.energy[0, column], one.forces[:, column]))
        if np.isfinite(energy):
            atoms.info[f"{level}_energy"] = float(energy)
        if np.isfinite(forces).all():
            atoms.arrays[f"{level}_forces"] = forces
    return atoms


if __name__ == "__main__":
    main()
