"""From settings to a potential."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mfpyg import backbones
from mfpyg.models.delta import DeltaPotential, difference_name
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.settings import TrainSettings
from mfpyg.torch_defaults import model_construction


def build_potential(
    settings: TrainSettings, species: Sequence[int], fidelities: Sequence[str]
) -> MultiFidelityPotential:
    """A potential with fresh weights, drawn from torch's global generator; float32, whatever the default type is.

    Args:
        settings: backbone, its options, heads, and the neighbour-list engine.
        species: atomic numbers.
        fidelities: names of the levels of theory.

    Raises:
        MFPyGError: for an unknown backbone, or options that make no sense.
    """
    head = settings.head
    with model_construction():
        potential = MultiFidelityPotential(
            backbones.find(settings.backbone).make(species, dataclasses.asdict(settings.model)),
            fidelities,
            settings.engine,
            head=head.kind,
            head_width=head.width,
            private_blocks=head.private_blocks,
            isolated=head.isolated,
        )
    potential.settings = settings
    return potential


def build_delta(
    settings: TrainSettings, species: Sequence[int], fidelities: Sequence[str], base_level: str
) -> DeltaPotential:
    """A potential of Δ-learning with fresh weights, drawn from torch's global generator.

    Args:
        settings: as in :func:`build_potential`, of both networks.
        species: atomic numbers.
        fidelities: names of the lower levels, and then of the target.
        base_level: which of them the difference is added to.

    Raises:
        MFPyGError: as in :func:`build_potential`, or if the base is none of the lower levels.
    """
    *lower, target = fidelities
    base = build_potential(settings, species, lower)
    difference = build_potential(settings, species, [difference_name(target, base_level)])
    potential = DeltaPotential(base, difference, base_level, target)
    potential.settings = settings
    return potential
