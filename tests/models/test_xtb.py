"""xTB as a baseline: against tblite's calculator of ASE, batches, charges, and a training with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch_geometric.data import Batch, Data

import mfpyg
from mfpyg import baselines
from mfpyg.cli import train
from mfpyg.errors import MFPyGError
from mfpyg.inference.ensemble import Ensemble
from mfpyg.labeling.calculators import TBLite
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.hessian import hessian
from mfpyg.models.xtb import XTB
from mfpyg.units import EV_TO_KCAL_MOL

pytest.importorskip("tblite", reason="tblite is not installed: pip install 'mfpyg[label]'")


def data_of(name: str) -> Data:
    atoms = molecule(name)
    return Data(z=torch.from_numpy(atoms.numbers).long(), pos=torch.from_numpy(atoms.positions))


@pytest.mark.parametrize("method", ["GFN2-xTB", "gfn1-xtb"])
def test_it_is_that_of_labels(method: str) -> None:
    """CH3 has an unpaired electron."""
    names = ["CH3CH2OH", "CH3", "H", "C6H6"]
    batch = Batch.from_data_list([data_of(name) for name in names])
    energies, forces = baselines.make(f"tblite:{method}")(batch.z, batch.pos, batch.batch, len(names))
    program = TBLite(*TBLite.parse(method, {}))
    for number, name in enumerate(names):
        expected = program.compute(molecule(name), 0, 1 + (name in ("CH3", "H")), "EF")
        mine = batch.batch == number
        assert energies[mine].sum().item() == pytest.approx(float(expected["E"]) * EV_TO_KCAL_MOL, rel=3e-8)
        np.testing.assert_allclose(forces[mine].numpy(), expected["F"] * EV_TO_KCAL_MOL, atol=1e-3)


def test_forces_are_derivatives_of_energies() -> None:
    baseline, data, h = baselines.make("tblite:GFN2-xTB"), data_of("CH3CHO"), 1e-3
    alone = torch.zeros_like(data.z)
    _, forces = baseline(data.z, data.pos, alone, 1)
    for atom, axis in ((0, 0), (3, 1), (6, 2)):
        values = []
        for step in (h, -h):
            pos = data.pos.clone()
            pos[atom, axis] += step
            values.append(baseline(data.z, pos, alone, 1)[0].sum().item())
        assert forces[atom, axis].item() == pytest.approx((values[1] - values[0]) / (2 * h), abs=2e-3)


def test_members_of_an_ensemble_share_a_calculation(
    make_potential: Callable[..., MultiFidelityPotential], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that have changed in place are computed anew."""
    computed: list[int] = []
    alone = XTB._of_one
    monkeypatch.setattr(XTB, "_of_one", lambda self, graph, *of: computed.append(graph) or alone(self, graph, *of))
    members = [make_potential(fidelities=["dz", "cc"]) for _ in range(3)]
    for member in members:
        member.baselines = {name: baselines.make("tblite:GFN2-xTB") for name in ("dz", "cc")}
    batch, ensemble = Batch.from_data_list([data_of("H2O"), data_of("CH4")]), Ensemble(members)
    first, _ = ensemble.predict(batch, {"dz": "EF", "cc": "EF"})
    assert computed == [0, 1]
    batch.pos[0] += 0.1
    second, _ = ensemble.predict(batch, {"dz": "EF"})
    assert computed == [0, 1, 0, 1]
    assert (second["dz"].energy - first["dz"].energy)[0].abs() > 0.1
    assert baselines.make("tblite:GFN1-xTB") is not members[0].baselines["dz"]
    assert copy.deepcopy(members[0]).baselines["cc"] is members[0].baselines["cc"]


def test_what_it_does_not_support_is_refused(make_potential: Callable[..., MultiFidelityPotential]) -> None:
    with pytest.raises(MFPyGError, match=r"unknown method of tblite 'GFN3-xTB'.*did you mean"):
        baselines.make("tblite:GFN3-xTB")
    potential, data = make_potential(fidelities=["dz"]), data_of("H2O")
    potential.baselines = {"dz": baselines.make("tblite:GFN2-xTB")}
    with pytest.raises(MFPyGError, match="has no second derivatives"):
        hessian(potential, data, "dz")
    data.charge = torch.tensor([-1.0])
    with pytest.raises(MFPyGError, match=r"XTB\('GFN2-xTB'\), which supports neutral molecules only.* charge of -1"):
        potential(data)
    far = Data(z=torch.tensor([1, 95]), pos=torch.tensor([[0.0, 0, 0], [0, 0, 2.0]]).double())
    with pytest.raises(MFPyGError, match="GFN2-xTB of graph 0 failed"):
        baselines.make("tblite:GFN2-xTB")(far.z, far.pos, torch.zeros_like(far.z), 1)


@pytest.mark.slow
def test_a_training_learns_what_is_left(tmp_path: Path) -> None:
    """After two epochs, forces are better than those of a training without."""
    options = ["--fidelities", "dz:EF", "cc:E", "--epochs=2", "--compile=off", "--model.n-features=8"]
    method = "tblite:GFN2-xTB"
    train.main([*options, "--out", str(tmp_path / "plain")])
    train.main([*options, "--baseline", f"dz={method}", f"cc={method}", "--out", str(tmp_path / "xtb")])
    plain, xtb = (mfpyg.load(tmp_path / name) for name in ("plain", "xtb"))
    assert repr(xtb.baselines) == "{'dz': XTB('GFN2-xTB'), 'cc': XTB('GFN2-xTB')}"
    dataset = mfpyg.datasets.MiniCHNO()
    column, rows = dataset.fidelities.index("dz"), np.flatnonzero(dataset.given_split() == 1)
    batch = Batch.from_data_list([dataset[int(row)] for row in rows])
    errors = [
        (model(batch, fidelity="dz").forces - batch.forces[:, column]).square().mean().sqrt().item()
        for model in (plain, xtb)
    ]
    assert errors[1] < 0.7 * errors[0]
