"""Preparation of a prediction: checks, centering, and the search for neighbours.

These read numbers from the device, and so wait for all its earlier work; the network and its derivatives do not. A
training on a GPU prepares each batch while the step before is still being computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from mfpyg.centering import CENTER_BEYOND, centered
from mfpyg.graph import find_topology
from mfpyg.locality import in_order, spatial_order
from mfpyg.models.charges import masses, total_charges
from mfpyg.models.compiled import flattened
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
        system: the same, with isolated atoms appended if the network needs them, and the backbone's ``prepared``.
        order: order of the atoms, see :mod:`mfpyg.locality`; ``None``: as they come.
        requires_grad: whether positions or cells require a gradient.
    """

    atoms: System
    system: System
    order: Tensor | None
    requires_grad: bool

    def tensors(self) -> list[Tensor]:
        """All tensors that a prediction uses."""
        return flattened(self.system) if self.order is None else [self.order, *flattened(self.system)]


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
    return PreparedData(atoms, system, order, requires_grad)


def add_tables(network: _Network, system: System, differentiable: bool) -> None:
    """Add the backbone's ``prepared``, index tables of its kernels, where it has some."""
    if hasattr(network.backbone, "prepare"):
        with torch.no_grad():
            graph = system.topology.at(system.pos, system.lattice)
        graph.by_weights = differentiable
        system.prepared = network.backbone.prepare(graph)  # type: ignore[operator]
