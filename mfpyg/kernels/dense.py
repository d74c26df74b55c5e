"""Products of many rows with weights by ``dense.c``, where it is faster than torch.

torch multiplies by MKL, which uses half of the vector width of AMD processors with AVX-512. Autograd does not record
these products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mfpyg.kernels.compilation import function
from mfpyg.kernels.pointwise import Sizes

_FEWEST_ROWS = 128
"""Below this number of rows the call takes longer than the product."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """x Wᵀ + b; (n_atoms, k), (m, k) with m a multiple of F -> (n_atoms, m)."""
    if not _is_faster(x, sizes):
        return functional.linear(x, weight, bias)
    result = x.new_empty(x.shape[0], weight.shape[0])
    if bias is not None:
        result.copy_(bias.expand_as(result))
    _call(x, weight.reshape(-1, sizes[0], weight.shape[1]).mT, result, sizes, add=bias is not None)  # (m / F, k, F)
    return result


def product(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """x W; (n_atoms, k), (k, F) -> (n_atoms, F)."""
    if not _is_faster(x, sizes):
        return x @ weight
    result = x.new_empty(x.shape[0], weight.shape[1])
    _call(x, weight.unsqueeze(0), result, sizes, add=False)
    return result


def add_product(result: Tensor, x: Tensor, weight: Tensor, sizes: Sizes) -> None:
    """Add x W, see :func:`product`, to ``result``, (n_atoms, F)."""
    if _is_faster(x, sizes):
        _call(x, weight.unsqueeze(0), result, sizes, add=True)
    else:
        result.addmm_(x, weight)


def _is_faster(x: Tensor, sizes: Sizes) -> bool:
    many = x.shape[0] >= _FEWEST_ROWS and x.shape[1] > 0
    return many and torch.backends.mkl.is_available() and bool(function("dense_is_faster", "", x.dtype, sizes)())


def _call(x: Tensor, groups: Tensor, result: Tensor, sizes: Sizes, *, add: bool) -> None:
    """Σ_k x[r][k] groups[g][k][f] into, or added to, result[r][g·F + f]; (n_atoms, k), (n_groups, k, F)."""
    if {x.dtype, groups.dtype} != {result.dtype}:
        raise TypeError(f"arrays of different types: {[x.dtype, groups.dtype, result.dtype]}")
    if groups.shape[1:] != (x.shape[1], sizes[0]):
        raise ValueError(f"weights are {tuple(groups.shape)}, expected (n, {x.shape[1]}, {sizes[0]})")
    if result.shape != (x.shape[0], groups.shape[0] * sizes[0]) or not result.is_contiguous():
        raise ValueError(
            f"result is {tuple(result.shape)}, expected {groups.shape[0]} x {sizes[0]} columns, contiguous"
        )
    x, groups = x.contiguous(), groups.contiguous()  # alive until the call has returned
    numbers = x.shape[0], x.shape[1], groups.shape[0], int(add)
    call = function("dense", "iqqqqPPP", result.dtype, sizes)
    call(torch.get_num_threads(), *numbers, x.data_ptr(), groups.data_ptr(), result.data_ptr())
