"""A study of models that are trained on dipoles and Hessians, and of one that is not."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from mfpyg.checkpoint import load
from mfpyg.cli import study
from mfpyg.datasets.levels import BUNDLED
from mfpyg.datasets.spec import open_dataset, parse_specs
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.study import StudyResult, StudyRun, collect, write_figures, write_tables

from .conftest import TINY

pytestmark = pytest.mark.slow

MODELS = ("SF-DZ/EF", "MF-CC/E-DZ/EFHD", "SF-DZ/EFHD")
"""Models of the study, in the order of its tables."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some small molecules of MiniCHNO, half of them with Hessians, in all splits."""
    path = tmp_path_factory.mktemp("raw") / "part.h5"
    with h5py.File(BUNDLED) as whole, h5py.File(path, "w") as file:
        for formula in ("C1H1N1", "C1H2O1", "H2O1", "H3N1"):
            labelled = np.isfinite(whole[formula]["wb97x_dz.hessian"][:, 0, 0, 0, 0])
            rows = np.sort([*np.flatnonzero(labelled)[:6], *np.flatnonzero(~labelled)[:6]])
            group = file.create_group(formula)
            for key, values in whole[formula].items():
                group[key] = values[()] if key == "atomic_numbers" else values[()][rows]
            group["split"][...] = np.arange(len(rows)) % 4 // 2 * (1 + np.arange(len(rows)) % 2)  # 0, 0, 1, 2, …
    return path


@pytest.fixture(scope="module")
def folder(
    raw: Path,
    tmp_path_factory: pytest.TempPathFactory,
    training_here: Callable[[], AbstractContextManager[None]],
) -> Path:
    folder = tmp_path_factory.mktemp("study") / "new"
    data = ["--dataset", f"minichno:{raw}", "--evaluate", f"all=minichno:{raw}"]
    with training_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfpyg.study.write_figures", lambda result, folder: [])  # which take most of the time
        study.main([*MODELS, "--members=1", "--out", str(folder), *data, *TINY, "--epochs=1", "--compile=off"])
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[StudyRun]:
    return [StudyRun(name, folder / f"runs/{name.replace('/', '_')}/mfl-1/seed-0") for name in MODELS]


@pytest.fixture(scope="module")
def result(runs: list[StudyRun]) -> StudyResult:
    return collect(runs)


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def test_models_are_compared_on_the_same_data_whatever_they_were_trained_on(result: StudyResult) -> None:
    assert not result.failures
    assert [model.name for model in result.models] == list(MODELS)
    assert result.letters == "EFHD"
    for model in result.models:
        others = {"hessian"} | ({"dipole"} if "HD" in model.name else set())
        assert (
            others < set(model.errors["test"]["dz"]) == others | {"energy", "forces", "conformers", "conformer_forces"}
        )


def test_errors_are_those_of_each_run_alone(raw: Path, result: StudyResult) -> None:
    """Also those of labels that it was not trained on, which its own table does not have."""
    dataset = open_dataset(parse_specs([f"minichno:{raw}"]), properties="HD")
    for model in result.models:
        run = model.runs[0].folder
        potential, splits = load(run), np.load(run / "splits.npz")
        expected = evaluate(potential, dataset, {split: splits[split] for split in result.splits}).metrics
        own = json.loads((run / "metrics.json").read_text())
        for split in result.splits:
            for fidelity, of in expected[split].items():
                if "HD" in model.name:
                    assert of == own[split][fidelity]
                for name in of.keys() - {"frequencies"}:
                    found = model.errors[split][fidelity][name]
                    assert found.n == of[name]["n"]
                    assert found.member_rmse == pytest.approx([of[name]["rmse"]], rel=1e-5)
                    assert found.member_mae == pytest.approx([of[name]["mae"]], rel=1e-5)


def test_tables_have_the_further_properties_with_their_units(folder: Path, result: StudyResult) -> None:
    assert set(table(folder / "table-hessian.csv")) == {"SF-DZ/EF*", "SF-DZ/EFHD", "MF-CC/E-DZ/EFHD"}
    dipole = table(folder / "table-dipole.csv")
    assert set(dipole) == {"SF-DZ/EFHD", "MF-CC/E-DZ/EFHD"}  # others do not predict it
    assert "Hessian components, in kcal/mol/Å²." in (folder / "table-hessian.md").read_text(encoding="utf-8")
    assert "Dipole components, in e·Å." in (folder / "table-dipole.md").read_text(encoding="utf-8")
    errors = result.models[2].errors["test"]["dz"]["dipole"]
    assert float(dipole["SF-DZ/EFHD"]["test: RMSE"].split()[0]) == pytest.approx(errors.rmse.value, abs=5e-4)
    assert float(dipole["SF-DZ/EFHD"]["all: RMSE"].split()[0]) > 0
    (row,) = table(folder / "table-improvement.csv").values()
    assert row["baseline"] == "SF-DZ/EFHD"
    assert {"test: Hessian components", "test: dipole components", "all: energies"} <= row.keys()
    with (folder / "errors.csv").open(encoding="utf-8", newline="") as file:
        units = {row["property"]: row["unit"] for row in csv.DictReader(file)}
    assert (units["hessian"], units["dipole"], units["conformers"]) == ("kcal/mol/Å²", "e·Å", "kcal/mol")


def test_labels_are_counted_and_named_in_the_report(raw: Path, folder: Path, result: StudyResult) -> None:
    dataset = open_dataset(parse_specs([f"minichno:{raw}"]), properties="HD")
    masks = [dataset._data[f"{name}_mask"][:, 0].numpy() for name in ("energy", "forces", "hessian", "dipole")]
    test = np.flatnonzero(dataset.given_split() == 1)
    assert result.label_counts["dz"]["test"] == tuple(mask[test].sum() for mask in masks)
    assert 0 < result.label_counts["dz"]["test"][2] < len(test)
    assert result.label_counts["cc"]["test"][2:] == (0, 0)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "with an energy, with forces, with a Hessian and with a dipole; a model trains" in page
    assert "Other labels: Hessians (H), dipoles (D)." in page
    assert "table-hessian" not in page
    assert page.count("Hessian components, in kcal/mol/Å²") == 1


def test_parity_is_of_the_averaged_prediction(result: StudyResult) -> None:
    for model in result.models:
        parity = model.parity["test"]
        assert {name for _, name in parity} == {"energy", "forces", "hessian"} | (
            {"dipole"} if "HD" in model.name else set()
        )
        for name in {"hessian", "dipole"} & {name for _, name in parity}:
            (label,), (predicted,) = parity["dz", name].labels, parity["dz", name].predictions
            errors = model.errors["test"]["dz"][name]
            assert len(label) == errors.n
            assert np.sqrt(np.mean((predicted - label) ** 2)) == pytest.approx(errors.ensemble_rmse.value, rel=1e-6)


def test_figures_have_the_further_properties(result: StudyResult, tmp_path: Path) -> None:
    base, model = (
        replace(m, parity={"test": m.parity["test"]} if m is result.models[1] else {}) for m in result.models[:0:-1]
    )
    figures = write_figures(replace(result, models=[model, base], splits=["test"]), tmp_path)
    assert [figure.path.name for figure in figures] == ["improvement.png", "parity-MF-CC_E-DZ_EFHD-mfl.png"]
    assert all(figure.path.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_study_without_further_labels_has_none_of_their_tables(runs: list[StudyRun], tmp_path: Path) -> None:
    found = collect(runs[:1])
    assert found.letters == "EF"
    assert set(found.models[0].errors["test"]["dz"]) == {"energy", "forces", "conformers", "conformer_forces"}
    written = {path.name for path in write_tables(found, tmp_path)}
    assert not {name for name in written if "hessian" in name or "dipole" in name}


def test_stored_predictions_are_those_that_were_made(
    runs: list[StudyRun], result: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfpyg.inference.dataset.predict_rows", None)
    assert [m.errors for m in collect(runs).models] == [m.errors for m in result.models]
