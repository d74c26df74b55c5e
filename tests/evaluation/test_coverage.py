"""Coverage of intervals and rank correlation, against slow definitions and errors of known distributions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch_geometric.data import Batch

import mfpyg
from mfpyg.datasets import MiniCHNO
from mfpyg.evaluation import coverage
from mfpyg.evaluation.coverage import (
    CALIBRATION,
    MOST,
    Coverage,
    coverage_table,
    observed_coverage,
    rank_correlation,
    statistics,
)
from mfpyg.evaluation.evaluate import evaluate, evaluate_ensemble
from mfpyg.evaluation.report import as_text, metrics_table
from mfpyg.evaluation.uncertainty import fit_uncertainty
from mfpyg.inference.ensemble import Ensemble
from mfpyg.models import MultiFidelityPotential, Potential
from mfpyg.models.calibration import FEWEST, NORMAL, PROBABILITIES

TRAIN, VALIDATION = np.arange(0, 300, 6), np.arange(3, 300, 10)


def test_coverage_counts_errors_within_intervals() -> None:
    rng = np.random.default_rng(0)
    errors, std, quantiles = rng.standard_t(3, 500), rng.exponential(size=500), np.sort(rng.exponential(size=99))
    slow = [sum(abs(e) <= q * s for e, s in zip(errors, std, strict=True)) / 500 for q in quantiles]
    assert observed_coverage(errors, std, quantiles) == pytest.approx(slow, abs=1e-12)
    errors, std = np.array([0.0, 1e-9, -2.0, 3.0]), np.array([0.0, 0.0, 1.0, 1.0])
    assert observed_coverage(errors, std, np.array([0.0, 1.9, 2.0, 3.5])).tolist() == [0.25, 0.25, 0.5, 0.75]


def test_normal_errors_are_covered_as_they_should() -> None:
    rng = np.random.default_rng(0)
    std = rng.uniform(0.5, 2, 200_000)
    found = statistics(std * rng.standard_normal(len(std)), std, NORMAL)
    assert found["coverage"] == {
        "50": pytest.approx(0.5, abs=0.005),
        "80": pytest.approx(0.8, abs=0.005),
        "95": pytest.approx(0.95, abs=0.003),
    }
    assert found["miscalibration_area"] < 0.003
    assert found["rms_std"] == pytest.approx(np.sqrt(1.75), rel=0.01)  # (a² + ab + b²) / 3


@pytest.mark.parametrize(("factor", "area"), [(1e6, 0.495), (1e-6, 0.495)])
def test_intervals_that_are_far_too_wide_or_narrow(factor: float, area: float) -> None:
    """Everything or nothing is covered: the area is ½ but for its ends."""
    errors = np.random.default_rng(0).standard_normal(1000)
    found = statistics(errors, np.full(1000, factor), NORMAL)
    assert found["miscalibration_area"] == pytest.approx(area, abs=1e-3)
    assert set(found["coverage"].values()) == {1.0 if factor > 1 else 0.0}
    assert found["rank_correlation"] is None


def test_area_of_intervals_of_a_wrong_width() -> None:
    """With standard deviations of half the size, ∫ |2 Φ(q_p / 2) − 1 − p| dp."""
    rng, normal = np.random.default_rng(0), torch.distributions.Normal(0.0, 1.0)
    found = statistics(rng.standard_normal(400_000), np.full(400_000, 0.5), NORMAL)
    p = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    expected = (p - (2 * normal.cdf(normal.icdf((1 + p) / 2) / 2) - 1)).abs().mean()
    assert found["miscalibration_area"] == pytest.approx(float(expected), abs=2e-3)


def test_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    std = np.round(rng.exponential(size=300), 1)  # with ties
    errors = std * rng.standard_normal(300)
    assert rank_correlation(errors, std) == pytest.approx(spearmanr(np.abs(errors), std).statistic)
    assert rank_correlation(-std, std) == pytest.approx(1)
    assert rank_correlation(1 / (1 + std), std) == pytest.approx(-1)
    assert rank_correlation(errors, np.ones(300)) is None


def test_the_least_certain_tenth_and_the_rest() -> None:
    errors, std = np.arange(1.0, 41), np.arange(1.0, 41)
    order = np.random.default_rng(0).permutation(40)
    found = statistics(errors[order], std[order], NORMAL)
    assert found["rmse_least_certain"] == pytest.approx(np.sqrt(np.mean(np.square([37, 38, 39, 40]))))
    assert found["rmse_rest"] == pytest.approx(np.sqrt(np.mean(np.arange(1.0, 37) ** 2)))


# Over batches


@pytest.fixture
def potential(untrained: Callable[..., Path]) -> MultiFidelityPotential:
    made = mfpyg.load(untrained("dz:EF", "cc:E", precision=64))
    fit_uncertainty(made, MiniCHNO(fidelities=["dz", "cc"]), TRAIN, VALIDATION)
    return made  # type: ignore[return-value]


def test_entries_are_those_of_all_labels(potential: MultiFidelityPotential) -> None:
    dataset = MiniCHNO(fidelities=["dz", "cc"])
    splits = {"val": VALIDATION, "some": np.arange(600, 788), "few": np.arange(FEWEST - 1)}
    found = evaluate(potential, dataset, splits).metrics
    for split, rows in splits.items():
        for column, name in enumerate(("dz", "cc")):
            each = [(dataset[int(i)], potential.predict(dataset[int(i)], {name: "EF"}, std=True)[name]) for i in rows]
            for number, of in enumerate(("energy", "forces")):
                known = [(data[of][:, column], vars(one)) for data, one in each if data[f"{of}_mask"][0, column]]
                if not known:
                    assert of not in found[split][name]
                    continue
                row = found[split][name][of]
                errors = np.concatenate([np.ravel(one[of] - label) for label, one in known])
                std = np.concatenate([np.ravel(one[f"{of}_std"]) for _, one in known])
                assert row["n"] == len(errors)
                assert (CALIBRATION in row) == (len(errors) >= FEWEST)
                if CALIBRATION in row:
                    expected = statistics(errors, std, potential.quantiles[name][number])
                    for key in ("coverage", "miscalibration_area"):  # errors of validation are at ends of intervals
                        assert row[CALIBRATION].pop(key) == pytest.approx(expected.pop(key), abs=1.1 / len(errors))
                    assert row[CALIBRATION] == pytest.approx(expected, rel=1e-3)
    dz = found["val"]["dz"]
    assert dz["forces"][CALIBRATION]["rms_std"] == pytest.approx(dz["forces"]["rmse"], rel=1e-5)


def test_errors_are_the_same_without_standard_deviations(potential: MultiFidelityPotential) -> None:
    dataset, rows = MiniCHNO(fidelities=["dz", "cc"]), {"test": np.arange(700, 788)}
    with_std = evaluate(potential, dataset, rows).metrics["test"]
    del potential.uncertainty["cc"]  # type: ignore[attr-defined]
    of_dz = evaluate(potential, dataset, rows).metrics["test"]
    assert of_dz["dz"] == with_std["dz"]
    for of_property in with_std["cc"].values():
        del of_property[CALIBRATION]
    assert of_dz["cc"] == with_std["cc"]


def test_an_ensemble_is_evaluated_by_its_mean(untrained: Callable[..., Path]) -> None:
    dataset, rows = MiniCHNO(fidelities=["dz", "cc"]), np.arange(650, 788)
    members = [mfpyg.load(untrained("dz:EF", "cc:E", precision=64, seed=seed)) for seed in range(3)]
    for calibrated in (False, True):
        if calibrated:
            for member in members:
                fit_uncertainty(member, dataset, TRAIN, VALIDATION)
        ensemble = Ensemble(members)
        found = evaluate_ensemble(ensemble, dataset, {"some": rows, "val": VALIDATION})
        batch = Batch.from_data_list([dataset[int(row)] for row in rows])
        mean, spread = ensemble.predict(batch, {"cc": "EF"})
        assert spread is not None
        known = batch.forces_mask[batch.batch, 1]
        errors = (mean["cc"].forces - batch.forces[:, 1])[known].flatten().numpy()  # type: ignore[operator]
        std = spread["cc"].forces[known].flatten().numpy()  # type: ignore[index]
        quantiles = ensemble.quantiles("cc")
        assert (quantiles is not None) == calibrated
        expected = statistics(errors, std, NORMAL if quantiles is None else quantiles[1])
        of_forces = found["some"]["cc"]["forces"]
        assert of_forces["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)
        for key in ("coverage", "miscalibration_area"):
            assert of_forces[CALIBRATION].pop(key) == pytest.approx(expected.pop(key), abs=2e-3)
        assert of_forces[CALIBRATION] == pytest.approx(expected, rel=1e-3)
        of_dz = found["val"]["dz"]["forces"]
        assert (of_dz[CALIBRATION]["rms_std"] == pytest.approx(of_dz["rmse"], rel=1e-5)) == calibrated
    single = evaluate_ensemble(Ensemble(members[0]), dataset, {"val": VALIDATION})
    assert single == evaluate(members[0], dataset, {"val": VALIDATION}).metrics


def test_of_many_errors_a_random_part_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MOST", 1000)
    rng, batches = np.random.default_rng(0), []
    for _ in range(200):
        std = rng.uniform(0.5, 2, 100)
        batches.append((std * rng.standard_normal(100), std))
    sample = coverage._Sample()
    for batch in batches:
        sample.add(*batch)
    kept = np.concatenate(sample.parts, axis=1)
    assert kept.dtype == np.float32
    assert 300 < kept.shape[1] <= 1000
    place = {np.float32(error): number for number, (errors, _) in enumerate(batches) for error in errors}
    numbers = [place[error] for error in kept[0]]
    assert np.mean(numbers) == pytest.approx(99.5, abs=10)  # early and late batches alike
    found, expected = (statistics(*values, NORMAL) for values in (kept, np.concatenate(batches, axis=1)))
    assert found["coverage"] == pytest.approx(expected["coverage"], abs=0.06)
    assert MOST == 1_000_000


# The table


def test_table_of_some_labels() -> None:
    values = statistics(np.linspace(-2, 2, 50), np.ones(50), NORMAL)
    entry = {"n": 50, "mae": 1.0, "rmse": 1.1775, "mae_per_atom": 0.1, "rmse_per_atom": 0.2, CALIBRATION: values}
    metrics = {"test": {"cc": {"energy": entry, "forces": entry}}, "ood": {"cc": {"energy": dict(entry)}}}
    del metrics["ood"]["cc"]["energy"][CALIBRATION]
    table = coverage_table(metrics, {"cc": "E"})
    assert table is not None
    rows = [line.split() for line in as_text(table).splitlines() if line.startswith(" test")]
    inside = [f"{100 * values['coverage'][p]:.0f}" for p in ("50", "80", "95")]
    area = f"{values['miscalibration_area']:.3f}"
    least, rest = (f"{values[key]:.3f}" for key in ("rmse_least_certain", "rmse_rest"))
    for row, label, number in zip(rows, ("cc:E", "cc:F"), ("50", "50*"), strict=True):
        assert row == ["test", label, number, "1.177", "1.000", *inside, area, "-", least, rest]
    both = as_text(metrics_table(metrics, {"cc": "E"}))
    assert both.index("energies in kcal/mol") < both.index("standard deviations (kcal/mol, kcal/mol/Å)")
    assert max(map(len, both.splitlines())) < 100
    without = {"test": {"cc": {"energy": metrics["ood"]["cc"]["energy"]}}}
    assert coverage_table(without, {}) is None
    assert "standard deviations" not in as_text(metrics_table(without, {}))


def test_nothing_is_added_without_standard_deviations(make_potential: Callable[..., Potential]) -> None:
    potential, dataset = make_potential(fidelities=("dz",)), MiniCHNO(fidelities=["dz"])
    batch = Batch.from_data_list([dataset[i] for i in range(3)])
    table = Coverage({"dz": 0})
    table.add(potential.predict(batch, {"dz": "EF"}), batch)
    metrics: dict[str, dict[str, dict[str, object]]] = {}
    table.add_to(metrics, {})
    assert not metrics
    assert len(PROBABILITIES) == len(NORMAL) == 99
