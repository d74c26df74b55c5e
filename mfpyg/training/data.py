"""The data set of a training, and its batches for training and validation, divided among processes."""

from __future__ import annotations

import math
from typing import Any

import lightning
import numpy as np
import torch
from torch_geometric.data import Batch

from mfpyg.datasets.batches import Assembler, BatchLoader, BatchPlan
from mfpyg.datasets.chunks import Track
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.graph import RadiusGraph
from mfpyg.inference.dataset import BATCH_SIZE
from mfpyg.settings import TrainSettings
from mfpyg.training.stage import Stage


def open_training_data(
    settings: TrainSettings, fidelities: tuple[Fidelity, ...], track: Track = iter
) -> ConformationDataset:
    """The data set of the settings, with edges where they ask for stored ones."""
    pre_transform = RadiusGraph(_cutoff(settings), settings.engine) if settings.edges == "stored" else None
    names = [f.name for f in fidelities]
    return open_dataset(parse_specs(settings.sources), names, pre_transform=pre_transform, track=track)


def _cutoff(settings: TrainSettings) -> float:
    cutoff = getattr(settings.model, "cutoff", None)
    if cutoff is None:
        raise MFPyGError(
            f"edges can't be stored: backbone '{settings.backbone}' has no option 'cutoff'; use edges batch"
        )
    return float(cutoff)


class ConformationData(lightning.LightningDataModule):
    """Loaders of what a stage is trained and validated on.

    Training batches are drawn anew each epoch from the seed and the epoch's number alone, so that a
    resumed run sees what an uninterrupted one would have seen. Whole batches are the same whatever the
    number of processes, to which their conformations are dealt out by size, so that all have equal work. A process
    reads its own share alone.

    Args:
        stage: with its data set and its sampling.
        batch_size: over all processes; the plateau schedule raises it.
        epochs_before: epochs of the stages before.
    """

    def __init__(self, stage: Stage, batch_size: int, epochs_before: int = 0) -> None:
        super().__init__()
        self.dataset, self.train, self.val = stage.dataset, stage.train, stage.val
        self.batch_size, self.epochs_before = batch_size, epochs_before
        self.n_atoms = self.dataset.slices["z"].diff().numpy()

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
        epoch = self.epochs_before + (0 if self.trainer is None else self.trainer.current_epoch)
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
