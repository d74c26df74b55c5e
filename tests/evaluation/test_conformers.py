"""Energy differences between conformers against the loop over all pairs, and which conformations are paired."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from mfpyg.datasets import COMP6, ANI1x, MiniCHNO, UnionDataset
from mfpyg.datasets.minichno import bundled_file
from mfpyg.evaluation.conformers import _formula, in_window, molecules_of_rows, pair_sums


def loop_over_pairs(errors: np.ndarray, molecule: np.ndarray, n_molecules: int) -> np.ndarray:
    sums = np.zeros((n_molecules, 3))
    for i, j in itertools.combinations(range(len(errors)), 2):
        if molecule[i] == molecule[j]:
            difference = errors[i] - errors[j]
            sums[molecule[i]] += [1, abs(difference), difference**2]
    return sums


@pytest.mark.parametrize("seed", range(5))
def test_closed_form_is_the_double_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    n_molecules = 7
    molecule = random.integers(0, n_molecules - 1, size=60)  # the last has none
    molecule[molecule == 2] = 3  # and one in the middle
    molecule[0] = 2  # which then has a single one: no pair
    errors = random.normal(size=60).round(1)  # some equal
    found = pair_sums(errors, molecule, n_molecules)
    np.testing.assert_allclose(found, loop_over_pairs(errors, molecule, n_molecules), rtol=1e-12, atol=1e-12)
    assert found[2].tolist() == [0, 0, 0]


def test_error_common_to_a_molecule_cancels_even_if_it_is_huge() -> None:
    errors = np.array([0.5, -0.25, 1.0])
    one = pair_sums(errors + 1e6, np.zeros(3, int), 1)
    np.testing.assert_allclose(one, pair_sums(errors, np.zeros(3, int), 1), rtol=1e-8)


def test_no_conformation_gives_no_pair() -> None:
    assert pair_sums(np.empty(0), np.empty(0, int), 2).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert in_window(np.empty(0), np.empty(0, int)).tolist() == []


def test_window_is_above_the_lowest_conformation_of_the_molecule() -> None:
    energy = np.array([-500.0, -400.0, -399.9, -1000.0, -899.0, -950.0])
    molecule = np.array([0, 0, 0, 1, 1, 1])
    assert in_window(energy, molecule).tolist() == [True, True, False, True, False, True]
    assert in_window(energy, molecule, width=50.0).tolist() == [True, False, False, True, False, True]


def test_thousands_of_conformers_need_no_array_of_pairs() -> None:
    n = 200_000  # 2·10¹⁰ pairs
    errors = np.random.default_rng(0).normal(size=n)
    ((count, absolute, squared),) = pair_sums(errors, np.zeros(n, int), 1)
    assert count == n * (n - 1) / 2
    # Differences of two numbers from N(0, 1) are from N(0, 2): E|x| = 2/√π, E x² = 2.
    assert absolute / count == pytest.approx(2 / np.pi**0.5, rel=0.01)
    assert squared / count == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "atoms"),
    [("C2H6O1", {"C": 2, "H": 6, "O": 1}), ("CH3OH", {"C": 1, "H": 4, "O": 1}), ("mol00", None), ("", None),
     ("trans-butane", None), ("gdb11/C2H6", None)],
)  # fmt: skip
def test_formula_is_told_from_a_name(name: str, atoms: dict[str, int] | None) -> None:
    assert _formula(name) == atoms


def test_names_tell_isomers_of_the_bundled_data_apart() -> None:
    dataset = MiniCHNO()
    rows = np.arange(len(dataset))
    molecule = molecules_of_rows(dataset, rows)
    names = dataset._data.molecule.numpy()
    assert len(np.unique(molecule)) == 21
    assert len(np.unique(np.stack([molecule, names]), axis=1).T) == 21
    ood = np.flatnonzero(dataset.given_split() == 2)
    np.testing.assert_array_equal(np.unique(molecule[ood], return_inverse=True)[1], molecules_of_rows(dataset, ood))


def test_isomers_that_share_a_formula_are_not_paired(tmp_path: Path) -> None:
    path = tmp_path / "isomers.h5"
    with h5py.File(bundled_file()) as source, h5py.File(path, "w") as target:
        group = source["C2H6O1"]
        for key in ("atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces"):
            target[f"C2H6O1/{key}"] = group[key][()]
        names = group["molecule"].asstr()[:]
    assert set(names) == {"CH3CH2OH", "CH3OCH3"}
    dataset = ANI1x(tmp_path / "root", ["dz"], file=path)
    assert dataset.molecules == ["C2H6O1"]
    molecule = molecules_of_rows(dataset, np.arange(len(dataset)))
    assert set(zip(molecule.tolist(), names, strict=True)) in (
        {(0, "CH3CH2OH"), (1, "CH3OCH3")},
        {(1, "CH3CH2OH"), (0, "CH3OCH3")},
    )


def test_molecules_of_one_name_in_two_sources_are_two(tmp_path: Path) -> None:
    shutil.copy(bundled_file(), tmp_path / "copy.h5")
    twice = UnionDataset(tmp_path, [MiniCHNO(), MiniCHNO(tmp_path, file=tmp_path / "copy.h5")])
    assert len(np.unique(molecules_of_rows(twice, np.arange(len(twice))))) == 42


def test_groups_of_comp6_are_its_molecules(data_folder: Path, tmp_path: Path) -> None:
    file = data_folder / "comp6_s66x8.h5"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    dataset = COMP6(file)
    rows = np.arange(len(dataset))
    molecule = molecules_of_rows(dataset, rows)
    assert np.bincount(molecule).tolist() == [8] * 66
    energy = dataset._data.energy[:, 0].numpy()
    errors = np.random.default_rng(0).normal(size=len(rows))
    inside = in_window(energy, molecule)
    assert inside.sum() > 500
    found = pair_sums(errors[inside], molecule[inside], 66)
    np.testing.assert_allclose(found, loop_over_pairs(errors[inside], molecule[inside], 66), rtol=1e-12)
