"""Products of many rows with weights by ``dense.c``, where it takes less time than torch.

torch's products on a CPU are MKL's, which uses vectors of 32 bytes on processors of AMD, also on those that have
vectors of 64. There the loops of ``dense.c`` take down to half of the time, as measured on a Zen 5. Autograd knows
nothing of them.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mfpyg.memory import in_huge_pages
from mfpyg.models.build_native import function
from mfpyg.models.pointwise import Sizes

_FEWEST = 128
"""Rows; of fewer, the call takes longer than the product."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """x Wᵀ + b; (n_atoms, k), (m, k), m being F or a multiple of it -> (n_atoms, m)."""
    if not _is_quicker(x):
        return functional.linear(x, weight, bias)
    result = x.new_empty(x.shape[0], weight.shape[0])
    in_huge_pages(result)
    if bias is not None:
        result.copy_(bias.expand_as(result))
    groups = weight.reshape(-1, sizes[0], weight.shape[1]).mT  # (m / F, k, F)
    _call(x, groups, result, sizes, add=bias is not None)
    return result


def product(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """x W; (n_atoms, k), (k, F) -> (n_atoms, F)."""
    if not _is_quicker(x):
        return x @ weight
    result = x.new_empty(x.shape[0], weight.shape[1])
    in_huge_pages(result)
    _call(x, weight.unsqueeze(0), result, sizes, add=False)
    return result


def add_product(result: Tensor, x: Tensor, weight: Tensor, sizes: Sizes) -> None:
    """Add x W, see :func:`product`, to ``result``, (n_atoms, F)."""
    if _is_quicker(x):
        _call(x, weight.unsqueeze(0), result, sizes, add=True)
    else:
        result.addmm_(x, weight)


def _is_quicker(x: Tensor) -> bool:
    return x.shape[0] >= _FEWEST and x.shape[1] > 0 and mkl_is_narrow()


@functools.lru_cache
def mkl_is_narrow() -> bool:
    """Whether torch's products are MKL's and this processor has wider vectors than MKL uses of it."""
    info = Path("/proc/cpuinfo")
    if not torch.backends.mkl.is_available() or not info.is_file():
        return False
    text = info.read_text()
    return "AuthenticAMD" in text and "avx512f" in text


def _call(x: Tensor, groups: Tensor, result: Tensor, sizes: Sizes, *, add: bool) -> None:
    """Σ_k x[r][k] groups[g][k][f] into, or onto, result[r][g·F + f]; (n_atoms, k), (n_groups, k, F)."""
    if {x.dtype, groups.dtype} != {result.dtype}:
        raise TypeError(f"arrays of different types: {[x.dtype, groups.dtype, result.dtype]}")
    expected = groups.shape[0], x.shape[1], sizes[0]
    if groups.shape != expected:
        raise ValueError(f"weights are {tuple(groups.shape)}, expected {expected}")
    width = groups.shape[0] * sizes[0]
    if result.shape != (x.shape[0], width) or not result.is_contiguous():
        raise ValueError(f"result is {tuple(result.shape)}, expected {(x.shape[0], width)}, contiguous")
    x, groups = x.contiguous(), groups.contiguous()  # alive until the call has returned
    numbers = x.shape[0], x.shape[1], groups.shape[0], int(add)
    call = function("dense", "iqqqqPPP", result.dtype, sizes)
    call(torch.get_num_threads(), *numbers, x.data_ptr(), groups.data_ptr(), result.data_ptr())
