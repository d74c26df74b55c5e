"""Energies and their derivatives, forces and stresses, and the properties of further heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mfpyg.graph import Graph, Topology
from mfpyg.lattice import Lattice
from mfpyg.models.heads import FurtherHead, Head, hierarchicality
from mfpyg.models.last_layer import LastLayer
from mfpyg.models.prediction import Prediction
from mfpyg.models.repulsion import ZBL
from mfpyg.models.system import System
from mfpyg.properties import PROPERTIES, heads_of


class Network(Protocol):
    """Interface of :class:`mfpyg.models.MultiFidelityPotential` that is needed here."""

    isolated: str
    uncertainty: Mapping[str, LastLayer]
    repulsion: ZBL | None

    def features(self, graph: Graph, fidelities: Iterable[str]) -> dict[str, list[Tensor]]:
        """Features of every level for the head of each fidelity, (n_atoms, width) each."""

    def head(self, fidelity: str) -> Head:
        """Output layers of a fidelity."""

    def further_head(self, fidelity: str, kind: str) -> FurtherHead:
        """Output layers of a fidelity for other properties."""


def evaluate(
    potential: Network, system: System, wanted: Mapping[str, str], differentiable: bool, std: bool = False
) -> dict[str, Prediction]:
    """Predict the properties in ``wanted``.

    One pass through the backbone, and one backward pass for each fidelity with forces or stress.

    Args:
        potential: backbone and heads.
        system: atoms and neighbours; positions and cells may require a gradient.
        wanted: ``{fidelity: letters of properties}``, see :mod:`mfpyg.properties`; energies are always predicted.
        differentiable: whether the result can be differentiated (again).
        std: whether to predict standard deviations of energies and forces, too.
    """
    return derive(*energies(potential, system, wanted, differentiable, std), wanted, differentiable)


def any_wants(wanted: Mapping[str, str], letters: str) -> bool:
    """True if any fidelity is to be predicted with one of these properties."""
    return any(letter in of_fidelity for of_fidelity in wanted.values() for letter in letters)


@dataclass
class Variables:
    """Variables that energies are differentiated by.

    Attributes:
        pos: positions, (n_atoms, 3).
        strain: zero strain of each graph, (n_graphs, 3, 3); ``None`` without stresses.
        volume: volumes in Å³, (n_graphs,), NaN for graphs without one; ``None`` without stresses.
    """

    pos: Tensor
    strain: Tensor | None = None
    volume: Tensor | None = None


def energies(
    potential: Network, system: System, wanted: Mapping[str, str], differentiable: bool, std: bool = False
) -> tuple[dict[str, Prediction], Variables]:
    """Predictions without derivatives, and the variables to differentiate by; see :func:`evaluate`."""
    forces, stress = any_wants(wanted, "F"), any_wants(wanted, "S")
    with torch.set_grad_enabled(torch.is_grad_enabled() or forces or stress):
        pos = system.pos
        if forces and not pos.requires_grad:
            pos = pos.detach().requires_grad_()
        variables, at, cells = Variables(pos), pos, system.lattice
        if stress:
            variables, at, cells = _strained(pos, system.lattice, system.topology)
        graph = system.topology.at(at, cells, system.prepared)
        graph.by_weights = differentiable
        features = potential.features(graph, wanted)
        pairs = None if potential.repulsion is None else potential.repulsion(graph)  # (n_atoms,)
        predictions = {
            name: _assemble(potential, name, features[name], system.species, graph, pairs) for name in wanted
        }
        if std:
            with torch.no_grad():
                for name in wanted:
                    _add_std(predictions[name], potential, name, features[name], system.species, graph)
        with torch.set_grad_enabled(torch.is_grad_enabled() and differentiable):
            for name, letters in wanted.items():
                for kind in heads_of(letters):
                    found = potential.further_head(name, kind).predict(features[name], letters, system, at)
                    for letter, values in found.items():
                        if letter in letters:
                            setattr(predictions[name], PROPERTIES[letter].name, values)
    return predictions, variables


def derive(
    predictions: dict[str, Prediction], variables: Variables, wanted: Mapping[str, str], differentiable: bool
) -> dict[str, Prediction]:
    """Add the forces and stresses in ``wanted``; see :func:`evaluate`."""
    with_gradients = [name for name, letters in wanted.items() if any_wants({name: letters}, "FS")]
    with torch.set_grad_enabled(torch.is_grad_enabled() or bool(with_gradients)):
        for name in with_gradients:
            keep = differentiable or name != with_gradients[-1]
            _add_derivatives(predictions[name], variables, wanted[name], differentiable, keep)
    if differentiable:
        return predictions
    return {name: prediction.detached() for name, prediction in predictions.items()}


def _assemble(
    potential: Network, name: str, features: list[Tensor], species: Tensor, graph: Graph, pairs: Tensor | None
) -> Prediction:
    head = potential.head(name)
    reference = head.reference[species]  # (n_atoms,) float64
    terms = head(features)
    if potential.isolated == "reference":  # the last atoms are isolated ones, see with_isolated_atoms
        terms = [term - term[-len(head.reference) :][species] for term in terms]
    interacting = torch.stack(terms).sum(dim=0).to(reference.dtype)  # (n_atoms,)
    if pairs is not None:
        interacting = interacting + pairs.to(reference.dtype)
    atomic_energies = reference + interacting
    with torch.set_grad_enabled(torch.is_grad_enabled() and graph.by_weights):
        per_atom = hierarchicality([reference.to(terms[0].dtype), *terms])

    def by_molecule(x: Tensor) -> Tensor:
        return x.new_zeros(graph.n_graphs).scatter_add_(0, graph.batch, x)

    return Prediction(by_molecule(atomic_energies), None, atomic_energies, by_molecule(per_atom))


def _add_std(
    prediction: Prediction,
    potential: Network,
    name: str,
    features: list[Tensor],
    species: Tensor,
    graph: Graph,
) -> None:
    last = last_features(potential, name, features, species)
    prediction.energy_std, of_atoms = potential.uncertainty[name](last, graph.batch, graph.n_graphs)
    prediction.forces_std = of_atoms.unsqueeze(1).expand(-1, 3)


def last_features(potential: Network, name: str, features: list[Tensor], species: Tensor) -> Tensor:
    """Features that the interacting part of a level's energy is linear in, (n_atoms, d)."""
    head = potential.head(name)
    last = head.last_features(features)
    if potential.isolated == "reference":  # as the terms in _assemble
        last = last - last[-len(head.reference) :][species]
    return last


def _strained(pos: Tensor, lattice: Lattice | None, topology: Topology) -> tuple[Variables, Tensor, Lattice]:
    """Variables with a zero strain, and positions and cells as functions of it."""
    assert lattice is not None
    cell = lattice.cell
    strain = cell.new_zeros(topology.n_graphs, 3, 3).requires_grad_()
    deformation = torch.eye(3, dtype=cell.dtype, device=cell.device) + (strain + strain.mT) / 2
    at = torch.bmm(pos.unsqueeze(1), deformation[topology.batch]).squeeze(1)  # (n_atoms, 3)
    a, b, c = cell.unbind(dim=1)  # (n_graphs, 3) each
    determinant = (a * torch.linalg.cross(b, c)).sum(dim=1)  # CUDA graphs cannot capture torch.linalg.det
    volume = torch.where(lattice.pbc.all(dim=1), determinant.abs(), torch.nan)
    variables = Variables(pos, strain, volume)
    return variables, at, Lattice(cell @ deformation, lattice.pbc)


def _add_derivatives(
    prediction: Prediction, variables: Variables, letters: str, create_graph: bool, retain_graph: bool
) -> None:
    """Add forces and stress, as requested, in one backward pass."""
    forces, strain = "F" in letters, variables.strain if "S" in letters else None
    inputs = ([variables.pos] if forces else []) + ([] if strain is None else [strain])
    gradients = torch.autograd.grad(
        prediction.energy.sum(), inputs, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    if forces:
        prediction.forces = -gradients[0]
    if strain is not None:
        assert variables.volume is not None
        volume = variables.volume[:, None, None]
        there = volume.isfinite()  # a division by NaN would make gradients NaN
        prediction.stress = torch.where(there, gradients[-1] / torch.where(there, volume, 1.0), torch.nan)
