"""Reference energies: fitted, given, of isolated atoms, and extrapolated from another level of theory."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest

from mfpyg.datasets import ExtXYZ, MiniCHNO
from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.datasets.references import (
    as_text,
    complete,
    complete_difference,
    compositions,
    fit,
    fit_references,
    read_references,
)
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.settings import SplitSettings
from mfpyg.units import EV_TO_KCAL_MOL

SPECIES = (1, 6, 7, 8)
EVERY = np.array([[4, 1, 0, 0], [2, 0, 0, 1], [3, 0, 1, 0], [4, 1, 0, 1], [1, 1, 1, 0]], float)
NO_NITROGEN = EVERY[EVERY[:, 2] == 0]
DFT = np.array([-373.0, -23880.0, -34320.0, -47150.0])
PER_ELECTRON = 11.0


def test_an_unseen_element_is_extrapolated_per_electron() -> None:
    cc = DFT + PER_ELECTRON * np.array(SPECIES)
    fitted = {"dft": fit(EVERY, EVERY @ DFT, SPECIES), "cc": fit(NO_NITROGEN, NO_NITROGEN @ cc, SPECIES)}
    assert fitted["cc"].undetermined == ["N"]
    assert abs(fitted["cc"].energies[2]) < 1e-6  # the least norm
    found = complete(fitted, SPECIES)
    assert found["cc"].energies == pytest.approx(cc)
    assert found["cc"].sources == ("dft",)
    assert found["dft"].energies.tolist() == fitted["dft"].energies.tolist()


def test_the_level_that_differs_least_is_extrapolated_from() -> None:
    """Formation energies say nothing of total energies."""
    cc, formation = DFT + PER_ELECTRON * np.array(SPECIES), np.array([-52.0, -171.0, -113.0, -59.0])
    fitted = {
        "formation": fit(EVERY, EVERY @ formation, SPECIES),
        "dft": fit(EVERY, EVERY @ DFT, SPECIES),
        "cc": fit(NO_NITROGEN, NO_NITROGEN @ cc, SPECIES),
    }
    found = complete(fitted, SPECIES)["cc"]
    assert found.sources == ("dft",)
    assert found.energies == pytest.approx(cc)


def test_each_other_level_gives_what_it_determines() -> None:
    """``a`` lacks N and O; ``b`` has seen N alone of them, ``c`` O alone."""
    carbon = EVERY[(EVERY[:, 2] == 0) & (EVERY[:, 3] == 0)]
    carbon = np.concatenate([carbon, [[2, 2, 0, 0]]])
    b, c = (np.concatenate([carbon, EVERY[(EVERY[:, k] > 0) & (EVERY[:, 5 - k] == 0)]]) for k in (2, 3))
    fitted = {
        "a": fit(carbon, carbon @ DFT, SPECIES),
        "b": fit(b, b @ DFT, SPECIES),
        "c": fit(c, c @ DFT, SPECIES),
    }
    assert [one.undetermined for one in fitted.values()] == [["N", "O"], ["O"], ["N"]]
    found = complete(fitted, SPECIES)
    for one in found.values():
        assert one.energies == pytest.approx(DFT)
    assert set(found["a"].sources) == {"b", "c"}


def test_extrapolation_is_right_to_an_electronvolt_where_the_labels_are_known() -> None:
    """Every pair of levels of the bundled data, the second without C, N or O in turn; 4.6 eV off on average without."""
    dataset = MiniCHNO(fidelities=["dz", "tz", "mp2", "cc", "hf_dz", "hf_tz", "mp2_dz"])
    counts = compositions(dataset, SPECIES)
    errors = []
    for pair in permutations(range(len(dataset.fidelities)), 2):
        mask = dataset._data.energy_mask.numpy()[:, pair].all(axis=1)
        energy = dataset._data.energy.numpy()[:, pair]
        for element in (1, 2, 3):
            rows = mask & (counts[:, element] == 0)
            lacking = fit(counts[rows], energy[rows, 1] - energy[rows, 0], SPECIES)
            found = complete_difference(lacking, "one", SPECIES).energies[element]
            true = fit(counts[mask], energy[mask, 1] - energy[mask, 0], SPECIES).energies[element]
            errors.append((found - true) / EV_TO_KCAL_MOL)
    assert np.sqrt(np.mean(np.square(errors))) < 1


def with_atoms(path: Path, atoms: list[tuple[str, float]], pbc: bool = False) -> ExtXYZ:
    """Water, hydrogen peroxide and oxygen, and isolated atoms with these energies in kcal/mol."""
    random = np.random.default_rng(0)
    frames = []
    for formula, energy in [("H2O", -47900.0), ("H2O2", -95000.0), ("O2", -94300.0)] * 10 + atoms:
        frame = ase.Atoms(formula)
        frame.positions = 2.0 * np.arange(len(frame))[:, None] + 0.1 * random.normal(size=(len(frame), 3))
        frame.cell, frame.pbc = (10 * np.eye(3), pbc) if pbc else (np.zeros((3, 3)), False)
        frame.info["dft_energy"] = energy + random.normal() if len(frame) > 1 else energy
        frames.append(frame)
    ase.io.write(path, frames, format="extxyz")
    return ExtXYZ(path, ["dft=dft_energy@kcal/mol"])


def test_isolated_atoms_are_kept_exactly_and_are_for_training(tmp_path: Path) -> None:
    dataset = with_atoms(tmp_path / "a.xyz", [("H", -313.5), ("H", -300.0), ("O", -47100.0)])
    for method in ("random", "molecule"):
        settings = SplitSettings(method=method) if method == "random" else SplitSettings(method, val=0.3, test=0.3)
        for seed in range(5):
            assert {30, 31, 32} <= set(make_splits(dataset, settings, seed)["train"].tolist())
    found = fit_references(dataset, np.arange(len(dataset)), (1, 8))["dft"]
    assert found.energies.tolist() == [-313.5, -47100.0]  # of several, the lowest
    assert found.undetermined == []


def test_isolated_atoms_keep_the_labels_that_others_lose(tmp_path: Path) -> None:
    dataset = with_atoms(tmp_path / "a.xyz", [("H", -313.5), ("O", -47100.0)])
    splits = make_splits(dataset, SplitSettings(method="random"), 0)
    thinned = thin_labels(dataset, splits, {"dft": 0.2}, 0)
    mask = thinned._data.energy_mask[:, 0].numpy()
    assert mask[[30, 31]].all()
    assert mask[splits["train"]].sum() == 2 + round(0.2 * (len(splits["train"]) - 2))
    found = fit_references(thinned, splits["train"], (1, 8))["dft"]
    assert found.energies.tolist() == [-313.5, -47100.0]


def test_an_atom_in_a_crystal_is_not_isolated(tmp_path: Path) -> None:
    dataset = with_atoms(tmp_path / "a.xyz", [("O", -47100.0)], pbc=True)
    found = fit_references(dataset, np.arange(len(dataset)), (1, 8))["dft"]
    assert abs(found.energies[1] + 47100.0) > 1e-3


def test_given_energies_are_kept_and_the_others_fitted_to_the_rest() -> None:
    found = fit(EVERY, EVERY @ DFT + 7.0, SPECIES, given={1: -313.0, 92: -1e7})
    assert found.energies[0] == -313.0
    rest = EVERY @ DFT + 7.0 + 313.0 * EVERY[:, 0]
    assert found.energies[1:] == pytest.approx(np.linalg.lstsq(EVERY[:, 1:], rest, rcond=None)[0])
    assert (
        fit(EVERY, EVERY @ DFT, SPECIES, given=dict(zip(SPECIES, DFT, strict=True))).energies.tolist() == DFT.tolist()
    )


def test_the_file_of_references_is_read_in_its_unit(tmp_path: Path) -> None:
    path = tmp_path / "references.yaml"
    path.write_text("cc:\n  unit: eV\n  H: -13\n  N: -1484.5\ndz: {unit: kcal/mol, O: -4.7e+4}\n")
    found = read_references(path, ["dz", "cc"])
    assert found == {"cc": {1: -13 * EV_TO_KCAL_MOL, 7: -1484.5 * EV_TO_KCAL_MOL}, "dz": {8: -4.7e4}}
    path.write_text(as_text(found))
    assert read_references(path, ["dz", "cc"]) == found


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("c: {unit: eV, H: -13}", ("unknown fidelity", "'c'", "did you mean 'cc'")),
        ("cc: {H: -13}", ("cc", "unit")),
        ("cc: -13", ("cc", "unit")),
        ("cc: {unit: Hartre, H: -13}", ("energy unit", "'Hartre'", "did you mean 'Hartree'")),
        ("cc: {unit: eV, Hh: -13}", ("element", "'Hh'", "did you mean 'H'")),
        ("cc: {unit: eV, H: low}", ("cc of H", "'low'")),
        ("cc: {unit: eV, H: .nan}", ("cc of H", "nan")),
        ("cc: {unit: eV, H: 1, H: 2}", ("'H'", "twice")),
    ],
)
def test_a_wrong_file_of_references_is_refused(tmp_path: Path, text: str, facts: tuple[str, ...]) -> None:
    path = tmp_path / "references.yaml"
    path.write_text(text)
    with pytest.raises(MFPyGError) as error:
        read_references(path, ["dz", "cc"])
    for fact in (str(path), *facts):
        assert fact in str(error.value)


def test_given_energies_in_a_wrong_unit_are_refused() -> None:
    hartree_as_eV = {1: -0.5 * EV_TO_KCAL_MOL, 6: -37.8 * EV_TO_KCAL_MOL}
    with pytest.raises(MFPyGError, match=r"of H, C the labels leave .* eV per atom.* unit"):
        fit(EVERY[:1], EVERY[:1] @ DFT, SPECIES, given=hartree_as_eV)
