"""Kernel ``native``: the loops of ``moments.c`` as torch operators with first and second derivatives."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfpyg.graph import Graph
from mfpyg.kernels.compilation import function
from mfpyg.kernels.operators import Along, Factors, contiguous_like, define_operators

_EDGES_PER_CHUNK = 2048
"""Edges whose messages fit into the private cache of a core; the targets of larger molecules are split into chunks."""


class _GraphStruct(ctypes.Structure):
    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("n_atoms", "n_chunks")],
        *[(name, ctypes.c_void_p) for name in ("chunks", "target_ptr", "by_chunk", "source_ptr", "by_source")],
        *[(name, ctypes.c_void_p) for name in ("source", "target")],
        ("closed", ctypes.c_int64),
        ("kind", ctypes.c_void_p),
    )


@dataclass
class NativeSum:
    """Edges of a graph in the orders in which ``moments.c`` iterates over them.

    Attributes:
        parts: chunks (n_chunks + 1,), target_ptr (n_atoms + 1,), by_chunk (n_edges,), source_ptr (n_atoms + 1,),
            by_source, source and target (n_edges,), all int64.
        closed: True if the sources of each chunk are its targets.
        whole_network: see :class:`mfpyg.kernels.neighbor_sum.NeighborSum`.
    """

    parts: list[Tensor]
    closed: bool
    whole_network: bool = False

    @property
    def key(self) -> bool:
        """``closed``, which is an argument of the recorded operators; see :class:`mfpyg.graph.Prepared`."""
        return self.closed

    def __call__(self, sensitivity: Tensor, harmonics: Tensor, transformed: Tensor) -> Tensor:
        """(n_edges, n), (n_edges, n_components), (n_atoms, n, F) -> (n_atoms, n_components, F)."""
        return _moments(sensitivity, harmonics, transformed, self.parts, self.closed)

    def tensors(self) -> list[Tensor]:
        """See :class:`mfpyg.graph.Prepared`."""
        return self.parts

    def with_tensors(self, tensors: list[Tensor]) -> NativeSum:
        """See :class:`mfpyg.graph.Prepared`."""
        return NativeSum(tensors, self.closed)


def native_sum(graph: Graph) -> NativeSum:
    """Create the kernel for a graph with edges sorted by target."""
    source, target = graph.edge_index[0].contiguous(), graph.edge_index[1].contiguous()
    target_ptr, source_ptr = _offsets(target, graph.n_atoms), _offsets(source, graph.n_atoms)
    by_source = torch.argsort(source, stable=True)
    whole_network = not graph.by_weights
    if graph.n_graphs == 1:
        molecules, closed = source.new_tensor([0, graph.n_atoms]), len(source) <= _EDGES_PER_CHUNK
    else:
        molecules = _offsets(graph.batch, graph.n_graphs)  # first atom of each, (n_graphs + 1,)
        edges = target_ptr[molecules]  # first edge of each
        within = torch.equal(graph.batch[source], graph.batch[target])  # user-supplied edges may join molecules
        closed = within and (not graph.n_graphs or int(edges.diff().max()) <= _EDGES_PER_CHUNK)
    if closed:
        return NativeSum([molecules, target_ptr, by_source, source_ptr, by_source, source, target], True, whole_network)
    chunk_of_target = target_ptr[:-1].div(_EDGES_PER_CHUNK, rounding_mode="floor")  # (n_atoms,)
    firsts = torch.cat([chunk_of_target.new_ones(1), chunk_of_target.diff()]).nonzero().squeeze(1)
    chunks = torch.cat([firsts, firsts.new_tensor([graph.n_atoms])])
    by_chunk = by_source[torch.argsort(chunk_of_target[target[by_source]], stable=True)]
    return NativeSum([chunks, target_ptr, by_chunk, source_ptr, by_source, source, target], False, whole_network)


def _offsets(numbers: Tensor, n: int) -> Tensor:
    """Offsets of the entries of each number below ``n`` in sorted order, and their total; (n + 1,) int64."""
    offsets = numbers.new_zeros(n + 1)
    torch.cumsum(torch.bincount(numbers, minlength=n), 0, out=offsets[1:])
    return offsets


def call_kernel(
    name: str,
    parts: list[Tensor],
    closed: bool,
    inputs: list[Tensor | None],
    outputs: Sequence[Tensor | None],
    kind: Tensor | None = None,
    numbers: Sequence[float] = (),
) -> None:
    """Call a function of ``moments.c``; ``None`` is passed as a null pointer.

    Args:
        inputs: sensitivities, harmonics, transformed features, and further arrays.
        kind: row of the transformed features of each atom, (n_atoms,) int64; ``None`` if each atom has its own.
        numbers: scalar arguments.
    """
    sensitivity, harmonics, transformed, *_ = inputs
    assert sensitivity is not None
    assert harmonics is not None
    assert transformed is not None
    n_atoms, n, n_features = len(parts[1]) - 1, *transformed.shape[1:]
    if {x.dtype for x in inputs if x is not None} != {transformed.dtype}:
        raise TypeError(f"arrays of different types: {[x.dtype for x in inputs if x is not None]}")
    rows = len(transformed) if kind is None else len(kind)
    if not len(sensitivity) == len(harmonics) == len(parts[-1]) or rows != n_atoms:
        raise ValueError(f"{len(sensitivity)} edges and {rows} atoms, expected those of the kernel's graph")
    sizes = n_features, n, harmonics.shape[1]
    parts = [part.contiguous() for part in parts]
    kind = None if kind is None else kind.contiguous()
    addresses = [part.data_ptr() for part in parts]
    graph = _GraphStruct(n_atoms, len(parts[0]) - 1, *addresses, int(closed), None if kind is None else kind.data_ptr())
    arrays = [None if array is None else array.contiguous() for array in inputs]  # alive until the call has returned
    pointers = [None if array is None else array.data_ptr() for array in (*arrays, *outputs)]
    arguments = "iP" + len(numbers) * "d" + len(pointers) * "P"
    call = function(name, arguments, transformed.dtype, sizes)
    if call(torch.get_num_threads(), ctypes.byref(graph), *numbers, *pointers):
        raise MemoryError("no memory for the messages of a chunk of targets")


class _Native:
    """Moments and derivatives by ``moments.c``; the option is whether the chunks are closed."""

    @staticmethod
    def moments(factors: Factors, parts: list[Tensor], option: bool) -> Tensor:
        _, y, q = factors
        moments = q.new_empty(q.shape[0], y.shape[1], q.shape[2])
        call_kernel("moments", parts, option, [*factors], [moments])
        return moments

    @staticmethod
    def gradient(
        factors: Factors, g: Tensor, with_q: bool, parts: list[Tensor], option: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs = contiguous_like(factors if with_q else factors[:2])
        call_kernel("moments_gradient", parts, option, [*factors, g], outputs if with_q else [*outputs, None])
        return outputs[0], outputs[1], outputs[2] if with_q else g.new_empty(0)

    @staticmethod
    def second(
        factors: Factors, g: Tensor, along: Along, parts: list[Tensor], option: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs = contiguous_like([*factors, g])
        call_kernel("moments_second", parts, option, [*factors, g, *along], outputs)
        return outputs[0], outputs[1], outputs[2], outputs[3]


_moments = define_operators("moments", "native", _Native, ["CPU"])
