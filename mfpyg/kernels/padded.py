"""Kernel ``padded``: batched matrix products in plain torch, grouped by source and then by target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfpyg.graph import Graph


@dataclass
class PaddedSum:
    """Slots of the edges in padded tables with one row per atom and K columns, K being the most edges of an atom.

    Attributes:
        by_source, by_target: slot of each edge in the rows of its source and its target, (n_edges,) int64.
        k_source, k_target: columns of each table.
        whole_network: see :class:`mfpyg.kernels.neighbor_sum.NeighborSum`.
        key: see :class:`mfpyg.graph.Prepared`.
    """

    by_source: Tensor
    by_target: Tensor
    k_source: int
    k_target: int
    whole_network: ClassVar[bool] = False
    key: ClassVar[None] = None

    def __call__(self, sensitivity: Tensor, harmonics: Tensor, transformed: Tensor) -> Tensor:
        n_atoms, n, n_features = transformed.shape
        if not n_atoms * self.k_source:  # no edges
            return transformed.sum(dim=1, keepdim=True) * harmonics.sum(dim=0)[:, None] * sensitivity.sum()
        of_source = spread(sensitivity, self.by_source, n_atoms * self.k_source)
        messages = torch.bmm(of_source.view(n_atoms, self.k_source, n), transformed)  # (n_atoms, K, F)
        messages = collect(messages.view(-1, n_features), self.by_source)  # (n_edges, F)
        at_target = spread(messages, self.by_target, n_atoms * self.k_target).view(n_atoms, self.k_target, n_features)
        directions = spread(harmonics, self.by_target, n_atoms * self.k_target).view(n_atoms, self.k_target, -1)
        return torch.bmm(directions.transpose(1, 2), at_target)  # (n_atoms, n_components, F)

    def tensors(self) -> list[Tensor]:
        """See :class:`mfpyg.graph.Prepared`; the numbers of columns are passed as sizes of an empty tensor."""
        return [self.by_source, self.by_target, self.by_source.new_empty(self.k_source, self.k_target, 0)]

    def with_tensors(self, tensors: list[Tensor]) -> PaddedSum:
        """See :class:`mfpyg.graph.Prepared`."""
        by_source, by_target, columns = tensors
        return PaddedSum(by_source, by_target, columns.shape[0], columns.shape[1])


def padded_sum(graph: Graph) -> PaddedSum:
    """Create the kernel for a graph with edges sorted by target."""
    source, target = graph.edge_index
    of_target = torch.bincount(target, minlength=graph.n_atoms)
    of_source = torch.bincount(source, minlength=graph.n_atoms)
    order = torch.argsort(source, stable=True)
    number = torch.arange(len(source), device=source.device)
    within_target = number - (of_target.cumsum(0) - of_target)[target]
    within_source = torch.empty_like(number)
    within_source[order] = number - (of_source.cumsum(0) - of_source)[source[order]]
    k_source, k_target = (int(counts.max()) if graph.n_atoms else 0 for counts in (of_source, of_target))
    return PaddedSum(source * k_source + within_source, target * k_target + within_target, k_source, k_target)


class _Spread(torch.autograd.Function):
    """Scatter rows to their slots; the derivative is :class:`_Collect`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, n_slots: int) -> Tensor:
        ctx.save_for_backward(slots)
        return rows.new_zeros(n_slots, rows.shape[1]).index_copy_(0, slots, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return collect(gradients[0], slots), None, None


class _Collect(torch.autograd.Function):
    """Gather rows from distinct slots; the derivative is a copy, while that of torch adds up repeated slots."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.n_slots = table.shape[0]  # not len(), which would be a constant in compiled code
        return table.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return spread(gradients[0], slots, ctx.n_slots), None


def spread(rows: Tensor, slots: Tensor, n_slots: int) -> Tensor:
    """Place rows (m, k) at distinct slots of a zero table (n_slots, k)."""
    return _Spread.apply(rows, slots, n_slots)


def collect(table: Tensor, slots: Tensor) -> Tensor:
    """Return the rows (m, k) in distinct slots of a table (n_slots, k)."""
    return _Collect.apply(table, slots)
