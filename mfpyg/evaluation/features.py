"""Last features of conformations, which the energy of a level is linear in, and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.centering import centered
from mfpyg.graph import find_topology
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.models.derivatives import last_features
from mfpyg.models.last_layer import of_graphs
from mfpyg.models.system import System, with_isolated_atoms
from mfpyg.torch_defaults import with_default_torch_settings


@dataclass
class LastFeatures:
    """Last features φ of a batch.

    Attributes:
        atoms: φ of each atom, (n_atoms, d).
        graphs: Φ, the sums over the atoms of each graph, (n_graphs, d).
        jacobian: −∂Φ/∂x, of which forces are linear in the same weights, (n_atoms, 3, d); ``None`` if not requested.
    """

    atoms: Tensor
    graphs: Tensor
    jacobian: Tensor | None = None


@with_default_torch_settings
def last_features_of(potential: Potential, data: Data, fidelity: str, jacobian: bool = False) -> LastFeatures:
    """Last features of a batch for one fidelity.

    Args:
        potential: potential in evaluation mode. Of a Δ-learning potential, the target has the features of both
            networks, side by side.
        data: ``Data`` or ``Batch``, see :meth:`mfpyg.models.Potential.forward`.
        fidelity: level of theory.
        jacobian: whether to compute the derivatives, too, by a backward pass for each of the d features.

    Raises:
        MFPyGError: for an unknown fidelity or element.
    """
    potential.check_fidelity(fidelity)
    if isinstance(potential, DeltaPotential):
        if fidelity != potential.target:
            return last_features_of(potential.base, data, fidelity, jacobian)
        of_base = last_features_of(potential.base, data, potential.base_level, jacobian)
        of_difference = last_features_of(potential.difference, data, potential.difference.fidelities[0], jacobian)
        return _side_by_side(of_base, of_difference)
    assert isinstance(potential, MultiFidelityPotential)
    data = centered(data, potential.dtype)
    topology, lattice = find_topology(data, potential.cutoff, potential.engine, potential.dtype)
    n_atoms, n_graphs, batch = len(data.z), topology.n_graphs, topology.batch
    system = System(data.pos.to(potential.dtype), potential.species_number(data.z), topology, lattice)
    if potential.isolated == "reference":
        system = with_isolated_atoms(system, potential.backbone.species)  # type: ignore[arg-type]
    with torch.set_grad_enabled(jacobian):
        pos = system.pos.detach().requires_grad_(jacobian)
        graph = system.topology.at(pos, system.lattice)
        graph.by_weights = False
        atoms = last_features(potential, fidelity, potential.features(graph, [fidelity])[fidelity], system.species)
        atoms = atoms[:n_atoms]
        graphs = of_graphs(atoms, batch, n_graphs)
        if not jacobian:
            return LastFeatures(atoms, graphs)
        columns = [torch.autograd.grad(column.sum(), pos, retain_graph=True, materialize_grads=True)[0][:n_atoms]
                   for column in graphs.unbind(dim=1)]  # fmt: skip
        return LastFeatures(atoms.detach(), graphs.detach(), -torch.stack(columns, dim=2))


def _side_by_side(one: LastFeatures, two: LastFeatures) -> LastFeatures:
    jacobian = None
    if one.jacobian is not None and two.jacobian is not None:
        jacobian = torch.cat([one.jacobian, two.jacobian], dim=2)
    atoms, graphs = torch.cat([one.atoms, two.atoms], dim=1), torch.cat([one.graphs, two.graphs], dim=1)
    return LastFeatures(atoms, graphs, jacobian)
