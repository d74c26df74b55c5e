"""Check of all laws for every fidelity."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from mfpyg.models import MultiFidelityPotential
from mfpyg.properties import HEADS, of_heads
from mfpyg.testing import invariance, smoothness
from mfpyg.testing.charges import charges
from mfpyg.testing.subject import Law, PotentialError, Subject
from mfpyg.torch_defaults import with_default_torch_settings


@with_default_torch_settings
def check_potential(potential: nn.Module, *, seed: int = 0) -> list[Law]:
    """Check a potential, or a backbone, to which linear heads, of charges too, for two fidelities are added.

    The laws are, for each fidelity, of energies, forces, stresses and Hessians, and of charges and dipoles if it has a
    charge head: they are invariant or equivariant under rotation, reflection, translation and permutation of atoms,
    those of crystals too; forces are the negative numerical gradient, stresses the numerical derivative by strain, and
    Hessians that of forces; Hessians are symmetric, and their rows add up to zero; charges add up to the charge of the
    graph, and the dipole of a neutral molecule is Σ q x; all are continuous where an atom crosses the cutoff, and
    energies along a path through a crowd of atoms; energies of distant fragments are additive; graphs of a batch are
    independent, also in training; a supercell has the properties of its cells; an isolated atom has no force and an
    energy that depends on its element only (its reference energy if ``potential.isolated`` is ``"reference"``);
    derivatives of a force loss with respect to weights are correct; predictions are reproducible to the last bit; and
    the loss of a fidelity has no gradient in the heads, of charges too, and private blocks of another.

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
    if not isinstance(module, MultiFidelityPotential):
        module = MultiFidelityPotential(module, ["a", "b"], further=dict.fromkeys("ab", of_heads(HEADS)))
    potential = module.double().eval()
    potential.engine, potential.compiled = "auto", False
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for parameter in (*potential.heads.parameters(), *potential.further_heads.parameters()):
            parameter.normal_(std=0.3)  # initially too small; errors show at some kcal/mol
        for head in potential.heads:
            head.reference.copy_(torch.randn(len(potential.species)))  # type: ignore[operator, union-attr]
    return potential


_CHECKS: tuple[Callable[[Subject], list[Law]], ...] = (
    invariance.symmetries,
    smoothness.gradient,
    smoothness.stress,
    smoothness.hessians,
    charges,
    smoothness.continuity,
    smoothness.crowd,
    invariance.independence,
    invariance.supercell,
    invariance.isolated,
    smoothness.weights,
    invariance.repeats,
    invariance.fidelities,
)
