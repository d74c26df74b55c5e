"""Neighbour list with a skin, for small displacements from step to step (Verlet, 1967)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.centering import Offset, find_offset
from mfpyg.device import waits
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph, molecules_of
from mfpyg.interop.slack import Slack
from mfpyg.lattice import MARGIN, Lattice, lattice_of
from mfpyg.locality import in_order, spatial_order
from mfpyg.models.cuda_graphs import MOST_EDGES


@dataclass
class _Candidates:
    """Pairs within cutoff + skin, and the systems at the time of the search.

    Attributes:
        z, pbc, batch: atomic numbers, periodic directions, and the system of each atom.
        first: first atom of each system.
        pos: positions in Å, rounded to the dtype of the potential, (n_atoms, 3) float64.
        cell: cells with unit vectors in directions without periods, (n_graphs, 3, 3) float64; ``None`` for molecules.
        inverse: inverse of these cells; ``None`` for molecules.
        offset: offset subtracted from the positions before rounding, if any.
        order: order of the atoms of a large system, see :func:`mfpyg.locality.spatial_order`; ``None`` if small.
        edge_index, edge_shift: as in :class:`mfpyg.graph.RadiusGraph`, for positions without the offset, in this order;
            on the device of the potential.
        slack: what is left of the skin.
        last: result of the last comparison with the cutoff: mask, edges and shifts.
    """

    z: Tensor
    pbc: Tensor
    batch: Tensor
    first: Tensor
    pos: Tensor
    cell: Tensor | None
    inverse: Tensor | None
    offset: Offset | None
    order: Tensor | None
    edge_index: Tensor
    edge_shift: Tensor
    slack: Slack
    last: tuple[Tensor, Tensor, Tensor] | None = None

    def are_of(self, data: Data) -> bool:
        """True if the data are the same systems, wherever their atoms are.

        Other tensors with equal values may be those of another simulation, whose atoms may be anywhere.
        """
        batch = getattr(data, "batch", None)
        pairs = [(self.z, data.z), (self.pbc, data.pbc)]
        if batch is not None:
            pairs.append((self.batch, batch))
        elif len(self.first) != 1:
            return False
        if all(before is now for before, now in pairs):
            return True
        if data.z.device != self.z.device or not all(torch.equal(before, now) for before, now in pairs):
            return False
        self.z, self.pbc, self.slack.slow_steps = data.z, data.pbc, 0
        self.batch = self.batch if batch is None else batch
        return True


class VerletList:
    """Edges of systems within a cutoff, identical to those of a new search, which is done only when necessary.

    Candidates within cutoff + skin are kept and compared with the cutoff in every step. They are sufficient as long as
    no atom has moved by more than half the skin, not counting lattice vectors, by which it may be wrapped into the
    cell. If the cell changes, x → x D, a pair that is not a candidate is at least σ (cutoff + skin) − 2 d apart, where
    σ ≥ 1 − ‖D − I‖ is the smallest singular value of D, and d the largest displacement relative to x D; the candidates
    are sufficient as long as this is not less than the cutoff.

    On a GPU, waiting for the results of comparisons takes longer than the prediction of a small system. There,
    :class:`mfpyg.interop.slack.Slack` decides when to search, and up to :data:`mfpyg.models.cuda_graphs.MOST_EDGES`
    candidates are all edges if those beyond the cutoff have no effect.

    Far from the origin an offset (see :mod:`mfpyg.centering`) is subtracted from the positions. It is constant between
    searches, so that no atom jumps to another image. A list may be used by several threads.

    Args:
        cutoff: cutoff in Å.
        skin: skin in Å; with 0, every displacement causes a new search.
        dtype: dtype of the potential, to which positions and cells are rounded before distances are compared.
        engine: see :mod:`mfpyg.neighbors`.
        device: device of the edges; default: that of the data.
        may_be_longer: whether edges longer than the cutoff have no effect.

    Attributes:
        searches: number of searches so far.

    Raises:
        MFPyGError: for a skin that is negative or not finite, or an unknown engine.
    """

    def __init__(
        self,
        cutoff: float,
        skin: float,
        dtype: torch.dtype,
        engine: str = "auto",
        device: torch.device | None = None,
        may_be_longer: bool = False,
    ) -> None:
        if not 0 <= skin < float("inf"):
            raise MFPyGError(f"skin is {skin}, expected a distance in Å, 0 or more")
        self.cutoff, self.skin, self.dtype, self.device = cutoff, skin, dtype, device
        self._may_be_longer = may_be_longer
        self.searches = 0
        self._reach = MARGIN * cutoff + skin
        self._search = RadiusGraph(self._reach, engine)
        self._edge_cutoff = torch.tensor([cutoff], dtype=torch.float64, device="cpu")
        self._candidates: _Candidates | None = None

    def add_edges(self, data: Data) -> Tensor | None:
        """Store ``edge_index``, ``edge_shift`` and ``edge_cutoff`` in data, as :class:`mfpyg.graph.RadiusGraph` does.

        The edges of a large system number its atoms in the order ``edge_order`` (n_atoms,) int64, which is stored as
        well; it is constant between searches.

        Args:
            data: one system, or several with ``batch``, with ``cell`` and ``pbc``; its ``pos`` is centered if it is far
                from the origin, and moved back by the lattice vectors that atoms were wrapped by since the search.

        Returns:
            Whether the candidates are sufficient, () bool, where this is not known yet, see
            :class:`mfpyg.interop.slack.Slack`; otherwise ``None``.

        Raises:
            MFPyGError: as :func:`mfpyg.lattice.lattice_of`, :func:`mfpyg.neighbors.periodic_radius_graph` and
                :meth:`mfpyg.interop.slack.Slack.is_sufficient`.
        """
        candidates, known = self._candidates, None
        if candidates is not None and not candidates.are_of(data):
            candidates = None
        if candidates is not None:
            known, lattice = candidates.slack, self._lattice(data, candidates)
            exact, pos, slack = self._move(candidates, data, lattice)
            if not known.is_sufficient(slack):
                candidates = None
        if candidates is None:
            candidates, exact, pos, lattice = self._find(data, known)
            self._candidates = candidates
        data.pos = exact
        data.edge_index, data.edge_shift = self._within(candidates, pos, lattice)
        data.edge_cutoff, data.edge_order = self._edge_cutoff, candidates.order
        return None if candidates.slack.pending is None else slack >= 0

    def _lattice(self, data: Data, candidates: _Candidates | None, n_graphs: int = 1) -> Lattice | None:
        """Cells, rounded to the dtype of the potential, in float64: so all engines compare distances in crystals.

        Those of known systems on a GPU are not checked, which would wait for it; wrong ones leave no slack.
        """
        if candidates is None or not waits(data.pos.device):
            lattice = lattice_of(data, n_graphs if candidates is None else len(candidates.first), self.dtype)
            return None if lattice is None else Lattice(lattice.cell.double(), lattice.pbc)
        return None if candidates.cell is None else Lattice(data.cell.to(self.dtype).double(), candidates.pbc)

    def _rounded(self, exact: Tensor, lattice: Lattice | None) -> Tensor:
        pos = exact.to(self.dtype)
        return pos if lattice is None else pos.double()

    def _find(self, data: Data, slack: Slack | None) -> tuple[_Candidates, Tensor, Tensor, Lattice | None]:
        """Search; return also the positions, exact and rounded to the dtype of the potential, and the cells."""
        batch, n_graphs = molecules_of(data)
        lattice = self._lattice(data, None, n_graphs)
        offset = None if self.dtype == torch.float64 else find_offset(data)
        exact = data.pos if offset is None else offset.subtracted_from(data).pos
        pos = self._rounded(exact, lattice)
        self.searches += 1
        system = Data(z=data.z, pos=pos, cell=data.cell if lattice is None else lattice.cell, pbc=data.pbc, batch=batch)
        system = system.to(self.device or pos.device)
        order = spatial_order(system)
        found = self._search(system if order is None else in_order(system, order))
        first = torch.searchsorted(batch, torch.arange(n_graphs, device=batch.device))
        cell = None if lattice is None else lattice.completed().clone()  # integrators change cells in place
        candidates = _Candidates(
            z=data.z,
            pbc=data.pbc,
            batch=batch,
            first=first,
            pos=pos.double().clone(),
            cell=cell,
            inverse=None if cell is None else torch.linalg.inv(cell),
            offset=offset,
            order=order,
            edge_index=found.edge_index,
            edge_shift=found.edge_shift,
            slack=Slack(self.skin) if slack is None else slack.renewed(),
        )
        return candidates, exact, pos, lattice

    def _move(self, candidates: _Candidates, data: Data, lattice: Lattice | None) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of known systems, exact and rounded to the dtype of the potential, and the slack."""
        batch, offset, start = candidates.batch, candidates.offset, candidates.pos
        if lattice is None or candidates.cell is None or candidates.inverse is None:
            exact = data.pos if offset is None else offset.subtract(data.pos, batch, None)
            pos = self._rounded(exact, None)
            return exact, pos, self._slack(pos.double() - start)
        cells, smallest = Lattice(data.cell.double(), lattice.pbc), None
        exact = data.pos.double() if offset is None else offset.subtract(data.pos, batch, cells)
        cell = torch.where(lattice.pbc.unsqueeze(2), lattice.cell, candidates.cell)
        if waits(exact.device) or not torch.equal(candidates.cell, cell):
            deformation = candidates.inverse @ cell  # (n_graphs, 3, 3)
            start = torch.einsum("na,nak->nk", start, deformation[batch])
            strain = deformation - torch.eye(3, dtype=torch.float64, device=exact.device)
            smallest = 1 - strain.square().sum(dim=(1, 2)).amax().sqrt()
        moved = exact - start
        origin = None  # of a deformed system with an offset: that is not deformed, which shifts all its atoms alike
        if offset is not None and smallest is not None:
            origin = moved[candidates.first]  # (n_graphs, 3)
            moved = moved - origin[batch]
        wraps = torch.einsum("na,nak->nk", moved, candidates.inverse[batch]).round()
        if origin is not None:
            wraps = wraps + torch.einsum("ga,gak->gk", origin, candidates.inverse).round()[batch]
        exact = exact - cells.translations(wraps * lattice.pbc[batch], batch)
        pos = self._rounded(exact, lattice)
        moved = pos - start
        if origin is not None:
            moved = moved - moved[candidates.first][batch]
        return exact, pos, self._slack(moved, smallest)

    def _slack(self, moved: Tensor, smallest: Tensor | None = None) -> Tensor:
        """Part of the skin that is left after displacements (n_atoms, 3) in Å, () float64."""
        reach = self._reach if smallest is None else self._reach * smallest
        left = reach - 2 * moved.square().sum(dim=1).amax().sqrt() - MARGIN * self.cutoff
        return left.detach() / max(self.skin, 1e-12)

    def _within(self, candidates: _Candidates, pos: Tensor, lattice: Lattice | None) -> tuple[Tensor, Tensor]:
        """Candidates within the cutoff, or all of them; the tensors of the last call if the edges are the same."""
        edge_index, edge_shift, device = candidates.edge_index, candidates.edge_shift, candidates.edge_index.device
        if self._may_be_longer and waits(device) and edge_index.shape[1] <= MOST_EDGES:
            return edge_index, edge_shift
        pos, batch = pos.to(device), candidates.batch.to(device)
        source, target = edge_index
        if candidates.order is not None:
            pos = pos[candidates.order]
        edge_vec = pos[source] - pos[target]  # (n_candidates, 3)
        if lattice is not None:
            cells = Lattice(lattice.cell.to(device), lattice.pbc)
            edge_vec = edge_vec + cells.translations(edge_shift, batch[target])
        near = edge_vec.square().sum(dim=1) <= self.cutoff * self.cutoff
        last = candidates.last
        if last is None or not torch.equal(last[0], near):
            last = candidates.last = near, edge_index[:, near], edge_shift[near]
        return last[1:]
