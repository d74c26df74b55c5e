"""The sum over neighbours of HIP-NN-TS, fast, and the choice among the ways to do it.

All take the sensitivities s of the edges, their harmonics Y and the transformed features Q = V z of the atoms, and
give the moments :math:`A_{ic} = \\sum_j Y_{ijc} \\sum_\\nu s_{ij\\nu} Q_{j\\nu}`, with first and second derivatives:

==============  ======================================================================================================
``definition``  the ``MessagePassing`` layer itself, an array of n_components × F numbers an edge; any derivative
``padded``      batched matrix products, grouped by source and then by target; plain torch, for GPUs; any derivative
``native``      compiled loops without any array of F numbers an edge; CPUs with a C compiler; two derivatives, no vmap
``auto``        ``native`` on a CPU where it compiles, else ``padded``
==============  ======================================================================================================
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mfpyg.engine import KERNELS
from mfpyg.errors import MFPyGError, MFPyGWarning, unknown_name
from mfpyg.graph import Graph
from mfpyg.models.build_native import NoCompilerError, library
from mfpyg.models.native import native_plan


class Plan(Protocol):
    """What a kernel knows of one graph."""

    def __call__(self, sensitivity: Tensor, harmonics: Tensor, transformed: Tensor) -> Tensor:
        """(n_edges, n), (n_edges, n_components), (n_atoms, n, F) -> (n_atoms, n_components, F)."""

    def tensors(self) -> list[Tensor]:
        """What it is made of, for a compiler."""

    def with_tensors(self, tensors: list[Tensor]) -> Plan:
        """A plan of the same kind, of these."""


def make_plan(kernel: str, graph: Graph, n_features: int, n_sensitivities: int, n_components: int) -> Plan | None:
    """What a kernel needs to know of a graph, ready to be called; ``None`` for the definition.

    Args:
        kernel: one of :data:`mfpyg.engine.KERNELS`.
        graph: its edges sorted by target, as :func:`mfpyg.graph.build_graph` gives them.
        n_features, n_sensitivities, n_components: sizes of the arrays it will be called with.

    Raises:
        MFPyGError: for an unknown kernel, ``native`` where it can't be used, or edges that are not sorted.
    """
    if kernel not in KERNELS:
        raise unknown_name("kernel", kernel, KERNELS)
    if kernel == "definition":
        return None
    if (graph.edge_index[1].diff() < 0).any():
        raise MFPyGError("edges are not sorted by target, expected them as build_graph gives them; sort them")
    if kernel == "padded":
        return padded_plan(graph)
    on_cpu = graph.edge_vec.device.type == "cpu"
    if not on_cpu and kernel == "native":
        raise MFPyGError(f"kernel 'native' runs on a CPU, not on {graph.edge_vec.device.type}; use auto or padded")
    if not on_cpu:
        return padded_plan(graph)
    try:
        library(graph.edge_vec.dtype, n_features, n_sensitivities, n_components)
    except NoCompilerError as error:
        if kernel == "native":
            raise
        _warn_once(f"{error}. Kernel 'padded' is used instead, which is slower")
        return padded_plan(graph)
    return native_plan(graph)


@functools.lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, MFPyGWarning, stacklevel=3)


@dataclass
class PaddedPlan:
    """The slots of the edges in tables with a row an atom and K columns, K being the most edges that an atom has.

    Attributes:
        by_source, by_target: slot of each edge in the rows of its source and its target, (n_edges,) int64.
        k_source, k_target: columns of each table.
    """

    by_source: Tensor
    by_target: Tensor
    k_source: int
    k_target: int

    def __call__(self, sensitivity: Tensor, harmonics: Tensor, transformed: Tensor) -> Tensor:
        n_atoms, n, n_features = transformed.shape
        if not n_atoms * self.k_source:  # no edge
            return transformed.sum(dim=1, keepdim=True) * harmonics.sum(dim=0)[:, None] * sensitivity.sum()
        of_source = spread(sensitivity, self.by_source, n_atoms * self.k_source)
        messages = torch.bmm(of_source.view(n_atoms, self.k_source, n), transformed)  # (n_atoms, K, F)
        messages = collect(messages.view(-1, n_features), self.by_source)  # (n_edges, F)
        at_target = spread(messages, self.by_target, n_atoms * self.k_target).view(n_atoms, self.k_target, n_features)
        directions = spread(harmonics, self.by_target, n_atoms * self.k_target).view(n_atoms, self.k_target, -1)
        return torch.bmm(directions.transpose(1, 2), at_target)  # (n_atoms, n_components, F)

    def tensors(self) -> list[Tensor]:
        """What it is made of, for a compiler; the numbers of columns as sizes of an empty tensor."""
        return [self.by_source, self.by_target, self.by_source.new_empty(self.k_source, self.k_target, 0)]

    def with_tensors(self, tensors: list[Tensor]) -> PaddedPlan:
        """A plan of the same kind, of these."""
        by_source, by_target, columns = tensors
        return PaddedPlan(by_source, by_target, columns.shape[0], columns.shape[1])


def padded_plan(graph: Graph) -> PaddedPlan:
    """The tables of a graph, whose edges are sorted by target."""
    source, target = graph.edge_index
    of_target = torch.bincount(target, minlength=graph.n_atoms)
    of_source = torch.bincount(source, minlength=graph.n_atoms)
    order = torch.argsort(source, stable=True)
    number = torch.arange(len(source), device=source.device)
    within_target = number - (of_target.cumsum(0) - of_target)[target]
    within_source = torch.empty_like(number)
    within_source[order] = number - (of_source.cumsum(0) - of_source)[source[order]]
    k_source, k_target = (int(counts.max()) if graph.n_atoms else 0 for counts in (of_source, of_target))
    return PaddedPlan(source * k_source + within_source, target * k_target + within_target, k_source, k_target)


class _Spread(torch.autograd.Function):
    """Rows to their slots among zeros; its derivative is to collect them from there."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, n_slots: int) -> Tensor:
        ctx.save_for_backward(slots)
        return rows.new_zeros(n_slots, rows.shape[1]).index_copy_(0, slots, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return collect(gradients[0], slots), None, None


class _Collect(torch.autograd.Function):
    """Rows from their slots, each slot being read once; torch's own derivative would add with care for more."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.n_slots = table.shape[0]  # not len(), which a compiler would take for a constant
        return table.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return spread(gradients[0], slots, ctx.n_slots), None


def spread(rows: Tensor, slots: Tensor, n_slots: int) -> Tensor:
    """(m, k) rows at their slots, different ones, in (n_slots, k) zeros."""
    return _Spread.apply(rows, slots, n_slots)


def collect(table: Tensor, slots: Tensor) -> Tensor:
    """The (m, k) rows in different slots of a table (n_slots, k)."""
    return _Collect.apply(table, slots)
