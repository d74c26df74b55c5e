"""Large systems with their atoms in the order of a curve through space, neighbours near each other in memory.

What the atoms of a large system know of themselves, some tens of kB each, is more than a processor's cache holds. Each
atom reads it of a hundred neighbours, and in an order of atoms in which neighbours are far apart (solvent molecules as
a program happened to place them) reads it from memory each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfpyg.graph import Topology
from mfpyg.lattice import Lattice

LARGE = 1000
"""Atoms in a graph above which their order counts."""

_SIDE = 2.0
"""Of the cubes in Å that the curve goes through."""

_BITS = 20
"""Of a cube's place in each direction; three times as many fit into an integer."""


def is_large(topology: Topology) -> bool:
    """Whether a graph has so many atoms that their order counts."""
    n_atoms = len(topology.batch)
    return n_atoms > LARGE and int(torch.bincount(topology.batch).max()) > LARGE


def spatial_order(pos: Tensor, batch: Tensor, lattice: Lattice | None) -> Tensor:
    """Numbers of the atoms along a Z-order curve (Morton, 1966) through each graph, (n_atoms,) int64.

    Args:
        pos: (n_atoms, 3) in Å.
        batch: graph of each atom, (n_atoms,) int64, ascending, as it is in the result.
        lattice: cells, into which atoms are moved in the directions that repeat.
    """
    pos = pos.detach().double()
    if lattice is not None:
        _, wraps = lattice.fractional(pos, batch)
        pos = pos - lattice.translations(wraps, batch)
    cubes = ((pos - pos.amin(dim=0)) / _SIDE).clamp(max=2**_BITS - 1).long()  # (n_atoms, 3)
    place = torch.zeros_like(cubes[:, 0])
    for bit in range(_BITS):
        for direction in range(3):
            place |= ((cubes[:, direction] >> bit) & 1) << (3 * bit + direction)
    order = torch.argsort(place, stable=True)
    return order[torch.argsort(batch[order], stable=True)]


def reordered(topology: Topology, order: Tensor) -> Topology:
    """The same atoms and neighbours, ``order[i]`` being the former number of atom i; edges sorted by target again."""
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=order.device)  # of each former number, (n_atoms,)
    degree = torch.bincount(topology.edge_index[1], minlength=len(order))  # (n_atoms,)
    first, new_degree = degree.cumsum(0) - degree, degree[order]
    moved = first[order] - (new_degree.cumsum(0) - new_degree)  # how far the edges of each target came, (n_atoms,)
    target = torch.repeat_interleave(torch.arange(len(order), device=order.device), new_degree)
    edges = torch.arange(len(target), device=order.device) + moved[target]  # (n_edges,)
    shift = None if topology.edge_shift is None else topology.edge_shift[edges]
    edge_index = torch.stack([number[topology.edge_index[0, edges]], target])
    return Topology(topology.z[order], edge_index, topology.batch[order], topology.n_graphs, shift)
