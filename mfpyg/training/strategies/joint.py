"""Training on all levels at once (strategy ``mfl``), in one stage."""

from __future__ import annotations

import math

from mfpyg.models import Potential
from mfpyg.settings import SamplingSettings
from mfpyg.training.check import check_minimum
from mfpyg.training.inputs import Inputs
from mfpyg.training.labels import labelled_rows
from mfpyg.training.pairs import pair_numbers
from mfpyg.training.sampling import Sampling
from mfpyg.training.stage import Stage


def stages(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """Potential of all levels, with fresh weights, and its stage.

    Raises:
        MFPyGError: if a split has elements that the training split does not have.
    """
    names = [f.name for f in inputs.fidelities]
    potential = inputs.potential(names)
    for name, reference in inputs.references(names).items():
        potential.reference(name).copy_(reference)
    return potential, [joint_stage(inputs)]


def joint_stage(inputs: Inputs) -> Stage:
    """Stage on all labels, with the sampling, weights and monitor of the settings."""
    settings = inputs.settings
    monitor = "val/loss" if settings.monitor == "sum" else f"val/{settings.monitor}/loss"
    train = joint_sampling(inputs)
    return inputs.stage(Stage, settings.strategy, inputs.fidelities, settings.epochs, train=train, monitor=monitor)


def joint_sampling(inputs: Inputs) -> Sampling:
    """Sampling of all conformations with a label.

    Raises:
        MFPyGError: if there are fewer labels than the minimum per batch.
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
        pair=pair_numbers(inputs.dataset, rows),
    )


def temperature_of(settings: SamplingSettings) -> float:
    """Temperature τ of a sampling strategy, see :mod:`mfpyg.training.sampling`."""
    return {"proportional": 1.0, "balanced": math.inf, "temperature": settings.temperature or 2.0}[settings.strategy]
