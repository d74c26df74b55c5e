"""From settings to a potential."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mfpyg import backbones
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.settings import TrainSettings


def build_potential(
    settings: TrainSettings, species: Sequence[int], fidelities: Sequence[str]
) -> MultiFidelityPotential:
    """A potential with fresh weights, drawn from torch's global generator.

    Args:
        settings: backbone, its options, heads, and the neighbour-list engine.
        species: atomic numbers.
        fidelities: names of the levels of theory.

    Raises:
        MFPyGError: for an unknown backbone, or options that make no sense.
    """
    backbone = backbones.find(settings.backbone).make(species, dataclasses.asdict(settings.model))
    head = settings.head
    return MultiFidelityPotential(
        backbone,
        fidelities,
        settings.engine,
        head=head.kind,
        head_width=head.width,
        private_blocks=head.private_blocks,
        isolated=head.isolated,
    )
