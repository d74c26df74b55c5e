"""The interface of kernels, and the choice of one for a graph."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Hashable
from typing import Protocol

import torch
from torch import Tensor

from mfpyg.errors import MFPyGError, MFPyGWarning, unknown_name
from mfpyg.graph import Graph
from mfpyg.kernels import KERNELS
from mfpyg.kernels.compilation import NoCompilerError, library
from mfpyg.kernels.native import native_sum
from mfpyg.kernels.padded import padded_sum


class NeighborSum(Protocol):
    """Callable sum over the neighbours in a graph; a :class:`mfpyg.graph.Prepared`."""

    @property
    def whole_network(self) -> bool:
        """True if :func:`mfpyg.kernels.inference.features` is to evaluate all blocks with this sum.

        It can be True only if the result is differentiated at most once, and not with respect to weights.
        """

    @property
    def key(self) -> Hashable:
        """See :class:`mfpyg.graph.Prepared`."""

    def __call__(self, sensitivity: Tensor, harmonics: Tensor, transformed: Tensor) -> Tensor:
        """(n_edges, n), (n_edges, n_components), (n_atoms, n, F) -> (n_atoms, n_components, F)."""

    def tensors(self) -> list[Tensor]:
        """See :class:`mfpyg.graph.Prepared`."""

    def with_tensors(self, tensors: list[Tensor]) -> NeighborSum:
        """See :class:`mfpyg.graph.Prepared`."""


def prepare(kernel: str, graph: Graph, n_features: int, n_sensitivities: int, n_components: int) -> NeighborSum | None:
    """Return the sum over the neighbours in a graph by a kernel; ``None`` for the definition.

    Args:
        kernel: one of :data:`mfpyg.kernels.KERNELS`.
        graph: graph with edges sorted by target, as :func:`mfpyg.graph.build_graph` returns them.
        n_features, n_sensitivities, n_components: sizes of the arrays that the sum will be called with.

    Raises:
        MFPyGError: for an unknown kernel, ``native`` or ``triton`` if it cannot be used, or edges that are not sorted.
    """
    if kernel not in KERNELS:
        raise unknown_name("kernel", kernel, KERNELS)
    if kernel == "definition":
        return None
    if (graph.edge_index[1].diff() < 0).any():
        raise MFPyGError("edges are not sorted by target, expected the order of build_graph; sort them")
    if kernel == "padded":
        return padded_sum(graph)
    device = graph.edge_vec.device.type
    if kernel == "triton" or (kernel == "auto" and device == "cuda" and _has_triton(graph.edge_vec.dtype)):
        return _triton_sum(graph)
    if device != "cpu":
        if kernel == "native":
            raise MFPyGError(f"kernel 'native' runs on a CPU, not on {device}; use auto, triton or padded")
        return padded_sum(graph)
    try:
        library(graph.edge_vec.dtype, n_features, n_sensitivities, n_components)
    except NoCompilerError as error:
        if kernel == "native":
            raise
        _warn_once(f"{error}. Kernel 'padded' is used instead, which is slower")
        return padded_sum(graph)
    return native_sum(graph)


@functools.lru_cache
def _has_triton(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.float64) and importlib.util.find_spec("triton") is not None


def _triton_sum(graph: Graph) -> NeighborSum:
    try:
        from mfpyg.kernels.triton import runs_on, triton_sum
    except ModuleNotFoundError as error:
        raise MFPyGError("kernel 'triton' needs triton, which is not installed; pip install 'mfpyg[gpu]'") from error
    if not runs_on(graph.edge_vec.device):
        raise MFPyGError(f"kernel 'triton' runs on a GPU, not on {graph.edge_vec.device.type}; use auto or padded")
    return triton_sum(graph)


@functools.lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, MFPyGWarning, stacklevel=3)
