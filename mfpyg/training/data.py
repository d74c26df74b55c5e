"""Batches for training and validation, divided among processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import lightning
import numpy as np
from torch.utils.data import Sampler
from torch_geometric.loader import DataLoader

from mfpyg.datasets import ReleaseDataset
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.evaluate import BATCH_SIZE


class ShareSampler(Sampler[list[int]]):
    """This process's share of every batch: whole batches are the same whatever the number of processes.

    Batches have nearly equal sizes, none more than ``batch_size``, so that no small last one gets the
    weight of a large one.

    Args:
        rows: numbers of the conformations, (n,).
        batch_size: most conformations in a batch, over all processes.
        order: seed of the order, or ``None`` to keep it.
        rank, world_size: number of this process, and of all.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        order: tuple[int, ...] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows, self.batch_size, self.order = rows, batch_size, order
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.rows if self.order is None else np.random.default_rng(self.order).permutation(self.rows)
        for batch in np.array_split(rows, len(self)):
            yield batch[self.rank :: self.world_size].tolist()

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)


class ConformationData(lightning.LightningDataModule):
    """Loaders of the training and validation splits.

    Training batches are drawn anew each epoch from the seed and the epoch's number alone, so that a
    resumed run sees what an uninterrupted one would have seen.

    Args:
        dataset: the data set, all of it.
        splits: ``{"train": rows, "val": rows, …}``.
        batch_size: over all processes; the plateau schedule raises it.
        seed: of the order of training batches.

    Raises:
        MFPyGError: if a batch has fewer conformations than there are processes.
    """

    def __init__(self, dataset: ReleaseDataset, splits: Mapping[str, np.ndarray], batch_size: int, seed: int) -> None:
        super().__init__()
        self.dataset, self.splits = dataset, splits
        self.batch_size, self.seed = batch_size, seed

    def setup(self, stage: str) -> None:
        for name, batch_size in (("train", self.batch_size), ("val", BATCH_SIZE)):
            n_batches = math.ceil(len(self.splits[name]) / batch_size)
            if len(self.splits[name]) // n_batches < self._world_size:
                raise MFPyGError(
                    f"split '{name}' has {len(self.splits[name])} conformations in {n_batches} batches, too few "
                    f"for {self._world_size} processes to have some of each; use fewer devices or a larger batch_size"
                )

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _loader(self, split: str, batch_size: int, order: tuple[int, ...] | None) -> DataLoader:
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sampler = ShareSampler(self.splits[split], batch_size, order, rank, self._world_size)
        return DataLoader(self.dataset, batch_sampler=sampler)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader:
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        return self._loader("train", self.batch_size, (self.seed, epoch))

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", max(self.batch_size, BATCH_SIZE), None)

    def state_dict(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batch_size = state_dict["batch_size"]
