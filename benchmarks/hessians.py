"""Training on Hessians along one random direction: steps by each way to compute H v, against a step without.

A step of HIP-NN-TS on a batch of MiniCHNO is energies, forces, (H v), a loss, its gradient and Adam; float32, with the
edges of the batch stored. The ways take turns (A B A B …); times are medians over steps, ratios those of medians.

===========  ==========================================================================================================
without      energies and forces only, kernel ``auto``, which is ``native`` on a CPU
differences  H v by ``predict_with_products``, one more geometry in the same prediction; what training does
central      the same with v and −v, two more geometries
exact        H v by a backward pass through the forces, so that the loss has third derivatives, by kernel ``padded``
definition   the same by kernel ``definition``
===========  ==========================================================================================================

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
from torch_geometric.data import Batch

from mfpyg import settings
from mfpyg.datasets import MiniCHNO
from mfpyg.graph import RadiusGraph
from mfpyg.models import HIPNN, MultiFidelityPotential, Prediction
from mfpyg.models.hessian import displaced_copies, predict_with_products
from mfpyg.models.prediction import Products

WAYS = {"without": "auto", "differences": "auto", "central": "auto", "exact": "padded", "definition": "definition"}
"""Kernel of each way."""
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
        values["kernel"] = WAYS[way]
        self.potential = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **values), ["dz"]).to(device).train()
        self.potential.compiled = compiled
        self.optimiser = torch.optim.Adam(self.potential.parameters(), lr=1e-9, fused=True)
        self.batch, self.way = make_batch(size, self.potential.cutoff).to(device), way

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        direction = torch.randn_like(self.batch.pos)
        loss = (self.exact if self.way in ("exact", "definition") else self.by_differences)(direction)
        loss.backward()
        self.optimiser.step()

    def by_differences(self, direction: Tensor) -> Tensor:
        """Loss with H v from forces at displaced copies, or without."""
        if self.way == "without":
            return self.compared(self.potential.predict(self.batch, {"dz": "EF"})["dz"])
        directions = torch.stack([direction, -direction][: 1 + (self.way == "central")])
        graphs = torch.ones(self.batch.num_graphs, dtype=torch.bool, device=directions.device)
        displaced = displaced_copies(self.batch, graphs, directions, self.potential.dtype)
        prediction = predict_with_products(self.potential, displaced, {"dz": "EFH"})["dz"]
        assert isinstance(prediction.hessian, Products)
        values = prediction.hessian.values
        product = values[0] if len(values) == 1 else (values[0] - values[1]) / 2
        return self.compared(prediction) + product.square().mean()

    def exact(self, direction: Tensor) -> Tensor:
        """Loss with forces that are differentiated by positions once more."""
        data = self.batch.clone()
        data.pos.requires_grad_()
        prediction = self.potential.predict(data, {"dz": "EF"})["dz"]
        assert prediction.forces is not None
        (product,) = torch.autograd.grad(prediction.forces, data.pos, -direction, create_graph=True)
        return self.compared(prediction) + product.square().mean()

    def compared(self, prediction: Prediction) -> Tensor:
        """Loss of energies and forces."""
        assert prediction.forces is not None
        energies, forces = self.batch.energy[:, 0], self.batch.forces[:, 0]
        return (prediction.energy - energies).square().mean() + (prediction.forces - forces).square().mean()


def make_batch(size: int, cutoff: float) -> Batch:
    """Conformations from all over the bundled data, with their edges."""
    dataset, edges = MiniCHNO(fidelities=["dz"]), RadiusGraph(cutoff)
    rows = torch.linspace(0, len(dataset) - 1, size).long().tolist()
    batch: Any = Batch.from_data_list([edges(dataset[row]) for row in rows])
    return batch


if __name__ == "__main__":
    main()
