"""Functions of the edges of a large system, evaluated for a part of the edges at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from mfpyg.memory import in_huge_pages

EDGES_OF_A_PART = 8192
"""Edges whose intermediate results, some hundreds of bytes each, stay in a processor's cache."""


def by_parts(function: Callable[..., Tensor], rows: Tensor, *parameters: Tensor) -> Tensor:
    """``function(rows, *parameters)`` of a function that treats each row by itself, with any derivative.

    Where there are many rows, no intermediate result is kept; a derivative computes them again. At a million edges
    they are arrays of a hundred MB each, and to get fresh memory for one takes longer than to fill it.

    Args:
        function: (n_rows, …) and the parameters -> (n_rows, …).
        rows: (n_rows, …), floating-point numbers.
        parameters: what else the function's derivatives are taken by.
    """
    if get_proxy_mode() is not None or rows.shape[0] <= 2 * EDGES_OF_A_PART:  # a compiler fuses what it records
        return function(rows, *parameters)
    return _ByParts.apply(function, rows, *parameters)


class _ByParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], rows: Tensor, *parameters: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(rows, *parameters)
        ctx.set_materialize_grads(False)
        return _joined((function(part, *parameters) for part in rows.split(EDGES_OF_A_PART)), rows.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        if gradients[0] is None or not any(needed):
            return (None,) * (1 + len(needed))
        if torch.is_grad_enabled():  # the derivative is differentiated in turn
            return None, *_gradients(ctx.function, [rows, *parameters], gradients[0], needed, True)
        by_parameters: list[Tensor | None] = [None] * len(parameters)

        def by_rows(part: Tensor, gradient: Tensor) -> Tensor:
            inputs = [x.detach().requires_grad_(need) for x, need in zip([part, *parameters], needed, strict=True)]
            with torch.enable_grad():
                by_part, *new = _gradients(ctx.function, inputs, gradient, needed, False)
            for number, value in enumerate(new):
                old = by_parameters[number]
                by_parameters[number] = value if old is None or value is None else old + value
            return part.new_empty(len(part), 0) if by_part is None else by_part

        pairs = zip(rows.split(EDGES_OF_A_PART), gradients[0].split(EDGES_OF_A_PART), strict=True)
        of_rows = _joined((by_rows(*pair) for pair in pairs), rows.shape[0])
        return None, of_rows if needed[0] else None, *by_parameters


def _gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor, needed: tuple[bool, ...], again: bool
) -> list[Tensor | None]:
    """Of <function(*inputs), gradient> by the inputs that need one; whether they are differentiated again."""
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    values = iter(torch.autograd.grad(function(*inputs), wanted, gradient, create_graph=again, allow_unused=True))
    return [next(values) if need else None for need in needed]


def _joined(parts: Iterator[Tensor], n_rows: int) -> Tensor:
    """As torch.cat, but each part is copied to its place, and its memory free, before the next is made."""
    first = next(parts)
    result = first.new_empty(n_rows, *first.shape[1:])
    in_huge_pages(result)
    end = 0
    for part in itertools.chain([first], parts):
        result[end : end + part.shape[0]] = part
        end += part.shape[0]
    return result
