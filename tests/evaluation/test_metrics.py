"""The table of errors against numpy, on predictions that are known."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from mfpyg.datasets import MiniCHNO
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.evaluation.metrics import MetricTable
from mfpyg.evaluation.report import as_text, metrics_table, parity_plot, print_table
from mfpyg.models import HIPNN, MultiFidelityPotential, Prediction


@pytest.fixture(scope="module")
def dataset() -> MiniCHNO:
    return MiniCHNO()


def off_by(batch: Batch, column: int, energy: torch.Tensor, forces: torch.Tensor) -> Prediction:
    """A prediction that misses every label by a known amount; arbitrary where there is none."""
    zeros = torch.zeros(batch.num_graphs)
    return Prediction(
        torch.nan_to_num(batch.energy[:, column], nan=7.0) + energy,
        torch.nan_to_num(batch.forces[:, column], nan=7.0) + forces,
        zeros,
        zeros,
    )


def test_metrics_are_those_of_the_labelled_entries(dataset: MiniCHNO) -> None:
    columns = {"tz": 1, "cc": 3}
    table, generator = MetricTable(columns), torch.Generator().manual_seed(0)
    energy_errors: dict[str, list[float]] = {"tz": [], "cc": []}
    per_atom: dict[str, list[float]] = {"tz": [], "cc": []}
    force_errors: dict[str, list[float]] = {"tz": [], "cc": []}
    for batch in DataLoader(dataset[:300], batch_size=77):
        predictions = {}
        for name, column in columns.items():
            e = torch.randn(batch.num_graphs, dtype=torch.float64, generator=generator)
            f = torch.randn(batch.num_nodes, 3, generator=generator).round(decimals=1)
            predictions[name] = off_by(batch, column, e, f)
            for i, data in enumerate(batch.to_data_list()):
                if data.energy_mask[0, column]:
                    energy_errors[name].append(float(e[i]))
                    per_atom[name].append(float(e[i]) / len(data.z))
                if data.forces_mask[0, column]:
                    force_errors[name] += f[batch.ptr[i] : batch.ptr[i + 1]].flatten().tolist()
        table.add(predictions, batch)
    for name, row in table.result().items():
        e, a, f = map(np.array, (energy_errors[name], per_atom[name], force_errors[name]))
        assert row["energy"]["n"] == len(e)
        assert row["forces"]["n"] == len(f)
        found = [row["energy"][k] for k in ("mae", "rmse", "mae_per_atom", "rmse_per_atom")]
        expected = [np.abs(e).mean(), np.sqrt((e**2).mean()), np.abs(a).mean(), np.sqrt((a**2).mean())]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        found = [row["forces"]["mae"], row["forces"]["rmse"]]
        np.testing.assert_allclose(found, [np.abs(f).mean(), np.sqrt((f**2).mean())], rtol=1e-4)


def test_evaluation_counts_every_label_and_leaves_out_what_is_missing(dataset: MiniCHNO) -> None:
    torch.manual_seed(0)
    potential = MultiFidelityPotential(HIPNN([1, 6, 7, 8], 1, 0, 4, 4), ["mp2", "cc", "tz"]).eval()
    split = dataset._data.split.numpy()
    splits = {"test": np.flatnonzero(split == 1), "ood": np.flatnonzero(split == 2)}
    result = evaluate(potential, dataset, splits, parity=True)
    test, ood = result.metrics["test"], result.metrics["ood"]
    assert test["cc"]["energy"]["n"] == 72
    assert test["cc"]["forces"]["n"] == 1068
    assert "forces" not in test["mp2"]
    assert "tz" not in ood
    labels = np.concatenate(result.parity["test"]["cc", "forces"].labels)
    predictions = np.concatenate(result.parity["test"]["cc", "forces"].predictions)
    assert np.sqrt(((labels - predictions) ** 2).mean()) == pytest.approx(test["cc"]["forces"]["rmse"], rel=1e-5)


@pytest.mark.parametrize(
    ("key", "what"), [("energy", "energy label"), ("forces", "forces label"), ("", "predicted cc")]
)
def test_evaluation_names_what_is_not_finite(dataset: MiniCHNO, key: str, what: str) -> None:
    """A label that is broken and not masked, or a prediction; no NaN comes into a table."""
    torch.manual_seed(0)
    potential = MultiFidelityPotential(HIPNN([1, 6, 7, 8], 1, 0, 4, 4), ["cc"]).eval()
    spoiled, column = copy.copy(dataset), dataset.fidelities.index("cc")
    spoiled._data = copy.copy(dataset._data)
    row = int(np.flatnonzero(dataset._data.split == 1)[7])
    if key:
        spoiled._data[key] = dataset._data[key].clone()
        spoiled._data[key][row if key == "energy" else dataset.slices["pos"][row], column] = torch.inf
    else:
        potential.reference("cc").fill_(torch.nan)
    where = dataset.molecules[int(dataset._data.molecule[row])]
    where = f"{where}, conformation {int(dataset._data.conformation[row])}" if key else ""
    with pytest.raises(MFPyGError, match=f"{what}.* of {where}.* (is NaN or infinite but not masked|is not finite)"):
        evaluate(potential, spoiled, {"test": np.flatnonzero(dataset._data.split == 1)})


def test_table_marks_what_was_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does; no escape codes in metrics.txt
    errors = {"n": 12, "mae": 1.0, "rmse": 2.0, "mae_per_atom": 0.1, "rmse_per_atom": 0.2}
    text = as_text(metrics_table({"test": {"cc": {"energy": errors, "forces": errors}}}, {"cc": "E"}))
    row = next(line for line in text.splitlines() if "cc:E" in line)
    assert row.split() == ["test", "cc:E", "12", "1.000", "2.000", "0.100", "0.200", "12*", "1.000", "2.000"]
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_no_digit_is_cut_off_on_a_narrow_terminal() -> None:
    energy = {"n": 123456789, "mae": 1234567.891, "rmse": 1234567.892, "mae_per_atom": 1.5, "rmse_per_atom": 2.5}
    table = metrics_table({"test": {"npno_dz": {"energy": energy, "forces": energy}}}, {})
    console = Console(file=io.StringIO(), width=40)
    print_table(console, table)
    for text in (console.file.getvalue(), as_text(table)):  # type: ignore[attr-defined]
        for part in ("npno_dz", "123456789*", "1234567.891", "1234567.892"):
            assert part in text
        assert "…" not in text


def test_parity_of_forces_without_energies_can_be_drawn(dataset: MiniCHNO, tmp_path: Path) -> None:
    forces_only = copy.copy(dataset)
    forces_only._data = dataset._data.clone()
    forces_only._data.energy_mask[:] = False
    forces_only._data_list = None
    torch.manual_seed(0)
    potential = MultiFidelityPotential(HIPNN([1, 6, 7, 8], 1, 0, 4, 4), ["dz"]).eval()
    result = evaluate(potential, forces_only, {"some": np.arange(20)}, parity=True)
    assert set(result.metrics["some"]["dz"]) == {"forces"}
    assert set(result.parity["some"]) == {("dz", "forces")}
    parity_plot(result.parity["some"], tmp_path / "parity.png", "forces")
    assert (tmp_path / "parity.png").stat().st_size > 1000
