"""D3(BJ) as a baseline: against s-dftd3, its derivatives, batches, and where the potential meets it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch_geometric.data import Batch, Data

from mfpyg import baselines
from mfpyg.errors import MFPyGError
from mfpyg.models import DeltaPotential, MultiFidelityPotential
from mfpyg.models.hessian import hessian
from mfpyg.units import BOHR_TO_ANGSTROM, HARTREE_TO_KCAL_MOL

pytest.importorskip("tad_dftd3", reason="tad-dftd3 is not installed: pip install 'mfpyg[d3]'")

Potential = Callable[..., MultiFidelityPotential]

# Of s-dftd3 1.7 (the package dftd3), without the three-body term: energy in Hartree, force on atom 0 in Hartree/bohr
S_DFTD3 = [
    ("b3lyp", "CH3CH2OH", -0.00700308, [-0.000148564128, 6.1653428e-05, 0.0]),
    ("pbe0", "C6H6", -0.00935844, [0.0, -9.2799174e-05, 0.0]),
    ("b3lyp", "SiH4", -0.0031666, [0.0, 0.0, 0.0]),
    ("hf", "HCOOH", -0.0190996, [0.001538718764, 0.0010547409, 0.0]),
]


def data_of(name: str) -> Data:
    atoms = molecule(name)
    return Data(z=torch.from_numpy(atoms.numbers).long(), pos=torch.from_numpy(atoms.positions))


def evaluated(method: str, data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    baseline, alone = baselines.make(f"d3bj:{method}"), torch.zeros_like(data.z)
    found: tuple[torch.Tensor, torch.Tensor] = baseline(data.z, data.pos, alone, 1)
    return found


@pytest.mark.parametrize(("method", "name", "energy", "force"), S_DFTD3)
def test_it_is_that_of_s_dftd3(method: str, name: str, energy: float, force: list[float]) -> None:
    energies, forces = evaluated(method, data_of(name))
    assert energies.sum().item() / HARTREE_TO_KCAL_MOL == pytest.approx(energy, abs=2e-7)
    unit = HARTREE_TO_KCAL_MOL / BOHR_TO_ANGSTROM
    np.testing.assert_allclose(forces[0].numpy() / unit, force, atol=1e-8)


def test_graphs_of_a_batch_are_independent_and_part_by_part_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["CH3CH2OH", "H2O", "C6H6", "H", "CH4"]
    batch = Batch.from_data_list([data_of(name) for name in names])
    baseline = baselines.make("d3bj:b3lyp")
    alone = [baseline(one.z, one.pos, torch.zeros_like(one.z), 1) for one in batch.to_data_list()]
    for pairs in (100_000, 200, 1):
        monkeypatch.setattr("mfpyg.models.dispersion.PAIRS", pairs)
        energies, forces = baseline(batch.z, batch.pos, batch.batch, 5)
        torch.testing.assert_close(energies, torch.cat([one for one, _ in alone]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(forces, torch.cat([one for _, one in alone]), rtol=1e-8, atol=1e-12)


def test_potential_adds_it_to_one_fidelity(make_potential: Potential) -> None:
    bare = make_potential(fidelities=["dz", "cc"])
    model, batch = copy.deepcopy(bare), Batch.from_data_list([data_of(name) for name in ("CH3CH2OH", "H2O")])
    model.baselines = {"cc": baselines.make("d3bj:b3lyp")}
    before, after = (one(batch, ["dz", "cc"]) for one in (bare, model))
    assert torch.equal(before["dz"].energy, after["dz"].energy)
    energies, forces = baselines.make("d3bj:b3lyp")(batch.z, batch.pos, batch.batch, 2)
    torch.testing.assert_close(after["cc"].forces - before["cc"].forces, forces)
    torch.testing.assert_close(after["cc"].atomic_energies - before["cc"].atomic_energies, energies)
    sums = torch.zeros(2, dtype=torch.float64).index_add(0, batch.batch, after["cc"].atomic_energies)
    torch.testing.assert_close(after["cc"].energy, sums)
    assert (after["cc"].energy < before["cc"].energy - 0.1).all()
    with torch.inference_mode():
        torch.testing.assert_close(model(batch, "cc", forces=False).energy, after["cc"].energy)
    assert model(batch, "cc", forces=False).forces is None
    single = copy.deepcopy(model).float()(batch, "cc")
    assert single.forces.dtype == torch.float32


def test_forces_and_hessians_are_derivatives(make_potential: Potential) -> None:
    model, data, step = make_potential(), data_of("H2O"), 1e-4
    model.baselines = {"dz": baselines.make("d3bj:hf")}
    forces, second = model(data).forces.flatten(), hessian(model, data, "dz").permute(0, 2, 1, 3).reshape(9, 9)
    for number, displacement in enumerate(step * torch.eye(9, dtype=torch.float64).view(9, 3, 3)):
        ends = []
        for sign in (-1, 1):
            moved = copy.copy(data)
            moved.pos = data.pos + sign * displacement
            ends.append(model(moved))
        slope = (ends[1].energy - ends[0].energy).item() / (2 * step)
        assert -forces[number].item() == pytest.approx(slope, rel=1e-6, abs=1e-5)
        curvature = -(ends[1].forces - ends[0].forces).flatten() / (2 * step)
        torch.testing.assert_close(second[number], curvature, rtol=1e-4, atol=1e-3)


def test_target_of_delta_learning_has_its_own(make_potential: Potential) -> None:
    model = DeltaPotential(make_potential(), make_potential(fidelities=["cc-dz"], seed=1), "dz", "cc")
    data, bare = data_of("CH3CH2OH"), copy.deepcopy(model)
    model.baselines = {"cc": baselines.make("d3bj:b3lyp")}
    change = [(model(data, name).energy - bare(data, name).energy).item() for name in ("dz", "cc")]
    assert change == [0, pytest.approx(-0.00700308 * HARTREE_TO_KCAL_MOL, abs=1e-4)]


def test_what_it_cannot_do_is_refused(make_potential: Potential) -> None:
    model, data = make_potential(), data_of("H2O")
    model.baselines = {"dz": lambda z, pos, batch, n: (torch.zeros_like(pos[:, 0]).detach(), torch.zeros(3, 3))}
    assert torch.isfinite(model(data).forces).all()
    with pytest.raises(MFPyGError, match="no second derivatives"):
        hessian(model, data, "dz")
    crystal = Data(z=data.z, pos=data.pos, cell=5 * torch.eye(3)[None].double(), pbc=torch.ones(1, 3).bool())
    with pytest.raises(MFPyGError, match="supports molecules only"):
        model(crystal)
    edges = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    with pytest.raises(MFPyGError, match="not available in LAMMPS"):
        model.predict_edges(data.z[:2], *edges, "dz")
    with pytest.raises(MFPyGError, match="no parameters of 'b3lyyp'"):
        baselines.make("d3bj:b3lyyp")
    with pytest.raises(MFPyGError, match="no parameters of element 104"):
        evaluated("b3lyp", Data(z=torch.tensor([104]), pos=torch.zeros(1, 3).double()))
    assert repr(baselines.make("d3bj:b3lyp")) == "D3BJ('b3lyp')"
    with pytest.raises(MFPyGError, match=r"unknown baseline 'd3b' .*did you mean 'd3bj'"):
        baselines.make("d3b:b3lyp")
