"""Preparation of a prediction: checks, centering, and the search for neighbours.

These read numbers from the device, and so wait for all its earlier work; the network and its derivatives do not. A
training on a GPU prepares each batch while the step before is still being computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from mfpyg.centering import CENTER_BEYOND, centered
from mfpyg.device import captures
from mfpyg.graph import find_topology
from mfpyg.lattice import Lattice
from mfpyg.locality import in_order, spatial_order
from mfpyg.models.buckets import Ghosts, padded
from mfpyg.models.charges import masses, total_charges
from mfpyg.models.compiled import flattened
from mfpyg.models.cuda_graphs import MOST_EDGES
from mfpyg.models.derivatives import any_wants
from mfpyg.models.system import (
    System,
    check_molecules,
    check_positions,
    check_usable,
    check_volumes,
    with_isolated_atoms,
)
from mfpyg.properties import heads_of


class _Network(Protocol):
    """Interface of :class:`mfpyg.models.MultiFidelityPotential` that is needed here."""

    backbone: nn.Module
    engine: str
    isolated: str
    compiled: bool

    @property
    def cutoff(self) -> float: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def species_number(self, z: Tensor) -> Tensor: ...

    def warn_untrained(self, z: Tensor, fidelities: Iterable[str]) -> None: ...


@dataclass
class PreparedData:
    """Checked graphs with their neighbours, which a potential predicts without waiting for its device.

    Attributes:
        atoms: atoms and neighbours.
        system: the same, with ghosts before them and isolated atoms after them if these are needed, and the backbone's
            ``prepared``.
        order: order of the atoms, see :mod:`mfpyg.locality`; ``None``: as they come.
        requires_grad: whether positions or cells require a gradient.
        as_given: whether positions and edges are those of the data.
        ghosts: ghosts of a system that is to be replayed as a CUDA graph, see :mod:`mfpyg.models.buckets`.
    """

    atoms: System
    system: System
    order: Tensor | None
    requires_grad: bool
    as_given: bool
    ghosts: Ghosts | None = None

    def tensors(self) -> list[Tensor]:
        """All tensors that a prediction uses."""
        return flattened(self.system) if self.order is None else [self.order, *flattened(self.system)]

    def moved(self, data: Data) -> PreparedData | None:
        """The same atoms with the same edges, at the positions and with the cells of other data.

        ``None`` if the edges or the origin were not those of the data.
        """
        if not self.as_given:
            return None
        pos = (data.pos if self.order is None else data.pos[self.order]).to(self.atoms.pos.dtype)
        lattice, ghosts = self.atoms.lattice, self.ghosts
        if lattice is not None:
            lattice = Lattice(data.cell.to(pos.dtype), lattice.pbc)
        atoms = dataclasses.replace(self.atoms, pos=pos, lattice=lattice)
        system = dataclasses.replace(
            self.system, pos=_put(pos, self.system.pos, 0 if ghosts is None else ghosts.n_atoms)
        )
        if lattice is not None and system.lattice is not None:
            cell = _put(lattice.cell, system.lattice.cell, 0 if ghosts is None else ghosts.n_graphs)
            system.lattice = Lattice(cell, system.lattice.pbc)
        return dataclasses.replace(self, atoms=atoms, system=system)


def prepare_data(network: _Network, data: Data, wanted: Mapping[str, str]) -> PreparedData:
    """Check graphs and find their neighbours, as :meth:`mfpyg.models.MultiFidelityPotential.predict` does first.

    Args:
        network: potential.
        data: ``Data`` or ``Batch``.
        wanted: ``{fidelity: letters}`` of the properties to predict.

    Raises:
        MFPyGError: as :meth:`mfpyg.models.MultiFidelityPotential.predict`.
    """
    weight = next(iter(network.parameters()))
    check_usable(weight, data, with_gradients=any_wants(wanted, "FS"))
    cell = getattr(data, "cell", None)
    requires_grad = data.pos.requires_grad or (cell is not None and cell.requires_grad)
    species = network.species_number(data.z)
    network.warn_untrained(data.z, wanted)
    dtype = weight.dtype
    largest, order = check_positions(data), spatial_order(data)
    if order is not None:  # before centering, which takes stored edges to number the atoms as they come
        data, species = in_order(data, order), species[order]
    given = data
    if largest > CENTER_BEYOND:
        data = centered(data, dtype)
    topology, lattice = find_topology(data, network.cutoff, network.engine, dtype)
    if any_wants(wanted, "S"):
        check_volumes(lattice, topology.n_graphs)
    if any_wants(wanted, "D"):
        check_molecules(lattice)
    atoms = System(data.pos.to(dtype), species, topology, lattice)
    if any(heads_of(letters) for letters in wanted.values()):
        atoms.charge = total_charges(data, topology.n_graphs, dtype)
        atoms.mass = masses(data.z, dtype)
    system = atoms
    if network.isolated == "reference":
        system = with_isolated_atoms(atoms, network.backbone.species)  # type: ignore[arg-type]
    as_given = data is given and topology.edge_index is getattr(data, "edge_index", None)
    return PreparedData(atoms, system, order, requires_grad, as_given)


def complete(network: _Network, prepared: PreparedData, differentiable: bool) -> None:
    """Add the backbone's index tables; before, ghosts to small systems whose prediction can be replayed on a GPU."""
    system = prepared.system
    if is_replayed(network, system) and not differentiable and not prepared.requires_grad:
        prepared.system, prepared.ghosts = padded(system, network.backbone.species, network.cutoff)  # type: ignore[arg-type]
    if hasattr(network.backbone, "prepare"):
        with torch.no_grad():
            graph = prepared.system.topology.at(prepared.system.pos, prepared.system.lattice)
        graph.by_weights = differentiable
        prepared.system.prepared = network.backbone.prepare(graph)  # type: ignore[operator]


def is_replayed(network: _Network, system: System) -> bool:
    """True if predictions of a system, without gradients, are to be replayed as CUDA graphs."""
    n_edges = system.topology.edge_index.shape[1]
    return network.compiled and captures(system.pos.device) and 0 < n_edges <= MOST_EDGES


def _put(new: Tensor, into: Tensor, first: int) -> Tensor:
    """Rows of a tensor with some replaced, from the first on."""
    return new if len(new) == len(into) else torch.cat([into[:first], new, into[first + len(new) :]])
