"""Functions of single edges and single atoms by ``pointwise.c``, and their derivatives times a gradient.

Each equals its definition (``Sensitivity``, ``harmonics``, ``Interaction.invariants``) and stands for a dozen
operations of torch, which take some microseconds each, however few edges there are. Autograd knows nothing of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mfpyg.memory import in_huge_pages
from mfpyg.models.build_native import library

Sizes = tuple[int, int, int]
"""Features, sensitivities and components, for which the loops were compiled."""


def sensitivity(dist: Tensor, mu: Tensor, sigma: Tensor, cutoff: float, sizes: Sizes) -> Tensor:
    """See :class:`mfpyg.models.sensitivity.Sensitivity`; dist (n_edges,) -> (n_edges, n)."""
    result = dist.new_empty(dist.shape[0], sizes[1])
    _call("sensitivity", sizes, [cutoff], [dist, mu, sigma], result)
    return result


def sensitivity_gradient(
    dist: Tensor, mu: Tensor, sigma: Tensor, cutoff: float, values: Tensor, gradient: Tensor, sizes: Sizes
) -> Tensor:
    """Of <gradient, values> by dist, (n_edges,); values are the sensitivities."""
    result = torch.empty_like(dist)
    _call("sensitivity_gradient", sizes, [cutoff], [dist, mu, sigma, values, gradient], result)
    return result


def harmonics(edge_vec: Tensor, dist: Tensor, sizes: Sizes) -> Tensor:
    """See :func:`mfpyg.models.interaction.harmonics`; edge_vec (n_edges, 3) -> (n_edges, n_components)."""
    result = dist.new_empty(dist.shape[0], sizes[2])
    _call("harmonics", sizes, [], [edge_vec, dist], result)
    return result


def harmonics_gradient(edge_vec: Tensor, dist: Tensor, gradient: Tensor, sizes: Sizes) -> Tensor:
    """Of <gradient, harmonics> by edge_vec, (n_edges, 3)."""
    result = dist.new_empty(dist.shape[0], 3)
    _call("harmonics_gradient", sizes, [], [edge_vec, dist, gradient], result)
    return result


def invariants(moments: Tensor, scales: Sequence[Tensor], cusp: float, sizes: Sizes) -> Tensor:
    """See :meth:`mfpyg.models.interaction.Interaction.invariants`; (n_atoms, n_components, F) -> (n_atoms, F)."""
    result = moments.new_empty(moments.shape[0], sizes[0])
    _call("invariants", sizes, [cusp], [moments, *_two(scales)], result)
    return result


def invariants_gradient(
    moments: Tensor, scales: Sequence[Tensor], cusp: float, gradient: Tensor, sizes: Sizes
) -> Tensor:
    """Of <gradient, invariants> by the moments, (n_atoms, n_components, F)."""
    result = moments.new_empty(moments.shape)
    _call("invariants_gradient", sizes, [cusp], [moments, *_two(scales), gradient], result)
    return result


def _two(scales: Sequence[Tensor]) -> list[Tensor | None]:
    """Those of orders 1 and 2, where there are such."""
    return [*scales, None, None][:2]


def _call(name: str, sizes: Sizes, numbers: Sequence[float], inputs: Sequence[Tensor | None], output: Tensor) -> None:
    """Call a function of ``pointwise.c``; ``None`` is a null pointer. It has a loop over the rows of its output."""
    if {array.dtype for array in inputs if array is not None} != {output.dtype}:
        raise TypeError(f"arrays of different types: {[array.dtype for array in inputs if array is not None]}")
    in_huge_pages(output)
    arrays = [None if array is None else array.contiguous() for array in inputs]  # alive until the call has returned
    pointers = [None if array is None else ctypes.c_void_p(array.data_ptr()) for array in (*arrays, output)]
    function = getattr(library(output.dtype, *sizes), name)
    function(torch.get_num_threads(), ctypes.c_int64(output.shape[0]), *map(ctypes.c_double, numbers), *pointers)
