"""Functions of single edges, and their vector-Jacobian products, by ``pointwise.c``.

Each equals its definition (``Sensitivity``, ``harmonics``) and replaces a dozen torch operations, which take some
microseconds each even for few edges. Autograd does not record them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfpyg.kernels.compilation import function

Sizes = tuple[int, int, int]
"""Numbers of features, sensitivities and components that the loops are compiled for."""


def sensitivity(dist: Tensor, mu: Tensor, sigma: Tensor, cutoff: float, sizes: Sizes) -> Tensor:
    """See :class:`mfpyg.models.interaction.Sensitivity`; dist (n_edges,) -> (n_edges, n)."""
    result = dist.new_empty(dist.shape[0], sizes[1])
    _call("sensitivity", sizes, [cutoff], [dist, mu, sigma], result)
    return result


def sensitivity_gradient(
    dist: Tensor, mu: Tensor, sigma: Tensor, cutoff: float, values: Tensor, gradient: Tensor, sizes: Sizes
) -> Tensor:
    """Derivative of <gradient, values> with respect to dist, (n_edges,); values are the sensitivities."""
    result = torch.empty_like(dist)
    _call("sensitivity_gradient", sizes, [cutoff], [dist, mu, sigma, values, gradient], result)
    return result


def harmonics(edge_vec: Tensor, dist: Tensor, sizes: Sizes) -> Tensor:
    """See :func:`mfpyg.models.interaction.harmonics`; edge_vec (n_edges, 3) -> (n_edges, n_components)."""
    result = dist.new_empty(dist.shape[0], sizes[2])
    _call("harmonics", sizes, [], [edge_vec, dist], result)
    return result


def harmonics_gradient(edge_vec: Tensor, dist: Tensor, gradient: Tensor, sizes: Sizes) -> Tensor:
    """Derivative of <gradient, harmonics> with respect to edge_vec, (n_edges, 3)."""
    result = dist.new_empty(dist.shape[0], 3)
    _call("harmonics_gradient", sizes, [], [edge_vec, dist, gradient], result)
    return result


def _call(name: str, sizes: Sizes, numbers: Sequence[float], inputs: Sequence[Tensor], output: Tensor) -> None:
    """Call a function of ``pointwise.c``, which loops over the rows of its output."""
    if {array.dtype for array in inputs} != {output.dtype}:
        raise TypeError(f"arrays of different types: {[array.dtype for array in inputs]}")
    arrays = [array.contiguous() for array in inputs]  # alive until the call has returned
    call = function(name, "iq" + len(numbers) * "d" + (len(arrays) + 1) * "P", output.dtype, sizes)
    call(torch.get_num_threads(), len(output), *numbers, *[array.data_ptr() for array in arrays], output.data_ptr())
