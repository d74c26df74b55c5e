"""Data set and data loaders of a training, distributed over processes."""

from __future__ import annotations

import functools
import math
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.datasets.batches import Assembler, BatchLoader, BatchPlan
from mfpyg.datasets.chunks import Track
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.device import fits, side_stream
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity, further_letters
from mfpyg.graph import RadiusGraph
from mfpyg.inference.dataset import BATCH_SIZE
from mfpyg.properties import PROPERTIES
from mfpyg.settings import TrainSettings
from mfpyg.training.pairs import Units, pair_numbers
from mfpyg.training.stage import Stage


def open_training_data(
    settings: TrainSettings, fidelities: tuple[Fidelity, ...], track: Track = iter
) -> ConformationDataset:
    """Open the data set of the settings, with edges if they are stored."""
    pre_transform = RadiusGraph(_cutoff(settings), settings.engine) if settings.edges == "stored" else None
    names, letters = [f.name for f in fidelities], further_letters(fidelities)
    specs = parse_specs(settings.sources)
    return open_dataset(specs, names, pre_transform=pre_transform, track=track, properties=letters)


def _cutoff(settings: TrainSettings) -> float:
    cutoff = getattr(settings.model, "cutoff", None)
    if cutoff is None:
        raise MFPyGError(
            f"edges cannot be stored: backbone '{settings.backbone}' has no option 'cutoff'; use edges batch"
        )
    return float(cutoff)


class ConformationData(lightning.LightningDataModule):
    """Training and validation loaders of a stage.

    Training batches depend only on the seed and the epoch, so that a resumed run sees the same batches as an
    uninterrupted one. Whole batches do not depend on the number of processes; their conformations are distributed by
    size, for equal work, without dividing pairs, and a process reads only its own share.

    Args:
        stage: stage with its data set and sampling.
        batch_size: batch size over all processes; the plateau schedule raises it.
        epochs_before: number of epochs of earlier stages.
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

        return BatchLoader(self.dataset, plan=shares, epoch=epoch, assemble=self._assemble)

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    @functools.cached_property
    def _assembler(self) -> Assembler:
        """Assembler of batches, with the data set in the memory of a GPU if it fits there."""
        size = sum(column.nbytes for _, column in self.dataset._data if isinstance(column, Tensor))
        return Assembler(self.dataset, self._device if fits(self._device, size) else None)

    def _assemble(self, chosen: np.ndarray) -> Batch:
        with side_stream(self._device):
            return self._assembler(chosen)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy a batch from pinned memory while a GPU computes the step before."""
        if device.type != "cuda" or batch.pos.is_cuda:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        with side_stream(device):
            return batch.pin_memory().to(device, non_blocking=True)

    def _units(self, rows: np.ndarray) -> Units:
        return Units(len(rows), pair_numbers(self.dataset, rows))

    def _share(self, batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        if world_size == 1:
            return batch
        units = self._units(batch)
        by_size = np.argsort(self.n_atoms[batch[units.first]], kind="stable")
        return batch[units.members(by_size[rank::world_size])]

    def train_dataloader(self) -> BatchLoader:
        epoch = self.epochs_before + (0 if self.trainer is None else self.trainer.current_epoch)
        return self._loader(lambda epoch: self.train.batches(epoch, self.batch_size), epoch)

    def val_dataloader(self) -> BatchLoader:
        n_batches = math.ceil(len(self.val) / max(self.batch_size, BATCH_SIZE))
        units = self._units(self.val)
        batches = [self.val[units.members(part)] for part in units.split(np.arange(len(units)), n_batches)]
        return self._loader(lambda epoch: batches, 0)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Replace an empty share of a batch by a graph without labels, which adds exactly zero to all sums.

        So networks need not support empty batches.
        """
        if batch.num_graphs:
            return batch
        smallest = self.train.rows[self.n_atoms[self.train.rows].argmin()]
        batch = Assembler(self.dataset)([smallest])
        for property in PROPERTIES.values():
            if property.mask in batch:
                batch[property.mask] = torch.zeros_like(batch[property.mask])
                if property.per == "pair":
                    batch[property.name] = batch[property.name][:0]
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batch_size = state_dict["batch_size"]
