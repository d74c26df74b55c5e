"""Stages for modules that are tested alone."""

from __future__ import annotations

import numpy as np

from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.sampling import Sampling
from mfpyg.training.stage import Stage


def stage_of(loss: MultiFidelityLoss, lr: float = 1e-3, decay: float = 0.0) -> Stage:
    """A stage for a module that gets its batches from somebody else."""
    none = np.arange(0)
    return Stage(
        name="all", fidelities=loss.fidelities, epochs=1, loss=loss, lr=lr, weight_decay=decay, val=none,
        dataset=None, train=Sampling(none, np.ones((0, 1), bool), seed=0),  # type: ignore[arg-type]
    )  # fmt: skip
