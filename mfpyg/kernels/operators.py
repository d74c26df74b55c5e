"""Registration of a kernel's moments and their first and second derivatives as torch operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("mfpyg", "DEF")
# Not by torch.library.custom_op: its operators import torch's compiler, which takes a second, when first called, and
# inspect their arguments in every call.


Factors = tuple[Tensor, Tensor, Tensor]
"""Sensitivities s (n_edges, n), harmonics y (n_edges, n_components), transformed features q (n_atoms, n, F)."""

Along = tuple[Tensor, Tensor, Tensor | None]
"""Direction (hs, hy, hq) of a derivative with respect to the factors; ``None``: not along q."""


class Implementation(Protocol):
    """Moments of a kernel and their derivatives.

    ``g`` (n_atoms, n_components, F) is the gradient with respect to the moments, ``parts`` are index tables of the
    graph, and ``option`` is one choice of the kernel.
    """

    @staticmethod
    def moments(factors: Factors, parts: list[Tensor], option: bool) -> Tensor:
        """Moments A, (n_atoms, n_components, F)."""

    @staticmethod
    def gradient(
        factors: Factors, g: Tensor, with_q: bool, parts: list[Tensor], option: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of <g, A> with respect to s, y and q; the last is empty unless ``with_q``."""

    @staticmethod
    def second(
        factors: Factors, g: Tensor, along: Along, parts: list[Tensor], option: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Derivatives of <along, gradient> with respect to s, y, q and g."""


def define_operators(
    name: str, kernel: str, implementation: type[Implementation], devices: Sequence[str]
) -> Callable[..., Tensor]:
    """Register ``mfpyg::NAME``, ``mfpyg::NAME_gradient`` and ``mfpyg::NAME_second``; return the first.

    They have autograd formulas up to the second derivative, and shapes for ``torch.compile``.

    Args:
        name: name of the operator of the moments.
        kernel: name of the kernel, for errors.
        implementation: the functions that compute them.
        devices: dispatch keys, such as ``"CPU"`` and ``"CUDA"``.
    """
    factors, tables = "Tensor s, Tensor y, Tensor q", "Tensor[] parts, bool option"
    schemas = {
        name: f"({factors}, {tables}) -> Tensor",
        f"{name}_gradient": f"({factors}, Tensor g, bool with_q, {tables}) -> (Tensor, Tensor, Tensor)",
        f"{name}_second": f"({factors}, Tensor g, Tensor hs, Tensor hy, Tensor? hq, {tables}) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    }
    ours, fakes = _functions(implementation), _functions(_Fake)
    for (operator, schema), function, fake in zip(schemas.items(), ours, fakes, strict=True):
        _LIBRARY.define(operator + schema, tags=torch.Tag.pt2_compliant_tag)
        for device in devices:
            _LIBRARY.impl(operator, function, device)
        torch.library.register_fake(f"mfpyg::{operator}", fake, lib=_LIBRARY)
    moments, gradient, second = (getattr(torch.ops.mfpyg, operator) for operator in schemas)

    def moments_backward(ctx: Any, g: Tensor | None) -> tuple[Any, ...]:
        if g is None:
            return None, None, None, [None] * len(ctx.parts), None
        with_q = ctx.needs_input_grad[2]  # in the first layer only for derivatives with respect to weights
        ds, dy, dq = gradient(*ctx.saved_tensors, g, with_q, ctx.parts, ctx.option)
        return ds, dy, dq if with_q else None, [None] * len(ctx.parts), None

    def gradient_backward(ctx: Any, hs: Tensor | None, hy: Tensor | None, hq: Tensor | None) -> tuple[Any, ...]:
        s, y, *_ = ctx.saved_tensors
        hs, hy = torch.zeros_like(s) if hs is None else hs, torch.zeros_like(y) if hy is None else hy
        gradients = second(*ctx.saved_tensors, hs, hy, hq, ctx.parts, ctx.option)
        return (*gradients, None, [None] * len(ctx.parts), None)

    def second_backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(f"kernel {kernel} has no third derivative; use kernel padded or definition")

    torch.library.register_autograd(f"mfpyg::{name}", moments_backward, setup_context=_keep, lib=_LIBRARY)
    torch.library.register_autograd(
        f"mfpyg::{name}_gradient", gradient_backward, setup_context=_keep_of_gradient, lib=_LIBRARY
    )
    torch.library.register_autograd(f"mfpyg::{name}_second", second_backward, lib=_LIBRARY)
    return moments  # type: ignore[no-any-return]


def _functions(implementation: type[Implementation]) -> list[Callable[..., Any]]:
    """Functions with the arguments of the operators' schemas."""
    return [
        lambda s, y, q, *others: implementation.moments((s, y, q), *others),
        lambda s, y, q, *others: implementation.gradient((s, y, q), *others),
        lambda s, y, q, g, hs, hy, hq, *others: implementation.second((s, y, q), g, (hs, hy, hq), *others),
    ]


def contiguous_like(arrays: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialized contiguous tensors with the shapes and types of others."""
    return [torch.empty_like(array, memory_format=torch.contiguous_format) for array in arrays]


class _Fake:
    """Shapes of the results."""

    @staticmethod
    def moments(factors: Factors, parts: list[Tensor], option: bool) -> Tensor:
        _, y, q = factors
        return q.new_empty(q.shape[0], y.shape[1], q.shape[2])

    @staticmethod
    def gradient(factors: Factors, g: Tensor, with_q: bool, parts: list[Tensor], option: bool) -> Any:
        s, y, q = factors
        return tuple(contiguous_like([s, y, q if with_q else q.new_empty(0)]))

    @staticmethod
    def second(factors: Factors, g: Tensor, along: Along, parts: list[Tensor], option: bool) -> Any:
        return tuple(contiguous_like([*factors, g]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, parts, option = inputs
    ctx.save_for_backward(*tensors)
    ctx.parts, ctx.option = parts, option
    ctx.set_materialize_grads(False)  # zeros of the size of Q cost as much as their use


def _keep_of_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    s, y, q, g, _, parts, option = inputs
    _keep(ctx, (s, y, q, g, parts, option), output)
