"""All laws, of every fidelity."""

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
    """Check a potential, or a backbone, which linear heads of two fidelities are put on.

    That is, for each fidelity: energies do not change with rotation, reflection, translation and order of the atoms,
    and forces turn with them; forces are the negative numerical gradient; energies and forces are continuous where an
    atom crosses the cutoff, and energies on a path through a crowd of atoms; energies of fragments far from each other
    add; graphs of a batch do not see each other, in training neither; a supercell is its cells (energy, forces,
    stress); an atom alone has an energy that depends on nothing else and no force (its reference energy, where
    ``potential.isolated`` is ``"reference"``); energies can be differentiated twice, and a loss of forces by the
    weights; a prediction repeats to the last bit; and the loss of one fidelity leaves the parts of another alone.

    Args:
        potential: is not changed.
        seed: of molecules and weights.

    Returns:
        The laws with their errors, in the order above, fidelity by fidelity.

    Raises:
        PotentialError: naming each law that is broken. An error of the potential itself comes as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prepared = _prepared(potential)
        with torch.enable_grad():
            laws = [law for name in prepared.fidelities for law in _laws(Subject(prepared, name))]
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


def _prepared(module: nn.Module) -> MultiFidelityPotential:
    """A copy in float64 on the CPU, in evaluation mode, with random weights and references."""
    module = copy.deepcopy(module).cpu()
    potential = module if isinstance(module, MultiFidelityPotential) else MultiFidelityPotential(module, ["a", "b"])
    potential = potential.double().eval()
    potential.engine, potential.compiled = "auto", False
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for parameter in potential.heads.parameters():  # small at the start; energies of some kcal/mol show errors
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
