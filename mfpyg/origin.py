"""Positions brought near the origin before they are rounded to float32.

The spacing of float32 numbers grows with their size: 1e-6 Å at 10 Å, 1e-3 Å at 10,000. A potential sees differences of
positions alone, so that an origin of each graph, and the lattice vectors by which atoms were unwrapped, can be taken
away beforehand, in float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.graph import molecules_of
from mfpyg.lattice import Lattice, lattice_of

NEAR = 32.0
"""Largest coordinate in Å up to which positions are left as they are. float32 then rounds by 2e-6 Å at most, less than
what data sets carry, and those in use (ANI-1x, COMP6) keep their positions, and their fingerprints, to the last bit."""

ROUNDED = 1024.0
"""Coordinates in Å from which on float32 rounds by 6e-5 Å and more."""


@dataclass
class Offset:
    """Shifts of the positions of a batch.

    Attributes:
        origin: of each graph in Å, (n_graphs, 3) float64.
        wraps: how many lattice vectors of each atom, (n_atoms, 3) int64.
    """

    origin: Tensor
    wraps: Tensor

    def taken_from(self, data: Data) -> Data:
        """The same graphs without the offset, and stored edges with their shifts to fit.

        Args:
            data: of these graphs, maybe with other positions and cells than the offset was found for.

        Returns:
            A copy with positions in float64, differentiable in those given and in the cells.
        """
        batch, n_graphs = molecules_of(data)
        lattice = lattice_of(data, n_graphs, torch.float64)
        near = copy.copy(data)
        near.pos = _without(data.pos, self, batch, lattice)
        if lattice is not None and getattr(data, "edge_shift", None) is not None:
            source, target = data.edge_index
            near.edge_shift = data.edge_shift + (self.wraps[source] - self.wraps[target]).to(data.edge_shift.dtype)
        return near


def largest_coordinate(pos: Tensor) -> float:
    """In Å; NaN or infinite where a position is, and 0 of no atoms."""
    return float(pos.detach().abs().amax()) if pos.numel() else 0.0


def near_origin(data: Data, dtype: torch.dtype) -> Data:
    """The graphs with positions that lose nothing when they are rounded to a type.

    Args:
        data: ``Data`` or ``Batch``, with or without edges.
        dtype: to which the positions will be rounded.

    Returns:
        The data itself where nothing is gained: for float64, for coordinates up to :data:`NEAR`, and for graphs that
        are too large to have much smaller ones; else as :meth:`Offset.taken_from`.

    Raises:
        MFPyGError: as :func:`mfpyg.lattice.lattice_of`.
    """
    offset = None if dtype == torch.float64 else find_offset(data)
    return data if offset is None else offset.taken_from(data)


def find_offset(data: Data) -> Offset | None:
    """The centre of each graph, and for atoms that are far from it, whole lattice vectors; ``None`` for nothing.

    Graphs whose largest coordinate this does not halve keep their positions, so that what has been brought near once
    is left alone.

    Raises:
        MFPyGError: as :func:`mfpyg.lattice.lattice_of`.
    """
    if largest_coordinate(data.pos) <= NEAR:
        return None
    pos = data.pos.detach().double()
    batch, n_graphs = molecules_of(data)
    lattice = lattice_of(data, n_graphs, torch.float64)
    before = _reach(pos, batch, n_graphs)
    n_atoms = torch.bincount(batch, minlength=n_graphs).clamp(min=1).unsqueeze(1)
    origin = pos.new_zeros(n_graphs, 3).index_add_(0, batch, pos) / n_atoms
    offset = Offset(origin, torch.zeros_like(pos, dtype=torch.int64))
    after = _reach(_without(pos, offset, batch, lattice), batch, n_graphs)
    if lattice is not None and (after > NEAR).any():
        unwrapped = (after > NEAR)[batch].unsqueeze(1) & lattice.pbc[batch]  # (n_atoms, 3)
        inverse = torch.linalg.inv(lattice.completed())[batch]
        images = torch.einsum("na,nak->nk", pos - origin[batch], inverse).round()  # the nearest to the centre
        offset.wraps = torch.where(unwrapped, images, 0.0).long()
        after = _reach(_without(pos, offset, batch, lattice), batch, n_graphs)
    gains = (before > NEAR) & (after < before / 2)
    if not gains.any():
        return None
    return Offset(torch.where(gains.unsqueeze(1), origin, 0.0), offset.wraps * gains[batch].unsqueeze(1))


def _reach(pos: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """The largest coordinate of each graph, (n_graphs,)."""
    return pos.new_zeros(n_graphs).scatter_reduce_(0, batch, pos.abs().amax(dim=1), "amax")


def _without(pos: Tensor, offset: Offset, batch: Tensor, lattice: Lattice | None) -> Tensor:
    near = pos.double() - offset.origin[batch]
    return near if lattice is None else near - lattice.translations(offset.wraps, batch)
