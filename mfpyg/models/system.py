"""Input of a prediction, atoms and their neighbours, and checks of it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass

import torch
from ase.data import chemical_symbols
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.centering import WARN_BEYOND, largest_coordinate
from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.graph import EdgeTopology, Prepared, Topology, molecules_of
from mfpyg.lattice import Lattice
from mfpyg.models.prediction import Prediction

OVERLAP = 0.01
"""Distance in Å below which atoms overlap. Divisions by smaller distances lose all digits."""


@dataclass
class System:
    """Atoms and their neighbours.

    Attributes:
        pos: positions (n_atoms, 3) in Å, in the dtype of the weights; with an :class:`~mfpyg.graph.EdgeTopology`, edge
            vectors (n_edges, 3).
        species: index of each atom's element in the ``species`` of the potential, (n_atoms,) int64.
        topology: atoms and neighbours.
        lattice: cells of periodic graphs.
        prepared: result of the backbone's ``prepare``, if it has been called.
        charge: total charge of each graph in e, (n_graphs,); ``None`` without charges and dipoles.
        mass: mass of each atom, (n_atoms,); ``None`` without charges and dipoles.
    """

    pos: Tensor
    species: Tensor
    topology: Topology
    lattice: Lattice | None
    prepared: Prepared | None = None
    charge: Tensor | None = None
    mass: Tensor | None = None


def species_number(z: Tensor, known: Tensor) -> Tensor:
    """Index of each atom's element among the ``known`` ones, ascending atomic numbers; (n_atoms,) int64.

    Raises:
        MFPyGError: for unknown elements, which are listed.
    """
    number = torch.searchsorted(known, z).clamp(max=len(known) - 1)
    if not torch.equal(known[number], z):
        unknown = z[known[number] != z]
        symbols = dict(enumerate(chemical_symbols))
        names = ", ".join(symbols.get(i, f"number {i}") for i in unknown.unique().tolist()[:20])
        supported = ", ".join(chemical_symbols[i] for i in known.tolist())
        raise MFPyGError(f"element {names} is unknown to this potential (it knows {supported})")
    return number


def with_isolated_atoms(system: System, elements: Tensor) -> System:
    """Append one atom of each element in ``elements`` (n_species,) int64, each as a separate graph.

    The energy ε that the network predicts for an isolated atom depends on its element only. It is subtracted from every
    atomic energy, level by level, E_i = E⁰(z_i) + ε_i − ε(z_i isolated), so that the energy of isolated atoms is the
    reference energy. Charges do not change: that of a single atom is always that of its graph.
    """
    n, topology = len(elements), system.topology
    number = torch.arange(n, device=elements.device)
    new = dataclasses.replace(
        topology,
        z=torch.cat([topology.z, elements]),
        batch=torch.cat([topology.batch, topology.n_graphs + number]),
        n_graphs=topology.n_graphs + n,
    )
    lattice = system.lattice
    if lattice is not None:
        cubes = torch.eye(3, dtype=lattice.cell.dtype, device=lattice.cell.device).expand(n, 3, 3)
        lattice = Lattice(torch.cat([lattice.cell, cubes]), torch.cat([lattice.pbc, lattice.pbc.new_zeros(n, 3)]))
    species, pos = torch.cat([system.species, number]), system.pos
    if not isinstance(topology, EdgeTopology):  # pos holds edge vectors
        pos = torch.cat([pos, pos.new_zeros(n, 3)])
    changed = dataclasses.replace(system, pos=pos, species=species, topology=new, lattice=lattice)
    if system.charge is not None and system.mass is not None:
        changed.charge = torch.cat([system.charge, system.charge.new_zeros(n)])
        changed.mass = torch.cat([system.mass, system.mass.new_ones(n)])
    return changed


def check_volumes(lattice: Lattice | None, n_graphs: int) -> None:
    """Check that a graph has a volume, as the definition of the stress needs it; all others have no stress.

    Raises:
        MFPyGError: if no graph is periodic in all directions.
    """
    repeats = torch.zeros(n_graphs, 3, dtype=torch.bool) if lattice is None else lattice.pbc
    if n_graphs and not repeats.all(dim=1).any():
        raise MFPyGError(
            f"stress of graph 0 is not defined: its pbc is {repeats[0].tolist()}, expected True in all "
            "three directions, with a cell; leave the stress out"
        )


def check_molecules(lattice: Lattice | None) -> None:
    """Check that a graph is not periodic; dipole moments of periodic ones would depend on the choice of the cell.

    Raises:
        MFPyGError: if all graphs are periodic in some direction.
    """
    if lattice is not None and len(lattice.pbc) and lattice.pbc.any(dim=1).all():
        raise MFPyGError(
            f"dipole of graph 0 is not defined: its pbc is {lattice.pbc[0].tolist()}, expected False in all "
            "three directions; leave the dipole out"
        )


def check_usable(weight: Tensor, data: Data, with_gradients: bool) -> None:
    """Check that weights and data are on the same device, and can be differentiated if needed.

    Raises:
        MFPyGError: if not.
    """
    if torch.is_inference_mode_enabled() and with_gradients:
        raise MFPyGError("forces are gradients, which torch.inference_mode() forbids; use torch.no_grad() instead")
    if weight.is_inference() and with_gradients:
        raise MFPyGError(
            "the weights were created or moved in torch.inference_mode(), so that autograd cannot use them; use "
            "copy.deepcopy(potential), or load and move it outside of inference mode"
        )
    if data.pos.device != weight.device:
        raise MFPyGError(
            f"the data are on {data.pos.device}, but the potential is on {weight.device}; move one of them, for "
            f"example with data.to('{weight.device}')"
        )


def check_positions(data: Data) -> float:
    """Check that positions are finite, and return the largest absolute coordinate in Å; warn if it is very large.

    Raises:
        MFPyGError: for the first atom whose position is not finite.
    """
    largest = largest_coordinate(data.pos)
    if not math.isfinite(largest):
        atom = int((~torch.isfinite(data.pos)).any(dim=1).nonzero()[0])
        raise MFPyGError(
            f"positions are NaN or infinite in graph {int(molecules_of(data)[0][atom])} (atom {atom} of all); "
            "expected finite ones in Å"
        )
    if largest > WARN_BEYOND and data.pos.dtype == torch.float32:
        warnings.warn(
            f"positions in float32 reach {largest:,.0f} Å, where they are rounded by 6e-5 Å or more; pass them in "
            "float64, or move them closer to the origin",
            MFPyGWarning,
            stacklevel=4,
        )
    return largest


@dataclass
class Overlap:
    """The two closest atoms of a batch.

    Attributes:
        graph: number of the graph.
        atoms: numbers of the atoms in the graph; equal for an atom and its own image.
        distance: distance in Å.
    """

    graph: int
    atoms: tuple[int, int]
    distance: float

    def __str__(self) -> str:
        one, two = self.atoms
        if one == two:
            return f"atom {one} is {self.distance:.1e} Å from its own image"
        where = "at the same place" if self.distance == 0 else f"{self.distance:.1e} Å apart"
        return f"atoms {one} and {two} are {where}"


def find_overlap(
    pos: Tensor, topology: Topology, lattice: Lattice | None, order: Tensor | None = None
) -> Overlap | None:
    """Find the two closest atoms; ``None`` if they are at least :data:`OVERLAP` apart.

    Args:
        pos: positions (n_atoms, 3) in Å.
        topology: atoms and neighbours.
        lattice: cells of periodic graphs.
        order: numbers by which to name the atoms, (n_atoms,) int64; default: as they come.
    """
    distances = topology.at(pos.detach(), lattice).edge_dist.detach()  # (n_edges,)
    if not len(distances) or not distances.min() < OVERLAP:
        return None
    edge = int(distances.argmin())
    atoms = topology.edge_index[:, edge]
    one, two = (atoms if order is None else order[atoms]).sort().values.tolist()
    graph = int(topology.batch[one])
    first = int((topology.batch < graph).sum())
    return Overlap(graph, (one - first, two - first), float(distances[edge]))


def check_apart(
    predictions: Collection[Prediction],
    pos: Tensor,
    topology: Topology,
    lattice: Lattice | None,
    order: Tensor | None = None,
) -> None:
    """Check for overlapping atoms if a prediction is not finite; otherwise this only takes a few sums.

    Args:
        predictions: predictions of the levels.
        pos, topology, lattice, order: see :func:`find_overlap`.

    Raises:
        MFPyGError: naming the two closest atoms, if they overlap.
    """
    values = [value for p in predictions for value in (p.energy, p.forces) if value is not None]
    if lattice is not None:  # other graphs have no stress
        values += [p.stress[lattice.pbc.all(dim=1)] for p in predictions if p.stress is not None]
    if not values or math.isfinite(torch.stack([value.detach().sum().double() for value in values]).sum().item()):
        return
    overlap = find_overlap(pos, topology, lattice, order)
    if overlap is not None:
        raise MFPyGError(
            f"{overlap} in graph {overlap.graph}, where energies or forces are not finite; "
            "move them apart, or remove one"
        )
