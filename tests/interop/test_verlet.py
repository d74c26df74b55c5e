"""The Verlet list: in every step the edges of a fresh search, bit for bit, and seldom a search."""

from __future__ import annotations

from collections.abc import Callable

import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet

from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph
from mfpyg.interop.ase import MFPyGCalculator, data_of
from mfpyg.interop.verlet import VerletList
from mfpyg.models import MultiFidelityPotential


def _crystal() -> Atoms:
    atoms = bulk("C", "diamond", a=3.6) * (2, 2, 1)
    atoms.rattle(0.1, seed=0)
    return atoms


def _slab() -> Atoms:
    atoms = _crystal()
    atoms.pbc = [True, False, True]
    return atoms


SYSTEMS = {"molecule": lambda: molecule("C6H6"), "crystal": _crystal, "slab": _slab}


def _assert_fresh(neighbours: VerletList, atoms: Atoms) -> None:
    data, expected = data_of(atoms), data_of(atoms)
    neighbours.add_edges(data)
    expected.pos, expected.cell = expected.pos.to(neighbours.dtype), expected.cell.to(neighbours.dtype)
    expected = RadiusGraph(neighbours.cutoff)(expected)
    assert torch.equal(data.edge_index, expected.edge_index)
    assert torch.equal(data.edge_shift, expected.edge_shift)
    assert torch.equal(data.edge_cutoff, expected.edge_cutoff)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_those_of_a_fresh_search(name: str, dtype: torch.dtype) -> None:
    """Atoms go their ways, out of the cell, some of them far."""
    atoms, random = SYSTEMS[name](), np.random.default_rng(0)
    neighbours = VerletList(3.0, 0.8, dtype)
    velocities = 0.05 * random.normal(size=atoms.positions.shape)
    for _ in range(80):
        atoms.positions += velocities
        _assert_fresh(neighbours, atoms)
    assert 5 < neighbours.searches < 40


@pytest.mark.parametrize("name", ["crystal", "slab"])
def test_a_cell_that_changes(name: str) -> None:
    atoms, random = SYSTEMS[name](), np.random.default_rng(0)
    neighbours = VerletList(3.0, 0.8, torch.float64)
    rate = 0.003 * random.normal(size=(3, 3))
    for step in range(60):
        strained = atoms.cell.array @ (np.eye(3) + rate)
        atoms.set_cell(strained, scale_atoms=bool(step % 3))
        atoms.positions += 0.01 * random.normal(size=atoms.positions.shape)
        _assert_fresh(neighbours, atoms)
    assert 1 < neighbours.searches < 50


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_a_cell_that_jumps(factor: float) -> None:
    atoms = _crystal()
    neighbours = VerletList(3.0, 0.8, torch.float64)
    _assert_fresh(neighbours, atoms)
    atoms.set_cell(factor * atoms.cell.array, scale_atoms=True)
    _assert_fresh(neighbours, atoms)


def test_when_it_searches() -> None:
    atoms = molecule("C6H6")
    neighbours = VerletList(3.0, 0.8, torch.float64)

    def searches() -> int:
        _assert_fresh(neighbours, atoms)
        return neighbours.searches

    assert searches() == 1
    atoms.positions[3] += [0.39, 0, 0]
    assert searches() == 1
    atoms.positions[3] += [0.02, 0, 0]  # more than half the skin
    assert searches() == 2
    atoms.numbers[0] = 7
    assert searches() == 3
    del atoms[5]
    assert searches() == 4
    atoms.cell = [9, 9, 9]  # nothing repeats: the cell does not matter
    assert searches() == 4
    atoms.pbc = True
    assert searches() == 5
    atoms.pbc = [True, False, True]
    assert searches() == 6
    atoms.positions[0] += [9, 0, 0]
    neighbours.add_edges(moved := data_of(atoms))
    assert neighbours.searches == 6
    assert moved.pos[0, 0] == pytest.approx(atoms.positions[0, 0] - 9)
    atoms.positions[0] += [0, 9, 0]  # where nothing repeats
    assert searches() == 7


def test_without_a_skin_it_searches_when_anything_moves() -> None:
    atoms = molecule("C6H6")
    neighbours = VerletList(3.0, 0.0, torch.float64)
    for _ in range(5):
        atoms.rattle(1e-3, rng=np.random.default_rng(0))
        _assert_fresh(neighbours, atoms)
    assert neighbours.searches == 5
    _assert_fresh(neighbours, atoms)
    assert neighbours.searches == 5


def test_edges_that_stay_are_the_same_tensors() -> None:
    atoms = molecule("C6H6")
    neighbours = VerletList(3.0, 0.8, torch.float64)
    found = []
    for _ in range(2):
        data = data_of(atoms)
        neighbours.add_edges(data)
        found.append(data.edge_index)
        atoms.positions += 1e-6
    assert found[0] is found[1]


@pytest.mark.parametrize("skin", [-0.1, float("nan"), float("inf")])
def test_skins_that_make_no_sense(skin: float) -> None:
    with pytest.raises(MFPyGError, match="expected a distance in Å"):
        VerletList(3.0, skin, torch.float64)


@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_forces_of_a_trajectory(random_potential: Callable[..., MultiFidelityPotential], name: str) -> None:
    """Dynamics of a random potential at a high temperature; in each step a calculator that searches afresh."""
    potential, atoms = random_potential(), SYSTEMS[name]()
    atoms.calc = MFPyGCalculator(potential, skin=0.4)
    random = np.random.default_rng(0)
    masses = atoms.get_masses()[:, None]
    atoms.set_momenta(random.normal(size=atoms.positions.shape) * np.sqrt(masses * ase.units.kB * 5000))
    dynamics = VelocityVerlet(atoms, 1.0 * ase.units.fs)
    for _ in range(30):
        dynamics.run(1)
        expected = potential(data_of(atoms))
        energy, forces = atoms.get_potential_energy() / ase.units.kcal * ase.units.mol, atoms.get_forces()
        assert energy == pytest.approx(expected.energy.item(), rel=1e-7)
        np.testing.assert_array_equal(forces, MFPyGCalculator(potential).get_property("forces", atoms))
    assert 1 < atoms.calc.steps.neighbours.searches < 20
    if name == "crystal":
        fractional = atoms.get_scaled_positions(wrap=False)
        assert fractional.min() < 0 or fractional.max() > 1


def test_far_from_the_origin_a_cell_may_change_as_much_as_near_it() -> None:
    searches = []
    for shift in (0.0, 1e4):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
        atoms.rattle(0.05, rng=np.random.default_rng(0))
        atoms.positions += shift
        neighbours = VerletList(3.0, 0.8, torch.float32)
        for _ in range(10):
            atoms.set_cell(atoms.cell * 1.0002, scale_atoms=True)
            neighbours.add_edges(data_of(atoms))
        searches.append(neighbours.searches)
    assert searches == [1, 1]
