"""From settings to a potential."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from mfpyg.errors import unknown_name
from mfpyg.models.hipnn import HIPNN
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.settings import BACKBONES, TrainSettings

_CLASSES: dict[str, type[nn.Module]] = {"hipnn": HIPNN}
assert _CLASSES.keys() == BACKBONES.keys()


def build_potential(
    settings: TrainSettings, species: Sequence[int], fidelities: Sequence[str]
) -> MultiFidelityPotential:
    """A potential with fresh weights, drawn from torch's global generator.

    Args:
        settings: backbone, its options, and the neighbour-list engine.
        species: atomic numbers.
        fidelities: names of the levels of theory.

    Raises:
        MFPyGError: for an unknown backbone.
    """
    if settings.backbone not in _CLASSES:
        raise unknown_name("backbone", settings.backbone, _CLASSES)
    backbone = _CLASSES[settings.backbone](species, **dataclasses.asdict(settings.model))
    return MultiFidelityPotential(backbone, fidelities, settings.engine)
