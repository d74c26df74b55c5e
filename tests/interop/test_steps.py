"""Steps of simulations: equal to new predictions and, run as on a GPU, without waiting for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch_geometric.data import Batch, Data

from mfpyg.device import Later
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph
from mfpyg.inference.ensemble import Ensemble
from mfpyg.interop import slack, verlet
from mfpyg.interop.ase import data_of
from mfpyg.interop.steps import Steps
from mfpyg.models import DeltaPotential, MultiFidelityPotential
from tests.models.test_backbones import NAMES, make
from tests.waits import Waits

Make = Callable[..., MultiFidelityPotential]


def _crystal() -> Atoms:
    atoms = bulk("C", "diamond", a=3.6) * (2, 1, 1)
    atoms.rattle(0.1, seed=0)
    return atoms


def _periodic(*directions: bool) -> Atoms:
    atoms = _crystal()
    atoms.pbc = directions
    return atoms


SYSTEMS = {
    "molecules": [molecule("C6H6"), molecule("H2O")],
    "crystals": [_crystal(), bulk("C", "sc", a=2.1)],
    "a chain and a layer": [_periodic(False, True, False), _periodic(True, True, False)],
}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbour lists that do not wait."""
    monkeypatch.setattr(slack, "waits", lambda device: True)
    monkeypatch.setattr(verlet, "waits", lambda device: True)


class Trajectory:
    """Systems in one batch, in uniform motion, with cells that are strained a little in each step."""

    def __init__(self, systems: list[Atoms], speed: float = 0.02, wrapped: bool = True) -> None:
        self.data = Batch.from_data_list([data_of(atoms) for atoms in systems])
        generator = torch.Generator().manual_seed(0)
        self.velocities = speed * torch.randn(self.data.pos.shape, generator=generator, dtype=torch.float64)
        self.wrapped = wrapped and bool(self.data.pbc.any())

    def next(self) -> Data:
        """The next step, as a simulation has it: in tensors of its own, changed in place."""
        data = self.data
        data.pos += self.velocities
        if self.wrapped:
            strain = torch.tensor([[1.0005, 2e-4, 0], [0, 1, 0], [1e-4, 0, 0.9998]], dtype=torch.float64)
            data.cell.copy_(data.cell @ strain)
            fractional = torch.einsum("na,nak->nk", data.pos, torch.linalg.inv(data.cell)[data.batch])
            wraps = fractional.floor() * data.pbc[data.batch]
            data.pos -= torch.einsum("na,nak->nk", wraps, data.cell[data.batch])
        return Data(z=data.z, pos=data.pos.clone(), batch=data.batch, cell=data.cell, pbc=data.pbc)


def _assert_as_new(ensemble: Ensemble, found: Any, data: Data, letters: str) -> None:
    plain = Data(z=data.z, pos=data.pos, batch=data.batch, cell=data.cell, pbc=data.pbc)
    for ours, new in zip(found, ensemble.predict(plain, {"cc": letters}), strict=True):
        if new is None:
            continue  # no standard deviations
        for name in ("energy", "forces", "stress", "atomic_energies"):
            if (value := getattr(new["cc"], name)) is not None:
                torch.testing.assert_close(getattr(ours["cc"], name), value, rtol=1e-10, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "as on a gpu"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_are_new_predictions(
    random_potential: Make, request: pytest.FixtureRequest, name: str, gpu: bool
) -> None:
    if gpu:
        request.getfixturevalue("as_on_a_gpu")
    letters = "EFS" if name == "crystals" else "EF"
    ensemble, trajectory = Ensemble([random_potential(seed) for seed in range(2)]), Trajectory(SYSTEMS[name])
    steps = Steps(ensemble, skin=0.8)
    for _ in range(60):
        data = trajectory.next()
        given = copy.copy(data)
        _assert_as_new(ensemble, steps.predict(data, {"cc": letters}), given, letters)
    assert 2 <= steps.neighbours.searches <= 20


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_do_not_wait(
    random_potential: Make, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """But for the first ones, those with a search, and what was known before."""
    scan, letters = Waits(), "EFS" if name == "crystals" else "EF"
    monkeypatch.setattr(Later, "read", scan.not_watching(Later.read))
    steps = Steps(Ensemble(random_potential(kernel="padded").to(dtype)), skin=0.8)
    trajectory, searches, n_scanned = Trajectory(SYSTEMS[name], speed=0.008), 0, 0
    for step in range(60):
        data, found_before = trajectory.next(), len(scan.found)
        with scan:
            scan.watching = step > 10
            steps.predict(data, {"cc": letters})
        if steps.neighbours.searches > searches:
            del scan.found[found_before:]
        else:
            n_scanned += step > 10
        searches = steps.neighbours.searches
    assert sorted(set(scan.found)) == []
    assert scan.n_watched > 2_000
    assert n_scanned > 30


@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_replay_one_graph(as_on_a_gpu: None, replayed_here: list[int], name: str) -> None:
    """Between searches the padded system, its ghosts and isolated atoms stay, and only positions and cells change."""
    torch.manual_seed(0)
    plain = MultiFidelityPotential(make("hipnn", tensor_order=0, n_interactions=1), ["cc"], isolated="reference")
    plain = plain.double().eval()
    compiled, letters = copy.deepcopy(plain), "EFS" if name == "crystals" else "EF"
    compiled.compiled = True
    steps, ensemble, trajectory = Steps(Ensemble(compiled), 0.8), Ensemble(plain), Trajectory(SYSTEMS[name], 0.005)
    for _ in range(25):
        data = trajectory.next()
        given = copy.copy(data)
        found, _ = steps.predict(data, {"cc": letters})
        _assert_as_new(ensemble, (found, None), given, letters)
    assert len(replayed_here) <= steps.neighbours.searches <= 3
    assert sum(replayed_here) >= 20


def test_the_scan_finds_what_waits(random_potential: Make) -> None:
    scan, steps = Waits(), Steps(Ensemble(random_potential(kernel="padded")), skin=0.8)
    trajectory = Trajectory(SYSTEMS["crystals"])
    for step in range(12):
        with scan:
            scan.watching = step > 10
            steps.predict(trajectory.next(), {"cc": "EF"})
    for name in ("slack.py", "interop/verlet.py", "lattice.py"):
        assert any(name in line for line in scan.found), name


@pytest.mark.parametrize("name", NAMES)
def test_edges_beyond_the_cutoff_have_no_effect(name: str) -> None:
    """As all candidates of a neighbour list are edges on a GPU."""
    torch.manual_seed(0)
    potential = MultiFidelityPotential(make(name), ["cc"], repulsion="zbl").double().eval()
    for atoms in (molecule("CH3CH2OH"), _crystal()):
        data = RadiusGraph(potential.cutoff + 1)(data_of(atoms))
        n_edges = data.edge_index.shape[1]
        data.edge_cutoff = torch.tensor([potential.cutoff], dtype=torch.float64)
        found, expected = potential(data), potential(data_of(atoms))
        assert n_edges > RadiusGraph(potential.cutoff)(data_of(atoms)).edge_index.shape[1]
        torch.testing.assert_close(found.energy, expected.energy, rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(found.forces, expected.forces, rtol=1e-8, atol=1e-8)


def test_a_sudden_step_is_not_a_number_and_then_an_error(random_potential: Make, as_on_a_gpu: None) -> None:
    ensemble, trajectory = Ensemble(random_potential()), Trajectory(SYSTEMS["molecules"], speed=1e-3)
    steps = Steps(ensemble, skin=0.8)
    for _ in range(15):
        assert steps.predict(trajectory.next(), {"cc": "EF"})[0]["cc"].energy.isfinite().all()
    trajectory.data.pos[0, 0] += 0.5
    prediction = steps.predict(trajectory.next(), {"cc": "EF"})[0]["cc"]
    assert prediction.energy.isnan().all()
    assert prediction.forces.isnan().all()
    with pytest.raises(MFPyGError, match=r"suddenly moved by about 0\.2 Å or more in one step.*use smaller steps"):
        steps.predict(trajectory.next(), {"cc": "EF"})
    for _ in range(15):
        data = trajectory.next()
        given = copy.copy(data)
        _assert_as_new(ensemble, steps.predict(data, {"cc": "EF"}), given, "EF")


def test_positions_that_become_nan_are_named_a_step_later(random_potential: Make, as_on_a_gpu: None) -> None:
    steps, trajectory = Steps(Ensemble(random_potential()), 0.8), Trajectory(SYSTEMS["molecules"], speed=1e-3)
    for _ in range(15):
        steps.predict(trajectory.next(), {"cc": "EF"})
    trajectory.data.pos[3] = torch.nan
    assert steps.predict(trajectory.next(), {"cc": "EF"})[0]["cc"].energy.isnan().all()
    with pytest.raises(MFPyGError, match=r"positions are NaN or infinite in graph 0 \(atom 3 of all\)"):
        steps.predict(trajectory.next(), {"cc": "EF"})


def test_fast_motion_is_looked_at_in_every_step(random_potential: Make, as_on_a_gpu: None) -> None:
    """As at the beginning of a relaxation: 0.2 Å in a step, with a skin of 0.8 Å."""
    ensemble, trajectory = Ensemble(random_potential()), Trajectory(SYSTEMS["molecules"], speed=0.1)
    steps = Steps(ensemble, skin=0.8)
    for _ in range(20):
        data = trajectory.next()
        given = copy.copy(data)
        _assert_as_new(ensemble, steps.predict(data, {"cc": "EF"}), given, "EF")
    assert steps.neighbours.searches > 5


def test_data_are_prepared_when_edges_change(random_potential: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    potential, prepared = random_potential(), []
    prepare = potential.prepare
    monkeypatch.setattr(potential, "prepare", lambda *given: prepared.append(1) or prepare(*given))
    steps, trajectory = Steps(Ensemble(potential), 0.8), Trajectory([molecule("H2O")], speed=1e-3)
    for _ in range(5):
        steps.predict(trajectory.next(), {"cc": "EF"})
    assert len(prepared) == 1
    steps.predict(trajectory.next(), {"cc": "E"})
    assert len(prepared) == 2
    trajectory.data.pos[0] += 9
    steps.predict(trajectory.next(), {"cc": "E"})
    assert len(prepared) == 3


def test_overlapping_atoms_are_named(random_potential: Make) -> None:
    steps, atoms = Steps(Ensemble(random_potential()), 3.0), molecule("H2O")
    for _ in range(2):
        steps.predict(data_of(atoms), {"cc": "EF"})
    atoms.positions[2] = atoms.positions[1]
    with pytest.raises(MFPyGError, match="atoms 1 and 2 are at the same place"):
        steps.predict(data_of(atoms), {"cc": "EF"})


def test_networks_with_other_cutoffs_find_their_own_edges(random_potential: Make) -> None:
    """Those of an ensemble, and of a sum."""
    base, difference = random_potential(0, ["dz"], cutoff=3.0), random_potential(1, ["cc-dz"], cutoff=4.0)
    members = [random_potential(2, ["cc"], cutoff=3.5), DeltaPotential(base, difference, "dz", "cc").eval()]
    for ensemble in (Ensemble(members), Ensemble(members[1])):
        steps, trajectory = Steps(ensemble, 0.8), Trajectory([molecule("CH3CH2OH")], speed=0.03)
        for _ in range(20):
            data = trajectory.next()
            given = copy.copy(data)
            _assert_as_new(ensemble, steps.predict(data, {"cc": "EF"}), given, "EF")


def test_total_charges_may_change(random_potential: Make) -> None:
    ensemble = Ensemble(random_potential(0, ["cc"], charges=["cc"]))
    steps, atoms, dipoles = Steps(ensemble, 0.8), molecule("CH3CHO"), []
    for charge in (0.0, 1.0):
        data = data_of(atoms)
        data.charge = torch.tensor([charge], dtype=torch.float64)
        found = steps.predict(data, {"cc": "EDQ"})[0]["cc"]
        assert found.charges.sum().item() == pytest.approx(charge)
        dipoles.append(found.dipole.numpy())
    assert np.abs(dipoles[1] - dipoles[0]).max() > 0.1
