"""Radius graphs of batches of molecules and periodic systems.

An edge runs from a source atom j to a target atom i, ``edge_index[:, e] = (j, i)``, as in PyTorch Geometric. Every pair
of different atoms of a molecule within the cutoff is an edge, in both directions; the number of neighbours is not
limited. In periodic graphs (``cell`` and ``pbc``, see :mod:`mfpyg.lattice`) every image of an atom within the cutoff is
another edge, including images of the target itself. Edges are sorted by target, source and shift of the image, with
every engine of :mod:`mfpyg.neighbors`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform

from mfpyg.engine import check_engine
from mfpyg.errors import MFPyGError
from mfpyg.lattice import Lattice, lattice_of
from mfpyg.neighbors import periodic_radius_graph, radius_graph

__all__ = [
    "EdgeTopology",
    "Graph",
    "RadiusGraph",
    "Topology",
    "build_graph",
    "edges_of_each",
    "find_topology",
    "molecules_of",
    "radius_graph",
]


class Prepared(Protocol):
    """Index tables of a graph that a backbone computes once for all layers."""

    @property
    def key(self) -> Hashable:
        """Dependence of a compiled prediction on more than the type and :meth:`tensors`; ``None`` if nothing."""

    def tensors(self) -> list[Tensor]:
        """All tensors, as inputs of ``torch.compile``; numbers are passed as sizes of empty tensors."""

    def with_tensors(self, tensors: list[Tensor]) -> Any:
        """Copy with the tensors replaced by those of another graph."""


@dataclass
class Graph:
    """Input of a backbone: atoms, edges, and edge vectors.

    Attributes:
        z: atomic numbers, (n_atoms,) int64.
        edge_index: sources and targets, (2, n_edges) int64, sorted by target.
        edge_vec: position of the source, or its image, minus that of the target in Å, (n_edges, 3); differentiable.
        edge_dist: length of ``edge_vec`` in Å, (n_edges,).
        batch: molecule of each atom, (n_atoms,) int64, ascending.
        n_graphs: number of molecules.
        prepared: result of the backbone's ``prepare``, if it has been called.
        by_weights: whether the result is to be differentiable with respect to the weights of the backbone.
    """

    z: Tensor
    edge_index: Tensor
    edge_vec: Tensor
    edge_dist: Tensor
    batch: Tensor
    n_graphs: int
    prepared: Prepared | None = None
    by_weights: bool = True

    @property
    def n_atoms(self) -> int:
        return self.z.shape[0]


@dataclass
class Topology:
    """Atoms and neighbours: a :class:`Graph` without edge vectors.

    Attributes:
        z, edge_index, batch, n_graphs: as in :class:`Graph`.
        edge_shift: shift of the source's image in lattice vectors, (n_edges, 3) int32; ``None`` without periodicity.
    """

    z: Tensor
    edge_index: Tensor
    batch: Tensor
    n_graphs: int
    edge_shift: Tensor | None = None

    def at(self, pos: Tensor, lattice: Lattice | None, prepared: Prepared | None = None) -> Graph:
        """Add edge vectors, differentiable with respect to positions (n_atoms, 3) and cells."""
        source, target = self.edge_index
        edge_vec = pos[source] - pos[target]  # (n_edges, 3)
        if lattice is not None and self.edge_shift is not None:
            edge_vec = edge_vec + lattice.translations(self.edge_shift, self.batch[target])
        edge_dist = edge_vec.square().sum(dim=1).sqrt()  # (n_edges,)
        return Graph(self.z, self.edge_index, edge_vec, edge_dist, self.batch, self.n_graphs, prepared)


class EdgeTopology(Topology):
    """Neighbours with given edge vectors, which energies are differentiated by, instead of positions."""

    def at(self, pos: Tensor, lattice: Lattice | None, prepared: Prepared | None = None) -> Graph:
        """Add edge vectors (n_edges, 3), given in place of positions."""
        edge_dist = pos.square().sum(dim=1).sqrt()  # (n_edges,)
        return Graph(self.z, self.edge_index, pos, edge_dist, self.batch, self.n_graphs, prepared)


def find_topology(
    data: Data, cutoff: float, engine: str = "auto", dtype: torch.dtype | None = None
) -> tuple[Topology, Lattice | None]:
    """Find the neighbours within a cutoff, or take edges stored for this cutoff; return also the cells, if any.

    Args:
        data, cutoff, engine: as in :func:`build_graph`.
        dtype: dtype of positions and cells in the comparison with the cutoff; default: that of the positions.

    Raises:
        MFPyGError: as :func:`build_graph`.
    """
    batch, n_graphs = molecules_of(data)
    if n_graphs > 1 and (batch.diff() < 0).any():
        raise MFPyGError("batch is not ascending; expected the atoms of each molecule to be contiguous")
    pos = data.pos if dtype is None else data.pos.to(dtype)
    lattice = lattice_of(data, n_graphs, pos.dtype)
    edge_index, edge_shift = _stored_edges(data, cutoff, lattice) or _find_edges(pos, batch, lattice, cutoff, engine)
    return Topology(data.z, edge_index, batch, n_graphs, edge_shift), lattice


def build_graph(data: Data, cutoff: float, engine: str = "auto") -> Graph:
    """Build the graph of a ``Data`` or ``Batch``.

    Edges that :class:`RadiusGraph` stored with exactly this cutoff are used; any others are ignored, and edges are
    built from the positions.

    Args:
        data: with ``z`` (n_atoms,) and ``pos`` (n_atoms, 3) in Å; ``batch`` for several graphs; ``cell``
            (n_graphs, 3, 3) in Å and ``pbc`` (n_graphs, 3) bool for periodic graphs.
        cutoff: in Å.
        engine: see :mod:`mfpyg.neighbors`.

    Raises:
        MFPyGError: for an engine that cannot do this, or invalid ``cell`` and ``pbc``.
    """
    topology, lattice = find_topology(data, cutoff, engine)
    return topology.at(data.pos, lattice)


def edges_of_each(
    pos: Tensor, batch: Tensor, n_graphs: int, cutoff: float, engine: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Find the edges of many molecules; atoms are counted from zero in each molecule.

    Args:
        pos, batch, cutoff, engine: as in :func:`radius_graph`.
        n_graphs: number of molecules.

    Returns:
        edge_index (2, n_edges) int64, molecule by molecule, and the number of edges of each, (n_graphs,) int64.
    """
    edge_index = radius_graph(pos, batch, cutoff, engine)
    owner = batch[edge_index[1]]  # (n_edges,)
    counts = torch.bincount(batch, minlength=n_graphs)
    first = torch.cumsum(counts, 0) - counts  # (n_graphs,)
    return edge_index - first[owner], torch.bincount(owner, minlength=n_graphs)


def molecules_of(data: Data) -> tuple[Tensor, int]:
    """Molecule of each atom, (n_atoms,) int64, and the number of molecules."""
    batch = getattr(data, "batch", None)
    if batch is None:
        return torch.zeros_like(data.z, dtype=torch.int64), 1
    if isinstance(data, Batch):
        return batch, data.num_graphs
    return batch, int(batch.max()) + 1 if len(batch) else 0


Edges = tuple[Tensor, Tensor | None]
"""edge_index (2, n_edges), and edge_shift (n_edges, 3) of periodic graphs."""


def _find_edges(pos: Tensor, batch: Tensor, lattice: Lattice | None, cutoff: float, engine: str) -> Edges:
    if lattice is None:
        return radius_graph(pos, batch, cutoff, engine), None
    return periodic_radius_graph(pos, batch, lattice, cutoff, engine)


def _stored_edges(data: Data, cutoff: float, lattice: Lattice | None) -> Edges | None:
    made_for, edge_index = getattr(data, "edge_cutoff", None), getattr(data, "edge_index", None)
    if made_for is None or edge_index is None or not bool((made_for == cutoff).all()):
        return None
    edge_shift = None if lattice is None else getattr(data, "edge_shift", None)
    if lattice is not None and edge_shift is None:
        return None
    if (edge_index[1].diff() < 0).any():  # reordered by a transform
        order = torch.argsort(edge_index[1] * len(data.z) + edge_index[0], stable=True)
        edge_index, edge_shift = edge_index[:, order], None if edge_shift is None else edge_shift[order]
    return edge_index, edge_shift


class RadiusGraph(BaseTransform):
    """Store the edges within a cutoff, and the cutoff, in each ``Data``; for ``pre_transform``.

    Adds ``edge_index`` (2, n_edges) int64 and ``edge_cutoff`` (1,) float64 in Å, and to data with ``pbc`` also
    ``edge_shift`` (n_edges, 3) int32, the shift of the source's image in lattice vectors. Code that moves atoms
    afterwards (noise, dynamics) has to remove ``edge_cutoff``, so that the edges are built again.

    Args:
        cutoff: in Å.
        engine: see :mod:`mfpyg.neighbors`.
    """

    def __init__(self, cutoff: float, engine: str = "auto") -> None:
        check_engine(engine)
        if not 0 < cutoff < float("inf"):
            raise MFPyGError(f"cutoff is {cutoff}, expected a positive distance in Å")
        self.cutoff = float(cutoff)
        self.engine = engine

    def forward(self, data: Data) -> Data:
        batch, n_graphs = molecules_of(data)
        lattice = lattice_of(data, n_graphs, data.pos.dtype)
        data.edge_index, edge_shift = _find_edges(data.pos, batch, lattice, self.cutoff, self.engine)
        if getattr(data, "pbc", None) is not None:  # also of molecules among crystals: collate needs it in all or none
            zeros = torch.zeros(data.edge_index.shape[1], 3, dtype=torch.int32, device=data.pos.device)
            data.edge_shift = zeros if edge_shift is None else edge_shift
        data.edge_cutoff = torch.tensor([self.cutoff], dtype=torch.float64, device="cpu")
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cutoff={self.cutoff}, engine={self.engine!r})"
