"""From chunks of conformations to PyG's collated form, by way of columns on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.collate import collate
from torch_geometric.data.separate import separate

from mfpyg import interrupt
from mfpyg.datasets.chunks import Chunk
from mfpyg.datasets.storage import ColumnFiles, starts
from mfpyg.datasets.stored_checks import ATOMIC
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph, edges_of_each

_COLUMNS = (
    *("z", "pos", "energy", "energy_mask", "forces", "forces_mask"),
    *("molecule", "conformation", "split", "source"),
)
"""Of each item, in this order."""

_OF_PERIODIC = ("cell", "pbc")
"""Of each item, too, where any is periodic: collate takes its keys from the first, so that it is all or none."""


class Processing:
    """Takes chunks one after the other, and has the collated data set in the end.

    Args:
        files: where the columns go.
        edges: finds the edges to store, if any are.
        n_levels: T.
    """

    def __init__(self, files: ColumnFiles, edges: RadiusGraph | None, n_levels: int) -> None:
        self.files, self.edges = files, edges
        self.molecules: dict[str, int] = {}
        """Number of each molecule's name."""
        self.incomplete = np.zeros(n_levels, np.int64)
        """Conformations of which some force components were missing, (T,)."""
        self.periodic = False
        """Whether any conformation is."""

    def add(self, chunk: Chunk) -> None:
        """Add a chunk to the columns, numbering its molecules among all and finding its edges."""
        interrupt.check()
        if not len(chunk):
            return
        self.incomplete += chunk.incomplete
        numbers = np.full(len(chunk.names), -1, np.int64)
        for used in np.unique(chunk.molecule):
            numbers[used] = self.molecules.setdefault(chunk.names[used], len(self.molecules))
        first = np.cumsum(chunk.n_atoms) - chunk.n_atoms
        columns = {
            "n_atoms": chunk.n_atoms,
            "z": chunk.z,
            "pos": chunk.pos,
            "energy": chunk.energy,
            "energy_mask": ~np.isnan(chunk.energy),
            "forces": chunk.forces,
            "forces_mask": ~np.isnan(chunk.forces[first, :, 0]),  # all components of a conformation, or none
            "molecule": numbers[chunk.molecule],
            "conformation": chunk.conformation,
            "split": chunk.split,
            "source": chunk.source,
        }
        if chunk.cell is not None and chunk.pbc is not None:
            columns |= {"cell": chunk.cell, "pbc": chunk.pbc}
            self.periodic |= bool(chunk.pbc.any())
        for name, rows in columns.items():
            self.files.append(name, rows)
        if self.edges is not None:
            self._add_edges(chunk, self.edges)

    def _add_edges(self, chunk: Chunk, edges: RadiusGraph) -> None:
        if chunk.periodic.any():
            row = int(np.flatnonzero(chunk.periodic)[0])
            which = f"conformation {chunk.conformation[row]} of {chunk.names[chunk.molecule[row]]}"
            raise MFPyGError(f"{which} is periodic; stored edges are for molecules; use --edges batch")
        pos, owner = torch.from_numpy(chunk.pos), torch.from_numpy(chunk.owner)
        edge_index, counts = edges_of_each(pos, owner, len(chunk), edges.cutoff, edges.engine)
        self.files.append("edge_index", edge_index.t().numpy())
        self.files.append("n_edges", counts.numpy())
        self.files.append("edge_cutoff", np.full(len(chunk), edges.cutoff))

    def collated(self) -> tuple[Data, dict[str, Tensor]]:
        """One ``Data`` of everything, backed by the files, and where each conformation starts and ends."""
        by_atom = starts(self.files.column("n_atoms"))
        by_row = torch.arange(len(by_atom))
        data, slices = Data(), {}
        for name in (*_COLUMNS, *(_OF_PERIODIC if self.periodic else ())):
            data[name] = self.files.column(name)
            slices[name] = by_atom if name in ATOMIC else by_row
        if self.edges is not None:
            data["edge_cutoff"], slices["edge_cutoff"] = self.files.column("edge_cutoff"), by_row
            by_edge = starts(self.files.column("n_edges"))
            data["edge_index"], slices["edge_index"] = self.files.column("edge_index").t(), by_edge
        return data, slices


def item(data: Data, slices: Mapping[str, Tensor], idx: int) -> Data:
    """One conformation of a collated data set."""
    return separate(Data, batch=data, idx=idx, slice_dict=slices, decrement=False)


def transformed(
    data: Data,
    slices: Mapping[str, Tensor],
    pre_filter: Callable[..., Any] | None,
    pre_transform: Callable[..., Any] | None,
    where: str,
) -> tuple[Data, dict[str, Tensor]]:
    """The collated data set after a filter and a transform of the user's, which take an object a conformation.

    Raises:
        MFPyGError: if the filter leaves none.
    """
    items = (item(data, slices, i) for i in range(len(slices["energy"]) - 1))
    kept = [one for one in items if pre_filter is None or pre_filter(one)]
    if not kept:
        raise MFPyGError(f"{where}: pre_filter left no conformation")
    if pre_transform is not None:
        kept = [pre_transform(one) for one in kept]
    collated, new_slices, _ = collate(Data, kept, increment=False, add_batch=False)
    return collated, new_slices
