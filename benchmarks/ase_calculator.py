"""Molecular dynamics through ASE: the calculator beside hippynn's own, with the same network and weights.

Each step of velocity Verlet (0.25 fs) asks for the forces of benzene, 12 atoms, and then for the energy, as a logger
does; float32, one thread, both neighbour lists with a skin of 1 Å. The two take turns (A B A B …) in blocks of steps,
each block from the same positions and velocities. hippynn runs with the fastest of its kernels, tried out first.
Energies and forces of both must agree before anything is timed. Ratios are those of medians over blocks; processor
time is less disturbed by other programs than wall time.

    python benchmarks/ase_calculator.py [--networks published small] [--compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import ase.units
import hippynn
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from hippynn import custom_kernels
from hippynn.graphs import inputs, networks, targets
from hippynn.interfaces.ase_interface import HippynnCalculator
from report import machine
from sides import SPECIES, peer_options, weights_of

from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.models import HIPNN, MultiFidelityPotential

STEPS = 100
"""Of a block."""

KERNELS = ("numba", "pytorch", "sparse", "_pytorch_raw")
NETWORKS = {
    "published": {"n_features": 120, "n_sensitivities": 20, "n_interactions": 2, "n_atom_layers": 4},
    "small": {"n_features": 32, "n_sensitivities": 12, "n_interactions": 2, "n_atom_layers": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="blocks of each side")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    options = parser.parse_args()
    options.device = "cpu"
    torch.set_num_threads(options.threads)
    hippynn.settings.WARN_LOW_DISTANCES = False
    rows = [measured(network, options.repeats, options.compile) for network in options.networks]
    print("| network | hippynn (kernel) | mfpyg | times as many steps | by processor time |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['network']} | {row['hippynn']['ms']:.2f} ms ({row['kernel']}) | {row['mfpyg']['ms']:.2f} ms "
            f"| {row['ratio']:.2f} | {row['cpu_ratio']:.2f} |"
        )
    if options.json:
        values = {"machine": machine(options), "compile": options.compile, "rows": rows}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def measured(network: str, repeats: int, compiled: bool) -> dict[str, Any]:
    """Both sides of a network in turn."""
    theirs, ours = calculators(NETWORKS[network], compiled)
    tried = {kernel: seconds for kernel in KERNELS if (seconds := try_out(kernel, theirs)) is not None}
    kernel = min(tried, key=tried.__getitem__)
    use(kernel)
    sides = {"hippynn": Dynamics(theirs), "mfpyg": Dynamics(ours)}
    agree(sides["hippynn"].atoms, sides["mfpyg"].atoms)
    blocks: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(repeats + 1):
        for side, dynamics in sides.items():
            seconds = dynamics.block()
            if number:  # the first warms up
                blocks[side].append(seconds)
    row: dict[str, Any] = {"network": network, "kernel": kernel, "tried": tried}
    for side, pairs in blocks.items():
        wall, cpu = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        row[side] = {"ms": wall, "cpu_ms": cpu, "raw_s": pairs}
    row["ratio"], row["cpu_ratio"] = (row["hippynn"][key] / row["mfpyg"][key] for key in ("ms", "cpu_ms"))
    return row


def calculators(sizes: dict[str, int], compiled: bool) -> tuple[HippynnCalculator, MFPyGCalculator]:
    """hippynn's, and ours with its weights, every one of them."""
    torch.manual_seed(0)
    words = {"n_interaction_layers": "n_interactions"}
    module = {name: sizes.get(words.get(name, name), value) for name, value in peer_options().items()}
    species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    network = networks.HipnnQuad("HIPNN", (species, positions), module_kwargs=module)
    energy = targets.HEnergyNode("HEnergy", network)
    potential = MultiFidelityPotential(HIPNN(SPECIES, **sizes), ["dz"])
    own, weights = potential.state_dict(), weights_of(network.torch_module, energy.torch_module)
    potential.load_state_dict({name: value.reshape(own[name].shape) for name, value in weights.items()}, strict=True)
    return HippynnCalculator(energy, skin=1.0), MFPyGCalculator(potential, skin=1.0, compiled=compiled)


def use(kernel: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        custom_kernels.set_custom_kernels(kernel)


def try_out(kernel: str, calculator: HippynnCalculator) -> float | None:
    """Processor seconds a step with one of hippynn's kernels, once it is compiled; ``None`` where it is not there."""
    try:
        use(kernel)
    except custom_kernels.CustomKernelError:
        return None
    dynamics = Dynamics(calculator)
    dynamics.block()
    seconds = min(dynamics.block()[1] for _ in range(2))
    print(f"  hippynn {kernel}: {1e3 * seconds:.2f} ms a step", file=sys.stderr, flush=True)
    return seconds


class Dynamics:
    """Benzene in motion with a calculator."""

    def __init__(self, calculator: HippynnCalculator | MFPyGCalculator) -> None:
        self.atoms = molecule("C6H6")
        self.atoms.calc = calculator
        self.start = self.atoms.positions.copy()
        spread = np.sqrt(ase.units.kB * 300 * self.atoms.get_masses())[:, None]
        self.momenta = np.random.default_rng(0).normal(size=(12, 3)) * spread

    def block(self) -> tuple[float, float]:
        """Wall and processor seconds a step."""
        self.atoms.positions = self.start
        self.atoms.set_momenta(self.momenta)
        dynamics = VelocityVerlet(self.atoms, 0.25 * ase.units.fs)
        dynamics.attach(self.atoms.get_potential_energy)
        wall, cpu = time.perf_counter(), time.process_time()
        dynamics.run(STEPS)
        return (time.perf_counter() - wall) / STEPS, (time.process_time() - cpu) / STEPS


def agree(theirs: Atoms, ours: Atoms) -> None:
    """Stop unless energies and forces of both are the same to float32."""
    for name in ("get_potential_energy", "get_forces"):
        expected, found = (np.asarray(getattr(atoms, name)()) for atoms in (theirs, ours))
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"  {name}: {difference:.1e} of the largest apart", file=sys.stderr)
        if not difference < 1e-4:
            sys.exit(f"{name} of hippynn and mfpyg differ by {difference:.1e} of the largest, not as one")


if __name__ == "__main__":
    main()
