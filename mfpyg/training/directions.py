"""Random directions in which Hessians are compared."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

_ODD = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Constants of SplitMix64 as signed numbers: the increment and the factors."""


def random_directions(batch: Batch, number: int, *key: int) -> Tensor:
    """Vectors whose components are 1 or −1 with equal probability, (number, n_atoms, 3) float32.

    They are independent of each other, with zero mean and unit variance, and as probable as their opposites. They
    depend on the conformation and the key only, not on the rest of the batch, so that neither the number of processes
    nor a resumed run changes them.

    Args:
        batch: batch of a data set, whose ``source``, ``molecule`` and ``conformation`` identify the graphs.
        number: number of vectors.
        key: numbers such as the seed, the epoch and the step.
    """
    identity = torch.zeros_like(batch.molecule)
    for one in (batch.source, batch.molecule, batch.conformation, *key):
        identity = _mixed(identity + one)  # (n_graphs,)
    atom = torch.arange(len(batch.z), device=batch.z.device) - batch.ptr[batch.batch]  # within the graph
    component = 3 * atom[:, None] + torch.arange(3, device=batch.z.device)  # (n_atoms, 3)
    drawn = [_mixed(_mixed(identity[batch.batch, None] + n) + component) for n in range(number)]
    return 1.0 - 2.0 * (torch.stack(drawn) & 1).float()


def _mixed(state: Tensor) -> Tensor:
    """Output of SplitMix64 for states, int64 (Steele et al., OOPSLA 2014)."""
    x = state + _ODD[0]
    x = (x ^ _shifted(x, 30)) * _ODD[1]
    x = (x ^ _shifted(x, 27)) * _ODD[2]
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
