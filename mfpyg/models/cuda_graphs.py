"""Replay of the kernels of a function as CUDA graphs, without the time of launching them one by one.

``torch.compile(mode="reduce-overhead")`` does this too, but keeps its graphs in a variable of the thread that imported
it and fails in others.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from mfpyg.device import stream_number, version_of
from mfpyg.errors import MFPyGWarning

MOST_EDGES = 100_000
"""Edges of the largest system that is replayed; kernels of larger ones take longer than their launches."""

_MOST_GRAPHS = 16
"""CUDA graphs of a function; each keeps the memory of its intermediate results."""

Function = Callable[[dict[str, Tensor], list[Tensor]], list[Tensor]]


class Replayed:
    """A function of weights and tensors, captured in one CUDA graph for each set of sizes that occurs again.

    Where sizes occur for the first time, the function is called. Afterwards its kernels are replayed, with copies of
    the tensors as their inputs; weights are used where they are, and captured anew if they have moved. Results are
    copied, as the next replay overwrites them. If capturing fails, there is one :class:`mfpyg.errors.MFPyGWarning`,
    and the function is called.

    Args:
        function: function that neither waits for the device nor depends on numbers in its tensors on the host.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self._graphs: dict[Hashable, _Graph | None] = {}  # None: occurred once; the last used is the last
        self._failed = False

    def __call__(self, weights: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
        if self._failed:
            return self.function(weights, tensors)
        where = tuple(weight.data_ptr() for weight in weights.values())
        # On another stream, a replay could begin before the last one has ended.
        key = stream_number(tensors[0].device), where, tuple(tensor.shape for tensor in tensors)
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > _MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            return self.function(weights, tensors)
        graph = self._graphs.pop(key)
        if graph is None:
            try:
                graph = _Graph(self.function, weights, tensors)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:300]
                text = f"a CUDA graph could not be captured, continuing without ({reason})"
                warnings.warn(text, MFPyGWarning, stacklevel=6)
                self._failed = True
                return self.function(weights, tensors)
        self._graphs[key] = graph
        return graph(tensors)


class _Graph:
    """Captured kernels, their inputs and their results."""

    def __init__(self, function: Function, weights: dict[str, Tensor], tensors: list[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        self.given = [(tensor, version_of(tensor)) for tensor in tensors]
        self.graph, self.outputs = _capture(lambda: function(weights, self.inputs), tensors[0].device)

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        for number, tensor in enumerate(tensors):
            before, version = self.given[number]
            if tensor is not before or version_of(tensor) != version:  # edges and tables of a simulation are the same
                self.inputs[number].copy_(tensor)
                self.given[number] = tensor, version_of(tensor)
        self.graph.replay()
        return [output.clone() for output in self.outputs]


def _capture(function: Callable[[], list[Tensor]], device: torch.device) -> tuple[Any, list[Tensor]]:
    """Capture the kernels of a function; return the graph, and the results that it overwrites."""
    graph, stream = torch.cuda.CUDAGraph(), _capture_stream(device)
    with torch.cuda.device(device):
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            function()  # what is compiled or allocated in the first call of a stream must not be captured
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = function()
    return graph, outputs


@functools.lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
