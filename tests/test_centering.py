"""Far from the origin the same energies, forces and stresses; near it, positions as they are given."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch_geometric.data import Batch, Data

import mfpyg
from mfpyg.centering import CENTER_BEYOND, centered, find_offset
from mfpyg.errors import MFPyGWarning
from mfpyg.graph import RadiusGraph
from mfpyg.interop.ase import data_of
from mfpyg.models import HIPNN, MultiFidelityPotential


@pytest.fixture(scope="module")
def potential() -> MultiFidelityPotential:
    torch.manual_seed(0)
    sizes = {"n_features": 8, "n_sensitivities": 6, "n_interactions": 2, "n_atom_layers": 1, "cutoff": 4.0}
    found = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **sizes), ["cc"]).eval()
    for level in found.heads[0].levels:
        level.reset_parameters()
    return found


def _crystal() -> Atoms:
    atoms, random = bulk("C", "diamond", a=3.6) * (2, 2, 1), np.random.default_rng(0)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * random.normal(size=(3, 3))), scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def _slab() -> Atoms:
    atoms = _crystal()
    atoms.pbc = [True, True, False]
    return atoms


def _unwrapped(atoms: Atoms, each: bool) -> Atoms:
    """By up to a thousand cells, all atoms together or each by itself, and far along what does not repeat."""
    random, far = np.random.default_rng(1), atoms.copy()
    images = random.integers(-1000, 1001, (len(atoms) if each else 1, 3)) * atoms.pbc
    far.positions += images @ atoms.cell.array
    if not atoms.pbc.all():
        far.positions[:, 2] += 10_000
    return far


def _moved(atoms: Atoms, by: float) -> Atoms:
    far = atoms.copy()
    far.positions += [by, -by, by]
    return far


FAR = {
    "molecule": (molecule("CH3CHO"), _moved(molecule("CH3CHO"), 1e5)),
    "crystal": (_crystal(), _unwrapped(_crystal(), False)),
    "crystal, atom by atom": (_crystal(), _unwrapped(_crystal(), True)),
    "crystal, moved": (_crystal(), _moved(_crystal(), 1e4 + 0.1)),
    "slab": (_slab(), _unwrapped(_slab(), True)),
}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("edges", [False, True])
def test_a_potential_in_float32_does_not_see_where_the_origin_is(
    potential: MultiFidelityPotential, name: str, edges: bool
) -> None:
    near, far = map(data_of, FAR[name])
    stress = bool(near.pbc.all())
    if edges:
        far = RadiusGraph(potential.cutoff)(far)
    given = far.pos.clone()
    expected, found = potential(near, stress=stress), potential(far, stress=stress)
    assert expected.forces.abs().max() > 0.1
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=3e-6)
    if stress:
        torch.testing.assert_close(found.stress, expected.stress, rtol=0, atol=1e-6)
    assert torch.equal(far.pos, given)  # what is handed over stays as it is


def test_graphs_of_a_batch_are_as_alone(potential: MultiFidelityPotential) -> None:
    alone = [data_of(atoms) for pair in FAR.values() for atoms in pair]
    found = potential(Batch.from_data_list(alone))
    each = [potential(one) for one in alone]
    torch.testing.assert_close(found.energy, torch.cat([one.energy for one in each]), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.forces, torch.cat([one.forces for one in each]), rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", FAR)
def test_gradients_by_positions_and_cell_go_through(potential: MultiFidelityPotential, name: str) -> None:
    """Against float64, which needs no origin: by the cell, each atom's images count with their number."""

    def gradients(one: MultiFidelityPotential) -> list[torch.Tensor]:
        data = data_of(FAR[name][1])
        data.pos.requires_grad_(), data.cell.requires_grad_()
        inputs = [data.pos, data.cell] if data.pbc.any() else [data.pos]
        return list(torch.autograd.grad(one(data).energy.sum(), inputs))

    for found, expected in zip(gradients(potential), gradients(copy.deepcopy(potential).double()), strict=True):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * max(1.0, float(expected.abs().max())))


def test_what_is_near_or_has_nothing_to_gain_stays_as_it_is() -> None:
    near = data_of(molecule("CH3CHO"))
    assert centered(near, torch.float32) is near
    assert find_offset(data_of(_moved(molecule("CH3CHO"), CENTER_BEYOND - 2))) is None
    wide = Data(z=torch.ones(2, dtype=torch.int64), pos=torch.tensor([[0.0, 0, 0], [150.0, 0, 0]]))
    assert find_offset(wide) is None  # half of it would still be beyond a power of two
    far = data_of(_moved(molecule("CH3CHO"), 1e4))
    assert centered(far, torch.float64) is far  # which has the digits
    once = centered(far, torch.float32)
    assert float(once.pos.abs().max()) < 5
    assert centered(once, torch.float32) is once


def test_no_atoms_and_lost_ones_are_left_alone() -> None:
    assert find_offset(Data(z=torch.zeros(0, dtype=torch.int64), pos=torch.zeros(0, 3))) is None
    pos = torch.full((4, 3), 1e4, dtype=torch.float64)
    pos[0, 0], pos[1, 0] = torch.nan, torch.inf
    batch = Data(z=torch.ones(4, dtype=torch.int64), pos=pos, batch=torch.tensor([0, 1, 2, 2]))
    found = centered(batch, torch.float32)
    assert torch.equal(found.pos[:2].isfinite(), pos[:2].isfinite())
    assert torch.equal(found.pos[2:], torch.zeros(2, 3, dtype=torch.float64))


def test_float32_positions_far_out_warn(untrained: Callable[..., Path]) -> None:
    potential = mfpyg.load(untrained("dz:EF"))
    data = Data(z=torch.tensor([8, 1, 1]), pos=torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]) + 5000)
    with pytest.warns(MFPyGWarning, match="float32 reach 5,001 Å"):
        potential(data, fidelity="dz")
    data.pos = data.pos.double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential(data, fidelity="dz")
