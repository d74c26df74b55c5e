"""Batches for training and validation, divided among processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch_geometric.data import Batch

from mfpyg.datasets.batches import Assembler, BatchLoader, BatchPlan
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.fidelity import Fidelity
from mfpyg.inference.dataset import BATCH_SIZE
from mfpyg.settings import SamplingSettings
from mfpyg.training.sampling import Interleaved, Sampling


def labelled_rows(dataset: ConformationDataset, rows: np.ndarray, fidelities: Sequence[Fidelity]) -> np.ndarray:
    """Which of the rows carry a label of each fidelity that is trained on, (n, T) bool."""
    columns = []
    for fidelity in fidelities:
        column = dataset.fidelities.index(fidelity.name)
        having = np.zeros(len(rows), bool)
        for prop in ("energy", "forces"):
            if getattr(fidelity, prop):
                having |= dataset._data[f"{prop}_mask"][:, column].numpy()[rows]
        columns.append(having)
    return np.stack(columns, axis=1)


def temperature_of(settings: SamplingSettings) -> float:
    """The temperature of :mod:`mfpyg.training.sampling` that a strategy means."""
    return {"proportional": 1.0, "balanced": math.inf, "temperature": settings.temperature or 2.0}[settings.strategy]


class ConformationData(lightning.LightningDataModule):
    """Loaders of the training and validation splits, without the conformations that carry no label trained on.

    Training batches are drawn anew each epoch from the seed and the epoch's number alone, so that a
    resumed run sees what an uninterrupted one would have seen. Whole batches are the same whatever the
    number of processes, to which their conformations are dealt out by size, so that all have equal work. A process
    reads its own share alone.

    Args:
        dataset: the data set, all of it.
        splits: ``{"train": rows, "val": rows, …}``.
        fidelities: which labels are trained on.
        sampling: what an epoch is made of.
        minimum: fidelity, and fewest graphs with a label of it in each batch.
        batch_size: over all processes; the plateau schedule raises it.
        seed: of the order of training batches.

    Raises:
        MFPyGError: if there are fewer labels than asked for in each batch.
    """

    def __init__(
        self,
        dataset: ConformationDataset,
        splits: Mapping[str, np.ndarray],
        fidelities: Sequence[Fidelity],
        sampling: SamplingSettings,
        minimum: tuple[str, int] | None,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size = dataset, batch_size
        self.n_atoms = dataset.slices["z"].diff().numpy()
        names = [f.name for f in fidelities]
        train = labelled_rows(dataset, splits["train"], fidelities)
        kept = train.any(axis=1)
        self._train = Sampling(
            splits["train"][kept],
            train[kept],
            seed,
            temperature_of(sampling),
            None if minimum is None else (names.index(minimum[0]), minimum[1]),
            self.n_atoms[splits["train"][kept]],
            sampling.window,
        )
        self._val = splits["val"][labelled_rows(dataset, splits["val"], fidelities).any(axis=1)]

    @property
    def train(self) -> Sampling | Interleaved:
        """What training batches are made of."""
        return self._train

    @property
    def val(self) -> np.ndarray:
        """Conformations of the validation, (n,) int64."""
        return self._val

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _loader(self, plan: BatchPlan, epoch: int) -> BatchLoader:
        rank = 0 if self.trainer is None else self.trainer.global_rank
        world_size = self._world_size

        def shares(epoch: int) -> list[np.ndarray]:
            return [self._share(batch, rank, world_size) for batch in plan(epoch)]

        return BatchLoader(self.dataset, plan=shares, epoch=epoch)

    def _share(self, batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        if world_size == 1:
            return batch
        return batch[np.argsort(self.n_atoms[batch], kind="stable")][rank::world_size]

    def train_dataloader(self) -> BatchLoader:
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        return self._loader(lambda epoch: self.train.batches(epoch, self.batch_size), epoch)

    def val_dataloader(self) -> BatchLoader:
        n_batches = math.ceil(len(self.val) / max(self.batch_size, BATCH_SIZE))
        return self._loader(lambda epoch: np.array_split(self.val, n_batches), 0)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """A process whose share of a batch is empty computes on a graph without labels, which adds exactly zero to all
        sums; so no network has to know what to do without any graph."""
        if batch.num_graphs:
            return batch
        smallest = self.train.rows[self.n_atoms[self.train.rows].argmin()]
        batch = Assembler(self.dataset)([smallest])
        for name in ("energy_mask", "forces_mask"):
            batch[name] = torch.zeros_like(batch[name])
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batch_size = state_dict["batch_size"]
