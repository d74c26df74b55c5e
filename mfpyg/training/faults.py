"""Steps of a training with numbers that are not finite, and their causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.diagnosis import fault_of_data, fault_of_predictions
from mfpyg.models import MultiFidelityPotential, Potential, Prediction
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.optimizer import Diverged, first_cause

Item = TypeVar("Item")

Fault = tuple[str, bool]
"""Description of numbers that are not finite, and whether they are in the data."""

READ_EVERY = 32
"""Steps after which flags on a GPU are read. Their batches are kept until then."""


@dataclass
class Compared:
    """Batch whose gradient is part of an optimiser step.

    Attributes:
        potential, loss, batch: what was compared.
        moment: epoch, and number of the batch in it.
        when: epoch, step and learning rate in words.
        labelled: result of :meth:`MultiFidelityLoss.labelled`.
        value: loss, detached.
    """

    potential: MultiFidelityPotential
    loss: MultiFidelityLoss
    batch: Batch
    moment: tuple[int, int]
    when: str
    labelled: dict[tuple[str, str], bool]
    value: Tensor


class Flags(Generic[Item]):
    """Flags on a device, read once in so many steps, as reading one waits for the device.

    A flag is True from the first step on in which a number was not finite.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._flags: list[Tensor] = []

    def add(self, item: Item, wrong: Tensor) -> Tensor:
        """Add a step, and whether one of its numbers is not finite, () bool; return its flag."""
        self._items.append(item)
        self._flags.append(wrong | self._flags[-1] if self._flags else wrong)
        return self._flags[-1]

    @property
    def due(self) -> bool:
        """True if it is time to read them."""
        return len(self._items) >= READ_EVERY

    def read(self) -> Item | None:
        """Forget all steps; return the first with a number that is not finite."""
        items, flags = self._items, self._flags
        self._items, self._flags = [], []
        wrong = torch.stack(flags).tolist() if flags else []
        return items[wrong.index(True)] if True in wrong else None


def find_fault(
    potential: Potential,
    loss: MultiFidelityLoss,
    batch: Batch,
    predictions: Mapping[str, Prediction] | None,
    molecules: Sequence[str],
) -> Fault | None:
    """Find numbers that are not finite in a batch, or in the predictions (default: made anew)."""
    fault = fault_of_data(potential, batch, loss.labels, molecules)
    if fault is not None:
        return fault, True
    fault = fault_of_predictions(predictions or loss.predict(potential, batch), batch, molecules)
    return None if fault is None else (fault, False)


def failure(what: str, when: str, fault: Fault | None, clip: float | None) -> MFPyGError:
    """Error that ends the run: what happened, when, and why.

    All processes must call it, as their findings are gathered.
    """
    fault = first_cause(fault)
    because = "" if fault is None else f": {fault[0]}"
    if fault is not None and fault[1]:
        return MFPyGError(f"{what}{when}{because}")
    advice = "lower optim.lr or optim.clip" if clip else "lower optim.lr, or set optim.clip"
    return Diverged(f"{what}{when}{because}; {advice}")
