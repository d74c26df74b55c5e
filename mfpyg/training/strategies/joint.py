"""Training on all levels at once, ``mfl``: one stage."""

from __future__ import annotations

import math

from mfpyg.models import Potential
from mfpyg.settings import SamplingSettings
from mfpyg.training.check import check_minimum
from mfpyg.training.inputs import Inputs
from mfpyg.training.labels import labelled_rows
from mfpyg.training.sampling import Sampling
from mfpyg.training.stage import Stage


def stages(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """The potential of all levels, with fresh weights, and the stage that trains it.

    Raises:
        MFPyGError: if a split other than training has elements of its own.
    """
    names = [f.name for f in inputs.fidelities]
    potential = inputs.potential(names)
    for name, reference in inputs.references(names).items():
        potential.reference(name).copy_(reference)
    return potential, [joint_stage(inputs)]


def joint_stage(inputs: Inputs) -> Stage:
    """A stage on all labels, sampled, weighted and monitored as the settings say."""
    settings = inputs.settings
    monitor = "val/loss" if settings.monitor == "sum" else f"val/{settings.monitor}/loss"
    train = joint_sampling(inputs)
    return inputs.stage(Stage, settings.strategy, inputs.fidelities, settings.epochs, train=train, monitor=monitor)


def joint_sampling(inputs: Inputs) -> Sampling:
    """Batches of all conformations that carry a label.

    Raises:
        MFPyGError: if there are fewer labels than asked for in each batch.
    """
    settings, names = inputs.settings, [f.name for f in inputs.fidelities]
    rows = inputs.rows("train", inputs.fidelities)
    minimum = check_minimum(settings, names)
    return Sampling(
        rows,
        labelled_rows(inputs.dataset, rows, inputs.fidelities),
        settings.seed,
        temperature_of(settings.sampling),
        None if minimum is None else (names.index(minimum[0]), minimum[1]),
        inputs.dataset.slices["z"].diff().numpy()[rows],
        settings.sampling.window,
    )


def temperature_of(settings: SamplingSettings) -> float:
    """The temperature of :mod:`mfpyg.training.sampling` that a sampling strategy means."""
    return {"proportional": 1.0, "balanced": math.inf, "temperature": settings.temperature or 2.0}[settings.strategy]
