"""Batches assembled by tensor indexing, equal to those of PyTorch Geometric's collate.

If conformation i has n_i rows starting at s_i in a column, a batch takes the rows s_i, s_i + 1, …, s_i + n_i − 1 for
each i in turn: one index for all columns with the same slices, and one ``index_select`` per column.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch, Data, InMemoryDataset

from mfpyg.errors import MFPyGError
from mfpyg.torch_defaults import default_torch_settings, with_default_torch_settings


def rows_of(slices: Tensor, chosen: Tensor, n_rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a column that belong to the chosen conformations, in their order.

    Args:
        slices: first row of each conformation, and the end, (n + 1,) int64.
        chosen: numbers of conformations, (m,) int64.
        n_rows: number of rows; default: read from the slices, for which a GPU has to be waited for.

    Returns:
        The rows, (Σ counts,) int64; their slices, (m + 1,) int64; and for each row the position of its conformation
        in ``chosen``, (Σ counts,) int64.
    """
    first = slices[chosen]  # (m,)
    counts = slices[chosen + 1] - first  # (m,)
    new = counts.new_zeros(len(chosen) + 1)
    torch.cumsum(counts, 0, out=new[1:])
    owner = torch.repeat_interleave(counts, output_size=int(new[-1]) if n_rows is None else n_rows)
    rows = (first - new[:-1]).index_select(0, owner)
    return rows.add_(torch.arange(len(rows), device=rows.device)), new, owner


def gather(data: Data, slices: Mapping[str, Tensor], chosen: Tensor) -> tuple[Data, dict[str, Tensor]]:
    """Copy the chosen conformations in PyG's collated form, without offsets.

    Args:
        data, slices: of an ``InMemoryDataset``.
        chosen: numbers of conformations, (m,) int64.
    """
    known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    gathered, new_slices = Data(), {}
    for key in slices:
        value = data[key]
        if id(slices[key]) not in known:  # columns of one kind share their slices
            known[id(slices[key])] = rows_of(slices[key], chosen)
        rows, new_slices[key], _ = known[id(slices[key])]
        if isinstance(value, Tensor):
            gathered[key] = value.index_select(data.__cat_dim__(key, value), rows)
        else:  # added by a pre_transform, collated as a list
            gathered[key] = [value[i] for i in rows.tolist()]
    return gathered, new_slices


class Assembler:
    """Assembles the same ``Batch`` as PyG's ``DataLoader``, key for key.

    Args:
        dataset: data set or part of one; PyG's collate is used if it has a ``transform`` or columns other than tensors.
        device: device to copy the columns to, on which batches are then assembled, unless PyG's collate is used. It is
            not waited for. Default: where they are.
    """

    @with_default_torch_settings
    def __init__(self, dataset: InMemoryDataset, device: torch.device | None = None) -> None:
        self.dataset, self._device = dataset, device
        data, slices = dataset._data, dataset.slices
        columns = {key: data[key] for key in slices}
        self._by_indexing = dataset.transform is None and all(isinstance(v, Tensor) for v in columns.values())
        self._part = None if dataset._indices is None else torch.as_tensor(list(dataset._indices), dtype=torch.int64)
        if not self._by_indexing:
            return
        # Columns of one kind share their slices; those with one row per conformation need no arithmetic.
        self._kinds = {id(slices[key]): slices[key] for key in columns}
        self._one_each = {k for k, v in self._kinds.items() if bool((v == torch.arange(len(v))).all())}
        self._slices = self._kinds if device is None else {k: v.to(device) for k, v in self._kinds.items()}
        self._columns = [
            # PyG's rule for indices of atoms, which are offset by the atoms of the preceding graphs.
            (
                key,
                value if device is None else value.to(device),
                id(slices[key]),
                data.__cat_dim__(key, value),
                "index" in key or key == "face",
            )
            for key, value in columns.items()
        ]
        self._empty = Batch(_base_cls=Data)

    @with_default_torch_settings
    def __call__(self, chosen: Sequence[int] | np.ndarray | Tensor) -> Batch:
        """Assemble the batch of the conformations with these numbers, (m,)."""
        if not self._by_indexing:
            return Batch.from_data_list([self.dataset[int(i)] for i in chosen])
        chosen = torch.as_tensor(chosen, dtype=torch.int64)
        if self._part is not None:
            chosen = self._part[chosen]
        here = chosen if self._device is None else _sent(chosen, self._device)
        one_each = here, *(torch.arange(n, device=here.device) for n in (len(here) + 1, len(here)))
        rows = {
            k: one_each if k in self._one_each else rows_of(v, here, self._n_rows(k, chosen))
            for k, v in self._slices.items()
        }
        _, ptr, owner = rows[id(self.dataset.slices["z"])]  # first atom of each, (m + 1,)
        batch = copy.copy(self._empty)
        no_offset = torch.zeros(len(chosen), dtype=torch.int64, device=here.device)
        batch._slice_dict, batch._inc_dict = {}, {}
        for key, column, kind, dim, is_index in self._columns:
            index, new, graph = rows[kind]
            value = column.index_select(dim, index)
            if is_index:
                value = value + ptr[graph]
            batch[key] = value
            batch._slice_dict[key], batch._inc_dict[key] = new, ptr[:-1] if is_index else no_offset
        batch.batch, batch.ptr = owner, ptr
        batch._num_graphs = len(chosen)
        return batch

    def _n_rows(self, kind: int, chosen: Tensor) -> int | None:
        slices = self._kinds[kind]  # on the CPU
        return None if self._device is None else int((slices[chosen + 1] - slices[chosen]).sum())


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy of a tensor on a device; a GPU copies it by itself, from pinned memory."""
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


BatchPlan = Callable[[int], Sequence[np.ndarray]]
"""Function from an epoch's number to the conformations of each of its batches."""


def in_batches(rows: np.ndarray, batch_size: int, seed: int | None = None) -> BatchPlan:
    """Plan batches of ``batch_size``, the last one smaller; with a seed, reshuffled in each epoch."""

    def plan(epoch: int) -> list[np.ndarray]:
        order = rows if seed is None else np.random.default_rng((seed, epoch)).permutation(rows)
        return np.split(order, range(batch_size, len(order), batch_size)) if len(order) else []

    return plan


def by_size(rows: np.ndarray, n_atoms: np.ndarray, most_graphs: int, most_atoms: int) -> BatchPlan:
    """Plan batches of conformations of similar size, with limits on the numbers of conformations and atoms.

    Args:
        rows: numbers of the conformations, (n,) int64.
        n_atoms: number of atoms of each conformation of the data set.
        most_graphs, most_atoms: maxima per batch; a conformation with more atoms gets its own batch.
    """
    order = rows[np.argsort(n_atoms[rows], kind="stable")]
    batches, start, atoms = [], 0, 0
    for end, size in enumerate(n_atoms[order].tolist()):
        if end > start and (atoms + size > most_atoms or end - start == most_graphs):
            batches.append(order[start:end])
            start, atoms = end, 0
        atoms += size
    if len(order):
        batches.append(order[start:])
    return lambda epoch: batches


class BatchLoader(DataLoader):
    """``DataLoader`` whose ``Batch`` objects are assembled by tensor indexing.

    Each pass that takes at least one batch is an epoch; its order depends on the seed and the epoch's number alone.
    ``state_dict`` holds the position within the pass, from which ``load_state_dict`` continues.

    Args:
        dataset: data set or part of one.
        batch_size: conformations per batch.
        shuffle: whether to use a random order.
        seed: seed of that order.
        plan: conformations of each batch of an epoch, instead of the three above.
        epoch: number of the first epoch.
        assemble: function from numbers of conformations, (m,) int64, to a batch; default: :class:`Assembler`.
        kwargs: as in ``torch.utils.data.DataLoader``: ``num_workers``, ``pin_memory``, …, except those that choose
            batches.

    Raises:
        MFPyGError: if the batch size is less than one.

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
        plan: BatchPlan | None = None,
        epoch: int = 0,
        assemble: Callable[[np.ndarray], Batch] | None = None,
        **kwargs: Any,
    ) -> None:
        if batch_size < 1:
            raise MFPyGError(f"batch_size is {batch_size}, expected at least 1")
        plan = plan or in_batches(np.arange(len(dataset)), batch_size, seed if shuffle else None)
        self._order = _Order(plan, epoch)
        self._handed_out, self._done = False, 0
        # torch's loader draws from a generator, and a resumed pass does so at another time; so not the global one.
        kwargs.setdefault("generator", torch.Generator())
        super().__init__(
            _Rows(dataset, Assembler(dataset) if assemble is None else assemble),
            batch_sampler=self._order,  # type: ignore[arg-type]
            collate_fn=_identity,
            **kwargs,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self._handed_out:  # Lightning creates two iterators before it takes a batch from the second
            self._order.set(self._order.epoch + 1, 0)
        self._handed_out, self._done = False, self._order.start
        with default_torch_settings():
            return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            with default_torch_settings():  # not while the caller uses the batch
                batch = next(batches, None)
            self._handed_out = True
            if batch is None:
                return
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of the epoch, and how many of its batches have been handed out."""
        return {"epoch": self._order.epoch, "batch": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass the rest of the one in which the state was taken."""
        self._order.set(state["epoch"], state["batch"])
        self._handed_out, self._done = False, state["batch"]


class _Order:
    """Batch sampler over successive epochs; iterating twice within an epoch gives the same batches."""

    def __init__(self, plan: BatchPlan, epoch: int) -> None:
        self.plan = plan
        self.set(epoch, 0)
        self._batches: tuple[int, Sequence[np.ndarray]] | None = None

    def set(self, epoch: int, start: int) -> None:
        """Start the next pass in this epoch, at this batch."""
        self.epoch, self.start = epoch, start

    def _planned(self) -> Sequence[np.ndarray]:
        if self._batches is None or self._batches[0] != self.epoch:
            self._batches = self.epoch, self.plan(self.epoch)
        return self._batches[1]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._planned()[self.start :])

    def __len__(self) -> int:
        return len(self._planned())


class _Rows(Dataset):
    """Data set that returns a batch for a list of numbers."""

    def __init__(self, dataset: InMemoryDataset, assemble: Callable[[np.ndarray], Batch]) -> None:
        self.dataset, self._assemble = dataset, assemble

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, chosen: np.ndarray) -> Batch:
        return self._assemble(chosen)


def _identity(batch: Batch) -> Batch:
    return batch
