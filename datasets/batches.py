"""Batches by tensor indexing: what PyTorch Geometric's collate gives, without an object a conformation.

With n_i rows of conformation i starting at s_i in the data set's column, the rows of a batch are
s_i, s_i + 1, …, s_i + n_i − 1 for each i in turn: one index for all columns with the same slices, and one
``index_select`` a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
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
    gathered, new_slices = Data(), {}
    for key in slices:
        value = data[key]
        if id(slices[key]) not in known:  # columns of one kind share their slices
            known[id(slices[key])] = rows_of(slices[key], chosen)
        rows, new_slices[key] = known[id(slices[key])]
        if isinstance(value, Tensor):
            gathered[key] = value.index_select(data.__cat_dim__(key, value), rows)
        else:  # what a pre_transform has added: collated as a list
            gathered[key] = [value[i] for i in rows.tolist()]
    return gathered, new_slices


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
    for key in slices:
        value, incs[key] = data[key], nothing
        if "index" in key or key == "face":  # PyG's rule for what counts atoms
            incs[key] = ptr[:-1]
            value = value + torch.repeat_interleave(ptr[:-1], slices[key].diff())
        batch[key] = value
    batch.batch = torch.repeat_interleave(torch.arange(n_graphs), n_atoms, output_size=int(ptr[-1]))
    batch.ptr = ptr
    batch._num_graphs, batch._slice_dict, batch._inc_dict = n_graphs, slices, incs
    return batch


Plan = Callable[[int], Sequence[np.ndarray]]
"""From the number of an epoch to the conformations of each of its batches."""


def in_batches(rows: np.ndarray, batch_size: int, seed: int | None = None) -> Plan:
    """Batches of at most this size, the last one smaller; in an order of its own each epoch if there is a seed."""

    def plan(epoch: int) -> list[np.ndarray]:
        order = rows if seed is None else np.random.default_rng((seed, epoch)).permutation(rows)
        return np.split(order, range(batch_size, len(order), batch_size))

    return plan


def by_size(rows: np.ndarray, n_atoms: np.ndarray, most_graphs: int, most_atoms: int) -> Plan:
    """Batches of conformations of like size, with bounds on conformations and on atoms, so that memory is bounded.

    Args:
        rows: numbers of the conformations, (n,) int64.
        n_atoms: of each conformation of the data set.
        most_graphs, most_atoms: of a batch; one conformation may have more atoms, and is then alone.
    """
    order = rows[np.argsort(n_atoms[rows], kind="stable")]
    batches, start, atoms = [], 0, 0
    for end, size in enumerate(n_atoms[order].tolist()):
        if end > start and (atoms + size > most_atoms or end - start == most_graphs):
            batches.append(order[start:end])
            start, atoms = end, 0
        atoms += size
    batches.append(order[start:])
    return lambda epoch: batches


class BatchLoader(DataLoader):
    """Loader of ``Batch`` objects that are assembled by tensor indexing; otherwise torch's ``DataLoader``.

    Every pass over it is an epoch with an order of its own, which follows from the seed and the epoch's
    number alone. ``state_dict`` says how far the pass is, and a loader that is given it goes on from there.

    Args:
        dataset: a data set or a part of one.
        batch_size: conformations in a batch.
        shuffle: whether in random order.
        seed: of that order.
        plan: which conformations each batch of an epoch has, instead of the three above.
        epoch: number of the first one.
        kwargs: as in ``torch.utils.data.DataLoader``: ``num_workers``, ``pin_memory``, ….

    Example:
        >>> for batch in BatchLoader(MiniCHNO(), batch_size=256, shuffle=True):      # doctest: +SKIP
        ...     potential(batch, fidelity="cc")
    """

    def __init__(
        self,
        dataset: InMemoryDataset,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        *,
        plan: Plan | None = None,
        epoch: int = 0,
        **kwargs: Any,
    ) -> None:
        plan = plan or in_batches(np.arange(len(dataset)), batch_size, seed if shuffle else None)
        self._order = _Order(plan, epoch)
        self._done = 0
        super().__init__(_Rows(dataset), batch_sampler=self._order, collate_fn=_as_it_is, **kwargs)

    def __iter__(self) -> Iterator[Batch]:
        self._done = self._order.start
        return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of the epoch, and of the batches of it that have been handed out."""
        return {"epoch": self._order.epoch, "batch": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass is the rest of the one that the state is of."""
        self._order.epoch, self._order.start = state["epoch"], state["batch"]
        self._order.resumed = True
        self._done = state["batch"]


class _Order:
    """The batches of one epoch after the other."""

    def __init__(self, plan: Plan, epoch: int) -> None:
        self.plan, self.epoch, self.start = plan, epoch, 0
        self.resumed = True  # the next pass is of this epoch, not of the one after it
        self._batches: tuple[int, Sequence[np.ndarray]] | None = None

    def _planned(self) -> Sequence[np.ndarray]:
        if self._batches is None or self._batches[0] != self.epoch:
            self._batches = self.epoch, self.plan(self.epoch)
        return self._batches[1]

    def __iter__(self) -> Iterator[list[int]]:
        if not self.resumed:
            self.epoch += 1
        start, self.start, self.resumed = self.start, 0, False
        return (batch.tolist() for batch in self._planned()[start:])

    def __len__(self) -> int:
        return len(self._planned())


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
