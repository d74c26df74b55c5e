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
    _call(x, weight, result, sizes, groups=weight.shape[0] // sizes[0], transposed=True, add=bias is not None)
    return result


def product(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """x W; (n_atoms, k), (k, F) -> (n_atoms, F)."""
    if not _is_quicker(x):
        return x @ weight
    result = x.new_empty(x.shape[0], weight.shape[1])
    in_huge_pages(result)
    _call(x, weight, result, sizes, groups=1, transposed=False, add=False)
    return result


def add_product(result: Tensor, x: Tensor, weight: Tensor, sizes: Sizes) -> None:
    """Add x W, see :func:`product`, to ``result``, (n_atoms, F)."""
    if _is_quicker(x):
        _call(x, weight, result, sizes, groups=1, transposed=False, add=True)
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


def _call(x: Tensor, weight: Tensor, result: Tensor, sizes: Sizes, *, groups: int, transposed: bool, add: bool) -> None:
    if {x.dtype, weight.dtype} != {result.dtype}:
        raise TypeError(f"arrays of different types: {[x.dtype, weight.dtype, result.dtype]}")
    if result.shape != (x.shape[0], groups * sizes[0]) or not result.is_contiguous():
        raise ValueError(f"result is {tuple(result.shape)}, expected {(x.shape[0], groups * sizes[0])}, contiguous")
    expected = (result.shape[1], x.shape[1]) if transposed else (x.shape[1], result.shape[1])
    if weight.shape != expected:
        raise ValueError(f"weights are {tuple(weight.shape)}, expected {expected}")
    x, weight = x.contiguous(), weight.contiguous()  # alive until the call has returned
    numbers = [x.shape[0], x.shape[1], groups, int(transposed), int(add)]
    addresses = [array.data_ptr() for array in (x, weight, result)]
    if function("dense", "iqqqqqPPP", result.dtype, sizes)(torch.get_num_threads(), *numbers, *addresses):
        raise MemoryError("no memory for the transposed weights")
