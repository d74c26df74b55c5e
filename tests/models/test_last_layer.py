"""Standard deviations of the last layer, against explicit inverse matrices, and what they leave unchanged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.models.last_layer import RIDGE, LastLayer, of_graphs, whitening
from mfpyg.models.uncertainty import drop_uncertainty, predict_with_std

Make = Callable[..., MultiFidelityPotential]
Batches = Callable[..., Batch]
AddStd = Callable[..., Potential]


def gram_of(n: int, d: int, seed: int = 0) -> Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.T @ rows


def in_cell(molecule: Data, periodic: bool) -> Data:
    cell = torch.tensor([[[6.0, 0, 0], [1.0, 7, 0], [0, 0.5, 8]]], dtype=torch.float64)
    return Data(z=molecule.z, pos=molecule.pos, cell=cell, pbc=torch.full((1, 3), periodic))


def test_whitening_is_a_root_of_the_inverse() -> None:
    for gram in (gram_of(40, 6), gram_of(3, 6)):  # of full and of lower rank
        ridge = RIDGE * torch.trace(gram) / 6
        inverse = torch.linalg.inv(gram + ridge * torch.eye(6, dtype=torch.float64))
        found = whitening(gram)
        torch.testing.assert_close(found @ found.T, inverse, rtol=1e-8, atol=1e-12)


def test_everything_is_on_the_device_of_the_features() -> None:
    gram, batch = torch.empty(5, 5, dtype=torch.float64, device="meta"), torch.zeros(7, dtype=torch.long, device="meta")
    root = whitening(gram)
    found = LastLayer(root, root, gram.new_ones(2))(gram.new_empty(7, 5), batch, 3)
    assert {one.device.type for one in (root, *found)} == {"meta"}
    assert [one.shape for one in found] == [(3,), (7,)]


def test_standard_deviations_are_those_of_the_definition() -> None:
    """σ² = a² Φᵀ (Σ Φ Φᵀ + ς)⁻¹ Φ of each molecule, and a² φᵀ (Σ φ φᵀ + ς)⁻¹ φ of each atom."""
    d, batch = 5, torch.tensor([0, 0, 0, 1, 2, 2])
    grams = gram_of(30, d), gram_of(90, d, 1)
    layer = LastLayer(*map(whitening, grams), torch.tensor([3.0, 0.25], dtype=torch.float64))
    features = torch.randn(6, d, dtype=torch.float64)
    energy, atoms = layer(features, batch, 3)
    inverses = [
        torch.linalg.inv(gram + RIDGE * torch.trace(gram) / d * torch.eye(d, dtype=torch.float64)) for gram in grams
    ]
    for graph in range(3):
        whole = sum(phi for phi, owner in zip(features, batch, strict=True) if owner == graph)
        assert float(energy[graph]) == pytest.approx(3 * math.sqrt(whole @ inverses[0] @ whole), rel=1e-8)
    for atom, phi in enumerate(features):
        assert float(atoms[atom]) == pytest.approx(0.25 * math.sqrt(phi @ inverses[1] @ phi), rel=1e-8)
    assert of_graphs(features, batch, 4)[3].eq(0).all()  # a graph without atoms


@pytest.fixture(params=["plain", "reference", "delta"])
def potential(request: pytest.FixtureRequest, make_potential: Make, add_std: AddStd) -> Potential:
    if request.param == "delta":
        base, difference = make_potential(fidelities=("dz", "tz")), make_potential(fidelities=("cc-tz",), seed=1)
        return add_std(DeltaPotential(base, difference, "tz", "cc").eval())
    made = make_potential(fidelities=("dz", "cc"))
    made.isolated = "network" if request.param == "plain" else "reference"
    return add_std(made)


def test_predictions_are_the_same_to_the_last_bit(potential: Potential, make_batch: Batches) -> None:
    wanted = {"cc": "EF", "dz": "E"}
    for kind in (potential, copy.deepcopy(potential).float()):
        data = make_batch([4, 7, 1])
        without, found = kind.predict(data, wanted), kind.predict(data, wanted, std=True)
        for name, letters in wanted.items():
            for field in ("energy", "atomic_energies", "hierarchicality", *["forces"] * ("F" in letters)):
                assert torch.equal(getattr(found[name], field), getattr(without[name], field))
            assert without[name].energy_std is without[name].forces_std is None
            assert found[name].energy_std.shape == (3,)  # type: ignore[union-attr]
            assert found[name].forces_std.shape == (12, 3)  # type: ignore[union-attr]
            assert not found[name].energy_std.requires_grad  # type: ignore[union-attr]


def test_standard_deviations_of_a_batch_are_those_of_its_graphs(
    potential: Potential, make_molecule: Callable[..., Data]
) -> None:
    molecules = [make_molecule(n, n) for n in (5, 1, 8)]
    graphs = [in_cell(molecules[i], periodic) for i, periodic in ((0, True), (1, True), (0, False), (2, False))]
    found = potential.predict(Batch.from_data_list(graphs), {"dz": "EF", "cc": "EF"}, std=True)
    alone = [potential.predict(one, {"dz": "EF", "cc": "EF"}, std=True) for one in graphs]
    for name, prediction in found.items():
        for field in ("energy_std", "forces_std"):
            each = torch.cat([getattr(one[name], field) for one in alone])
            torch.testing.assert_close(getattr(prediction, field), each, rtol=1e-9, atol=1e-12)
    periodic, free = (found["cc"].energy_std[i] for i in (0, 2))  # type: ignore[index]
    assert not torch.isclose(periodic, free)  # of the same atoms


def test_standard_deviations_do_not_depend_on_orientation_and_order(
    potential: Potential, make_molecule: Callable[..., Data]
) -> None:
    data = make_molecule(7)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    order = torch.randperm(7)
    moved = Data(z=data.z[order], pos=data.pos[order] @ rotation + 3)
    one, two = (potential.predict(graph, {"cc": "E"}, std=True)["cc"] for graph in (data, moved))
    torch.testing.assert_close(two.energy_std, one.energy_std, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(two.forces_std, one.forces_std[order], rtol=1e-8, atol=1e-10)  # type: ignore[index]


def test_variances_of_a_difference_add_up(make_potential: Make, make_batch: Batches, add_std: AddStd) -> None:
    base, difference = make_potential(fidelities=("dz", "tz")), make_potential(fidelities=("cc-tz",), seed=1)
    delta, batch = add_std(DeltaPotential(base, difference, "tz", "cc").eval()), make_batch([3, 6])
    assert isinstance(delta, DeltaPotential)
    found = delta.predict(batch, {"cc": "EF", "tz": "E"}, std=True)
    low, change = base.predict(batch, {"tz": "E"}, std=True)["tz"], difference.predict(batch, {"cc-tz": "E"}, std=True)
    for field in ("energy_std", "forces_std"):
        both = [getattr(one, field) for one in (low, change["cc-tz"])]
        torch.testing.assert_close(getattr(found["cc"], field), (both[0] ** 2 + both[1] ** 2).sqrt())
        assert torch.equal(getattr(found["tz"], field), both[0])
    delta.std_scale.copy_(torch.tensor([2.0, 3.0]))
    scaled = delta.predict(batch, {"cc": "EF", "tz": "E"}, std=True)
    torch.testing.assert_close(scaled["cc"].energy_std, 2 * found["cc"].energy_std)  # type: ignore[operator]
    torch.testing.assert_close(scaled["cc"].forces_std, 3 * found["cc"].forces_std)  # type: ignore[operator]
    assert torch.equal(scaled["tz"].energy_std, found["tz"].energy_std)  # type: ignore[arg-type]


def test_fidelities_without_standard_deviations_say_so(
    make_potential: Make, make_batch: Batches, add_std: AddStd
) -> None:
    potential, batch = add_std(make_potential(fidelities=("dz", "cc")), "dz"), make_batch([3, 6])
    assert (potential.has_std("dz"), potential.has_std("cc"), potential.has_std("tz")) == (True, False, False)
    with pytest.raises(MFPyGError, match=r"fidelity 'cc' has no standard deviations: .* train it again") as error:
        potential.predict(batch, {"dz": "E", "cc": "E"}, std=True)
    assert "\n" not in str(error.value)
    found, plain = (
        predict_with_std(potential, batch, {"cc": "EF", "dz": "E"}),
        potential.predict(batch, {"cc": "EF", "dz": "E"}),
    )
    assert list(found) == ["cc", "dz"]
    assert found["cc"].energy_std is None
    assert torch.equal(found["cc"].forces, plain["cc"].forces)  # type: ignore[arg-type]
    expected = potential.predict(batch, {"dz": "E"}, std=True)["dz"].energy_std
    assert torch.equal(found["dz"].energy_std, expected)  # type: ignore[arg-type]
    drop_uncertainty(potential)
    assert not potential.has_std("dz")
    assert predict_with_std(potential, batch, {"dz": "E"})["dz"].energy_std is None


@pytest.mark.usefixtures("compile_soon")
def test_compiled_potentials_have_them(make_potential: Make, make_batch: Batches, add_std: AddStd) -> None:
    potential, batch = add_std(make_potential()), make_batch([3, 6])
    expected = potential.predict(batch, {"dz": "EF"}, std=True)["dz"]
    potential.compiled = True
    found = potential.predict(batch, {"dz": "EF"}, std=True)["dz"]
    for field in ("energy", "forces", "energy_std", "forces_std"):
        assert torch.equal(getattr(found, field), getattr(expected, field))


def test_names_of_fidelities_may_be_those_of_attributes(
    make_potential: Make, make_batch: Batches, add_std: AddStd
) -> None:
    names: tuple[Any, ...] = ("half", "train", "items")
    potential = add_std(make_potential(fidelities=names))
    found = potential.half().double().train().eval().predict(make_batch([4]), dict.fromkeys(names, "E"), std=True)
    assert len({float(found[name].energy_std) for name in names}) == 3  # type: ignore[arg-type]


def test_weights_and_saved_parameters_do_not_contain_them(make_potential: Make, add_std: AddStd) -> None:
    bare, potential = make_potential(), add_std(make_potential())
    assert potential.state_dict().keys() == bare.state_dict().keys()
    assert len(list(potential.parameters())) == len(list(bare.parameters()))
    assert all(buffer.dtype == torch.float32 for buffer in potential.float().uncertainty["dz"].buffers())  # type: ignore[operator, union-attr]
