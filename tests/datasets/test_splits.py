"""Splits and reference energies on the bundled data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.references import compositions, fit_references
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.settings import SplitSettings


@pytest.fixture(scope="module")
def dataset() -> MiniCHNO:
    return MiniCHNO()


def test_file_split_keeps_test_and_ood_and_divides_the_pool(dataset: MiniCHNO) -> None:
    splits = make_splits(dataset, SplitSettings(), seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 604, "val": 67, "test": 72, "ood": 45}
    assert sorted(np.concatenate(list(splits.values()))) == list(range(788))
    assert (dataset._data.split[splits["test"]] == 1).all()
    assert (dataset._data.split[splits["ood"]] == 2).all()


def test_splits_depend_on_the_seed_alone(dataset: MiniCHNO) -> None:
    first, again, other = (make_splits(dataset, SplitSettings(), seed) for seed in (3, 3, 4))
    few = make_splits(MiniCHNO(fidelities=["dz", "hf_dz"]), SplitSettings(), 3)
    for name in first:
        assert (first[name] == again[name]).all()
        assert (first[name] == few[name]).all()
    assert (first["val"] != other["val"]).any()
    assert (first["test"] == other["test"]).all()


def test_random_split_is_80_10_10_of_everything(dataset: MiniCHNO) -> None:
    splits = make_splits(dataset, SplitSettings(method="random"), seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 630, "val": 79, "test": 79}
    assert sorted(np.concatenate(list(splits.values()))) == list(range(788))


def test_empty_validation_split_is_refused(dataset: MiniCHNO) -> None:
    with pytest.raises(MFPyGError, match="split 'val'"):
        make_splits(dataset, SplitSettings(val=0.0001), seed=0)


def test_references_are_the_least_squares_solution_of_the_labelled_rows(dataset: MiniCHNO) -> None:
    rows, species = np.arange(0, 700), (1, 6, 7, 8)
    counts = compositions(dataset, species)
    assert counts.sum() == len(dataset._data.z)
    assert counts[5].tolist() == [int((dataset[5].z == s).sum()) for s in species]
    for column, (_name, references) in enumerate(fit_references(dataset, rows, species).items()):
        energy = dataset._data.energy[rows, column].numpy()
        labelled = np.isfinite(energy)
        a, b = counts[rows][labelled], energy[labelled]
        # The residual of a least-squares solution is orthogonal to every column.
        assert np.abs(a.T @ (b - a @ references.energies)).max() < 1e-4
        assert references.undetermined == []
        assert np.abs(b - a @ references.energies).max() < 150


def test_undetermined_references_are_named(dataset: MiniCHNO) -> None:
    n_atoms = dataset.slices["z"].diff()
    methane = torch.nonzero((n_atoms == 5) & (dataset._data.split == 0)).flatten().numpy()
    fitted = fit_references(dataset, methane, (1, 6, 7, 8))["dz"]
    assert fitted.undetermined == ["H", "C", "N", "O"]
    assert 4 * fitted.energies[0] + fitted.energies[1] == pytest.approx(
        float(dataset._data.energy[methane, 0].mean()), abs=1e-6
    )
