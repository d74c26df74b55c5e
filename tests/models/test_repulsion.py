"""ZBL repulsion: against LAMMPS and finite differences, its switch, and where the rest of the package meets it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from torch_geometric.data import Batch, Data

import mfpyg
from mfpyg.cli import train
from mfpyg.errors import MFPyGError
from mfpyg.graph import build_graph
from mfpyg.models import HIPNN, DeltaPotential, MultiFidelityPotential
from mfpyg.models.build import build_delta
from mfpyg.models.hessian import hessian
from mfpyg.models.repulsion import INNER, OUTER, ZBL
from mfpyg.settings import TrainSettings
from mfpyg.units import KCAL_MOL_TO_EV

Batches = Callable[..., Batch]
SIZES: dict[str, Any] = {"n_features": 8, "n_sensitivities": 6, "n_interactions": 2, "n_atom_layers": 1}
TINY = ("--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64")


def potential(repulsion: str = "zbl", *fidelities: str, **options: Any) -> MultiFidelityPotential:
    """A small one in float64; the same weights with and without a repulsion."""
    torch.manual_seed(0)
    backbone = HIPNN([1, 6, 7, 8], cutoff=5.0, **SIZES)
    made = MultiFidelityPotential(backbone, fidelities or ["dz"], repulsion=repulsion, **options).double().eval()
    for head in made.heads:
        for level in head.levels:  # type: ignore[union-attr]
            level.reset_parameters()
    return made


def pair(z: tuple[int, int], distance: float) -> Data:
    return Data(z=torch.tensor(z), pos=torch.tensor([[0.0, 0, 0], [distance, 0, 0]], dtype=torch.float64))


def squeezed(make_batch: Batches) -> Batch:
    """Molecules with pairs inside of the inner radii, in the range of the switch, and beyond."""
    batch = make_batch([6, 2, 9, 1])
    batch.pos = batch.pos * torch.tensor([0.3, 0.6, 0.6], dtype=torch.float64)
    return batch


def pair_energies(one: int, two: int, *distances: float) -> torch.Tensor:
    r, z = torch.tensor(distances, dtype=torch.float64), torch.ones(len(distances), dtype=torch.int64)
    return ZBL(5.0).pair_energy(one * z, two * z, r)


# Of pair_style zbl of LAMMPS (22 July 2025) with its switch at 12 Å: Z, Z', distance in Å, eV, eV/Å
LAMMPS = [
    (1, 1, 0.20, 33.28232576039292, 270.16801615),
    (1, 6, 0.35, 58.87609742561635, 353.9749483),
    (6, 8, 0.40, 265.2602279862549, 1595.38498287),
    (8, 8, 0.30, 655.7856349614291, 4771.37863326),
    (7, 17, 0.40, 561.0541398598972, 3516.72244315),
]


@pytest.mark.parametrize(("one", "two", "distance", "energy", "force"), LAMMPS)
def test_below_the_inner_radius_it_is_that_of_lammps(
    one: int, two: int, distance: float, energy: float, force: float
) -> None:
    r = torch.tensor([distance], dtype=torch.float64, requires_grad=True)
    found = ZBL(5.0).pair_energy(torch.tensor([one]), torch.tensor([two]), r)
    assert found.item() * KCAL_MOL_TO_EV == pytest.approx(energy, rel=1e-7)
    (slope,) = torch.autograd.grad(found.sum(), r)
    assert -slope.item() * KCAL_MOL_TO_EV == pytest.approx(force, rel=1e-7)


def test_no_bond_at_rest_is_touched() -> None:
    """Bond lengths of Å of main-group molecules that are short for their covalent radii; all are beyond the switch."""
    bonds = {
        (1, 1): 0.741, (1, 6): 1.06, (1, 8): 0.958, (1, 9): 0.917, (6, 6): 1.203, (6, 7): 1.153, (6, 8): 1.128,
        (7, 7): 1.098, (7, 8): 1.151, (8, 8): 1.208, (6, 16): 1.553, (8, 16): 1.431, (7, 15): 1.491,
    }  # fmt: skip
    for (one, two), length in bonds.items():
        assert length / (covalent_radii[one] + covalent_radii[two]) > OUTER
        assert pair_energies(one, two, length).item() == 0


@pytest.mark.parametrize("elements", [(1, 1), (6, 8), (17, 17)])
def test_switch_is_smooth_and_monotonic(elements: tuple[int, int]) -> None:
    """Value, slope and curvature vanish at the outer radius, and do not jump at the inner one; it repels everywhere."""
    total = covalent_radii[elements[0]] + covalent_radii[elements[1]]
    for radius in (INNER * total, OUTER * total):
        sides = []
        for side in (-1, 1):
            r = torch.tensor([radius + side * 1e-7], dtype=torch.float64, requires_grad=True)
            value = ZBL(5.0).pair_energy(*(torch.tensor([z]) for z in elements), r)
            (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), r)
            sides.append([value.item(), slope.item(), curvature.item()])
        np.testing.assert_allclose(*sides, rtol=1e-4, atol=1.0)  # a third derivative of 1e6
    assert sides[1] == [0, 0, 0]
    energies = pair_energies(*elements, *np.linspace(0.02, OUTER * total, 400).tolist())
    assert (energies.diff() < 0).all()


def test_outer_radius_is_not_beyond_the_cutoff_of_the_network() -> None:
    """Cs–Cs: there are no edges beyond it, at which the energy would jump."""
    z = torch.tensor([55])
    near, at = (ZBL(2.0).pair_energy(z, z, torch.tensor([r], dtype=torch.float64)).item() for r in (1.99, 2.0))
    assert 0 < near < 1e-2
    assert at == 0


def test_it_is_added_to_every_fidelity_and_half_of_a_pair_to_each_atom(make_batch: Batches) -> None:
    batch = squeezed(make_batch)
    with_it, without = (potential(name, "dz", "cc")(batch, ["dz", "cc"]) for name in ("zbl", "none"))
    expected = torch.zeros(4, dtype=torch.float64)
    for i, j in itertools.combinations(range(len(batch.z)), 2):
        if batch.batch[i] == batch.batch[j]:
            r = float((batch.pos[i] - batch.pos[j]).norm())
            expected[batch.batch[i]] += pair_energies(int(batch.z[i]), int(batch.z[j]), r).item()
    assert (expected > 0).tolist() == [True, True, True, False]
    for name in ("dz", "cc"):
        torch.testing.assert_close(with_it[name].energy - without[name].energy, expected, rtol=1e-10, atol=1e-7)
        assert torch.equal(with_it[name].hierarchicality, without[name].hierarchicality)
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, batch.batch, with_it["dz"].atomic_energies)
    torch.testing.assert_close(sums, with_it["dz"].energy)


def test_forces_and_hessians_are_derivatives() -> None:
    model, step = potential(), 1e-5
    data = Data(
        z=torch.tensor([1, 6, 8]), pos=torch.tensor([[0.0, 0, 0], [0.5, 0.2, 0], [0.1, 0.8, 0.3]], dtype=torch.float64)
    )
    second = hessian(model, data, "dz").permute(0, 2, 1, 3).reshape(9, 9)
    for number in range(9):
        ends = []
        for sign in (-1, 1):
            moved = copy.copy(data)
            moved.pos = data.pos.clone()
            moved.pos.view(-1)[number] += sign * step
            ends.append(model(moved))
        low, high = ends
        slope = (high.energy - low.energy).item() / (2 * step)
        assert -model(data).forces.view(-1)[number].item() == pytest.approx(slope, rel=1e-6, abs=1e-4)
        curvature = -(high.forces - low.forces).view(-1) / (2 * step)
        torch.testing.assert_close(second[number], curvature, rtol=1e-5, atol=1e-2)


def test_stress_and_given_edges() -> None:
    """A squeezed crystal: its stress is the slope of its energy, and edges as LAMMPS gives them have its energy."""
    pos = torch.tensor([[0.0, 0, 0], [0.6, 0.5, 0.4]], dtype=torch.float64)
    cell = torch.tensor([[[1.1, 0, 0], [0.1, 1.2, 0], [0, 0.2, 1.3]]], dtype=torch.float64)
    data, model = Data(z=torch.tensor([6, 8]), pos=pos, cell=cell, pbc=torch.ones(1, 3, dtype=torch.bool)), potential()
    found, step = model(data, stress=True), 1e-6
    for sign_of in ((0, 0), (0, 1)):
        energies = []
        for sign in (-1, 1):
            strain = torch.eye(3, dtype=torch.float64)
            strain[sign_of] += sign * step / 2
            strain[sign_of[::-1]] += sign * step / 2
            strained = copy.copy(data)
            strained.pos, strained.cell = pos @ strain, cell @ strain
            energies.append(model(strained, forces=False).energy.item())
        slope = (energies[1] - energies[0]) / (2 * step) / torch.linalg.det(cell[0]).item()
        assert found.stress[0][sign_of].item() == pytest.approx(slope, rel=1e-6)
    graph = build_graph(data, model.cutoff)
    edges = model.predict_edges(data.z, graph.edge_index, graph.edge_vec, "dz")
    torch.testing.assert_close(edges.energy, found.energy)


@pytest.mark.usefixtures("compile_soon")
def test_compiled_is_the_same(make_batch: Batches) -> None:
    batch, model = squeezed(make_batch), potential().train()
    other = copy.deepcopy(model)
    other.compiled = True
    for name in ("energy", "forces"):
        ours, theirs = getattr(other(batch), name), getattr(model(batch), name)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-8)
    assert other._compiler._records  # went through the compiler


def test_single_precision_is_close(make_batch: Batches) -> None:
    """The constants survive a cast."""
    batch, model = squeezed(make_batch), potential()
    single = copy.deepcopy(model).float()
    assert torch.equal(single.double().repulsion.radius, model.repulsion.radius)  # type: ignore[union-attr]
    torch.testing.assert_close(single.float()(batch).energy, model(batch).energy, rtol=1e-5, atol=1e-3)


def test_a_difference_has_none_so_that_the_sum_has_it_once(make_batch: Batches) -> None:
    settings = TrainSettings(repulsion="zbl", fidelities=["dz:EF", "cc:E"])
    delta = build_delta(settings, [1, 6, 7, 8], ["dz", "cc"], "dz").double().eval()
    assert isinstance(delta, DeltaPotential)
    bare = copy.deepcopy(delta)
    bare.base.repulsion = None
    batch = squeezed(make_batch)
    change = [delta(batch, name).energy - bare(batch, name).energy for name in ("dz", "cc")]
    torch.testing.assert_close(change[0], change[1])
    assert (change[0][:3] > 1).all()


@pytest.mark.parametrize("elements", [(1, 1), (1, 6), (7, 8)])
def test_a_network_that_attracts_does_not_fuse_atoms(elements: tuple[int, int]) -> None:
    """A made-up network whose energy falls towards zero distance, as one may that never saw short distances."""
    bare, model = potential("none"), potential()
    with torch.no_grad():
        for one in (bare, model):
            far, near = (one(pair(elements, r)).energy.item() for r in (1.0, 0.2))
            if one is bare:
                sign = -1.0 if near > far else 1.0
            for parameter in one.heads.parameters():
                parameter.mul_(20 * sign)
    assert bare(pair(elements, 0.2)).energy < bare(pair(elements, 1.0)).energy  # it attracts
    close = model(pair(elements, 0.2))
    assert close.forces[0, 0] < -1000
    assert close.forces[1, 0] > 1000
    assert close.energy > model(pair(elements, 1.0)).energy + 300


# From the command line to the checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zbl") / "run"
    options = ("--fidelities", "dz:EF", "cc:E", "--epochs=2", "--repulsion=zbl", "--compile=off")
    train.main([*options, "--out", str(out), *TINY])
    return out


@pytest.mark.slow
def test_trained_saved_and_restored(run: Path, tmp_path: Path) -> None:
    trained = mfpyg.load(run)
    assert isinstance(trained, MultiFidelityPotential)
    assert trained.repulsion is not None
    for name in trained.fidelities:  # H2 pushed together
        close, apart = (trained(pair((1, 1), r), name) for r in (0.2, 0.74))
        assert close.energy > apart.energy + 500
        assert close.forces[1, 0] > 5000
    mfpyg.save(trained, tmp_path / "copy.ckpt")
    again = mfpyg.load(tmp_path / "copy.ckpt")
    assert torch.equal(again(pair((1, 1), 0.2), "cc").energy, trained(pair((1, 1), 0.2), "cc").energy)


@pytest.mark.slow
def test_training_is_the_same_where_no_atoms_are_that_close(run: Path, tmp_path: Path) -> None:
    """No pair of the bundled data is within the range of the repulsion: the weights are the same bits."""
    options = ("--fidelities", "dz:EF", "cc:E", "--epochs=2", "--compile=off")
    train.main([*options, "--out", str(tmp_path / "plain"), *TINY])
    one, two = mfpyg.load(run).state_dict(), mfpyg.load(tmp_path / "plain").state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_molecular_dynamics_of_a_collision(run: Path) -> None:
    """Two hydrogen atoms at 30 eV come to a halt at more than 0.15 Å, and part; the total energy is kept."""
    from ase import Atoms, units
    from ase.md.verlet import VelocityVerlet

    from mfpyg.interop.ase import MFPyGCalculator

    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1.5]])
    atoms.calc = MFPyGCalculator(run, fidelity="cc")
    speed = np.sqrt(15 / atoms.get_masses()[0] * 2)
    atoms.set_velocities([[0, 0, speed / 2**0.5], [0, 0, -speed / 2**0.5]])
    before, closest = atoms.get_total_energy(), 1.5
    dynamics = VelocityVerlet(atoms, 0.005 * units.fs)
    for _ in range(1500):
        dynamics.run(1)
        assert atoms.get_positions()[1, 2] > atoms.get_positions()[0, 2]  # they have not passed through each other
        closest = min(closest, atoms.get_distance(0, 1))
    assert 0.15 < closest < 0.5
    assert atoms.get_distance(0, 1) > 1
    assert atoms.get_total_energy() == pytest.approx(before, abs=0.05)


@pytest.mark.slow
def test_resumed_and_further_trained_runs_keep_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(["--resume", str(run), "--repulsion=none"])
    assert "repulsion was zbl, now none" in " ".join(capsys.readouterr().err.split())
    further = ["--init", str(run), "--add-fidelity", "mp2:E", "--epochs=1", "--compile=off", "--batch-size=64"]
    train.main([*further, "--out", str(tmp_path / "further")])
    assert mfpyg.load(tmp_path / "further").repulsion is not None  # type: ignore[union-attr]
    with pytest.raises(SystemExit):
        train.main([*further, "--repulsion=none", "--out", str(tmp_path / "other")])
    assert "has repulsion zbl" in " ".join(capsys.readouterr().err.split())


def test_older_checkpoints_have_none(untrained: Callable[..., Path]) -> None:
    path = untrained("dz:EF")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["mfpyg"]["config"]["repulsion"]
    torch.save(checkpoint, path)
    assert mfpyg.load(path).repulsion is None  # type: ignore[union-attr]


def test_unknown_name_is_refused() -> None:
    with pytest.raises(MFPyGError, match=r"unknown repulsion 'zlb' .*did you mean 'zbl'"):
        potential("zlb")
