"""A neighbour list with a skin, for systems whose atoms move a little from one step to the next (Verlet, 1967)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.centering import Offset, find_offset
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph
from mfpyg.lattice import MARGIN, Lattice, lattice_of


@dataclass
class _Candidates:
    """Pairs within cutoff and skin, and where the atoms were when they were sought.

    Attributes:
        z, pbc: of the system then.
        pos: (n_atoms, 3) float64 in Å, as rounded to the potential's precision.
        lattice: float64; ``None`` where nothing repeats.
        offset: what was taken from the positions before they were rounded, if anything.
        edge_index, edge_shift: as in :class:`mfpyg.graph.RadiusGraph`, between the positions without the offset.
        last: which of them were within the cutoff the last time, and these edges and shifts.
    """

    z: Tensor
    pbc: Tensor
    pos: Tensor
    lattice: Lattice | None
    offset: Offset | None
    edge_index: Tensor
    edge_shift: Tensor
    last: tuple[Tensor, Tensor, Tensor] | None = None


class VerletList:
    """Edges of one system within a cutoff, the same as a fresh search gives, and sought anew only when necessary.

    Candidates within cutoff + skin are kept, and compared with the cutoff in every step. They suffice as long as
    no atom has moved by more than half the skin. Where the cell changes, x → x D, a pair that was no candidate is
    still at least σ (cutoff + skin) − 2 d apart, σ being the smallest singular value of D and d how far the atoms
    have moved from where D alone takes them; they suffice as long as that is not less than the cutoff.

    Far from the origin an offset (see :mod:`mfpyg.centering`) is taken from the positions. It stays the same from one
    search to the next, so that no atom jumps to another image in between. Several threads may use one list.

    Args:
        cutoff: in Å.
        skin: in Å; with 0 neighbours are sought whenever anything moves.
        dtype: precision of the potential, to which it rounds positions and cells before it compares them.
        engine: see :mod:`mfpyg.neighbors`.

    Attributes:
        searches: how often candidates were sought.

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
        self._made_for = torch.tensor([cutoff], dtype=torch.float64, device="cpu")
        self._candidates: _Candidates | None = None

    def add_edges(self, data: Data) -> None:
        """Store ``edge_index``, ``edge_shift`` and ``edge_cutoff`` in data, as :class:`mfpyg.graph.RadiusGraph` does.

        Args:
            data: from :func:`mfpyg.interop.ase.data_of`; its ``pos`` comes near the origin where it is far from it.

        Raises:
            MFPyGError: as :func:`mfpyg.lattice.lattice_of` and :func:`mfpyg.neighbors.periodic_radius_graph`.
        """
        lattice = lattice_of(data, 1, self.dtype)
        if lattice is not None:  # whose distances are compared in float64 by every engine
            lattice = Lattice(lattice.cell.double(), lattice.pbc)
        made = self._candidates
        if made is not None and not (torch.equal(made.z, data.z) and torch.equal(made.pbc, data.pbc)):
            made = None
        if made is not None:
            given, pos = self._near(data, made.offset, lattice)
            if not self._suffice(made, pos.double(), lattice):
                made = None
        if made is None:
            offset = None if self.dtype == torch.float64 else find_offset(data)
            given, pos = self._near(data, offset, lattice)
            made = self._candidates = self._sought(data, pos.double(), lattice, offset)
        data.pos = given
        data.edge_index, data.edge_shift = self._within(made, pos, lattice)
        data.edge_cutoff = self._made_for

    def _near(self, data: Data, offset: Offset | None, lattice: Lattice | None) -> tuple[Tensor, Tensor]:
        """Positions without the offset, as they are and as the potential rounds them."""
        given = data.pos if offset is None else offset.subtracted_from(data).pos
        pos = given.to(self.dtype)
        return given, pos if lattice is None else pos.double()

    def _sought(self, data: Data, pos: Tensor, lattice: Lattice | None, offset: Offset | None) -> _Candidates:
        self.searches += 1
        cell = data.cell if lattice is None else lattice.cell
        found = self._search(Data(z=data.z, pos=pos, cell=cell, pbc=data.pbc))
        return _Candidates(data.z, data.pbc, pos, lattice, offset, found.edge_index, found.edge_shift)

    def _suffice(self, made: _Candidates, pos: Tensor, lattice: Lattice | None) -> bool:
        """True if every pair within the cutoff is among the candidates."""
        start, smallest = made.pos, 1.0
        if lattice is not None and made.lattice is not None and not torch.equal(made.lattice.cell, lattice.cell):
            deformation = torch.linalg.solve(made.lattice.completed()[0], lattice.completed()[0])
            start, smallest = start @ deformation, float(torch.linalg.svdvals(deformation)[-1])
            if made.offset is not None:  # which stays as the cell changes, and so moves all atoms by as much
                start = start + (pos - start).mean(dim=0)
        moved = float((pos - start).square().sum(dim=1).amax()) ** 0.5
        return smallest * self._reach - 2 * moved >= MARGIN * self.cutoff

    def _within(self, made: _Candidates, pos: Tensor, lattice: Lattice | None) -> tuple[Tensor, Tensor]:
        """The candidates within the cutoff; the same tensors as the last time where they are the same edges."""
        source, target = made.edge_index
        edge_vec = pos[source] - pos[target]  # (n_candidates, 3)
        if lattice is not None:
            edge_vec = edge_vec + lattice.translations(made.edge_shift, torch.zeros_like(target))
        near = edge_vec.square().sum(dim=1) <= self.cutoff * self.cutoff
        last = made.last
        if last is None or not torch.equal(last[0], near):
            last = made.last = near, made.edge_index[:, near], made.edge_shift[near]
        return last[1:]
