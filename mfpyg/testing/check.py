"""Check of all laws for every fidelity."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from mfpyg.models import MultiFidelityPotential
from mfpyg.testing import invariance, smoothness
from mfpyg.testing.subject import Law, PotentialError, Subject
from mfpyg.torch_defaults import with_default_torch_settings


@with_default_torch_settings
def check_potential(potential: nn.Module, *, seed: int = 0) -> list[Law]:
    """Check a potential, or a backbone, to which linear heads for two fidelities are added.

    The laws are, for each fidelity: energies are invariant, and forces equivariant, under rotation, reflection,
    translation and permutation of atoms; forces are the negative numerical gradient; energies and forces are continuous
    where an atom crosses the cutoff, and energies along a path through a crowd of atoms; energies of distant fragments
    are additive; graphs of a batch are independent, also in training; a supercell has the energy, forces and stress of
    its cells; an isolated atom has no force and an energy that depends on its element only (its reference energy if
    ``potential.isolated`` is ``"reference"``); second derivatives of energies, and derivatives of a force loss with
    respect to weights, are correct; predictions are reproducible to the last bit; and the loss of a fidelity has no
    gradient in the private parts of another.

    Args:
        potential: potential or backbone; not modified.
        seed: seed for molecules and weights.

    Returns:
        The laws with their errors, in the order above, fidelity by fidelity.

    Raises:
        PotentialError: naming each broken law. Errors raised by the potential itself are not caught.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        randomized = _randomized(potential)
        with torch.enable_grad():
            laws = [law for name in randomized.fidelities for law in _laws(Subject(randomized, name))]
    broken = [law for law in laws if not law.holds]
    if broken:
        listed = "\n".join(map(str, broken))
        raise PotentialError(f"{len(broken)} of {len(laws)} laws are broken:\n{listed}")
    return laws


def _laws(subject: Subject) -> list[Law]:
    laws = [law for check in _CHECKS for law in check(subject)]
    if len(subject.potential.fidelities) > 1:
        laws = [dataclasses.replace(law, name=f"{law.name} ({subject.fidelity})") for law in laws]
    return laws


def _randomized(module: nn.Module) -> MultiFidelityPotential:
    """Copy in float64 on the CPU, in evaluation mode, with random weights and reference energies."""
    module = copy.deepcopy(module).cpu()
    potential = module if isinstance(module, MultiFidelityPotential) else MultiFidelityPotential(module, ["a", "b"])
    potential = potential.double().eval()
    potential.engine, potential.compiled = "auto", False
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for parameter in potential.heads.parameters():  # initially too small; errors show at some kcal/mol
            parameter.normal_(std=0.3)
        for head in potential.heads:
            head.reference.copy_(torch.randn(len(potential.species)))  # type: ignore[operator, union-attr]
    return potential


_CHECKS: tuple[Callable[[Subject], list[Law]], ...] = (
    invariance.symmetries,
    smoothness.gradient,
    smoothness.continuity,
    smoothness.crowd,
    invariance.independence,
    invariance.supercell,
    invariance.isolated,
    smoothness.second_derivatives,
    invariance.repeats,
    invariance.fidelities,
)
