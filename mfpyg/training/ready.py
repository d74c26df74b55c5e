"""Labels and neighbours of a batch, found before the training step, which then does not wait for its device."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch_geometric.data import Batch

from mfpyg.errors import MFPyGError
from mfpyg.models import Potential
from mfpyg.training.loss import Entries, MultiFidelityLoss


class Ready(NamedTuple):
    """Batch with its labelled entries, checked and with its neighbours.

    Attributes:
        batch: batch, with all labels.
        network: potential that the data were prepared for.
        entries: labelled entries.
        prepared: result of the loss's ``prepare``; ``None`` if it failed, as the prediction will.
    """

    batch: Batch
    network: Potential
    entries: Entries
    prepared: Any

    def used_by(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of all tensors until the work of a CUDA stream with them is done."""
        self.batch.record_stream(stream)
        for tensor in [*self.entries.values(), *getattr(self.prepared, "tensors", list)()]:
            tensor.record_stream(stream)


def make_ready(network: Potential, loss: MultiFidelityLoss, batch: Batch, *moment: int) -> Ready:
    """Find the labels of a batch, check it and find its neighbours, see :meth:`MultiFidelityLoss.prepare`."""
    entries, prepared = loss.entries(batch), None
    with contextlib.suppress(MFPyGError):  # the step finds the same, and says where
        prepared = loss.prepare(network, batch, entries, *moment)
    return Ready(batch, network, entries, prepared)
