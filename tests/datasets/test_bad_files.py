"""Wrong data files: one line that names the file, the group and the key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mfpyg.datasets import ANI1x, MiniCHNO
from mfpyg.datasets.minichno import bundled_file
from mfpyg.datasets.spec import DatasetSpec, open_dataset
from mfpyg.errors import MFPyGError


def refusal(file: Path, cls: type = ANI1x) -> str:
    """Message with which a file is refused; nothing processed may be left behind."""
    root = file.parent / "root"
    with pytest.raises(MFPyGError) as error:
        cls(root, file=file)
    message = str(error.value)
    assert "\n" not in message
    assert str(file) in message
    assert not [path for path in root.rglob("*") if path.is_file()]
    return message


def replace(file: Path, group: str, key: str, value: Any) -> None:
    with h5py.File(file, "r+") as opened:
        del opened[group][key]
        if value is not None:
            opened[group][key] = value


def change(file: Path, group: str, key: str, edit: Callable[[np.ndarray], Any]) -> None:
    with h5py.File(file, "r") as opened:
        value = opened[group][key][:]
    replace(file, group, key, edit(value))


def put(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return edit


def test_text_file_is_no_hdf5(tmp_path: Path) -> None:
    file = tmp_path / "notes.h5"
    file.write_text("these are notes\n" * 100)
    assert "not an HDF5 file" in refusal(file)


def test_empty_file_is_no_hdf5(tmp_path: Path) -> None:
    file = tmp_path / "empty.h5"
    file.touch()
    assert "not an HDF5 file" in refusal(file)


def test_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(MFPyGError, match=r"folder\.h5"):
        ANI1x(tmp_path / "root", file=tmp_path / "folder.h5")


@pytest.mark.parametrize("share", [0.00001, 0.0001, 0.001, 0.1, 0.5, 0.9, 0.999, 0.999999])
def test_truncated_file_is_said_to_be_damaged(tmp_path: Path, share: float) -> None:
    whole = bundled_file().read_bytes()
    file = tmp_path / "minichno.h5"
    file.write_bytes(whole[: int(share * len(whole))])
    message = refusal(file, MiniCHNO)
    assert "truncated or damaged" in message or "not an HDF5 file" in message


def test_file_with_an_overwritten_index_is_said_to_be_damaged(tmp_path: Path) -> None:
    file = tmp_path / "minichno.h5"
    shutil.copy(bundled_file(), file)
    with open(file, "r+b") as opened:  # the heap and the B-tree of the root group
        opened.seek(96)
        opened.write(b"\xff" * 2000)
    assert "damaged" in refusal(file, MiniCHNO)


def test_file_without_groups_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nothing.h5"
    h5py.File(file, "w").close()
    assert "no groups" in refusal(file)


def test_file_of_arrays_only_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "arrays.h5"
    with h5py.File(file, "w") as opened:
        opened["H2O1"] = np.zeros(3)
    assert "expected groups only" in refusal(file)


def test_array_where_a_group_should_be_is_refused(release_file: Path) -> None:
    with h5py.File(release_file, "r+") as file:
        file["N2"] = np.zeros(3)
    assert "N2" in refusal(release_file)


@pytest.mark.parametrize("key", ["coordinates", "wb97x_dz.energy", "wb97x_dz.forces"])
def test_group_where_an_array_should_be_is_refused(release_file: Path, key: str) -> None:
    with h5py.File(release_file, "r+") as file:
        del file["C1H4"][key]
        file["C1H4"].create_group(key)
    message = refusal(release_file)
    assert "C1H4" in message
    assert key in message


@pytest.mark.parametrize(
    "key",
    [
        "coordinates",
        "atomic_numbers",
        "wb97x_dz.energy",
        "wb97x_dz.forces",
        "wb97x_tz.forces",
        "mp2_tz.corr_energy",
        "ccsd(t)_cbs.energy",
    ],
)
def test_key_missing_in_one_group_is_named(release_file: Path, key: str) -> None:
    replace(release_file, "C1H4", key, None)
    message = refusal(release_file)
    assert "group C1H4" in message
    assert f"'{key}'" in message


def test_file_without_any_known_level_lists_the_usual_keys(release_file: Path) -> None:
    with h5py.File(release_file, "r+") as file:
        for group in file.values():
            for key in [key for key in group if "." in key]:
                del group[key]
    assert "wb97x_dz.energy" in refusal(release_file)


@pytest.mark.parametrize(
    ("key", "edit"),
    [
        ("wb97x_dz.energy", lambda a: a[:-1]),
        ("wb97x_dz.energy", lambda a: np.stack([a, a], axis=1)),
        ("mp2_tz.corr_energy", lambda a: np.append(a, a)),
        ("wb97x_dz.forces", lambda a: a[:-1]),
        ("wb97x_dz.forces", lambda a: a[:, :-1]),
        ("wb97x_dz.forces", lambda a: a[..., :2]),
        ("wb97x_dz.forces", lambda a: a.reshape(len(a), -1)),
        ("coordinates", lambda a: a[:, :-1]),
        ("coordinates", lambda a: a[0]),
        ("coordinates", lambda a: a[..., :2]),
        ("atomic_numbers", lambda a: a[None]),
        ("atomic_numbers", lambda a: a[0]),
    ],
)
def test_arrays_that_disagree_in_shape_are_named(release_file: Path, key: str, edit: Callable[..., Any]) -> None:
    change(release_file, "C1H4", key, edit)
    message = refusal(release_file)
    assert "group C1H4" in message
    assert f"{key} has shape" in message
    assert "expected" in message


@pytest.mark.parametrize(("key", "name"), [("atomic_numbers", "coordinates"), ("coordinates", "wb97x_dz.energy")])
def test_shorter_geometry_names_what_does_not_fit_it(release_file: Path, key: str, name: str) -> None:
    change(release_file, "C1H4", key, lambda a: a[:-1])
    message = refusal(release_file)
    assert "group C1H4" in message
    assert name in message


@pytest.mark.parametrize(
    ("key", "edit"),
    [
        ("wb97x_dz.energy", lambda a: a.astype("S8")),
        ("wb97x_dz.energy", lambda a: a.astype(np.int64)),
        ("wb97x_dz.energy", lambda a: a.astype(np.complex128)),
        ("wb97x_dz.forces", lambda a: a.astype("S8")),
        ("wb97x_dz.forces", lambda a: a.astype(np.int64)),
        ("coordinates", lambda a: a.astype("S8")),
        ("coordinates", lambda a: a.astype(np.complex64)),
        ("atomic_numbers", lambda a: np.array([b"C", b"H", b"H", b"H", b"H"])),
        ("atomic_numbers", lambda a: a + 0.5),
    ],
)
def test_array_of_the_wrong_type_is_named(release_file: Path, key: str, edit: Callable[..., Any]) -> None:
    change(release_file, "C1H4", key, edit)
    message = refusal(release_file)
    assert "group C1H4" in message
    assert key in message
    assert "type" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coordinates_that_are_no_numbers_are_refused(release_file: Path, value: float) -> None:
    change(release_file, "C1H4", "coordinates", put((1, 2, 0), value))
    message = refusal(release_file)
    assert "group C1H4" in message
    assert "coordinates of conformation 1" in message


@pytest.mark.parametrize(
    ("key", "index"),
    [("wb97x_dz.energy", (1,)), ("wb97x_dz.forces", (1, 0, 2)), ("hf_tz.energy", (1,)), ("mp2_tz.corr_energy", (1,))],
)
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_label_is_refused(release_file: Path, key: str, index: tuple[int, ...], value: float) -> None:
    change(release_file, "C1H4", key, put(index, value))
    message = refusal(release_file)
    assert "group C1H4" in message
    assert f"{key} of conformation 1 is infinite" in message


@pytest.mark.parametrize("number", [0, 200])
def test_atomic_number_of_no_element_is_refused(release_file: Path, number: int) -> None:
    change(release_file, "C1H4", "atomic_numbers", put((2,), number))
    message = refusal(release_file)
    assert "group C1H4" in message
    assert "atomic_numbers" in message
    assert str(number) in message


def of_all_groups(file: Path, key: str, value: Callable[[int], Any]) -> None:
    with h5py.File(file, "r+") as opened:
        for group in opened.values():
            group[key] = value(len(group["coordinates"]))


@pytest.mark.parametrize(
    "edit", [lambda n: np.zeros(n + 1, np.uint8), lambda n: np.zeros(n), lambda n: np.array([b"a"] * n)]
)
def test_split_of_the_wrong_length_or_type_is_refused(release_file: Path, edit: Callable[[int], Any]) -> None:
    of_all_groups(release_file, "split", lambda n: np.zeros(n, np.uint8))
    replace(release_file, "C1H4", "split", edit(3))
    message = refusal(release_file)
    assert "group C1H4" in message
    assert "split" in message


def test_split_of_an_unknown_number_is_refused(release_file: Path) -> None:
    of_all_groups(release_file, "split", lambda n: np.full(n, 7, np.uint8))
    message = refusal(release_file)
    assert "split" in message
    assert "7" in message


@pytest.mark.parametrize("value", [np.array([b"methane"] * 2), np.array([1, 2, 3])])
def test_molecule_names_of_the_wrong_length_or_type_are_refused(release_file: Path, value: np.ndarray) -> None:
    with h5py.File(release_file, "r+") as file:
        file["C1H4"]["molecule"] = value
    message = refusal(release_file)
    assert "group C1H4" in message
    assert "molecule" in message


def test_forces_with_a_component_missing_are_no_forces(release_file: Path) -> None:
    change(release_file, "C1H4", "wb97x_dz.forces", put((1, 3, 2), np.nan))
    dataset = ANI1x(release_file.parent / "root", file=release_file)
    assert [dataset[i].forces_mask[0, 0].item() for i in range(len(dataset))].count(False) == 1
    item = next(data for data in dataset if not data.forces_mask[0, 0])
    assert (len(item.z), item.conformation.item()) == (5, 1)
    assert item.forces[:, 0].isnan().all()
    assert item.energy_mask[0, 0]


def test_group_without_conformations_does_no_harm(release_file: Path) -> None:
    with h5py.File(release_file, "r+") as file:
        for key in file["C1H4"]:
            if key != "atomic_numbers":
                empty = file["C1H4"][key][:0]
                del file["C1H4"][key]
                file["C1H4"][key] = empty
    assert len(ANI1x(release_file.parent / "root", file=release_file)) == 6


def test_split_in_some_groups_only_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "part.h5"
    shutil.copy(bundled_file(), file)
    with h5py.File(file, "a") as opened:
        del opened["H2O1"]["split"]
    assert "some have none" in refusal(file, MiniCHNO)


def test_level_whose_forces_no_group_has_is_one_without_forces(tmp_path: Path) -> None:
    file = tmp_path / "energies.h5"
    with h5py.File(bundled_file()) as source, h5py.File(file, "w") as target:
        for name in ("H2O1", "C1H4"):
            for key in ("atomic_numbers", "coordinates", "wb97x_dz.energy"):
                target.require_group(name)[key] = source[name][key][()]
    dataset = MiniCHNO(tmp_path / "root", file=file)
    assert dataset.fidelities == ("dz",)
    assert dataset._data.energy_mask.all()
    assert not dataset._data.forces_mask.any()


def test_level_that_nobody_asked_for_may_be_missing_in_a_group(tmp_path: Path) -> None:
    file = tmp_path / "part.h5"
    shutil.copy(bundled_file(), file)
    with h5py.File(file, "a") as opened:
        del opened["H2O1"]["wb97x_tz.energy"]
        del opened["H2O1"]["wb97x_tz.forces"]
    spec = DatasetSpec("minichno", file)
    assert open_dataset(spec, ["dz", "cc"]).fidelities == ("dz", "mp2", "cc")
    with pytest.raises(MFPyGError, match=r"group H2O1 lacks the key 'wb97x_tz\.energy'"):
        open_dataset(spec, ["tz"])
