"""Atoms so close together that the energy, or its gradient, is not a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.graph import Topology
from mfpyg.lattice import Lattice
from mfpyg.models.prediction import Prediction

OVERLAP = 0.01
"""Å. Nuclei are never this close, and what divides by smaller distances runs out of digits."""


@dataclass
class Overlap:
    """The two closest atoms of a batch.

    Attributes:
        graph: in which they are.
        atoms: their numbers in it; the same one twice where it is the atom's own image.
        distance: in Å.
    """

    graph: int
    atoms: tuple[int, int]
    distance: float

    def __str__(self) -> str:
        one, two = self.atoms
        if one == two:
            return f"atom {one} is {self.distance:.1e} Å from an image of its own"
        where = "at the same place" if self.distance == 0 else f"{self.distance:.1e} Å apart"
        return f"atoms {one} and {two} are {where}"


def find_overlap(pos: Tensor, topology: Topology, lattice: Lattice | None) -> Overlap | None:
    """The closest two atoms, if they are closer than :data:`OVERLAP`.

    Args:
        pos: (n_atoms, 3) in Å.
        topology: atoms and neighbours.
        lattice: cells, where something repeats.
    """
    distances = topology.at(pos.detach(), lattice).edge_dist.detach()  # (n_edges,)
    if not len(distances) or not distances.min() < OVERLAP:
        return None
    edge = int(distances.argmin())
    one, two = topology.edge_index[:, edge].sort().values.tolist()
    graph = int(topology.batch[one])
    first = int((topology.batch < graph).sum())
    return Overlap(graph, (one - first, two - first), float(distances[edge]))


def check_apart(predictions: Iterable[Prediction], pos: Tensor, topology: Topology, lattice: Lattice | None) -> None:
    """Check, where something predicted is not finite, that this is not because atoms overlap.

    Distances are looked at only then; otherwise this costs some sums.

    Raises:
        MFPyGError: naming the two closest atoms, if they overlap.
    """
    values = [value for p in predictions for value in (p.energy, p.forces, p.stress) if value is not None]
    if not values or math.isfinite(torch.stack([value.detach().sum().double() for value in values]).sum().item()):
        return
    overlap = find_overlap(pos, topology, lattice)
    if overlap is not None:
        raise MFPyGError(
            f"{overlap} in graph {overlap.graph}, where energies or forces are not finite; "
            "move them apart, or remove one"
        )
