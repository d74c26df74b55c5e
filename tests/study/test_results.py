"""Improvement over the single-fidelity model, on made-up errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfpyg.evaluation.ensemble import Estimate, PropertyErrors, mean_estimate
from mfpyg.study import StudyResult, StudyRun, parse_model
from mfpyg.study.figures import write_figures
from mfpyg.study.results import ModelResult, improvement
from mfpyg.study.tables import tables


def model(name: str, *rmse: float, strategy: str = "mfl", share: float = 1.0) -> ModelResult:
    fidelities = parse_model(name)
    mean, whole = mean_estimate(rmse), Estimate(rmse[0], rmse[0] / 2, rmse[0] * 2)
    errors = {"energy": PropertyErrors(30, 10, rmse, rmse, mean, mean, whole, whole)}
    runs = [StudyRun(name, Path("none"), strategy, share, seed) for seed in range(len(rmse))]
    n_labels = round(1000 * share)
    at = {"test": {fidelities[-1].partition(":")[0]: errors}}
    return ModelResult(name, strategy, share, fidelities, runs, n_labels, [1] * len(rmse), at, {})


def study(*models: ModelResult) -> StudyResult:
    return StudyResult(list(models), [], ["test"], {"test": (30, 10)}, {}, {}, {}, {}, {}, 2000)


def test_percent_of_the_baselines_rmse() -> None:
    good = model("MF-DZ/EF-CC/E", 1.0)
    assert improvement(study(model("SF-CC/E", 4.0), good), good, "test", "energy") == Estimate(75.0)
    worse = model("MF-DZ/E-CC/E", 5.0)
    assert improvement(study(model("SF-CC/E", 4.0), worse), worse, "test", "energy") == Estimate(-25.0)


def test_interval_is_first_order_propagation() -> None:
    base, good = model("SF-CC/E", 3.9, 4.1), model("MF-DZ/EF-CC/E", 0.9, 1.1)
    found = improvement(study(base, good), good, "test", "energy")
    assert found is not None
    assert found.value == pytest.approx(75)
    t = 12.706204736  # Student's t of one degree of freedom; both have s/√n = 0.1
    half = 100 * ((t * 0.1 / 4) ** 2 + (1 * t * 0.1 / 16) ** 2) ** 0.5
    assert found.high - found.value == pytest.approx(half, rel=1e-6)  # type: ignore[operator]
    assert found.value - found.low == pytest.approx(half, rel=1e-6)  # type: ignore[operator]


def test_one_member_on_either_side_gives_no_interval() -> None:
    base, good = model("SF-CC/E", 4.0), model("MF-DZ/EF-CC/E", 0.9, 1.1)
    found = improvement(study(base, good), good, "test", "energy")
    assert found is not None
    assert (found.low, found.high) == (None, None)


def test_baseline_has_the_same_labels_of_the_target_and_as_many() -> None:
    good = model("MF-DZ/E-TZ/EF", 1.0)
    assert improvement(study(model("SF-TZ/E", 4.0), good), good, "test", "energy") is None
    assert improvement(study(model("SF-TZ/EF", 2.0), good), good, "test", "energy") == Estimate(50.0)
    half = model("MF-DZ/EF-CC/E", 1.0, share=0.5)
    assert improvement(study(model("SF-CC/E", 4.0), half), half, "test", "energy") is None
    base = model("SF-CC/E", 4.0)
    assert improvement(study(base), base, "test", "energy") is None


def test_baseline_of_the_same_strategy_is_preferred_to_another() -> None:
    tuned = model("MF-DZ/EF-CC/E", 1.0, strategy="fine-tuning")
    mfl, own = model("SF-CC/E", 4.0), model("SF-CC/E", 2.0, strategy="fine-tuning")
    assert improvement(study(mfl, tuned), tuned, "test", "energy") == Estimate(75.0)
    assert improvement(study(mfl, own, tuned), tuned, "test", "energy") == Estimate(50.0)


def test_table_of_improvements_has_the_baseline_and_dashes() -> None:
    good = model("MF-DZ/EF-CC/E", 1.0)
    (table,) = [t for t in tables(study(model("SF-CC/E", 4.0), good)) if t.name == "table-improvement"]
    assert table.rows == [["MF-DZ/EF-CC/E", "mfl", "100%", "1,000", "1", "SF-CC/E", "75.0 ± –"]]


def test_curves_of_many_strategies_and_shares_can_be_drawn(tmp_path: Path) -> None:
    models = [
        model("MF-DZ/EF-CC/E", 2 / share, 2.1 / share, strategy=f"strategy {number}", share=share)
        for number in range(9)
        for share in (0.1, 0.5, 1.0)
    ]
    figures = write_figures(study(*models), tmp_path)
    assert [figure.path.name for figure in figures] == ["learning-cc.png"]
    assert figures[0].path.read_bytes().startswith(b"\x89PNG")
