"""Batches by tensor indexing: what PyTorch Geometric's collate gives, without an object a conformation.

With n_i rows of conformation i starting at s_i in the data set's column, the rows of a batch are
s_i, s_i + 1, …, s_i + n_i − 1 for each i in turn: one index for all columns with the same slices, and one
``index_select`` a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data, InMemoryDataset


def rows_of(slices: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a column that belong to the chosen conformations, one after the other.

    Args:
        slices: where each conformation starts, (n + 1,) int64.
        chosen: numbers of conformations, (m,) int64.

    Returns:
        The rows, (Σ counts,) int64, and where each conformation's start among them, (m + 1,) int64.
    """
    first = slices[chosen]  # (m,)
    counts = slices[chosen + 1] - first  # (m,)
    new = torch.zeros(len(chosen) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=new[1:])
    offset = torch.repeat_interleave(first - new[:-1], counts, output_size=int(new[-1]))
    return offset.add_(torch.arange(len(offset))), new


def gather(data: Data, slices: Mapping[str, Tensor], chosen: Tensor) -> tuple[Data, dict[str, Tensor]]:
    """The chosen conformations in PyG's collated form, copied; nothing is offset.

    Args:
        data, slices: of an ``InMemoryDataset``.
        chosen: numbers of conformations, (m,) int64.
    """
    known: dict[int, tuple[Tensor, Tensor]] = {}
    values, new_slices = {}, {}
    for key, value in data.to_dict().items():
        # Columns of one kind share their slices.
        rows, new = known.setdefault(id(slices[key]), ()) or rows_of(slices[key], chosen)
        known[id(slices[key])] = rows, new
        if isinstance(value, Tensor):
            values[key] = value.index_select(data.__cat_dim__(key, value), rows)
        else:  # what a pre_transform has added: collated as a list
            values[key] = [value[i] for i in rows.tolist()]
        new_slices[key] = new
    return Data.from_dict(values), new_slices


def assemble(dataset: InMemoryDataset, chosen: Iterable[int] | Tensor) -> Batch:
    """The ``Batch`` that PyG's ``DataLoader`` makes of these conformations.

    Args:
        dataset: a data set or a part of one; where it has a ``transform``, or columns that are no
            tensors, PyG's collate does the work.
        chosen: numbers of conformations in the data set, (m,).
    """
    chosen = torch.as_tensor(chosen, dtype=torch.int64)
    if dataset.transform is not None or not all(isinstance(v, Tensor) for v in dataset._data.to_dict().values()):
        return Batch.from_data_list([dataset[int(i)] for i in chosen])
    if dataset._indices is not None:
        chosen = torch.as_tensor(list(dataset._indices), dtype=torch.int64)[chosen]
    data, slices = gather(dataset._data, dataset.slices, chosen)
    return _offset(data, slices, len(chosen))


def _offset(data: Data, slices: dict[str, Tensor], n_graphs: int) -> Batch:
    """Number the atoms through, and say which graph each belongs to."""
    batch = Batch(_base_cls=Data)
    ptr = slices["z"]
    n_atoms = ptr.diff()
    nothing = torch.zeros(n_graphs, dtype=torch.int64)
    incs = {}
    for key, value in data.to_dict().items():
        incs[key] = nothing
        if "index" in key or key == "face":  # PyG's rule for what counts atoms
            incs[key] = ptr[:-1]
            value = value + torch.repeat_interleave(ptr[:-1], slices[key].diff())
        batch[key] = value
    batch.batch = torch.repeat_interleave(torch.arange(n_graphs), n_atoms, output_size=int(ptr[-1]))
    batch.ptr = ptr
    batch._num_graphs, batch._slice_dict, batch._inc_dict = n_graphs, slices, incs
    return batch


class BatchLoader(DataLoader):
    """Loader of ``Batch`` objects that are assembled by tensor indexing; otherwise torch's ``DataLoader``.

    Args:
        dataset: a data set or a part of one.
        kwargs: as in ``torch.utils.data.DataLoader``: ``batch_size``, ``shuffle``, ``batch_sampler``, ….

    Example:
        >>> for batch in BatchLoader(MiniCHNO(), batch_size=256, shuffle=True):      # doctest: +SKIP
        ...     potential(batch, fidelity="cc")
    """

    def __init__(self, dataset: InMemoryDataset, **kwargs: Any) -> None:
        super().__init__(_Rows(dataset), collate_fn=_as_it_is, **kwargs)


class _Rows:
    """Answers a list of numbers with a batch."""

    def __init__(self, dataset: InMemoryDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, chosen: list[int]) -> Batch:
        return assemble(self.dataset, chosen)


def _as_it_is(batch: Batch) -> Batch:
    return batch
