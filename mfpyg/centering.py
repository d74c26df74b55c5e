"""Centering of positions before they are rounded to float32.

The spacing of float32 numbers grows with their size: 1e-6 Å at 10 Å, 1e-3 Å at 10,000 Å. A potential depends on
differences of positions only, so the centre of each graph, and the lattice vectors by which atoms were unwrapped, can
be subtracted beforehand, in float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.graph import molecules_of
from mfpyg.lattice import Lattice, lattice_of

CENTER_BEYOND = 32.0
"""Largest coordinate in Å up to which positions are not changed. float32 then rounds by at most 2e-6 Å, less than the
precision of data sets; those in use (ANI-1x, COMP6) keep their positions and fingerprints to the last bit."""

WARN_BEYOND = 1024.0
"""Coordinate in Å above which float32 rounds by 6e-5 Å or more."""


@dataclass
class Offset:
    """Shifts of the positions of a batch.

    Attributes:
        origin: origin of each graph in Å, (n_graphs, 3) float64.
        wraps: number of lattice vectors to subtract from each atom, (n_atoms, 3) int64.
    """

    origin: Tensor
    wraps: Tensor

    def subtracted_from(self, data: Data) -> Data:
        """Subtract the offset from the positions, and adapt the shifts of stored edges.

        Args:
            data: the same graphs; positions and cells may differ from those that the offset was found for.

        Returns:
            A copy with float64 positions, differentiable with respect to the given positions and cells.
        """
        batch, n_graphs = molecules_of(data)
        lattice = lattice_of(data, n_graphs, torch.float64)
        result = copy.copy(data)
        result.pos = self.subtract(data.pos, batch, lattice)
        if lattice is not None and getattr(data, "edge_shift", None) is not None:
            source, target = data.edge_index
            result.edge_shift = data.edge_shift + (self.wraps[source] - self.wraps[target]).to(data.edge_shift.dtype)
        return result

    def subtract(self, pos: Tensor, batch: Tensor, lattice: Lattice | None) -> Tensor:
        """Positions (n_atoms, 3) without the offset, in float64; ``batch`` holds the graph of each atom."""
        moved = pos.double() - self.origin[batch]
        return moved if lattice is None else moved - lattice.translations(self.wraps, batch)


def largest_coordinate(pos: Tensor) -> float:
    """Largest absolute coordinate in Å; NaN or infinite where a position is, and 0 without atoms."""
    return float(pos.detach().abs().amax()) if pos.numel() else 0.0


def centered(data: Data, dtype: torch.dtype) -> Data:
    """Center graphs whose positions would lose digits when rounded to ``dtype``.

    Args:
        data: ``Data`` or ``Batch``, with or without edges.
        dtype: dtype that the positions will be rounded to.

    Returns:
        The result of :meth:`Offset.subtracted_from`; the data itself if nothing is gained: for float64, coordinates up
        to :data:`CENTER_BEYOND`, and graphs too large to get much smaller coordinates.

    Raises:
        MFPyGError: as :func:`mfpyg.lattice.lattice_of`.
    """
    offset = None if dtype == torch.float64 else find_offset(data)
    return data if offset is None else offset.subtracted_from(data)


def find_offset(data: Data) -> Offset | None:
    """Offset to the centre of each graph, with whole lattice vectors for atoms far from it; ``None`` if not needed.

    Graphs whose largest coordinate would not be halved keep their positions, so that centering is idempotent.

    Raises:
        MFPyGError: as :func:`mfpyg.lattice.lattice_of`.
    """
    if largest_coordinate(data.pos) <= CENTER_BEYOND:
        return None
    pos = data.pos.detach().double()
    batch, n_graphs = molecules_of(data)
    lattice = lattice_of(data, n_graphs, torch.float64)
    before = _largest_per_graph(pos, batch, n_graphs)
    n_atoms = torch.bincount(batch, minlength=n_graphs).clamp(min=1).unsqueeze(1)
    origin = pos.new_zeros(n_graphs, 3).index_add_(0, batch, pos) / n_atoms
    offset = Offset(origin, torch.zeros_like(pos, dtype=torch.int64))
    after = _largest_per_graph(offset.subtract(pos, batch, lattice), batch, n_graphs)
    if lattice is not None and (after > CENTER_BEYOND).any():
        unwrapped = (after > CENTER_BEYOND)[batch].unsqueeze(1) & lattice.pbc[batch]  # (n_atoms, 3)
        inverse = torch.linalg.inv(lattice.completed())[batch]
        images = torch.einsum("na,nak->nk", pos - origin[batch], inverse).round()
        offset.wraps = torch.where(unwrapped, images, 0.0).long()
        after = _largest_per_graph(offset.subtract(pos, batch, lattice), batch, n_graphs)
    gains = (before > CENTER_BEYOND) & (after < before / 2)
    if not gains.any():
        return None
    return Offset(torch.where(gains.unsqueeze(1), origin, 0.0), offset.wraps * gains[batch].unsqueeze(1))


def _largest_per_graph(pos: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """Largest absolute coordinate of each graph, (n_graphs,)."""
    return pos.new_zeros(n_graphs).scatter_reduce_(0, batch, pos.abs().amax(dim=1), "amax")
