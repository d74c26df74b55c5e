"""Atoms sorted by element, for networks with weights of each element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass
class ByElement:
    """Order of the atoms of a graph by element; a :class:`mfpyg.graph.Prepared`.

    Attributes:
        order: atoms, sorted by element, (n_atoms,) int64.
        place: place of each atom in this order, (n_atoms,) int64.
        counts: number of atoms of each element.
        key: see :class:`mfpyg.graph.Prepared`.
    """

    order: Tensor
    place: Tensor
    counts: list[int]
    key: ClassVar[None] = None

    def tensors(self) -> list[Tensor]:
        """See :class:`mfpyg.graph.Prepared`; the counts are passed as sizes of empty tensors."""
        return [self.order, self.place, *(self.order.new_empty(n, 0) for n in self.counts)]

    def with_tensors(self, tensors: list[Tensor]) -> ByElement:
        """See :class:`mfpyg.graph.Prepared`."""
        order, place, *sizes = tensors
        return ByElement(order, place, [size.shape[0] for size in sizes])


def by_element(one_hot: Tensor) -> ByElement:
    """Order of atoms by element, from one-hot species (n_atoms, n_species); the counts are read from the device."""
    order = torch.argsort(one_hot.argmax(dim=1), stable=True)
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    return ByElement(order, place, one_hot.detach().sum(dim=0).long().tolist())
