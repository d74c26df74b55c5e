"""Errors of ensembles against numpy, scipy and hand cases."""

from __future__ import annotations

import copy
import itertools

import ase
import ase.io
import numpy as np
import pytest
import torch
from scipy import stats
from torch_geometric.data import Data

from mfpyg.datasets import ExtXYZ, MiniCHNO
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import (
    Estimate,
    bootstrap_estimates,
    ensemble_errors,
    labels_of,
    mean_estimate,
    sums_by_molecule,
)
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.inference.dataset import Predictions, average, predict_rows
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.properties import BY_NAME, ENERGY, PROPERTIES, Property


@pytest.fixture(scope="module")
def dataset() -> MiniCHNO:
    return MiniCHNO()


@pytest.fixture(scope="module")
def test_rows(dataset: MiniCHNO) -> np.ndarray:
    return np.flatnonzero(dataset.given_split() == 1)


def potential(seed: int, fidelities: tuple[str, ...] = ("dz", "cc")) -> MultiFidelityPotential:
    torch.manual_seed(seed)
    return MultiFidelityPotential(HIPNN([1, 6, 7, 8], 1, 0, 4, 4), fidelities).eval()


def test_interval_over_members_is_scipys() -> None:
    values = [1.0, 2.0, 4.0]
    found = mean_estimate(values)
    low, high = stats.t.interval(0.95, df=2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((7 / 3, low, high), rel=1e-12)
    # By hand: s² = 7/3, t(0.975; 2) = 4.3027, half the interval is 4.3027 · √(7/9).
    assert found.high - found.value == pytest.approx(4.302653 * (7 / 9) ** 0.5, rel=1e-6)


def test_single_member_has_no_interval() -> None:
    assert mean_estimate([3.0]) == Estimate(3.0, None, None)


def test_single_molecule_has_no_interval() -> None:
    rmse, mae = bootstrap_estimates(np.array([[4.0, 8.0, 64.0], [0.0, 0.0, 0.0]]))
    assert (rmse, mae) == (Estimate(4.0), Estimate(2.0))


def test_bootstrap_draws_molecules_and_not_conformations() -> None:
    # Ten molecules of a hundred conformations, all of a molecule off by the same amount.
    off = np.arange(1.0, 11.0)
    of_molecules = np.stack([np.full(10, 100.0), 100 * off, 100 * off**2], axis=1)
    of_conformations = np.repeat(of_molecules / 100, 100, axis=0)
    by_molecule, by_conformation = (bootstrap_estimates(s)[1] for s in (of_molecules, of_conformations))
    assert by_molecule.value == pytest.approx(5.5)
    assert by_conformation.value == pytest.approx(5.5)
    widths = [e.high - e.low for e in (by_molecule, by_conformation)]  # type: ignore[operator]
    # The standard error of a mean falls with the root of what is drawn: √100 narrower.
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.15)
    standard_error = np.std(off) / 10**0.5
    assert widths[0] == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_bootstrap_is_seeded_and_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.abs(np.random.default_rng(0).normal(size=(40, 3))) + 1
    once = bootstrap_estimates(sums, seed=3)
    assert bootstrap_estimates(sums, seed=3) == once
    assert bootstrap_estimates(sums, seed=4) != once
    monkeypatch.setattr("mfpyg.evaluation.ensemble.DRAWN_AT_ONCE", 1000)
    assert bootstrap_estimates(sums, seed=3) == once


def test_bootstrap_of_two_molecules_is_enumerated() -> None:
    # Draws of two out of {a, b}: aa, ab, ba, bb. The 2.5 % and 97.5 % quantiles are those of aa and bb.
    rmse, mae = bootstrap_estimates(np.array([[1.0, 1.0, 1.0], [3.0, 9.0, 27.0]]))
    assert (mae.value, mae.low, mae.high) == (2.5, 1.0, 3.0)
    assert (rmse.value, rmse.low, rmse.high) == pytest.approx((7**0.5, 1.0, 3.0))


def loops(dataset: MiniCHNO, rows: np.ndarray, found: Predictions, name: str, window: float) -> dict[str, list[float]]:
    """Errors of every property, one conformation and one pair at a time."""
    column = dataset.fidelities.index(name)
    errors: dict[str, list[float]] = {"energy": [], "forces": [], "conformers": [], "conformer_forces": []}
    lowest: dict[int, float] = {}
    for row in rows:
        data = dataset[int(row)]
        if data.energy_mask[0, column]:
            number = int(data.molecule)
            lowest[number] = min(lowest.get(number, np.inf), float(data.energy[0, column]))
    inside: list[tuple[int, float]] = []
    energies, forces = iter(found.values[name, "energy"].values), iter(found.values[name, "forces"].values)
    for row in rows:
        data, near = dataset[int(row)], False
        if data.energy_mask[0, column]:
            error = float(next(energies) - data.energy[0, column])
            errors["energy"].append(error)
            near = float(data.energy[0, column]) - lowest[int(data.molecule)] <= window
            if near:
                inside.append((int(data.molecule), error))
        if data.forces_mask[0, column]:
            predicted = np.stack(list(itertools.islice(forces, len(data.z)))).astype(float)
            missed = (predicted - data.forces[:, column].numpy()).ravel().tolist()
            errors["forces"] += missed
            errors["conformer_forces"] += missed if near else []
    errors["conformers"] = [a - b for (m, a), (n, b) in itertools.combinations(inside, 2) if m == n]
    return errors


@pytest.mark.parametrize("window", [100.0, 10.0])
def test_errors_are_those_of_loops_over_conformations_and_pairs(
    dataset: MiniCHNO, test_rows: np.ndarray, window: float
) -> None:
    members = [predict_rows(potential(seed), dataset, test_rows) for seed in range(3)]
    labels = labels_of(dataset, test_rows)
    result = ensemble_errors(members, labels, window=window)
    everyone = [*members, average(members)]
    for name in ("dz", "cc"):
        expected = [loops(dataset, test_rows, one, name, window) for one in everyone]
        assert set(result[name]) == set(expected[0])
        for prop, found in result[name].items():
            arrays = [np.array(one[prop]) for one in expected]
            assert found.n == len(arrays[0]) > 0
            rmse = [np.sqrt(np.mean(a**2)) for a in arrays]
            mae = [np.mean(np.abs(a)) for a in arrays]
            np.testing.assert_allclose([*found.member_rmse, found.ensemble_rmse.value], rmse, rtol=1e-9)
            np.testing.assert_allclose([*found.member_mae, found.ensemble_mae.value], mae, rtol=1e-9)
            assert found.rmse == mean_estimate(found.member_rmse)
            assert found.ensemble_rmse.low < found.ensemble_rmse.value < found.ensemble_rmse.high  # type: ignore[operator]
            assert found.ensemble_rmse.value <= np.sqrt(np.mean(np.square(found.member_rmse)))  # by Jensen
    inside, every = result["dz"]["conformer_forces"].n, result["dz"]["forces"].n
    assert 0 < inside < every if window == 10 else inside == every


def test_errors_are_those_of_the_table_of_mfpyg_evaluate(dataset: MiniCHNO, test_rows: np.ndarray) -> None:
    one = potential(0, ("tz", "mp2", "cc"))
    table = evaluate(one, dataset, {"test": test_rows}).metrics["test"]
    found = ensemble_errors([predict_rows(one, dataset, test_rows)], labels_of(dataset, test_rows))
    assert set(found) == set(table) == {"tz", "mp2", "cc"}
    assert "forces" not in found["mp2"]
    for name, prop in (("mp2", "energy"), ("cc", "energy"), ("cc", "forces")):
        assert found[name][prop].n == table[name][prop]["n"]
        assert found[name][prop].rmse == Estimate(pytest.approx(table[name][prop]["rmse"], rel=1e-6))
        assert found[name][prop].mae == Estimate(pytest.approx(table[name][prop]["mae"], rel=1e-6))


@pytest.mark.parametrize("poison", [np.nan, 1e30])
def test_masked_labels_are_never_looked_at(dataset: MiniCHNO, poison: float) -> None:
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset))[:150])
    members = [predict_rows(potential(seed, ("tz", "cc")), dataset, rows) for seed in range(2)]
    clean = ensemble_errors(members, labels_of(dataset, rows))
    poisoned = copy.copy(dataset)
    poisoned._data = dataset._data.clone()
    poisoned._data.energy[~dataset._data.energy_mask] = poison
    atoms = dataset._data.forces_mask.repeat_interleave(dataset.slices["z"].diff(), dim=0)
    poisoned._data.forces[~atoms] = poison
    members = [predict_rows(potential(seed, ("tz", "cc")), poisoned, rows) for seed in range(2)]
    again = ensemble_errors(members, labels_of(poisoned, rows))
    assert again == clean
    assert 0 < clean["tz"]["energy"].n < 150
    assert all(np.isfinite(e.ensemble_rmse.value) for of in clean.values() for e in of.values())


def test_members_of_other_conformations_are_refused(dataset: MiniCHNO, test_rows: np.ndarray) -> None:
    one, other = predict_rows(potential(0), dataset, test_rows), predict_rows(potential(0), dataset, test_rows[1:])
    with pytest.raises(MFPyGError, match="different conformations"):
        average([one, other])
    with pytest.raises(MFPyGError, match="without members"):
        ensemble_errors([], labels_of(dataset, test_rows))


def test_order_of_the_conformations_does_not_matter(dataset: MiniCHNO, test_rows: np.ndarray) -> None:
    shuffled = np.random.default_rng(1).permutation(test_rows)
    results = [
        ensemble_errors([predict_rows(potential(0), dataset, rows)], labels_of(dataset, rows))
        for rows in (test_rows, shuffled)
    ]
    for prop, found in results[0]["cc"].items():
        assert results[1]["cc"][prop].n == found.n
        assert results[1]["cc"][prop].rmse.value == pytest.approx(found.rmse.value, rel=1e-6)


def test_what_has_no_label_is_absent(dataset: MiniCHNO) -> None:
    train = np.flatnonzero(dataset.given_split() == 0)[:20]
    labels = labels_of(dataset, train)
    sums = sums_by_molecule(predict_rows(potential(0), dataset, train), labels, "cc")
    assert set(sums) == {"energy", "conformers"}
    ood = np.flatnonzero(dataset.given_split() == 2)  # without any tz label
    found = ensemble_errors([predict_rows(potential(0, ("tz", "cc")), dataset, ood)], labels_of(dataset, ood))
    assert set(found) == {"cc"}


@pytest.fixture(scope="module")
def every_property(tmp_path_factory: pytest.TempPathFactory) -> ExtXYZ:
    """Two crystals and four molecules, each with a part of all labels of two levels."""
    folder, random, frames = tmp_path_factory.mktemp("every"), np.random.default_rng(0), []
    for number, n in enumerate((2, 3, 2, 4, 3, 2)):
        crystal = number < 2
        atoms = ase.Atoms(["C", "O", "H", "N"][:n], 1.3 * np.eye(4)[:n, :3] + 0.1 * random.normal(size=(n, 3)))
        atoms.set_cell([6, 7, 8] if crystal else None)
        atoms.pbc = crystal
        shapes = {"S": (3, 3), "D": (3,), "H": (9 * n * n,), "F": (n, 3), "Q": (n,), "E": ()}
        for level, letters in (("dz", "EFHDQS"), ("cc", "EHD")):
            for letter in letters:
                if random.random() < 0.7 and not (letter in "SD" and (letter == "S") != crystal):
                    into = atoms.arrays if letter in "FQ" else atoms.info
                    into[level + letter] = random.normal(size=shapes[letter])
        frames.append(atoms)
    ase.io.write(folder / "every.xyz", frames, format="extxyz")
    levels = ["dz=dzE?,dzF?,S=dzS?,H=dzH?,D=dzD?,Q=dzQ?@eV", "cc=ccE?,H=ccH?,D=ccD?@eV"]
    return ExtXYZ(folder / "every.xyz", levels, root=folder)


def with_charges(seed: int) -> MultiFidelityPotential:
    torch.manual_seed(seed)
    return MultiFidelityPotential(
        HIPNN([1, 6, 7, 8], 1, 0, 4, 4, cutoff=3.0), ["dz", "cc"], further={"dz": "DQ"}
    ).eval()


def label_of(data: Data, p: Property, column: int) -> np.ndarray | None:
    """Label of a conformation, as it is predicted."""
    mask = data[p.mask][0]
    if not mask[column]:
        return None
    if p.per != "pair":
        return data[p.name][:, column].numpy()
    n, before = len(data.z) ** 2, int(mask[:column].sum())
    return data[p.name][before * n : (before + 1) * n].numpy()


def test_errors_of_every_property_are_those_of_each_conformation_alone(every_property: ExtXYZ) -> None:
    rows, molecule = np.array([4, 0, 5, 1, 3, 2]), np.array([1, 0, 1, 0, 2, 1])
    members = [with_charges(seed) for seed in range(2)]
    predictions = [predict_rows(member, every_property, rows) for member in members]
    labels = labels_of(every_property, rows, molecule)
    evaluated = {(name, PROPERTIES[letter].name) for name, of in (("dz", "EFSHDQ"), ("cc", "EH")) for letter in of}
    assert set(predictions[0].values) == evaluated
    assert set(labels.values) == evaluated | {("cc", "dipole")}  # of which there is no charge head
    sums: dict[tuple[str, str], np.ndarray] = {key: np.zeros((3, 3)) for key in evaluated}
    for row, number in zip(rows.tolist(), molecule.tolist(), strict=True):
        data = every_property[row]
        for name, prop in evaluated:
            p = BY_NAME[prop]
            label = label_of(data, p, every_property.fidelities.index(name))
            if label is not None:
                letters = p.letter if p is ENERGY else f"E{p.letter}"
                each = [getattr(m(data, name, properties=letters), prop).detach().numpy() for m in members]
                e = np.mean([one.astype(float) for one in each], axis=0) - label
                sums[name, prop][number] += e.size, np.abs(e).sum(), np.square(e).sum()
    mean = average(predictions)
    for name, prop in evaluated:
        assert sums[name, prop][:, 0].any(), (name, prop)
        found = sums_by_molecule(mean, labels, name)[prop]
        np.testing.assert_allclose(found, sums[name, prop], rtol=1e-4, atol=1e-6)
    result = ensemble_errors(predictions, labels)
    assert list(result["dz"]) == [*(p.name for p in PROPERTIES.values()), "conformers", "conformer_forces"]
    assert result["cc"]["hessian"].n == sums["cc", "hessian"][:, 0].sum()


def test_hessians_of_large_graphs_are_left_out(every_property: ExtXYZ, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sizes = np.arange(6), every_property.slices["z"].diff().numpy()
    before = labels_of(every_property, rows).values["dz", "hessian"].mask
    monkeypatch.setattr("mfpyg.inference.dataset.MAX_ATOMS", 2)
    found = predict_rows(with_charges(0), every_property, rows).values["dz", "hessian"]
    assert found.mask.tolist() == (before & (sizes <= 2)).tolist() != before.tolist()
    assert len(found.values) == 4 * found.mask.sum()
    assert np.array_equal(labels_of(every_property, rows).values["dz", "hessian"].mask, found.mask)


def test_members_with_other_labels_are_refused(every_property: ExtXYZ) -> None:
    rows = np.arange(6)
    one, other = (predict_rows(with_charges(0), every_property, rows) for _ in range(2))
    del other.values["dz", "dipole"]
    with pytest.raises(MFPyGError, match="different conformations or labels"):
        average([one, other])
    other = predict_rows(with_charges(0), every_property, rows)
    other.values["dz", "dipole"].mask = ~other.values["dz", "dipole"].mask
    with pytest.raises(MFPyGError, match="different conformations or labels"):
        average([one, other])
