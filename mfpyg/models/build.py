"""Building of potentials from settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mfpyg import backbones
from mfpyg.models.delta import DeltaPotential, difference_name
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.settings import TrainSettings
from mfpyg.torch_defaults import model_construction


def build_potential(
    settings: TrainSettings,
    species: Sequence[int],
    fidelities: Sequence[str],
    further: Mapping[str, str] | None = None,
) -> MultiFidelityPotential:
    """Build a potential in float32, with weights drawn from torch's global generator.

    Args:
        settings: backbone, its options, heads, and the neighbour-list engine.
        species: atomic numbers.
        fidelities: names of the levels of theory.
        further: ``{fidelity: letters}`` of properties with heads of their own, see :data:`mfpyg.properties.HEADS`.

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
            further=further,
            repulsion=settings.repulsion,
        )
    potential.settings = settings
    return potential


def build_difference(
    settings: TrainSettings, species: Sequence[int], name: str, letters: str
) -> MultiFidelityPotential:
    """Build the network of a difference of levels, in which a repulsion of both levels cancels.

    Args:
        settings, species: as in :func:`build_potential`.
        name: name of the difference.
        letters: properties of the target, of which some have heads of their own.
    """
    return build_potential(dataclasses.replace(settings, repulsion="none"), species, [name], {name: letters})


def build_delta(
    settings: TrainSettings,
    species: Sequence[int],
    fidelities: Sequence[str],
    base_level: str,
    further: Mapping[str, str] | None = None,
) -> DeltaPotential:
    """Build a Δ-learning potential in float32, with weights drawn from torch's global generator.

    Args:
        settings: settings of both networks, as in :func:`build_potential`.
        species: atomic numbers.
        fidelities: names of the lower levels, followed by the target.
        base_level: lower level that the difference is added to.
        further: properties with heads of their own, as in :func:`build_potential`; the base level must have those of
            the target.

    Raises:
        MFPyGError: as in :func:`build_potential`, or if ``base_level`` is not a lower level.
    """
    *lower, target = fidelities
    change = difference_name(target, base_level)
    further = further or {}
    base = build_potential(settings, species, lower, {name: of for name, of in further.items() if name != target})
    difference = build_difference(settings, species, change, further.get(target, ""))
    potential = DeltaPotential(base, difference, base_level, target)
    potential.settings = settings
    return potential
