"""Kernel ``triton``: the sum over neighbours on a GPU, without arrays of F numbers per edge.

The programs are in :mod:`mfpyg.kernels.triton_programs`. They take float32 and float64; products of float32 matrices
are exact unless :func:`torch.set_float32_matmul_precision`, or ``torch.backends.cuda.matmul``, allows TF32.
``TRITON_INTERPRET=1``, set before this module is imported, runs them on CPU tensors, for tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import triton
from torch import Tensor

from mfpyg.graph import Graph
from mfpyg.kernels import triton_programs as programs
from mfpyg.kernels.operators import Along, Factors, contiguous_like, define_operators

_TARGETS = 16
"""Targets of a program, the smallest side of a matrix that tensor cores take."""
_FEATURES = 64
"""Most features of a program: with more, its sums do not fit into the registers."""
_WARPS = 8


@dataclass
class TritonSum:
    """Tables of the edges of a graph.

    Attributes:
        parts: table (n_edges, 16) int32, the edges from one source to a block of 16 consecutive targets, and -1; the
            source of each row (n_edges,) int64; block_ptr (n_blocks + 1,) int64, the first row of each block, of
            n_edges at most; by_source (n_edges,) int64, the edges sorted by source; source_ptr (n_atoms + 1,) int64;
            target (n_edges,) int64.
        whole_network: see :class:`mfpyg.kernels.neighbor_sum.NeighborSum`.
        key: see :class:`mfpyg.graph.Prepared`.
    """

    parts: list[Tensor]
    whole_network: ClassVar[bool] = False
    key: ClassVar[None] = None

    def __call__(self, sensitivity: Tensor, harmonics: Tensor, transformed: Tensor) -> Tensor:
        """(n_edges, n), (n_edges, n_components), (n_atoms, n, F) -> (n_atoms, n_components, F)."""
        return _moments(sensitivity, harmonics, transformed, self.parts, False)

    def tensors(self) -> list[Tensor]:
        """See :class:`mfpyg.graph.Prepared`."""
        return self.parts

    def with_tensors(self, tensors: list[Tensor]) -> TritonSum:
        """See :class:`mfpyg.graph.Prepared`."""
        return TritonSum(tensors)


def runs_on(device: torch.device) -> bool:
    """Whether the programs run on a device: a GPU, or the CPU in Triton's interpreter."""
    return device.type == "cuda" or (device.type == "cpu" and triton.knobs.runtime.interpret)


def triton_sum(graph: Graph) -> TritonSum:
    """Create the kernel for a graph; no size of a table depends on more than the numbers of atoms and edges."""
    source, target = graph.edge_index
    n_edges, n_atoms, n_blocks = len(source), graph.n_atoms, -(-graph.n_atoms // _TARGETS)
    number = torch.arange(n_edges, device=source.device)
    place, order = ((target // _TARGETS * n_atoms + source) * _TARGETS + target % _TARGETS).sort(stable=True)
    # Edges from one source to one target, through several images in a small cell, are in different rows.
    image = number - _first_of_run(place, number)
    pair = _starts_run(place // _TARGETS).cumsum(0) - 1  # of a block and a source
    rows = torch.zeros_like(number).scatter_reduce(0, pair, image + 1, "amax")  # of each pair
    ends = rows.cumsum(0)
    row = (ends - rows)[pair] + image  # of each edge
    table = number.new_full((n_edges, _TARGETS), -1, dtype=torch.int32)
    table[row, target[order] % _TARGETS] = order.int()
    source_of_row = torch.zeros_like(number).index_copy(0, row, source[order])
    firsts = torch.searchsorted(target[order] // _TARGETS, torch.arange(n_blocks + 1, device=source.device))
    block_ptr = torch.cat([row, ends[-1:] if n_edges else ends.new_zeros(1)])[firsts]
    sources, by_source = source.sort(stable=True)
    source_ptr = torch.searchsorted(sources, torch.arange(n_atoms + 1, device=source.device))
    return TritonSum([table, source_of_row, block_ptr, by_source, source_ptr, target.contiguous()])


def _starts_run(values: Tensor) -> Tensor:
    """Whether each value differs from the one before, (n,) bool."""
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[1:] = values[1:] != values[:-1]
    return starts


def _first_of_run(values: Tensor, number: Tensor) -> Tensor:
    """Number of the first of each run of equal values, for each value, (n,) int64."""
    return (number * _starts_run(values)).cummax(0).values if len(values) else number


class _Triton:
    """Moments and derivatives by :mod:`mfpyg.kernels.triton_programs`."""

    @staticmethod
    def moments(factors: Factors, parts: list[Tensor], option: bool) -> Tensor:
        return _sum(_contiguous(factors), parts)

    @staticmethod
    def gradient(
        factors: Factors, g: Tensor, with_q: bool, parts: list[Tensor], option: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        factors, g = _contiguous(factors), g.contiguous()
        ds, dy = _by_edges(factors, g, parts)
        return ds, dy, _by_sources(factors, g, parts) if with_q else g.new_empty(0)

    @staticmethod
    def second(
        factors: Factors, g: Tensor, along: Along, parts: list[Tensor], option: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        factors, g, along = _contiguous(factors), g.contiguous(), _contiguous(along)
        ds, dy = _by_edges(factors, g, parts, along)
        return ds, dy, _by_sources(factors, g, parts, along), _sum(factors, parts, along)


def _contiguous(arrays: Any) -> Any:
    return tuple(None if array is None else array.contiguous() for array in arrays)


def _sum(factors: Factors, parts: list[Tensor], along: Along | None = None) -> Tensor:
    _, y, q = factors
    sizes, tiles = _sizes(factors, parts)
    out, n_blocks = q.new_empty(len(q), y.shape[1], q.shape[2]), len(parts[2]) - 1
    if n_blocks:
        arguments = *factors, *_given(factors, along), *parts[:3], out, len(q)
        _launch(programs.moments, (n_blocks, tiles), arguments, {**sizes, **_flags(along)})
    return out


def _by_edges(factors: Factors, g: Tensor, parts: list[Tensor], along: Along | None = None) -> tuple[Tensor, Tensor]:
    s, y, q = factors
    sizes, tiles = _sizes(factors, parts)
    ds, dy, n_blocks = s.new_empty(tiles, *s.shape), y.new_empty(tiles, *y.shape), len(parts[2]) - 1
    if n_blocks:
        arguments = *factors, g, *_given(factors, along), *parts[:3], ds, dy, len(q), len(s)
        _launch(programs.edge_gradient, (n_blocks, tiles), arguments, {**sizes, **_flags(along)})
    return (ds[0], dy[0]) if tiles == 1 else (ds.sum(0), dy.sum(0))


def _by_sources(factors: Factors, g: Tensor, parts: list[Tensor], along: Along | None = None) -> Tensor:
    s, y, q = factors
    sizes, tiles = _sizes(factors, parts)
    (dq,) = contiguous_like([q])
    _, _, _, by_source, source_ptr, target = parts
    if len(q):
        arguments = s, y, g, *_given(factors, along)[:2], by_source, target, source_ptr, dq
        constants = {**sizes, "TANGENT": along is not None}
        _launch(programs.source_gradient, (len(q), tiles), arguments, constants)
    return dq


def _given(factors: Factors, along: Along | None) -> Factors:
    """The direction; the factors in the place of what it lacks, which the programs do not read."""
    hs, hy, hq = along or factors
    return hs, hy, factors[2] if hq is None else hq


def _flags(along: Along | None) -> dict[str, bool]:
    return {"TANGENT": along is not None, "WITH_HQ": along is not None and along[2] is not None}


def _launch(program: Any, grid: tuple[int, int], arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Run a program on the device of its first argument; Triton would take the current one."""
    with torch.cuda.device_of(arguments[0]):
        program[grid](*arguments, **constants)


def _sizes(factors: Factors, parts: list[Tensor]) -> tuple[dict[str, Any], int]:
    """Constants of the programs, and the number of tiles of features."""
    s, y, q = factors
    n_atoms, n, n_features = q.shape
    n_edges, of_graph = len(parts[0]), len(parts[4]) - 1
    if not len(s) == len(y) == n_edges or n_atoms != of_graph:
        raise ValueError(f"{len(s)} edges and {n_atoms} atoms, expected those of the kernel's graph")
    if not s.dtype == y.dtype == q.dtype:
        raise TypeError(f"arrays of different types: {[s.dtype, y.dtype, q.dtype]}")
    block = min(_FEATURES, max(16, triton.next_power_of_2(n_features)))
    exact = q.dtype == torch.float64 or not _allows_tf32()
    sizes = {"F": n_features, "N": n, "C": y.shape[1], "BN": max(16, triton.next_power_of_2(n)), "BF": block}
    options = {"T": _TARGETS, "PRECISION": "ieee" if exact else "tf32", "num_warps": _WARPS}
    return {**sizes, **options}, -(-n_features // block)


def _allows_tf32() -> bool:
    # The function raises an error if a precision was set by the attribute, which older versions of torch do not have.
    of_cuda = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return of_cuda == "tf32" if of_cuda else torch.get_float32_matmul_precision() != "highest"


_moments = define_operators("moments_triton", "triton", _Triton, ("CPU", "CUDA"))
