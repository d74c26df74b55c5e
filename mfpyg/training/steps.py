"""Steps of the optimiser: from how many batches, and which must not be made: of weights that no label speaks of, and
along no finite gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import lightning
import torch
import torch.distributed as dist

from mfpyg.errors import MFPyGError
from mfpyg.models import MultiFidelityPotential

Cause = TypeVar("Cause")


class Diverged(MFPyGError):
    """Weights have grown until a loss or a gradient is no finite number; the message says where."""


def skip_unlabelled(potential: MultiFidelityPotential, labelled: Mapping[str, bool]) -> None:
    """Take the gradients away from what the labels of a batch say nothing of.

    A gradient of zero would not do: Adam would go on moving a head by the momentum of earlier batches, and let
    its moments decay. Without a gradient, neither weights nor moments change. What fidelities share, the backbone, is
    left out of a step only where no fidelity has a label.

    Args:
        potential: after the backward pass.
        labelled: whether each fidelity predicted has a label in the batch, over all processes, so that these agree.
    """
    without = [name for name, there in labelled.items() if not there]
    if not without:
        return
    skipped = potential if len(without) == len(labelled) else potential.parts_of(without)
    for parameter in skipped.parameters():
        parameter.grad = None


def average_over(potential: MultiFidelityPotential, batches: int, divided_by: int) -> None:
    """Make gradients that were added up over some batches, and divided by another number, their average."""
    for parameter in potential.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(divided_by / batches)


def makes_step(trainer: lightning.Trainer, batch_number: int) -> bool:
    """Whether the optimiser makes a step after a batch of the epoch, instead of waiting for more gradients."""
    n = batch_number + 1
    return n % trainer.accumulate_grad_batches == 0 or n == trainer.num_training_batches


def fault_of_gradients(potential: MultiFidelityPotential) -> str | None:
    """Which gradient is not finite, or so large that its square, which Adam keeps, is not; ``None`` if all are well."""
    found = {name: p.grad for name, p in potential.named_parameters() if p.grad is not None}
    if not found:
        return None
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in found.values()])
    if torch.isfinite(norms.square().sum()):
        return None
    for name, gradient in found.items():
        if not torch.isfinite(gradient).all():
            return f"that of {name}{_owner(potential, name)} is not finite"
    return f"its norm is {float(torch.linalg.vector_norm(norms.double())):.1e}"


def _owner(potential: MultiFidelityPotential, parameter: str) -> str:
    """``" (of cc)"`` for a parameter that a fidelity has of its own."""
    wanted = potential.get_parameter(parameter)
    for name in potential.fidelities:
        if any(p is wanted for p in potential.parts_of([name]).parameters()):
            return f" (of {name})"
    return ""


def first_cause(cause: Cause | None) -> Cause | None:
    """The cause that the first process that knows one gives; of a run of one process, its own.

    All processes have to call it, as they do where what they have in common is not finite.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return cause
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, cause)
    return next((one for one in every if one is not None), None)
