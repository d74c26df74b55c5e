"""Collating chunks of conformations into PyG's form, through columns on disk so that memory is bounded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.collate import collate
from torch_geometric.data.separate import separate

from mfpyg import interrupt
from mfpyg.datasets.chunks import Chunk
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph, edges_of_each
from mfpyg.properties import PROPERTIES

_ATOMIC = ("z", "pos")
"""Columns with one row per atom, besides labels."""

_REST = ("molecule", "conformation", "split", "source")
"""Columns of all data sets that follow the labels."""

_OF_PERIODIC = ("cell", "pbc")
"""Columns of data sets with periodic conformations; of all items, as collate takes its keys from the first."""


class ColumnFiles:
    """Growing columns, each in an unnamed temporary file.

    Args:
        folder: folder of the temporary files.

    Raises:
        MFPyGError: from :meth:`append`, if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._rows: dict[str, int] = {}
        self._kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def __enter__(self) -> ColumnFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append rows (n, …) to a column; the first rows set its dtype and width."""
        rows = np.ascontiguousarray(rows)
        kind = (rows.dtype, rows.shape[1:])
        if self._kinds.setdefault(name, kind) != kind:
            raise TypeError(f"column {name} is {self._kinds[name]}, rows are {kind}")
        try:
            if name not in self._files:
                self._files[name] = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
                self._rows[name] = 0
            rows.tofile(self._files[name])
        except OSError as error:
            raise MFPyGError(f"{self.folder}: cannot write there ({error.strerror or error})") from error
        self._rows[name] += len(rows)

    def column(self, name: str) -> Tensor:
        """Current content of a column, backed by its file."""
        dtype, shape = self._kinds[name]
        shape = (self._rows[name], *shape)
        if 0 in shape:
            return torch.from_numpy(np.empty(shape, dtype))
        self._files[name].flush()
        return torch.from_numpy(np.memmap(self._files[name], dtype, mode="c", shape=shape))


class Processing:
    """Collects chunks into a collated data set.

    Args:
        files: files for the columns.
        edges: finds the edges to store; ``None`` to store none.
        letters: properties that have columns.
        n_levels: number of levels, T.
    """

    def __init__(self, files: ColumnFiles, edges: RadiusGraph | None, letters: str, n_levels: int) -> None:
        self.files, self.edges = files, edges
        self.properties = [PROPERTIES[letter] for letter in letters]
        self.molecules: dict[str, int] = {}
        """Number of each molecule by name."""
        self.incomplete = {letter: np.zeros(n_levels, np.int64) for letter in letters}
        """Number of conformations that lack some components of a property at each level, (T,) by letter."""
        self.periodic = self.charged = False
        """True if any conformation is periodic, or has a total charge."""

    def add(self, chunk: Chunk) -> None:
        """Append a chunk to the columns, with its molecules renumbered and its edges."""
        interrupt.check()
        if not len(chunk):
            return
        numbers = np.full(len(chunk.names), -1, np.int64)
        for used in np.unique(chunk.molecule):
            numbers[used] = self.molecules.setdefault(chunk.names[used], len(self.molecules))
        columns = {
            "n_atoms": chunk.n_atoms,
            "z": chunk.z,
            "pos": chunk.pos,
            "molecule": numbers[chunk.molecule],
            "conformation": chunk.conformation,
            "split": chunk.split,
            "source": chunk.source,
            "charge": chunk.charge,
        }
        self.charged |= bool(chunk.charge.any())
        for property in self.properties:
            labels = chunk.labels[property.letter]
            self.incomplete[property.letter] += labels.incomplete
            columns |= {property.name: labels.values, property.mask: labels.mask}
            if property.per == "pair":
                columns[f"n_{property.name}"] = labels.counts(chunk.n_atoms)
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
        """Collated ``Data`` of all chunks, backed by the files, and its slices."""
        by_atom = starts(self.files.column("n_atoms"))
        by_row = torch.arange(len(by_atom))
        kinds = dict.fromkeys(_ATOMIC, by_atom)
        for property in self.properties:
            pairs = property.per == "pair"
            of_pairs = starts(self.files.column(f"n_{property.name}")) if pairs else by_row
            kinds |= {property.name: by_atom if property.per == "atom" else of_pairs, property.mask: by_row}
        kinds |= dict.fromkeys((*_REST, *(_OF_PERIODIC if self.periodic else ())), by_row)
        kinds |= {"charge": by_row} if self.charged else {}
        data, slices = Data(), dict[str, Tensor]()
        for name, of_name in kinds.items():
            data[name], slices[name] = self.files.column(name), of_name
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
    """Apply the user's filter and transform to an object per conformation, and collate the results.

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


def starts(counts: Tensor) -> Tensor:
    """PyG's slices from the number of rows of each conformation: (n,) -> (n + 1,) int64."""
    result = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=result[1:])
    return result


def check_given_split(data: Data, sources: Sequence[str]) -> None:
    """Check that all conformations of a source have a split, or none has.

    Args:
        data: collated data set.
        sources: names of the sources, in the order of their numbers.

    Raises:
        MFPyGError: if only some have one, naming the source.
    """
    for number, name in enumerate(sources):
        given = data.split[data.source == number] >= 0
        if given.any() and not given.all():
            raise MFPyGError(f"{name}: some conformations have a split and some have none; expected all or none")
