"""A base and a difference: the sum, its forces and stresses, and the labels that differences are learnt from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.models import HIPNN, DeltaPotential, MultiFidelityPotential
from mfpyg.models.delta import difference_name, with_difference

Make = Callable[..., MultiFidelityPotential]


@pytest.fixture
def delta(make_potential: Make) -> DeltaPotential:
    base, difference = (
        make_potential(fidelities=("dz", "tz")),
        make_potential(fidelities=("cc-tz",), seed=1, cutoff=4.0),
    )
    return DeltaPotential(base, difference, "tz", "cc").eval()


def test_sum_of_a_batch(delta: DeltaPotential, make_batch: Callable[..., Batch]) -> None:
    batch = make_batch([3, 7])
    found = delta(batch, ["cc", "tz", "dz"])
    low, change = delta.base(batch, ["dz", "tz"]), delta.difference(batch)
    assert list(found) == ["cc", "tz", "dz"]
    for name in ("energy", "forces", "atomic_energies"):
        assert torch.equal(getattr(found["cc"], name), getattr(low["tz"], name) + getattr(change, name))
        assert torch.equal(getattr(found["dz"], name), getattr(low["dz"], name))
    assert change.energy.abs().min() > 1e-3
    assert delta.fidelities == ("dz", "tz", "cc")
    assert delta.cutoff == 5.0
    reference = delta.base.reference_energy(batch, "tz") + delta.difference.reference_energy(batch, "cc-tz")
    torch.testing.assert_close(delta.reference_energy(batch, "cc"), reference)


def test_forces_are_the_slope_of_the_sum(delta: DeltaPotential, make_molecule: Callable[..., Data]) -> None:
    data, step = make_molecule(6), 1e-5
    forces = delta(data, "cc").forces
    for atom, axis in ((0, 0), (3, 1), (5, 2)):
        energies = []
        for sign in (1, -1):
            moved = data.clone()
            moved.pos[atom, axis] += sign * step
            energies.append(delta(moved, "cc", forces=False).energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        torch.testing.assert_close(forces[atom, axis], -slope[0], rtol=1e-5, atol=1e-6)


def test_stress_of_the_sum(delta: DeltaPotential, make_molecule: Callable[..., Data]) -> None:
    data = make_molecule(5)
    crystal = Data(
        z=data.z, pos=data.pos, cell=7 * torch.eye(3, dtype=torch.float64)[None], pbc=torch.ones(1, 3).bool()
    )
    found = delta(crystal, "cc", stress=True)
    expected = delta.base(crystal, "tz", stress=True).stress + delta.difference(crystal, stress=True).stress
    assert torch.equal(found.stress, expected)
    assert delta(data, "cc").stress is None


def test_no_forces_are_given_that_were_not_asked_for(delta: DeltaPotential, make_molecule: Callable[..., Data]) -> None:
    found = delta.predict(make_molecule(5), {"tz": "E", "cc": "EF"})
    assert found["tz"].forces is None
    assert found["cc"].forces is not None
    assert delta.predict(make_molecule(5), {"cc": "E"})["cc"].forces is None


def test_compiled_is_that_of_both(delta: DeltaPotential) -> None:
    assert not delta.compiled
    delta.compiled = True
    assert delta.base.compiled
    assert delta.difference.compiled
    delta.base.compiled = False
    assert not delta.compiled


def test_parts_that_do_not_go_together_are_refused(make_potential: Make, delta: DeltaPotential) -> None:
    base, difference = make_potential(fidelities=("dz",)), make_potential(fidelities=("cc-dz",))
    with pytest.raises(MFPyGError, match="unknown fidelity 'tz'"):
        DeltaPotential(base, difference, "tz", "cc")
    with pytest.raises(MFPyGError, match="has a fidelity 'dz' already"):
        DeltaPotential(base, difference, "dz", "dz")
    with pytest.raises(MFPyGError, match="expected one fidelity and the base's elements"):
        DeltaPotential(base, make_potential(fidelities=("a", "b")), "dz", "cc")
    other = MultiFidelityPotential(HIPNN([1, 6], 1, 1, 4, 4), ["cc-dz"])
    with pytest.raises(MFPyGError, match="expected one fidelity and the base's elements"):
        DeltaPotential(base, other, "dz", "cc")
    with pytest.raises(MFPyGError, match=r"unknown fidelity 'ccc'.*did you mean 'cc'"):
        delta.predict(Data(), {"ccc": "E"})
    with pytest.raises(MFPyGError, match="this potential has several"):
        delta(Data())


def test_difference_of_labels_is_there_where_both_are() -> None:
    nan, huge = float("nan"), 1e300
    energy = torch.tensor([[1.0, 5.0, 9.0], [nan, 5.0, huge], [2.0, nan, 9.0], [nan, nan, nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, False], [True, False, True], [False, False, False]])
    values, both = with_difference(energy, mask, 1, 0, torch.arange(4))
    assert values[0].tolist() == [1.0, 5.0, 9.0, 4.0]
    assert both.tolist() == [[True, True, False, True], *([*row, False] for row in mask[1:].tolist())]
    assert torch.isnan(values[1:, 3]).all()
    owner = torch.tensor([0, 0, 2])
    forces = torch.randn(3, 3, 3)
    changed, _ = with_difference(forces, mask, 1, 0, owner)
    assert torch.equal(changed[:2, 3], forces[:2, 1] - forces[:2, 0])
    assert torch.isnan(changed[2, 3]).all()
    assert changed.dtype == forces.dtype
    assert difference_name("cc", "dz") == "cc-dz"


def test_predictions_of_prepared_data_would_lack_a_baseline(
    delta: DeltaPotential, make_batch: Callable[..., Batch]
) -> None:
    batch, base, target = make_batch([3, 2]), delta.base_level, delta.target
    delta.baselines = {target: lambda z, pos, batch, n_graphs: (pos[:, 0] + 1, pos)}
    with pytest.raises(MFPyGError, match=f"fidelity '{target}' has a baseline"):
        delta.prepare(batch, {target: "E"})
    prepared = delta.predict(delta.prepare(batch, {base: "EF"}), {base: "EF"})
    assert torch.equal(prepared[base].energy, delta.predict(batch, {base: "EF"})[base].energy)
