"""Building of potentials from settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mfpyg import backbones
from mfpyg.models.delta import DeltaPotential, difference_name
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.settings import TrainSettings
from mfpyg.torch_defaults import model_construction


def build_potential(
    settings: TrainSettings, species: Sequence[int], fidelities: Sequence[str], charges: Sequence[str] = ()
) -> MultiFidelityPotential:
    """Build a potential in float32, with weights drawn from torch's global generator.

    Args:
        settings: backbone, its options, heads, and the neighbour-list engine.
        species: atomic numbers.
        fidelities: names of the levels of theory.
        charges: those with charges and dipole moments.

    Raises:
        MFPyGError: for an unknown backbone, or invalid options.
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
            charges=charges,
        )
    potential.settings = settings
    return potential


def build_delta(
    settings: TrainSettings,
    species: Sequence[int],
    fidelities: Sequence[str],
    base_level: str,
    charges: Sequence[str] = (),
) -> DeltaPotential:
    """Build a Δ-learning potential in float32, with weights drawn from torch's global generator.

    Args:
        settings: settings of both networks, as in :func:`build_potential`.
        species: atomic numbers.
        fidelities: names of the lower levels, followed by the target.
        base_level: lower level that the difference is added to.
        charges: those with charges and dipole moments; the base level must be among them if the target is.

    Raises:
        MFPyGError: as in :func:`build_potential`, or if ``base_level`` is not a lower level.
    """
    *lower, target = fidelities
    change = difference_name(target, base_level)
    base = build_potential(settings, species, lower, [name for name in charges if name != target])
    difference = build_potential(settings, species, [change], [change] if target in charges else [])
    potential = DeltaPotential(base, difference, base_level, target)
    potential.settings = settings
    return potential
