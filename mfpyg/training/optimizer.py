"""Adam with decoupled weight decay; no steps of weights without labels in the batch, or with non-finite gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mfpyg.errors import MFPyGError
from mfpyg.models import MultiFidelityPotential
from mfpyg.properties import HEADS

Cause = TypeVar("Cause")


def decaying(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of a module that weight decay applies to: weight matrices and embeddings.

    These are parameters of two or more dimensions, and flat ones named ``weight``, as in e3nn, except in normalisation
    layers. This leaves out biases, HIP-NN's μ, σ and tensor scales, and Bessel frequencies.
    """
    return [
        parameter
        for layer in module.modules()
        for name, parameter in layer.named_parameters(recurse=False)
        if parameter.dim() >= 2 or (name == "weight" and "Norm" not in type(layer).__name__)
    ]


def groups(
    module: nn.Module, trained: Iterable[nn.Parameter], weight_decay: float
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Parameter groups of an optimiser: those with weight decay, and those without.

    Args:
        module: module of the parameters, see :func:`decaying`.
        trained: its parameters to train.
        weight_decay: weight decay; 0 for a single group of all, in their order.
    """
    if not weight_decay:
        return list(trained)
    decay = {id(parameter) for parameter in decaying(module)}
    split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in trained:
        split[id(parameter) in decay].append(parameter)
    made = [{"params": split[True], "weight_decay": weight_decay}, {"params": split[False], "weight_decay": 0.0}]
    return [group for group in made if group["params"]]


def adam(
    module: nn.Module,
    trained: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """Adam, or AdamW if there is weight decay; both skip parameters without a gradient.

    Args:
        module, trained, weight_decay: see :func:`groups`; a step multiplies decaying parameters by
            1 − learning rate × weight decay.
        lr: initial learning rate.
        betas: coefficients of Adam's moments.
    """
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    # Fused: a step of a small network is bound by the number of calls, not by arithmetic.
    return checked_when_loaded(kind(groups(module, trained, weight_decay), lr=lr, betas=betas, fused=True))


class Diverged(MFPyGError):
    """The weights have grown until a loss or a gradient is not finite; the message says where."""


def skip_unlabelled(potential: MultiFidelityPotential, labelled: Mapping[tuple[str, str], bool]) -> None:
    """Remove the gradients of parameters that no label of a batch depends on.

    With zero gradients, Adam would still move a head by the momentum of earlier batches, and let its moments decay.
    Without a gradient, neither weights nor moments change. The shared backbone is left out of a step only if no
    fidelity has a label.

    Args:
        potential: potential after the backward pass.
        labelled: whether the batch, over all processes, has a label for the head ``energy``, or another one, of each
            predicted fidelity.
    """
    skipped: list[nn.Module] = []
    if not any(labelled.values()):
        skipped.append(potential)
    for name, head in [key for key, there in labelled.items() if not there]:
        if not any(there for (other, _), there in labelled.items() if other == name):
            skipped.append(potential.parts_of([name]))  # private blocks, too
        else:
            skipped.append(potential.further_head(name, head) if head in HEADS else potential.head(name))
    for parameter in nn.ModuleList(skipped).parameters():
        parameter.grad = None


def average_over(potential: MultiFidelityPotential, batches: int, divided_by: int) -> None:
    """Turn gradients that were summed over some batches, and divided by another number, into their average."""
    for parameter in potential.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(divided_by / batches)


def makes_step(trainer: lightning.Trainer, batch_number: int) -> bool:
    """True if the optimiser makes a step after this batch of the epoch instead of accumulating gradients."""
    n = batch_number + 1
    return n % trainer.accumulate_grad_batches == 0 or n == trainer.num_training_batches


def squared_norm(potential: MultiFidelityPotential) -> Tensor:
    """Square of the norm of the gradient, (); of nothing where no parameter has one."""
    norms = [torch.linalg.vector_norm(p.grad) for p in potential.parameters() if p.grad is not None]
    return torch.stack(norms).square().sum() if norms else next(potential.parameters()).new_zeros(())


def fault_of_gradients(potential: MultiFidelityPotential) -> str | None:
    """Description of a gradient that is not finite, or whose square is not (Adam needs it); ``None`` if all are."""
    if torch.isfinite(squared_norm(potential)):
        return None
    found = {name: p.grad for name, p in potential.named_parameters() if p.grad is not None}
    for name, gradient in found.items():
        if not torch.isfinite(gradient).all():
            return f"that of {name}{_owner(potential, name)} is not finite"
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in found.values()])
    return f"its norm is {float(torch.linalg.vector_norm(norms.double())):.1e}"


def _owner(potential: MultiFidelityPotential, parameter: str) -> str:
    """``" (of cc)"`` for a parameter that only this fidelity uses."""
    wanted = potential.get_parameter(parameter)
    for name in potential.fidelities:
        if any(p is wanted for p in potential.parts_of([name]).parameters()):
            return f" (of {name})"
    return ""


def first_cause(cause: Cause | None) -> Cause | None:
    """Cause from the first process that has one; in a single process, its own.

    All processes must call it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return cause
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, cause)
    return next((one for one in every if one is not None), None)


def checked_when_loaded(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make an optimiser refuse the state of other weights or options.

    Fused steps would write beyond the end of a smaller state.
    """
    may_differ = ("params", "lr", "initial_lr")
    made = [{k: v for k, v in group.items() if k not in may_differ} for group in optimizer.param_groups]
    optimizer.register_load_state_dict_post_hook(lambda loaded: _check_loaded(loaded, made))
    return optimizer


def _check_loaded(optimizer: torch.optim.Optimizer, made: Sequence[Mapping[str, Any]]) -> None:
    """Check the loaded state; ``made`` has the options of each group of parameters."""
    damaged = "the checkpoint's optimiser is damaged or that of other weights"
    for group, options in zip(optimizer.param_groups, made, strict=True):
        other = [name for name, value in options.items() if group.get(name) != value]
        lr = group["lr"]
        if other or not isinstance(lr, float) or not math.isfinite(lr):
            raise MFPyGError(f"{damaged}: its {', '.join(other) or 'lr'} cannot be resumed; start a new run")
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            right = () if name == "step" else weight.shape
            fits = isinstance(value, Tensor) and value.shape == right and bool(torch.isfinite(value).all())
            if not fits or id(weight) not in trained:
                raise MFPyGError(f"{damaged}: its {name} does not fit a weight {tuple(weight.shape)}; start a new run")
