"""Adam with decoupled weight decay of those parameters that should decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mfpyg.training.restoring import checked_when_loaded


def decaying(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that weight decay acts on: weight matrices and embeddings.

    A parameter of two or more dimensions is one. So is a flat one that is called ``weight``, as e3nn has them, but not
    that of a normalisation layer. This leaves out biases, HIP-NN's μ, σ and tensor scales, and Bessel frequencies.
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
    """What an optimiser takes as its parameters: those that decay, and those that do not.

    Args:
        module: that the parameters are of, see :func:`decaying`.
        trained: its parameters that are trained.
        weight_decay: 0 for one group of all, in their order.
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
    """Adam, or AdamW where there is weight decay; both leave a parameter without a gradient alone.

    Args:
        module, trained, weight_decay: see :func:`groups`; a step multiplies what decays by
            1 − learning rate × weight decay.
        lr: initial learning rate.
        betas: of Adam.
    """
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    # Fused: a step of a small network is bound by the number of calls, not by arithmetic.
    return checked_when_loaded(kind(groups(module, trained, weight_decay), lr=lr, betas=betas, fused=True))
