"""Padding of systems to few sizes, so that CUDA graphs, which are for one size each, can be replayed."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mfpyg.device import stream_number
from mfpyg.graph import EdgeTopology
from mfpyg.lattice import Lattice
from mfpyg.models.prediction import Prediction
from mfpyg.models.system import System

_LEAST_ATOMS, _LEAST_EDGES = 32, 64
"""Least numbers; different ones, as ``torch.compile`` takes equal sizes for one and compiles anew where they differ."""


def bucket(n: int, least: int = 1) -> int:
    """Size of the bucket of ``n``: the next of eight sizes between one power of two and the next, 16, 18, …, 32, 36."""
    step = 1 << max(0, (n - 1).bit_length() - 4)
    return max(least, -(-n // step) * step)


@dataclass
class Ghosts:
    """Graphs and atoms that were put before those of a system.

    Attributes:
        n_graphs, n_atoms, n_forces: numbers of graphs, atoms, and rows of the forces.
    """

    n_graphs: int
    n_atoms: int
    n_forces: int

    def removed_from(self, prediction: Prediction) -> Prediction:
        """Copy of a prediction without them."""
        forces = None if prediction.forces is None else prediction.forces[self.n_forces :]
        return dataclasses.replace(prediction.without_first(self.n_graphs, self.n_atoms), forces=forces)


def padded(system: System, elements: Tensor, cutoff: float) -> tuple[System, Ghosts]:
    """Put ghost atoms before those of a system, so that its numbers of graphs, atoms and edges are bucketed.

    They are on a line, in a graph of their own; further ghost graphs are empty. The ghost edges join them, and are
    longer than the cutoff. No ghost has an edge to an atom of the system, so that predictions change by rounding only.
    The ghosts come first because isolated atoms come last, see :func:`mfpyg.models.system.with_isolated_atoms`.

    Nothing is read from the device. The bucket of the atoms depends on their number and the bucket of the edges.

    Args:
        system: atoms and neighbours, not ``prepared``.
        elements: atomic numbers that the potential knows, (n_species,) int64; ghosts are atoms of the first.
        cutoff: in Å.
    """
    topology, pos, device = system.topology, system.pos, system.pos.device
    n_atoms, n_edges = topology.z.shape[0], topology.edge_index.shape[1]
    all_edges = bucket(n_edges, _LEAST_EDGES)
    # No pair of ghosts has two edges, each of which would take a row in the tables of the Triton kernel.
    enough = 2 + math.isqrt(max(_LEAST_EDGES, all_edges // 8))
    n, m = bucket(n_atoms + enough, _LEAST_ATOMS) - n_atoms, all_edges - n_edges
    n_graphs = bucket(topology.n_graphs + 1) - topology.n_graphs
    place, edge_index = _ghosts(n, m, cutoff, pos.dtype, device, stream_number(device))
    by_edge = isinstance(topology, EdgeTopology)  # pos holds edge vectors
    shift, lattice = topology.edge_shift, system.lattice
    new = dataclasses.replace(
        topology,
        z=torch.cat([elements[:1].expand(n), topology.z]),
        edge_index=torch.cat([edge_index, topology.edge_index + n], dim=1),
        batch=torch.cat([topology.batch.new_zeros(n), topology.batch + n_graphs]),
        n_graphs=topology.n_graphs + n_graphs,
        edge_shift=None if shift is None else torch.cat([shift.new_zeros(m, 3), shift]),
    )
    if lattice is not None:
        cubes = torch.eye(3, dtype=lattice.cell.dtype, device=device).expand(n_graphs, 3, 3)
        pbc = torch.cat([lattice.pbc.new_zeros(n_graphs, 3), lattice.pbc])
        lattice = Lattice(torch.cat([cubes, lattice.cell]), pbc)
    changed = dataclasses.replace(
        system,
        pos=torch.cat([place[edge_index[0]] - place[edge_index[1]] if by_edge else place, pos]),
        species=torch.cat([system.species.new_zeros(n), system.species]),
        topology=new,
        lattice=lattice,
    )
    if system.charge is not None and system.mass is not None:
        changed.charge = torch.cat([system.charge.new_zeros(n_graphs), system.charge])
        changed.mass = torch.cat([system.mass.new_ones(n), system.mass])
    return changed, Ghosts(n_graphs, n, m if by_edge else n)


@functools.lru_cache(maxsize=32)  # of as many launches as all else
def _ghosts(
    n: int, m: int, cutoff: float, dtype: torch.dtype, device: torch.device, stream: int
) -> tuple[Tensor, Tensor]:
    """Positions of n ghosts, (n, 3), and m edges between them, (2, m) int64, sorted by target; of one CUDA stream."""
    number, of_each = torch.arange(m, device=device), max(1, -(-m // n))
    target = number // of_each
    source = (target + 1 + number % of_each) % n
    x = 2 * cutoff * torch.arange(n, dtype=dtype, device=device)
    return functional.pad(x.unsqueeze(1), (0, 2)), torch.stack([source, target])
