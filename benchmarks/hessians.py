"""Training on Hessians along one random direction: steps by each way to compute H v, against a step without.

A step of HIP-NN-TS on a batch of MiniCHNO is energies, forces, (H v), a loss, its gradient and Adam; float32, with the
edges of the batch stored. The ways take turns (A B A B …); times are medians over steps, ratios those of medians.

========================  =============================================================================================
without                   energies and forces only, kernel ``auto``, which is ``native`` on a CPU
central                   and ``hessian_products(…, "central")``, forces at two displaced geometries, the same kernel
exact                     and ``hessian_products(…, "exact")``, which predicts the forces again, by kernel ``padded``
exact, shared             energies, forces and H v from one prediction by kernel ``padded``
exact, shared, definition the same by kernel ``definition``
========================  =============================================================================================

    python benchmarks/hessians.py [--networks small published] [--batches 8 32] [--compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jobs import synchronise
from report import machine
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg import settings
from mfpyg.datasets import MiniCHNO
from mfpyg.graph import RadiusGraph
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.hessian import hessian_products, products_of, third_derivatives

WAYS = ("without", "central", "exact", "exact, shared", "exact, shared, definition")
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=["small", "published"], default=["small", "published"])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="conformations of a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=25, help="steps of each way")
    parser.add_argument("--compile", action="store_true", help="predictions at given positions through torch.compile")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print("| network | batch | way | ms a step | times a step without | by processor time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for network in options.networks:
        for size in options.batches:
            found = measured(network, size, options)
            rows.append({"network": network, "batch": size, "ways": found})
            for way, row in found.items():
                print(
                    f"| {network} | {size} | {way} | {row['ms']:.1f} | {row['ratio']:.2f} | {row['cpu_ratio']:.2f} |",
                    flush=True,
                )
    if options.json:
        values = {"machine": machine(options), "compile": options.compile, "rows": rows}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def measured(network: str, size: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All ways of one network and batch, in turn."""
    print(f"{network}, batch of {size}", file=sys.stderr, flush=True)
    steps = {way: Step(network, size, way, options.compile, options.device) for way in WAYS}
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    cpus: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(WARM_UP + options.repeats):
        for way, step in steps.items():
            wall, cpu = timed(step, options.device)
            if number >= WARM_UP:
                walls[way].append(wall)
                cpus[way].append(cpu)
    base, base_cpu = statistics.median(walls["without"]), statistics.median(cpus["without"])
    return {
        way: {
            "ms": 1e3 * statistics.median(walls[way]),
            "ratio": statistics.median(walls[way]) / base,
            "cpu_ratio": statistics.median(cpus[way]) / base_cpu,
        }
        for way in WAYS
    }


def timed(call: Callable[[], None], device: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronise(device)
    return time.perf_counter() - wall, time.process_time() - cpu


class Step:
    """A training step of one network by one way.

    Args:
        network: ``small`` or ``published``.
        size: conformations of the batch.
        way: one of WAYS.
        compiled: whether predictions at given positions go through ``torch.compile``.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, network: str, size: int, way: str, compiled: bool, device: str) -> None:
        torch.manual_seed(0)
        values = settings.defaults(network, "hipnn")["model"]
        values["kernel"] = "definition" if way.endswith("definition") else "auto"
        self.potential = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **values), ["dz"]).to(device).train()
        self.potential.compiled = compiled
        self.optimiser = torch.optim.Adam(self.potential.parameters(), lr=1e-9, fused=True)
        self.batch, self.way = make_batch(size, self.potential.cutoff).to(device), way

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        direction = torch.randn_like(self.batch.pos)
        loss = (self.shared if "shared" in self.way else self.separate)(direction)
        loss.backward()
        self.optimiser.step()

    def separate(self, direction: Tensor) -> Tensor:
        """Loss with a prediction of energies and forces, and another of H v."""
        loss = self.of_forces(self.batch)[0]
        if self.way == "without":
            return loss
        product = hessian_products(self.potential, self.batch, "dz", direction[None], self.way)[0]
        return loss + product.square().mean()

    def shared(self, direction: Tensor) -> Tensor:
        """Loss with one prediction that is differentiated by positions once more."""
        data = self.batch.clone()
        data.pos.requires_grad_()
        with third_derivatives():
            loss, forces = self.of_forces(data)
            return loss + products_of(forces, data.pos, direction, differentiable=True).square().mean()

    def of_forces(self, data: Data) -> tuple[Tensor, Tensor]:
        """Loss of energies and forces, and the forces, (n_atoms, 3)."""
        prediction, column = self.potential.predict(data, {"dz": "EF"})["dz"], 0
        energies, forces = data.energy[:, column], data.forces[:, column]
        assert prediction.forces is not None
        loss = (prediction.energy - energies).square().mean() + (prediction.forces - forces).square().mean()
        return loss, prediction.forces


def make_batch(size: int, cutoff: float) -> Batch:
    """Conformations from all over the bundled data, with their edges."""
    dataset, edges = MiniCHNO(fidelities=["dz"]), RadiusGraph(cutoff)
    rows = torch.linspace(0, len(dataset) - 1, size).long().tolist()
    batch: Any = Batch.from_data_list([edges(dataset[row]) for row in rows])
    return batch


if __name__ == "__main__":
    main()
