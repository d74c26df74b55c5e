"""From blocks of conformations to PyG's collated form, by way of columns on disk."""

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
from mfpyg.datasets.blocks import Block
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
    """Takes blocks one after the other, and has the collated data set in the end.

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

    def add(self, block: Block) -> None:
        """Add a block to the columns, numbering its molecules among all and finding its edges."""
        interrupt.check()
        if not len(block):
            return
        self.incomplete += block.incomplete
        numbers = np.full(len(block.names), -1, np.int64)
        for used in np.unique(block.molecule):
            numbers[used] = self.molecules.setdefault(block.names[used], len(self.molecules))
        first = np.cumsum(block.n_atoms) - block.n_atoms
        columns = {
            "n_atoms": block.n_atoms,
            "z": block.z,
            "pos": block.pos,
            "energy": block.energy,
            "energy_mask": ~np.isnan(block.energy),
            "forces": block.forces,
            "forces_mask": ~np.isnan(block.forces[first, :, 0]),  # all components of a conformation, or none
            "molecule": numbers[block.molecule],
            "conformation": block.conformation,
            "split": block.split,
            "source": block.source,
        }
        if block.cell is not None and block.pbc is not None:
            columns |= {"cell": block.cell, "pbc": block.pbc}
            self.periodic |= bool(block.pbc.any())
        for name, rows in columns.items():
            self.files.append(name, rows)
        if self.edges is not None:
            self._add_edges(block, self.edges)

    def _add_edges(self, block: Block, edges: RadiusGraph) -> None:
        if block.periodic.any():
            row = int(np.flatnonzero(block.periodic)[0])
            which = f"conformation {block.conformation[row]} of {block.names[block.molecule[row]]}"
            raise MFPyGError(f"{which} is periodic; stored edges are for molecules; use --edges batch")
        pos, owner = torch.from_numpy(block.pos), torch.from_numpy(block.owner)
        edge_index, counts = edges_of_each(pos, owner, len(block), edges.cutoff, edges.engine)
        self.files.append("edge_index", edge_index.t().numpy())
        self.files.append("n_edges", counts.numpy())
        self.files.append("edge_cutoff", np.full(len(block), edges.cutoff))

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
