"""Large graphs with their atoms along a curve through space, so that neighbours are near each other in memory.

The features of all atoms of a large graph, some 10 kB each, do not fit into a processor's cache. Every atom reads those
of about a hundred neighbours, from main memory if these are scattered over it, like molecules of a solvent that were
placed at random.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.graph import molecules_of
from mfpyg.lattice import lattice_of

LARGE = 1000
"""Mean number of atoms per graph above which their order matters."""

_SIDE = 2.0
"""Side in Å of the cubes that the curve passes through."""

_BITS = 16
"""Bits of a cube's number in each direction; three times as many fit into an integer."""


def spatial_order(data: Data) -> Tensor | None:
    """Order of the atoms along a Z-order curve (Morton, 1966) through each graph.

    Args:
        data: ``Data`` or ``Batch`` with finite positions; its ``edge_order`` is returned if it has one.

    Returns:
        Numbers of the atoms, graph by graph, (n_atoms,) int64; ``None`` for small graphs, and on other devices than the
        CPU.

    Raises:
        MFPyGError: as :func:`mfpyg.lattice.lattice_of`.
    """
    stored: Tensor | None = getattr(data, "edge_order", None)
    if stored is not None:
        return stored
    batch, n_graphs = molecules_of(data)
    if len(batch) <= LARGE * n_graphs or data.pos.device.type != "cpu":
        return None
    pos = data.pos.detach().double()
    lattice = lattice_of(data, n_graphs, torch.float64)
    if lattice is not None:  # into the cell
        _, wraps = lattice.fractional(pos, batch)
        pos = pos - lattice.translations(wraps, batch)
    cubes = ((pos - pos.amin(dim=0)) / _SIDE).clamp(max=2**_BITS - 1).long()  # (n_atoms, 3)
    direction = torch.arange(3, device=pos.device)
    place = torch.zeros_like(batch)  # on the curve: the bits of the three numbers interleaved
    for bit in range(_BITS):
        place += (((cubes >> bit) & 1) << (3 * bit + direction)).sum(dim=1)
    order = torch.argsort(place, stable=True)
    return order[torch.argsort(batch[order], stable=True)]


def in_order(data: Data, order: Tensor) -> Data:
    """Copy of the graphs with their atoms in another order.

    Args:
        data: ``Data`` or ``Batch``. Its edges, if any, are numbered anew unless it has an ``edge_order``, the order in
            which they number the atoms already.
        order: numbers of the atoms, from :func:`spatial_order`.
    """
    result = copy.copy(data)
    result.z, result.pos = data.z[order], data.pos[order]
    if getattr(data, "edge_order", None) is None and getattr(data, "edge_index", None) is not None:
        result.edge_index = torch.argsort(order)[data.edge_index]  # find_topology sorts them
    return result
