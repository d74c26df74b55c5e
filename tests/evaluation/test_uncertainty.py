"""Standard deviations fitted to training and validation data, against the definition; what is kept in checkpoints."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

import mfpyg
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.evaluation import uncertainty
from mfpyg.evaluation.features import last_features_of
from mfpyg.evaluation.uncertainty import fit_uncertainty
from mfpyg.inference.ensemble import Ensemble
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.models.calibration import FEWEST, calibrate
from mfpyg.models.last_layer import RIDGE
from mfpyg.models.uncertainty import uncertainty_state

Untrained = Callable[..., Path]
TRAIN, VALIDATION = np.arange(0, 300, 6), np.arange(3, 300, 10)
BOTH = {"dz": "EF", "cc": "EF"}


@pytest.fixture
def dataset() -> ConformationDataset:
    return MiniCHNO(fidelities=["dz", "cc"])


@pytest.fixture
def potential(untrained: Untrained) -> MultiFidelityPotential:
    return mfpyg.load(untrained("dz:EF", "cc:E", precision=64))  # type: ignore[return-value]


@pytest.fixture
def delta(untrained: Untrained) -> DeltaPotential:
    """``cc`` as a sum of ``dz`` and a difference."""
    base = mfpyg.load(untrained("dz:EF", precision=64))
    difference = mfpyg.load(untrained("cc:E", precision=64, seed=1))
    assert isinstance(base, MultiFidelityPotential)
    assert isinstance(difference, MultiFidelityPotential)
    difference.rename("cc-dz")
    difference.head("cc-dz").reference.sub_(base.reference("dz"))
    return DeltaPotential(base, difference, "dz", "cc").eval()


def batch_of(dataset: ConformationDataset, rows: np.ndarray) -> Batch:
    return Batch.from_data_list([dataset[int(row)] for row in rows])


def assert_same(one: Potential, two: Potential, dataset: ConformationDataset) -> None:
    """Two potentials have the same standard deviations to the last bit."""
    state, other = uncertainty_state(one), uncertainty_state(two)
    assert state is not None
    assert other is not None
    for name, layer in state["levels"].items():
        assert all(torch.equal(value, other["levels"][name][key]) for key, value in layer.items())
    for name, quantiles in one.quantiles.items():
        assert np.array_equal(quantiles, two.quantiles[name])
    batch = batch_of(dataset, np.arange(5))
    found = [p.predict(batch, BOTH, std=True) for p in (one, two)]
    for name in BOTH:
        for field in ("energy_std", "forces_std"):
            assert torch.equal(*(getattr(prediction[name], field) for prediction in found))


def test_standard_deviations_are_those_of_the_definition(
    potential: MultiFidelityPotential, dataset: ConformationDataset
) -> None:
    """Sums over conformations one by one, explicit inverse matrices, and RMS errors of validation as the scale."""
    fit_uncertainty(potential, dataset, TRAIN, VALIDATION)
    test = batch_of(dataset, np.arange(700, 705))
    found = potential.predict(test, BOTH, std=True)
    for column, name in enumerate(("dz", "cc")):
        of_train = [last_features_of(potential, dataset[int(row)], name) for row in TRAIN]
        inverses = []
        for rows in ([one.graphs[0] for one in of_train], [phi for one in of_train for phi in one.atoms]):
            gram = torch.stack([torch.outer(phi, phi) for phi in rows]).sum(dim=0)
            ridge = RIDGE * torch.trace(gram) / len(gram)
            inverses.append(torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=torch.float64)))

        def sizes(rows: np.ndarray, name: str = name, inverses: list[torch.Tensor] = inverses) -> list[list[float]]:
            every = [last_features_of(potential, dataset[int(row)], name) for row in rows]
            of_graphs = [float(one.graphs[0] @ inverses[0] @ one.graphs[0]) for one in every]
            return [of_graphs, [float(phi @ inverses[1] @ phi) for one in every for phi in one.atoms]]

        errors, squares = [], sizes(VALIDATION)
        for row in VALIDATION:
            data = dataset[int(row)]
            errors.append(float(potential(data, name).energy - data.energy[0, column]))  # type: ignore[union-attr]
        scale = np.sqrt(np.mean(np.square(errors)) / np.mean(squares[0]))
        expected = sizes(np.arange(700, 705))
        np.testing.assert_allclose(found[name].energy_std, scale * np.sqrt(expected[0]), rtol=1e-6)
        ratios = np.sort(np.abs(errors) / (scale * np.sqrt(squares[0])))
        assert potential.quantiles[name][0, 49] == pytest.approx(ratios[15], rel=1e-6)  # rank ⌈31 / 2⌉ of 30
        of_forces = found[name].forces_std
        assert of_forces is not None
        ratio = (of_forces[:, 0] / torch.tensor(expected[1]).sqrt()).numpy()
        assert np.ptp(ratio) < 1e-6 * ratio.mean()
        assert torch.equal(of_forces[:, 0], of_forces[:, 2])
        if name == "dz":
            of_labels = [
                potential(dataset[int(r)], "dz").forces - dataset[int(r)].forces[:, column] for r in VALIDATION
            ]  # type: ignore[union-attr, operator]
            force_error = torch.cat(of_labels).square().mean().sqrt()
            assert ratio[0] == pytest.approx(float(force_error / np.sqrt(np.mean(squares[1]))), rel=1e-5)


def test_forces_without_labels_have_the_expected_error(
    potential: MultiFidelityPotential, dataset: ConformationDataset
) -> None:
    """⟨e_dz²⟩ + κ² ⟨Δe²⟩ or κ² ⟨e_cc²⟩, with κ from the derivatives of the features and explicit inverses."""
    fit_uncertainty(potential, dataset, TRAIN, VALIDATION)
    held_out = potential.held_out
    assert held_out is not None
    rows = [last_features_of(potential, dataset[int(row)], "cc") for row in TRAIN]
    gram = torch.stack([torch.outer(one.graphs[0], one.graphs[0]) for one in rows]).sum(dim=0)
    inverse = torch.linalg.inv(gram + RIDGE * torch.trace(gram) / len(gram) * torch.eye(len(gram), dtype=torch.float64))
    every = [last_features_of(potential, dataset[int(row)], "cc", jacobian=True) for row in held_out.rows]
    of_energy = np.mean([float(one.graphs[0] @ inverse @ one.graphs[0]) for one in every])
    jacobian = torch.cat([one.jacobian.flatten(0, 1) for one in every])  # type: ignore[union-attr]
    of_forces = float(torch.einsum("nd,de,ne->n", jacobian, inverse, jacobian).mean())
    kappa = held_out.force_per_energy["cc"]
    assert kappa == pytest.approx(np.sqrt(of_forces / of_energy), rel=1e-5)
    assert "dz" not in held_out.force_per_energy  # has force labels
    dz, cc = (held_out.energy_errors(name) for name in ("dz", "cc"))
    mean_square = min(
        np.mean(held_out.force_errors("dz") ** 2) + kappa**2 * np.mean((cc - dz) ** 2), kappa**2 * np.mean(cc**2)
    )
    found = potential.predict(batch_of(dataset, VALIDATION), {"cc": "E"}, std=True)["cc"].forces_std
    assert found is not None
    assert float(found.square().mean()) == pytest.approx(mean_square, rel=1e-6)


def test_held_out_labels_and_predictions(potential: MultiFidelityPotential, dataset: ConformationDataset) -> None:
    fit_uncertainty(potential, dataset, TRAIN, VALIDATION)
    held_out = potential.held_out
    assert held_out is not None
    assert sorted(held_out.rows) == VALIDATION.tolist()
    assert held_out.data == dataset.fingerprint
    batch = batch_of(dataset, held_out.rows)
    found = potential.predict(batch, BOTH)
    assert np.array_equal(held_out.n_atoms, np.diff(batch.ptr))
    for column, name in enumerate(("dz", "cc")):
        assert np.array_equal(held_out.energy[name][0], batch.energy[:, column])
        np.testing.assert_allclose(held_out.energy[name][1], found[name].energy, rtol=1e-12)
        np.testing.assert_allclose(held_out.forces[name][1], found[name].forces, atol=1e-4)
    for column, name in enumerate(("dz", "cc")):  # a few conformations have cc forces
        labels = torch.where(batch.forces_mask[batch.batch, column, None], batch.forces[:, column], torch.nan)
        assert np.array_equal(held_out.forces[name][0], labels, equal_nan=True)
        assert np.isfinite(held_out.forces[name][0]).any()


def test_masked_labels_leave_no_trace(potential: MultiFidelityPotential, dataset: ConformationDataset) -> None:
    """What stands in the place of a missing label, or belongs to none of the conformations, changes nothing."""
    masked, other = copy.copy(dataset), copy.deepcopy(potential)
    masked._data = copy.copy(dataset._data)
    mask = dataset._data.energy_mask.clone()
    mask[TRAIN[::3], 1] = mask[VALIDATION[::4], 0] = False
    forces_mask = dataset._data.forces_mask.clone()
    forces_mask[VALIDATION[::2], 0] = False
    masked._data.energy_mask, masked._data.forces_mask, masked._data_list = mask, forces_mask, None
    fit_uncertainty(potential, masked, TRAIN, VALIDATION)
    values = dataset._data.energy.clone(), dataset._data.forces.clone()
    values[0][~mask] = 1e30
    atoms = torch.repeat_interleave(torch.arange(len(dataset)), dataset.slices["z"].diff())
    values[1][~forces_mask[atoms]] = float("nan")
    masked._data.energy, masked._data.forces = values
    fit_uncertainty(other, masked, TRAIN, VALIDATION)
    assert_same(potential, other, dataset)
    assert np.isnan(potential.held_out.energy["dz"][0]).sum() == len(VALIDATION[::4])  # type: ignore[union-attr]


def test_a_second_fit_gives_the_same_and_keeps_nothing(
    potential: MultiFidelityPotential, dataset: ConformationDataset
) -> None:
    other = copy.deepcopy(potential)
    fit_uncertainty(potential, dataset, TRAIN, VALIDATION)
    fit_uncertainty(other, dataset, TRAIN[5:], VALIDATION[3:])
    torch.manual_seed(5)
    fit_uncertainty(other, dataset, TRAIN, VALIDATION)
    assert_same(potential, other, dataset)
    fit_uncertainty(other, dataset, TRAIN, VALIDATION[:0])
    assert uncertainty_state(other) is other.held_out is None
    assert not other.quantiles
    assert not other.has_std("dz")


def test_levels_with_too_few_labels_have_none(potential: MultiFidelityPotential, dataset: ConformationDataset) -> None:
    masked = copy.copy(dataset)
    for rows in (TRAIN, VALIDATION):
        for number, there in ((FEWEST - 1, False), (FEWEST, True)):
            masked._data = copy.copy(dataset._data)
            masked._data.energy_mask = dataset._data.energy_mask.clone()
            masked._data.energy_mask[rows[number:], 1] = False
            fit_uncertainty(potential, masked, TRAIN, VALIDATION)
            assert potential.has_std("dz")
            assert potential.has_std("cc") == there
            assert ("cc" in potential.quantiles) == there
    fit_uncertainty(potential, MiniCHNO(fidelities=["cc", "mp2"]), TRAIN, VALIDATION)  # no labels of dz
    assert (potential.has_std("dz"), potential.has_std("cc")) == (False, True)


def test_of_many_conformations_some_of_each_level_are_used(
    potential: MultiFidelityPotential, dataset: ConformationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncertainty, "VALIDATION", 20)
    monkeypatch.setattr(uncertainty, "TRAINING", 30)
    train, validation = np.arange(0, 600, 2), np.arange(1, 600, 2)
    rare = copy.copy(dataset)
    rare._data = copy.copy(dataset._data)
    rare._data.energy_mask = dataset._data.energy_mask.clone()
    rare._data.energy_mask[validation[15:], 1] = False
    fit_uncertainty(potential, rare, train, validation)
    held_out = potential.held_out
    assert held_out is not None
    assert potential.has_std("cc")
    assert np.isfinite(held_out.energy["cc"][0]).sum() >= 15
    assert 20 < len(held_out.rows) <= 35
    assert set(held_out.rows) <= set(validation)
    other = copy.deepcopy(potential)
    fit_uncertainty(other, rare, train, validation)
    assert_same(potential, other, dataset)


def test_standard_deviations_of_a_difference_are_calibrated(
    delta: DeltaPotential, dataset: ConformationDataset
) -> None:
    """Mean squares are those of the errors, and of validation each interval holds the fraction that its rank says."""
    fit_uncertainty(delta, dataset, TRAIN, VALIDATION)
    batch = batch_of(dataset, VALIDATION)
    found = delta.predict(batch, BOTH, std=True)
    for column, name in enumerate(("dz", "cc")):
        errors = (found[name].energy - batch.energy[:, column]).abs()
        std = found[name].energy_std
        assert std is not None
        assert float(std.square().mean()) == pytest.approx(float(errors.square().mean()), rel=1e-6)
        for percent in (50, 80, 90):
            inside = errors <= delta.quantiles[name][0, percent - 1] * std * (1 + 1e-9)
            assert int(inside.sum()) == -(-percent * 31 // 100)
    held_out = delta.held_out
    assert held_out is not None
    kappa, of_energy = held_out.force_per_energy["cc"], held_out.energy_errors("cc-dz")
    expected = np.mean(held_out.force_errors("dz") ** 2) + kappa**2 * np.mean(of_energy**2)
    expected = min(expected, kappa**2 * np.mean(held_out.energy_errors("cc") ** 2))
    assert float(found["cc"].forces_std.square().mean()) == pytest.approx(expected, rel=1e-6)  # type: ignore[union-attr]
    assert set(delta.quantiles) == {"dz", "cc"}
    assert delta.std_scale.ne(1).all()


@pytest.mark.parametrize("kind", ["potential", "delta"])
def test_saved_and_copied(
    kind: str, dataset: ConformationDataset, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made: Potential = request.getfixturevalue(kind)
    if kind == "delta":
        made.settings = dataclasses.replace(made.base.settings, fidelities=["dz:EF", "cc:E"], strategy="delta")  # type: ignore[union-attr, type-var]
    fit_uncertainty(made, dataset, TRAIN, VALIDATION)
    mfpyg.save(made, tmp_path / "model.ckpt")
    loaded = mfpyg.load(tmp_path / "model.ckpt")
    assert_same(made, loaded, dataset)
    assert_same(made, copy.deepcopy(loaded), dataset)
    assert made.held_out is not None
    assert loaded.held_out is not None
    for name in made.held_out.energy:
        assert np.array_equal(made.held_out.energy[name], loaded.held_out.energy[name])
        assert np.array_equal(made.held_out.forces[name], loaded.held_out.forces[name], equal_nan=True)
    single, batch = copy.deepcopy(made).float(), batch_of(dataset, TRAIN[:5])
    for name in BOTH:
        one, two = (p.predict(batch, BOTH, std=True)[name] for p in (single, made))
        assert one.energy_std is not None
        assert two.energy_std is not None
        torch.testing.assert_close(one.energy_std.double(), two.energy_std, rtol=2e-2, atol=1e-3)


# Ensembles


@pytest.fixture
def members(untrained: Untrained) -> list[Potential]:
    return [mfpyg.load(untrained("dz:EF", "cc:E", precision=64, seed=seed)) for seed in range(3)]


def test_members_with_the_same_held_out_conformations_are_calibrated(
    members: list[Potential], dataset: ConformationDataset
) -> None:
    batch, plain = batch_of(dataset, VALIDATION), Ensemble(members)
    for member in members:
        fit_uncertainty(member, dataset, TRAIN, VALIDATION)
    ensemble = Ensemble(members)
    (mean, spread), (mean_before, before) = (one.predict(batch, BOTH) for one in (ensemble, plain))
    assert spread is not None
    assert before is not None
    assert plain.quantiles("dz") is None
    for column, name in enumerate(("dz", "cc")):
        assert torch.equal(mean[name].energy, mean_before[name].energy)
        errors = (mean[name].energy - batch.energy[:, column]).abs()
        assert float(spread[name].energy.square().mean()) == pytest.approx(float(errors.square().mean()), rel=1e-6)
        scale = spread[name].energy / before[name].energy
        assert float(scale.max() - scale.min()) < 1e-9 * float(scale.max())
        quantiles = ensemble.quantiles(name)
        assert quantiles is not None
        assert int((errors <= quantiles[0, 49] * spread[name].energy * (1 + 1e-9)).sum()) == 16
    errors = (mean["dz"].forces - batch.forces[:, 0]).numpy()  # type: ignore[operator]
    assert np.mean(spread["dz"].forces.numpy() ** 2) == pytest.approx(np.mean(errors**2), rel=1e-5)  # type: ignore[union-attr]
    inside = np.abs(errors) <= ensemble.quantiles("dz")[1, 79] * spread["dz"].forces.numpy()  # type: ignore[index, union-attr]
    assert inside.mean() == pytest.approx(0.8, abs=2 / errors.size)


def test_members_with_other_held_out_conformations_are_not(
    members: list[Potential], dataset: ConformationDataset
) -> None:
    for member, rows in zip(members, (VALIDATION, VALIDATION, VALIDATION[1:]), strict=True):
        fit_uncertainty(member, dataset, TRAIN, rows)
    assert set(Ensemble(members[:2]).calibrations) == {"dz", "cc"}
    assert not Ensemble(members).calibrations
    fit_uncertainty(members[2], dataset, TRAIN, VALIDATION)
    assert set(Ensemble(members).calibrations) == {"dz", "cc"}
    assert members[2].held_out is not None
    members[2].held_out.data = "other data"
    assert not Ensemble(members).calibrations
    members[2].held_out = None
    assert not Ensemble(members).calibrations


def test_equal_members_are_not_calibrated(members: list[Potential], dataset: ConformationDataset) -> None:
    fit_uncertainty(members[0], dataset, TRAIN, VALIDATION)
    ensemble = Ensemble([members[0], copy.deepcopy(members[0])])
    assert not ensemble.calibrations
    _, spread = ensemble.predict(batch_of(dataset, VALIDATION[:3]), BOTH)
    assert spread is not None
    assert spread["cc"].energy.eq(0).all()


def test_a_difference_and_a_potential_are_an_ensemble(
    potential: MultiFidelityPotential, delta: DeltaPotential, dataset: ConformationDataset
) -> None:
    for member in (potential, delta):
        fit_uncertainty(member, dataset, TRAIN, VALIDATION)
    ensemble, batch = Ensemble([potential, delta]), batch_of(dataset, VALIDATION)
    mean, spread = ensemble.predict(batch, BOTH)
    assert spread is not None
    errors = mean["cc"].energy - batch.energy[:, 1]
    assert float(spread["cc"].energy.square().mean()) == pytest.approx(float(errors.square().mean()), rel=1e-6)


def test_a_label_that_one_member_has_is_known(members: list[Potential], dataset: ConformationDataset) -> None:
    fewer = copy.copy(dataset)
    fewer._data = copy.copy(dataset._data)
    fewer._data.forces_mask = dataset._data.forces_mask.clone()
    fewer._data.forces_mask[VALIDATION[FEWEST - 1 :], 0] = False
    for member, data in zip(members[:2], (dataset, fewer), strict=True):
        fit_uncertainty(member, data, TRAIN, VALIDATION)
    one, two = (member.held_out for member in members[:2])
    assert one is not None
    assert two is not None
    assert "dz" in two.force_per_energy
    assert "dz" not in one.force_per_energy
    found = Ensemble(members[:2]).calibrations["dz"]
    mean = dataclasses.replace(one)
    for values in ("energy", "forces"):
        of_both = {n: np.mean([getattr(m.held_out, values)[n] for m in (members[0], members[1])], axis=0) for n in BOTH}
        labels = {n: np.stack([getattr(one, values)[n][0], of_both[n][1]]) for n in BOTH}
        mean = dataclasses.replace(mean, **{values: labels})
    std = {
        values: {n: np.std([getattr(m.held_out, values)[n][1] for m in members[:2]], axis=0, ddof=1) for n in BOTH}
        for values in ("energy", "forces")
    }
    assert found.forces_scale == pytest.approx(calibrate(mean, std["energy"], std["forces"])["dz"].forces_scale)
