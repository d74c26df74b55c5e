"""Neighbour list with a skin, for small displacements from step to step (Verlet, 1967)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.centering import Offset, find_offset
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph, molecules_of
from mfpyg.lattice import MARGIN, Lattice, lattice_of
from mfpyg.locality import in_order, spatial_order


@dataclass
class _Candidates:
    """Pairs within cutoff + skin, and the systems at the time of the search.

    Attributes:
        z, pbc, batch: atomic numbers, periodic directions, and the system of each atom.
        pos: positions in Å, rounded to the dtype of the potential, (n_atoms, 3) float64.
        lattice: cells in float64; ``None`` for molecules.
        offset: offset subtracted from the positions before rounding, if any.
        order: order of the atoms of a large system, see :func:`mfpyg.locality.spatial_order`; ``None`` if small.
        edge_index, edge_shift: as in :class:`mfpyg.graph.RadiusGraph`, for positions without the offset, in this order.
        last: result of the last comparison with the cutoff: mask, edges and shifts.
    """

    z: Tensor
    pbc: Tensor
    batch: Tensor
    pos: Tensor
    lattice: Lattice | None
    offset: Offset | None
    order: Tensor | None
    edge_index: Tensor
    edge_shift: Tensor
    last: tuple[Tensor, Tensor, Tensor] | None = None

    def are_of(self, data: Data, batch: Tensor) -> bool:
        """True if the data are the same systems, wherever their atoms are."""
        pairs = (self.z, data.z), (self.pbc, data.pbc), (self.batch, batch)
        return all(torch.equal(before, now) for before, now in pairs)


class VerletList:
    """Edges of systems within a cutoff, identical to those of a new search, which is done only when necessary.

    Candidates within cutoff + skin are kept and compared with the cutoff in every step. They are sufficient as long as
    no atom has moved by more than half the skin. If the cell changes, x → x D, a pair that is not a candidate is at
    least σ (cutoff + skin) − 2 d apart, where σ is the smallest singular value of D, and d the largest displacement
    relative to x D; the candidates are sufficient as long as this is not less than the cutoff.

    Far from the origin an offset (see :mod:`mfpyg.centering`) is subtracted from the positions. It is constant between
    searches, so that no atom jumps to another image. A list may be used by several threads.

    Args:
        cutoff: cutoff in Å.
        skin: skin in Å; with 0, every displacement causes a new search.
        dtype: dtype of the potential, to which positions and cells are rounded before distances are compared.
        engine: see :mod:`mfpyg.neighbors`.

    Attributes:
        searches: number of searches so far.

    Raises:
        MFPyGError: for a skin that is negative or not finite, or an unknown engine.
    """

    def __init__(self, cutoff: float, skin: float, dtype: torch.dtype, engine: str = "auto") -> None:
        if not 0 <= skin < float("inf"):
            raise MFPyGError(f"skin is {skin}, expected a distance in Å, 0 or more")
        self.cutoff, self.skin, self.dtype = cutoff, skin, dtype
        self.searches = 0
        self._reach = MARGIN * cutoff + skin
        self._search = RadiusGraph(self._reach, engine)
        self._edge_cutoff = torch.tensor([cutoff], dtype=torch.float64, device="cpu")
        self._candidates: _Candidates | None = None

    def add_edges(self, data: Data) -> None:
        """Store ``edge_index``, ``edge_shift`` and ``edge_cutoff`` in data, as :class:`mfpyg.graph.RadiusGraph` does.

        The edges of a large system number its atoms in the order ``edge_order`` (n_atoms,) int64, which is stored as
        well; it is constant between searches.

        Args:
            data: one system, or several with ``batch``, with ``cell`` and ``pbc``; its ``pos`` is centered if it is far
                from the origin.

        Raises:
            MFPyGError: as :func:`mfpyg.lattice.lattice_of` and :func:`mfpyg.neighbors.periodic_radius_graph`.
        """
        batch, n_graphs = molecules_of(data)
        lattice = lattice_of(data, n_graphs, self.dtype)
        if lattice is not None:  # all engines compare distances of periodic systems in float64
            lattice = Lattice(lattice.cell.double(), lattice.pbc)
        candidates = self._candidates
        if candidates is not None and not candidates.are_of(data, batch):
            candidates = None
        if candidates is not None:
            exact, pos = self._positions(data, candidates.offset, lattice)
            if not self._sufficient(candidates, pos.double(), lattice):
                candidates = None
        if candidates is None:
            offset = None if self.dtype == torch.float64 else find_offset(data)
            exact, pos = self._positions(data, offset, lattice)
            candidates = self._candidates = self._find(data, batch, pos.double(), lattice, offset)
        data.pos = exact
        data.edge_index, data.edge_shift = self._within(candidates, pos, lattice)
        data.edge_cutoff, data.edge_order = self._edge_cutoff, candidates.order

    def _positions(self, data: Data, offset: Offset | None, lattice: Lattice | None) -> tuple[Tensor, Tensor]:
        """Positions without the offset, exact and rounded to the dtype of the potential."""
        exact = data.pos if offset is None else offset.subtracted_from(data).pos
        pos = exact.to(self.dtype)
        return exact, pos if lattice is None else pos.double()

    def _find(
        self, data: Data, batch: Tensor, pos: Tensor, lattice: Lattice | None, offset: Offset | None
    ) -> _Candidates:
        self.searches += 1
        cell = data.cell if lattice is None else lattice.cell
        system = Data(z=data.z, pos=pos, cell=cell, pbc=data.pbc, batch=batch)
        order = spatial_order(system)
        found = self._search(system if order is None else in_order(system, order))
        lattice = None if lattice is None else Lattice(lattice.cell.clone(), lattice.pbc)
        edges = found.edge_index, found.edge_shift  # positions and cells are copied, as integrators change theirs
        return _Candidates(data.z, data.pbc, batch, pos.clone(), lattice, offset, order, *edges)

    def _sufficient(self, candidates: _Candidates, pos: Tensor, lattice: Lattice | None) -> bool:
        """True if every pair within the cutoff is certainly a candidate."""
        start, smallest, before, batch = candidates.pos, 1.0, candidates.lattice, candidates.batch
        if lattice is not None and before is not None and not torch.equal(before.cell, lattice.cell):
            deformation = torch.linalg.solve(before.completed(), lattice.completed())  # (n_graphs, 3, 3)
            start = torch.einsum("na,nak->nk", start, deformation[batch])
            smallest = float(torch.linalg.svdvals(deformation).amin())
            if candidates.offset is not None:  # it is not deformed, which shifts all atoms by the same vector
                shift = pos.new_zeros(len(lattice.cell), 3).index_add(0, batch, pos - start)
                start = start + (shift / torch.bincount(batch).clamp(min=1).unsqueeze(1))[batch]
        moved = float((pos - start).square().sum(dim=1).amax()) ** 0.5
        return smallest * self._reach - 2 * moved >= MARGIN * self.cutoff

    def _within(self, candidates: _Candidates, pos: Tensor, lattice: Lattice | None) -> tuple[Tensor, Tensor]:
        """Candidates within the cutoff; the tensors of the last call if the edges are the same."""
        source, target = candidates.edge_index
        if candidates.order is not None:
            pos = pos[candidates.order]
        edge_vec = pos[source] - pos[target]  # (n_candidates, 3)
        if lattice is not None:
            edge_vec = edge_vec + lattice.translations(candidates.edge_shift, candidates.batch[target])
        near = edge_vec.square().sum(dim=1) <= self.cutoff * self.cutoff
        last = candidates.last
        if last is None or not torch.equal(last[0], near):
            last = candidates.last = near, candidates.edge_index[:, near], candidates.edge_shift[near]
        return last[1:]
