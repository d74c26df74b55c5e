"""Cost of an adapter beside the bare module of PyTorch Geometric, on the same edges.

Energies and forces of a batch of molecules, by PyG's module and by a potential with the same layers, in turn; the
ratio is the median over the pairs. Both find edges beforehand, and DimeNet++ on both sides its triplets in every step,
with this package's search, as PyG's needs torch-sparse.

    python benchmarks/adapters.py --molecules 32 --repeats 30
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from molecules import organic_molecules
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn.models import DimeNetPlusPlus, SchNet, ViSNet, dimenet, visnet

from mfpyg import backbones
from mfpyg.graph import Graph, RadiusGraph, find_topology
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.dimenet import find_triplets

SPECIES = [1, 6, 7, 8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where every number goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    molecules = organic_molecules(options.molecules, 0)
    data = Data(
        z=torch.from_numpy(molecules.z), pos=torch.from_numpy(molecules.pos), batch=torch.from_numpy(molecules.batch)
    )
    results = {name: measured(name, data, options.repeats) for name in ("schnet", "dimenet++", "visnet")}
    print("| network | PyG | adapter | ratio |\n| --- | --- | --- | --- |")
    for name, row in results.items():
        print(f"| `{name}` | {row['pyg_ms']:.1f} ms | {row['adapter_ms']:.1f} ms | {row['ratio']:.2f} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def measured(name: str, data: Data, repeats: int) -> dict[str, float]:
    """Medians of one network, and the median of the ratios."""
    torch.manual_seed(0)
    kind = backbones.find(name)
    options = vars(kind.options())
    backbone = kind.make(SPECIES, options)
    data = RadiusGraph(backbone.cutoff)(data.clone())
    potential = MultiFidelityPotential(backbone, ["dz"]).eval()
    bare = {"schnet": _schnet, "dimenet++": _dimenet, "visnet": _visnet}[name](options, data)
    sides: tuple[Callable[[], Any], ...] = (lambda: _bare_forces(bare, data), lambda: potential(data))
    for side in sides:
        side(), side()
    times = [[_seconds(side) for side in sides] for _ in range(repeats)]
    theirs, ours = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return {"pyg_ms": theirs, "adapter_ms": ours, "ratio": statistics.median(b / a for a, b in times)}


def _seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _bare_forces(module: nn.Module, data: Data) -> Tensor:
    pos = data.pos.detach().requires_grad_()
    energy = module(data.z, pos, data.batch)
    energy = energy[0] if isinstance(energy, tuple) else energy
    return -torch.autograd.grad(energy.sum(), pos)[0]


def _graph(data: Data, pos: Tensor, cutoff: float) -> Graph:
    topology, lattice = find_topology(data, cutoff)
    return topology.at(pos, lattice)


def _schnet(o: dict[str, Any], data: Data) -> nn.Module:
    def edges(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        source, target = data.edge_index
        return data.edge_index, (pos[source] - pos[target]).norm(dim=1)

    sizes = (o["n_features"], o["n_filters"], o["n_interactions"], o["n_gaussians"], o["cutoff"])
    return SchNet(*sizes, interaction_graph=edges).eval()


def _dimenet(o: dict[str, Any], data: Data) -> nn.Module:
    def triplets(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
        found = find_triplets(_graph(data, data.pos, o["cutoff"]))
        j, i = edge_index
        kj, ji = found.incoming, found.outgoing
        return i, j, i[ji], j[ji], j[kj], kj, ji

    dimenet.radius_graph = lambda *a, **k: data.edge_index
    dimenet.triplets = triplets
    return DimeNetPlusPlus(
        o["n_features"], 1, o["n_interactions"], o["n_triplet"], o["n_basis"], o["n_out"], o["n_spherical"],
        o["n_radial"], o["cutoff"],
    ).eval()  # fmt: skip


def _visnet(o: dict[str, Any], data: Data) -> nn.Module:
    atoms = torch.arange(len(data.z))
    edges = torch.cat([data.edge_index, torch.stack([atoms, atoms])], dim=1)
    visnet.radius_graph = lambda *a, **k: edges
    return ViSNet(
        num_heads=o["n_heads"], num_layers=o["n_interactions"], hidden_channels=o["n_features"],
        num_rbf=o["n_radial"], cutoff=o["cutoff"],
    ).eval()  # fmt: skip


if __name__ == "__main__":
    main()
