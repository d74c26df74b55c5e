"""Energies relative to isolated atoms: an atom without neighbours has its reference energy, and nothing else.

What the network gives an atom that is alone depends on nothing but its element. Where it is subtracted from every
atomic energy, E_i = E⁰(z_i) + ε_i − ε(z_i alone), level by level, fragments part to the references. For this an atom
of each element, alone, goes through the network with every batch.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mfpyg.graph import EdgeTopology
from mfpyg.lattice import Lattice
from mfpyg.models.prediction import System


def with_isolated_atoms(system: System, elements: Tensor) -> System:
    """The same system, and then one atom of each element, (n_species,) int64, as a graph of its own."""
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
    if not isinstance(topology, EdgeTopology):  # whose atoms have no positions
        pos = torch.cat([pos, pos.new_zeros(n, 3)])
    return dataclasses.replace(system, pos=pos, species=species, topology=new, lattice=lattice)
