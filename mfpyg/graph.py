"""From positions to edges: the radius graph of a batch of molecules.

An edge runs from a source atom j to a target atom i, ``edge_index[:, e] = (j, i)``, as in PyTorch
Geometric. Every pair of different atoms of one molecule within the cutoff is an edge, in both
directions; there is no cap on the number of neighbours. Edges come sorted by target, then by source,
whichever engine found them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform

from mfpyg.engine import check_engine
from mfpyg.errors import MFPyGError

_PAIRS_AT_ONCE = 1 << 24


@dataclass
class Graph:
    """What a backbone sees: atoms, edges, and the vectors along them.

    Attributes:
        z: atomic numbers, (n_atoms,) int64.
        edge_index: sources and targets, (2, n_edges) int64.
        edge_vec: position of the source minus that of the target in Å, (n_edges, 3); differentiable.
        edge_dist: its length in Å, (n_edges,).
        batch: number of the molecule each atom belongs to, (n_atoms,) int64, ascending.
        n_graphs: number of molecules.
    """

    z: Tensor
    edge_index: Tensor
    edge_vec: Tensor
    edge_dist: Tensor
    batch: Tensor
    n_graphs: int

    @property
    def n_atoms(self) -> int:
        return self.z.shape[0]


def radius_graph(pos: Tensor, batch: Tensor, cutoff: float, engine: str = "torch") -> Tensor:
    """All pairs of different atoms of one molecule at a distance of at most ``cutoff``.

    Args:
        pos: positions in Å, (n_atoms, 3).
        batch: molecule of each atom, (n_atoms,) int64, ascending.
        cutoff: in Å.
        engine: ``"torch"`` (no dependency, compares all pairs of a molecule) or ``"torch-cluster"``.

    Returns:
        edge_index (2, n_edges) int64, sorted by target, then source.

    Raises:
        MFPyGError: for an unknown engine, or one that is not installed.
    """
    check_engine(engine)
    find = _radius_graph_torch if engine == "torch" else _radius_graph_torch_cluster
    return find(pos.detach(), batch, cutoff)


def _radius_graph_torch(pos: Tensor, batch: Tensor, cutoff: float) -> Tensor:
    counts = torch.bincount(batch)  # (n_graphs,) atoms of each molecule
    first = torch.cumsum(counts, 0) - counts  # (n_graphs,) its first atom
    partners = counts[batch]  # (n_atoms,) candidates of each target, itself included
    if partners.numel() == 0:
        return batch.new_zeros(2, 0)
    # Blocks of targets, so that memory stays bounded for one large system as for many small ones.
    pairs_before = torch.cumsum(partners, 0)
    blocks = torch.div(pairs_before - 1, _PAIRS_AT_ONCE, rounding_mode="floor")
    edges = [
        _pairs_within(pos, targets, partners[targets], first[batch[targets]], cutoff)
        for targets in torch.arange(len(batch), device=pos.device).split(torch.bincount(blocks).tolist())
    ]
    return torch.cat(edges, dim=1)


def _pairs_within(pos: Tensor, targets: Tensor, partners: Tensor, first: Tensor, cutoff: float) -> Tensor:
    """Edges to ``targets``, each of which has ``partners`` candidates from atom ``first`` on."""
    target = torch.repeat_interleave(targets, partners)  # (n_pairs,)
    start = torch.repeat_interleave(first - torch.cumsum(partners, 0) + partners, partners)
    source = torch.arange(len(target), device=pos.device) + start  # (n_pairs,)
    near = (pos[source] - pos[target]).square().sum(dim=1) <= cutoff * cutoff
    near &= source != target
    return torch.stack([source[near], target[near]])


def _radius_graph_torch_cluster(pos: Tensor, batch: Tensor, cutoff: float) -> Tensor:
    import torch_cluster

    if pos.shape[0] == 0:
        return batch.new_zeros(2, 0)
    largest = int(torch.bincount(batch).max())
    # A hair more than the cutoff, and the same comparison as the other engine decides at the border.
    source, target = torch_cluster.radius_graph(pos, cutoff * (1 + 1e-5), batch, max_num_neighbors=largest)
    near = (pos[source] - pos[target]).square().sum(dim=1) <= cutoff * cutoff
    source, target = source[near], target[near]
    order = torch.argsort(target * pos.shape[0] + source)
    return torch.stack([source[order], target[order]])


def build_graph(data: Data, cutoff: float, engine: str = "torch") -> Graph:
    """The graph of a ``Data`` or ``Batch``, with edges stored in it where they were made for this cutoff.

    Edges count as stored only if :class:`RadiusGraph` put them there with the very same cutoff;
    any others are left alone and the edges built from the positions.

    Args:
        data: with ``z`` (n_atoms,) and ``pos`` (n_atoms, 3) in Å; ``batch`` where it holds several molecules.
        cutoff: in Å.
        engine: see :func:`radius_graph`.
    """
    z, pos = data.z, data.pos
    batch, n_graphs = molecules_of(data)
    edge_index = data.edge_index if _has_edges_for(data, cutoff) else radius_graph(pos, batch, cutoff, engine)
    source, target = edge_index
    edge_vec = pos[source] - pos[target]  # (n_edges, 3)
    edge_dist = edge_vec.square().sum(dim=1).sqrt()  # (n_edges,)
    return Graph(z, edge_index, edge_vec, edge_dist, batch, n_graphs)


def edges_of_each(
    pos: Tensor, batch: Tensor, n_graphs: int, cutoff: float, engine: str = "torch"
) -> tuple[Tensor, Tensor]:
    """Edges of many molecules at once, each molecule's atoms counted from zero.

    Args:
        pos, batch, cutoff, engine: as in :func:`radius_graph`.
        n_graphs: number of molecules.

    Returns:
        edge_index (2, n_edges) int64, molecule by molecule, and the edges of each, (n_graphs,) int64.
    """
    edge_index = radius_graph(pos, batch, cutoff, engine)
    owner = batch[edge_index[1]]  # (n_edges,)
    counts = torch.bincount(batch, minlength=n_graphs)
    first = torch.cumsum(counts, 0) - counts  # (n_graphs,)
    return edge_index - first[owner], torch.bincount(owner, minlength=n_graphs)


def molecules_of(data: Data) -> tuple[Tensor, int]:
    """Number of the molecule that each atom belongs to, (n_atoms,) int64, and how many there are."""
    batch = getattr(data, "batch", None)
    if batch is None:
        return torch.zeros_like(data.z, dtype=torch.int64), 1
    if isinstance(data, Batch):
        return batch, data.num_graphs
    return batch, int(batch.max()) + 1 if len(batch) else 0


def _has_edges_for(data: Data, cutoff: float) -> bool:
    made_for = getattr(data, "edge_cutoff", None)
    if made_for is None or getattr(data, "edge_index", None) is None:
        return False
    return bool((made_for == cutoff).all())


class RadiusGraph(BaseTransform):
    """Store the edges within a cutoff, and the cutoff, in each ``Data``; for ``pre_transform``.

    Adds ``edge_index`` (2, n_edges) int64 and ``edge_cutoff`` (1,) float64 in Å. The edges are those of the
    positions at that moment: whatever moves atoms afterwards (noise, dynamics) has to remove
    ``edge_cutoff``, so that they are built again.

    Args:
        cutoff: in Å.
        engine: see :func:`radius_graph`.
    """

    def __init__(self, cutoff: float, engine: str = "torch") -> None:
        check_engine(engine)
        if not 0 < cutoff < float("inf"):
            raise MFPyGError(f"cutoff is {cutoff}, expected a positive distance in Å")
        self.cutoff = float(cutoff)
        self.engine = engine

    def forward(self, data: Data) -> Data:
        batch, _ = molecules_of(data)
        data.edge_index = radius_graph(data.pos, batch, self.cutoff, self.engine)
        data.edge_cutoff = torch.tensor([self.cutoff], dtype=torch.float64)
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cutoff={self.cutoff}, engine={self.engine!r})"
