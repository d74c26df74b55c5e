"""Functions of edges and atoms by ``pointwise.c``: for predictions that are differentiated once, by positions alone.

Each equals its definition (``Sensitivity``, ``harmonics``, ``Interaction.invariants``) and stands for two dozen small
operations of torch, of which the time of a small molecule is made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mfpyg.models.build_native import library

Sizes = tuple[int, int, int]
"""Features, sensitivities and components, for which the loops were compiled."""


def sensitivity(dist: Tensor, mu: Tensor, sigma: Tensor, cutoff: float, sizes: Sizes) -> Tensor:
    """See :class:`mfpyg.models.sensitivity.Sensitivity`; differentiable by dist (n_edges,), -> (n_edges, n)."""
    return _Sensitivity.apply(dist, mu.detach(), sigma.detach(), cutoff, sizes)


def harmonics(edge_vec: Tensor, dist: Tensor, sizes: Sizes) -> Tensor:
    """See :func:`mfpyg.models.interaction.harmonics`; differentiable by edge_vec (n_edges, 3), of length dist."""
    return _Harmonics.apply(edge_vec, dist.detach(), sizes)


def invariants(moments: Tensor, scales: Sequence[Tensor], cusp: float, sizes: Sizes) -> Tensor:
    """See :meth:`mfpyg.models.interaction.Interaction.invariants`; differentiable by the moments."""
    return _Invariants.apply(moments, [scale.detach() for scale in scales], cusp, sizes)


def _call(name: str, like: Tensor, sizes: Sizes, numbers: Sequence[float], arrays: Sequence[Tensor | None]) -> None:
    """Call a function of ``pointwise.c`` with a loop as long as an array; ``None`` is a null pointer."""
    if {array.dtype for array in arrays if array is not None} != {like.dtype}:
        raise TypeError(f"arrays of different types: {[array.dtype for array in arrays if array is not None]}")
    arrays = [None if array is None else array.contiguous() for array in arrays]  # alive until the call has returned
    pointers = [None if array is None else ctypes.c_void_p(array.data_ptr()) for array in arrays]
    function = getattr(library(like.dtype, *sizes), name)
    function(torch.get_num_threads(), ctypes.c_int64(like.shape[0]), *map(ctypes.c_double, numbers), *pointers)


class _Sensitivity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dist: Tensor, mu: Tensor, sigma: Tensor, cutoff: float, sizes: Sizes) -> Tensor:
        result = dist.new_empty(dist.shape[0], mu.shape[0])
        _call("sensitivity", dist, sizes, [cutoff], [dist, mu, sigma, result])
        ctx.save_for_backward(dist, mu, sigma, result)
        ctx.cutoff, ctx.sizes = cutoff, sizes
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dist, *rest = ctx.saved_tensors
        by_dist = torch.empty_like(dist)
        _call("sensitivity_gradient", dist, ctx.sizes, [ctx.cutoff], [dist, *rest, gradients[0], by_dist])
        return by_dist, None, None, None, None


class _Harmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edge_vec: Tensor, dist: Tensor, sizes: Sizes) -> Tensor:
        result = dist.new_empty(dist.shape[0], sizes[2])
        _call("harmonics", dist, sizes, [], [edge_vec, dist, result])
        ctx.save_for_backward(edge_vec, dist)
        ctx.sizes = sizes
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        edge_vec, dist = ctx.saved_tensors
        by_vec = dist.new_empty(dist.shape[0], 3)
        _call("harmonics_gradient", dist, ctx.sizes, [], [edge_vec, dist, gradients[0], by_vec])
        return by_vec, None, None


class _Invariants(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, moments: Tensor, scales: list[Tensor], cusp: float, sizes: Sizes) -> Tensor:
        result = moments.new_empty(moments.shape[0], moments.shape[2])
        ctx.save_for_backward(moments, *scales)
        ctx.cusp, ctx.sizes = cusp, sizes
        _call("invariants", moments, sizes, [cusp], [moments, *_two(scales), result])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        moments, *scales = ctx.saved_tensors
        by_moments = moments.new_empty(moments.shape)
        arrays = [moments, *_two(scales), gradients[0], by_moments]
        _call("invariants_gradient", moments, ctx.sizes, [ctx.cusp], arrays)
        return by_moments, None, None, None


def _two(scales: Sequence[Tensor]) -> list[Tensor | None]:
    """Those of orders 1 and 2, where there are such."""
    return [*scales, None, None][:2]
