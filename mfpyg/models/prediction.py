"""From atoms and their neighbours to energies, forces and stresses: the part of a potential that is differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph, Topology
from mfpyg.lattice import Lattice
from mfpyg.models.heads import hierarchicality

if TYPE_CHECKING:
    from mfpyg.models.potential import MultiFidelityPotential


@dataclass
class Prediction:
    """What one fidelity says of a batch of molecules.

    Attributes:
        energy: total energies in kcal/mol, (n_graphs,) float64.
        forces: −dE/dx in kcal/mol/Å, (n_atoms, 3), or ``None`` where not asked for.
        atomic_energies: their share of each atom in kcal/mol, (n_atoms,) float64.
        hierarchicality: the regulariser of HIP-NN, (n_graphs,).
        stress: (1/V) dE/dε in kcal/mol/Å³ at the strain ε = 0 of positions and cell, x → x (I + ε) with ε symmetric;
            (n_graphs, 3, 3), symmetric; ``None`` where not asked for. Positive where the crystal pulls itself
            together (tension), as in ASE.
    """

    energy: Tensor
    forces: Tensor | None
    atomic_energies: Tensor
    hierarchicality: Tensor
    stress: Tensor | None = None

    def detached(self) -> Prediction:
        """The same values without a graph of gradients."""
        return self._of_all(Tensor.detach)

    def without_last(self, n: int) -> Prediction:
        """The same without the last graphs, of one atom each."""
        return self._of_all(lambda value: value[: len(value) - n])

    def of_edges(self, edges: Tensor, n_edges: int) -> Prediction:
        """The same with −dE/dr of these edges, (n,) int64, of so many, in ``forces``; the others' are zero."""
        assert self.forces is not None
        return dataclasses.replace(self, forces=self.forces.new_zeros(n_edges, 3).index_copy_(0, edges, self.forces))

    def _of_all(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return Prediction(**changed)

    def of_atoms(self, atoms: Tensor) -> Prediction:
        """The same with the atoms in this order, (n_atoms,) int64."""
        forces = None if self.forces is None else self.forces[atoms]
        return dataclasses.replace(self, forces=forces, atomic_energies=self.atomic_energies[atoms])


@dataclass
class System:
    """What is predicted of.

    Attributes:
        pos: (n_atoms, 3) in Å, in the precision of the weights; vectors, (n_edges, 3), of an
            :class:`~mfpyg.graph.EdgeTopology`.
        species: number of each atom's element among those of the potential, (n_atoms,) int64.
        topology: atoms and neighbours.
        lattice: cells, where something repeats.
        plan: of the backbone's kernel, where it has one.
    """

    pos: Tensor
    species: Tensor
    topology: Topology
    lattice: Lattice | None
    plan: Any = None


def evaluate(
    potential: MultiFidelityPotential, system: System, wanted: Mapping[str, bool], stress: bool, differentiable: bool
) -> dict[str, Prediction]:
    """Predictions of the wanted fidelities, with forces where the value is true, and stresses of all if wanted.

    One pass through the backbone, and one backward pass for each fidelity with forces or stress.

    Args:
        potential: whose backbone and heads are used.
        system: what of; positions and cells that require a gradient keep theirs.
        wanted, stress: what.
        differentiable: whether the result can be differentiated (again).
    """
    return derive(*energies(potential, system, wanted, stress, differentiable), wanted, differentiable)


@dataclass
class Variables:
    """What energies are differentiated by.

    Attributes:
        pos: positions, (n_atoms, 3).
        strain: of each graph, zero, (n_graphs, 3, 3), where stresses are wanted; and the volumes in Å³, (n_graphs,).
    """

    pos: Tensor
    strain: Tensor | None = None
    volume: Tensor | None = None


def energies(
    potential: MultiFidelityPotential, system: System, wanted: Mapping[str, bool], stress: bool, differentiable: bool
) -> tuple[dict[str, Prediction], Variables]:
    """Everything but the derivatives, and what to differentiate by; see :func:`evaluate`."""
    with torch.set_grad_enabled(torch.is_grad_enabled() or stress or any(wanted.values())):
        pos = system.pos
        if any(wanted.values()) and not pos.requires_grad:
            pos = pos.detach().requires_grad_()
        variables, at, cells = Variables(pos), pos, system.lattice
        if stress:
            variables, at, cells = _strained(pos, system.lattice, system.topology)
        graph = system.topology.at(at, cells, system.plan)
        graph.by_weights = differentiable
        features = potential.features(graph, wanted)
        predictions = {name: _assemble(potential, name, features[name], system.species, graph) for name in wanted}
    return predictions, variables


def derive(
    predictions: dict[str, Prediction], variables: Variables, wanted: Mapping[str, bool], differentiable: bool
) -> dict[str, Prediction]:
    """Add the forces, where the value in ``wanted`` is true, and the stresses; see :func:`evaluate`."""
    with_gradients = [name for name, forces in wanted.items() if forces or variables.strain is not None]
    with torch.set_grad_enabled(torch.is_grad_enabled() or bool(with_gradients)):
        for name in with_gradients:
            keep = differentiable or name != with_gradients[-1]
            _add_derivatives(predictions[name], variables, wanted[name], differentiable, keep)
    if differentiable:
        return predictions
    return {name: prediction.detached() for name, prediction in predictions.items()}


def _assemble(
    potential: MultiFidelityPotential, name: str, features: list[Tensor], species: Tensor, graph: Graph
) -> Prediction:
    head = potential.head(name)
    reference = head.reference[species]  # (n_atoms,) float64
    terms = head(features)
    if potential.isolated == "reference":  # the last atoms are one of each element, alone
        terms = [term - term[-len(head.reference) :][species] for term in terms]
    interacting = torch.stack(terms).sum(dim=0).to(reference.dtype)  # (n_atoms,)
    atomic_energies = reference + interacting
    with torch.set_grad_enabled(torch.is_grad_enabled() and graph.by_weights):
        per_atom = hierarchicality([reference.to(terms[0].dtype), *terms])

    def by_molecule(x: Tensor) -> Tensor:
        return x.new_zeros(graph.n_graphs).scatter_add_(0, graph.batch, x)

    return Prediction(by_molecule(atomic_energies), None, atomic_energies, by_molecule(per_atom))


def _strained(pos: Tensor, lattice: Lattice | None, topology: Topology) -> tuple[Variables, Tensor, Lattice]:
    """A zero strain, and the positions and cells as functions of it."""
    assert lattice is not None
    cell = lattice.cell
    strain = cell.new_zeros(topology.n_graphs, 3, 3).requires_grad_()
    deformation = torch.eye(3, dtype=cell.dtype, device=cell.device) + (strain + strain.mT) / 2
    at = torch.bmm(pos.unsqueeze(1), deformation[topology.batch]).squeeze(1)  # (n_atoms, 3)
    variables = Variables(pos, strain, torch.linalg.det(cell).abs())
    return variables, at, Lattice(cell @ deformation, lattice.pbc)


def check_volumes(lattice: Lattice | None, n_graphs: int) -> None:
    """Check that every graph has a volume, by which a stress is divided.

    Raises:
        MFPyGError: for the first that does not repeat in all directions.
    """
    repeats = torch.zeros(n_graphs, 3, dtype=torch.bool) if lattice is None else lattice.pbc
    without = (~repeats.all(dim=1)).nonzero()
    if len(without):
        graph = int(without[0])
        raise MFPyGError(
            f"stress of graph {graph} is not defined: its pbc is {repeats[graph].tolist()}, expected True in all "
            "three directions, with a cell; leave the stress out"
        )


def _add_derivatives(
    prediction: Prediction, variables: Variables, forces: bool, create_graph: bool, retain_graph: bool
) -> None:
    """Forces and stress in one backward pass, each where it is wanted."""
    strain = variables.strain
    inputs = ([variables.pos] if forces else []) + ([] if strain is None else [strain])
    gradients = torch.autograd.grad(
        prediction.energy.sum(), inputs, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    if forces:
        prediction.forces = -gradients[0]
    if strain is not None:
        assert variables.volume is not None
        prediction.stress = gradients[-1] / variables.volume[:, None, None]
