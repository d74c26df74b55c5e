"""Predictions and dynamics of an organic liquid with and without :mod:`mfpyg.locality`, in turn in one process.

Prints the ratios of processor times, and their median over the turns. The molecules are numbered at random.

    python benchmarks/locality.py [--atoms 2000 8000] [--turns 11]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from molecules import organic_liquid
from sides import SPECIES

from mfpyg import locality
from mfpyg.interop.ase import MFPyGCalculator, data_of
from mfpyg.models import HIPNN, MultiFidelityPotential


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument("--turns", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    potential = MultiFidelityPotential(HIPNN(SPECIES), ["dz"]).eval()
    for n_atoms in options.atoms:
        batch = organic_liquid(n_atoms, seed=0, snapshots=1)[0]
        atoms = Atoms(batch.z, batch.pos, cell=batch.cell, pbc=True)
        data = data_of(atoms)
        compare(f"{n_atoms} atoms, prediction", lambda data=data: lambda: potential(data), options.turns)
        compare(f"{n_atoms} atoms, dynamics", lambda atoms=atoms: dynamics(potential, atoms), options.turns)


def dynamics(potential: MultiFidelityPotential, atoms: Atoms) -> Callable[[], object]:
    """A step with displacements like those of dynamics, and a neighbour list of its own."""
    moving, calculator, random = atoms.copy(), MFPyGCalculator(potential), np.random.default_rng(0)

    def step() -> object:
        moving.positions += random.normal(0, 0.005, moving.positions.shape)
        return calculator.get_forces(moving)

    return step


def compare(name: str, make: Callable[[], Callable[[], object]], turns: int) -> None:
    """Time a step of each of two copies of the same work, with and without, and print medians and their ratio."""
    copies = {limit: make() for limit in (locality.LARGE, 10**9)}
    times: dict[int, list[float]] = {limit: [] for limit in copies}
    for turn in range(turns + 1):
        for limit, step in copies.items():
            locality.LARGE = limit
            start = time.process_time()
            step()
            if turn:  # the first is a warm-up
                times[limit].append(1e3 * (time.process_time() - start))
    locality.LARGE = next(iter(copies))
    ordered, given = times.values()
    ratio = statistics.median(a / b for a, b in zip(ordered, given, strict=True))
    print(f"{name}: {statistics.median(given):.0f} ms -> {statistics.median(ordered):.0f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
