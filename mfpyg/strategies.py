"""The strategies of the package, and what ``--strategy`` makes of the inputs of a training."""

from __future__ import annotations

import math
from collections.abc import Callable

from mfpyg.models import Potential
from mfpyg.training.inputs import Inputs
from mfpyg.training.stage import Stage
from mfpyg.training.strategies import delta, finetune, joint, meta, transfer

Strategy = Callable[[Inputs], tuple[Potential, list[Stage]]]

_STAGES: dict[str, Strategy] = {
    "mfl": joint.stages,
    "tl": transfer.stages,
    "delta": delta.stages,
    "meta": meta.stages,
}


def stages_of(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """The potential to begin with, and the stages, of a training.

    Raises:
        MFPyGError: if the data or the backbone lack what the strategy needs.
    """
    settings = inputs.settings
    if inputs.start is not None:
        return finetune.stages(inputs)
    potential, stages = _STAGES[settings.strategy](inputs)
    if settings.strategy != "mfl":
        steps = math.ceil(math.ceil(inputs.budget / settings.batch_size) / settings.optim.accumulate)
        named = ", then ".join(f"{stage.name} {stage.epochs:,}" for stage in stages)
        inputs.notes.insert(0, f"strategy {settings.strategy}, epochs of {steps:,} steps: {named}")
    return potential, stages
