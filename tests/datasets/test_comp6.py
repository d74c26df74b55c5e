"""The COMP6 benchmark: its sets and files, and the sign of its forces against the energies."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mfpyg.cache import cache_dir
from mfpyg.datasets.comp6 import COMP6, SETS, URL
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.levels import COMP6_LEVELS
from mfpyg.datasets.pyanitools import Pyanitools
from mfpyg.datasets.spec import DatasetSpec, open_dataset
from mfpyg.errors import MFPyGError

HARTREE = 627.5094740631
NUMBERS = {b"H": 1, b"C": 6, b"N": 7, b"O": 8}


@pytest.fixture(scope="module")
def s66x8_file(data_folder: Path) -> Path:
    path = data_folder / "comp6_s66x8.h5"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="module")
def s66x8(s66x8_file: Path) -> COMP6:
    return COMP6(s66x8_file)


def write_file(path: Path, n: int = 2) -> Path:
    """A file of one molecule; the paths of the groups are the same in all files."""
    random = np.random.default_rng(list(path.name.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("gdb/mol00")
        group["species"] = np.array([b"C", b"O"])
        group["coordinates"] = random.normal(size=(n, 2, 3)).astype(np.float32)
        group["energies"] = random.normal(size=n)
        group["forces"] = random.normal(size=(n, 2, 3)).astype(np.float32)
    return path


def write_sets(root: Path, names: Any, in_folders: bool = False) -> None:
    for name in names:
        folder, files = SETS[name]
        for file in files:
            write_file(root / folder / file if in_folders else root / file)


def refusal(root: Path, **kwargs: Any) -> str:
    with pytest.raises(MFPyGError) as error:
        COMP6(root, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert not (root / "processed").exists()
    return message


# The S66x8 file


def test_s66x8_equals_a_slow_reading_element_for_element(s66x8: COMP6, s66x8_file: Path) -> None:
    i = 0
    with h5py.File(s66x8_file) as file:
        for name, group in file["s66x8"].items():
            for row in range(len(group["energies"])):
                item = s66x8[i]
                assert item.z.tolist() == [NUMBERS[symbol] for symbol in group["species"][:]]
                assert np.array_equal(item.pos.numpy(), group["coordinates"][row])
                assert item.energy.item() == group["energies"][row] * HARTREE
                expected = (-group["forces"][row].astype(np.float64) * HARTREE).astype(np.float32)
                assert np.array_equal(item.forces[:, 0].numpy(), expected)
                assert s66x8.molecules[item.molecule] == f"s66x8/{name}"
                assert (item.conformation.item(), item.split.item(), item.source.item()) == (row, -1, 0)
                i += 1
    assert i == len(s66x8) == 528
    assert len(s66x8.molecules) == 66


def test_s66x8_is_labelled_throughout(s66x8: COMP6) -> None:
    assert (s66x8.fidelities, s66x8.sources) == (("dz",), ["S66x8"])
    assert s66x8.present_levels == COMP6_LEVELS
    counts = s66x8.label_counts()[0]
    assert (counts["energies"], counts["forces"], counts["method"]) == (528, 528, "ωB97X/6-31G(d)")
    assert s66x8.incomplete["F"] == {"dz": 0}


def test_item_has_the_documented_shapes_and_types(s66x8: COMP6) -> None:
    data = s66x8[-1]
    n = data.num_nodes
    found = {name: (tuple(value.shape), value.dtype) for name, value in data.to_dict().items()}
    assert found == {
        "z": ((n,), torch.int64),
        "pos": ((n, 3), torch.float32),
        "energy": ((1, 1), torch.float64),
        "energy_mask": ((1, 1), torch.bool),
        "forces": ((n, 1, 3), torch.float32),
        "forces_mask": ((1, 1), torch.bool),
        "molecule": ((1,), torch.int64),
        "conformation": ((1,), torch.int64),
        "split": ((1,), torch.int64),
        "source": ((1,), torch.int64),
    }


def turned_onto(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The proper rotation (3, 3) that brings centred positions closest to others (Kabsch)."""
    u, _, v = np.linalg.svd(moving.T @ fixed)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v


def energy_and_work(dataset: ConformationDataset) -> tuple[np.ndarray, np.ndarray]:
    """dE and ½(F_a + F_b)·(R_b − R_a) between the five closest separations of each dimer, in kcal/mol.

    The file's frames are turned arbitrarily, up to 7 Å apart in about a dozen dimers, and are first laid onto
    each other.
    """
    differences, works = [], []
    for first in range(0, len(dataset), 8):
        frames = [dataset[first + k] for k in range(5)]
        for a, b in pairwise(frames):
            pos = [x.pos.double().numpy() - x.pos.double().numpy().mean(axis=0) for x in (a, b)]  # (n, 3) each
            turn = turned_onto(*pos)
            forces = (a.forces[:, 0].double().numpy() @ turn + b.forces[:, 0].double().numpy()) / 2
            step = pos[1] - pos[0] @ turn
            assert np.sqrt((step**2).sum(axis=1).mean()) < 0.1
            differences.append((b.energy - a.energy).item())
            works.append((forces * step).sum())
    return np.array(differences), np.array(works)


def test_forces_are_minus_the_slope_of_the_energy(s66x8: COMP6) -> None:
    difference, work = energy_and_work(s66x8)
    assert len(work) == 4 * 66
    slope = (difference @ -work) / (work @ work)
    assert slope == pytest.approx(1, abs=0.05)  # the trapezoid rule leaves 3 % at steps of 0.1 Å
    assert np.corrcoef(difference, -work)[0, 1] > 0.999
    residual, size, raw = (np.sqrt((x**2).mean()) for x in (difference + work, difference, difference - work))
    assert residual < 0.06 * size
    assert raw > 1.9 * size


def test_the_files_forces_taken_as_such_have_the_wrong_sign(s66x8_file: Path) -> None:
    difference, work = energy_and_work(Pyanitools(s66x8_file, ["dz=energies,forces@Hartree"]))
    assert (difference @ -work) / (work @ work) == pytest.approx(-1, abs=0.05)


def test_opens_by_its_specification(s66x8_file: Path) -> None:
    dataset = open_dataset(DatasetSpec.parse(f"comp6:{s66x8_file}"), ["dz"])
    assert isinstance(dataset, COMP6)
    assert (len(dataset), dataset.fidelities) == (528, ("dz",))


# Roots and sets


@pytest.mark.parametrize(
    ("place", "in_folders"),
    [
        ("raw", False),
        ("raw", True),
        ("raw/COMP6v1", True),
        ("raw/COMP6/COMP6v1", True),
        ("COMP6v1", True),
        (".", True),
        (".", False),
    ],
)
def test_files_are_found_as_they_come(tmp_path: Path, place: str, in_folders: bool) -> None:
    write_sets(tmp_path / place, SETS, in_folders)
    dataset = COMP6(tmp_path)
    assert dataset.sources == list(SETS)
    assert torch.bincount(dataset._data.source).tolist() == [2, 2, 6, 8, 2, 2]
    assert Path(dataset.processed_paths[0]).parent == tmp_path / "processed"


def test_groups_of_one_path_in_several_files_stay_apart(tmp_path: Path) -> None:
    write_sets(tmp_path / "raw", ["GDB07to09"])
    dataset = COMP6(tmp_path)
    stems = ["gdb11_07_test500", "gdb11_08_test500", "gdb11_09_test500"]
    assert dataset.molecules == [f"{stem}/gdb/mol00" for stem in stems]
    with h5py.File(tmp_path / "raw" / "gdb11_08_test500.h5") as file:
        assert dataset[3].energy.item() == file["gdb/mol00/energies"][1] * HARTREE
    assert dataset._data.conformation.tolist() == [0, 1] * 3


def test_sets_are_those_there_or_those_asked_for(tmp_path: Path) -> None:
    write_sets(tmp_path / "raw", ["S66x8", "DrugBank", "GDB10to13"])
    assert COMP6(tmp_path).sources == ["DrugBank", "GDB10to13", "S66x8"]
    dataset = COMP6(tmp_path, sets=["S66x8", "DrugBank"])
    assert dataset.sources == ["S66x8", "DrugBank"]
    assert [item.source.item() for item in dataset] == [0, 0, 1, 1]
    assert COMP6(tmp_path, sets="DrugBank").sources == ["DrugBank"]
    assert COMP6(tmp_path, ["dz"], sets=["DrugBank"]).fidelities == ("dz",)


def test_another_file_is_never_an_old_processed_one(tmp_path: Path) -> None:
    write_sets(tmp_path / "raw", ["S66x8"])
    assert len(COMP6(tmp_path)) == 2
    write_sets(tmp_path / "raw", ["DrugBank"])
    assert len(COMP6(tmp_path)) == 4
    write_file(tmp_path / "raw" / "drugbank_testset.h5", n=5)
    assert len(COMP6(tmp_path)) == 7


@pytest.mark.parametrize(
    ("name", "group", "expected"),
    [
        ("drugbank_testset.h5", "gdb", "DrugBank"),
        ("gdb13_12_test1000.h5", "gdb", "GDB10to13"),
        ("mine.h5", "Tripeptides", "Tripeptides"),
        ("mine.h5", "s66x8", "S66x8"),
        ("mine.h5", "gdb", "mine"),
    ],
)
def test_single_file_tells_its_set(tmp_path: Path, name: str, group: str, expected: str) -> None:
    path = write_file(tmp_path / name)
    if group != "gdb":
        with h5py.File(path, "r+") as file:
            file.move("gdb", group)
    dataset = COMP6(path)
    assert (dataset.sources, dataset.molecules) == ([expected], [f"{group}/mol00"])
    assert Path(dataset.processed_paths[0]).is_relative_to(cache_dir() / "files")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_single_file_of_another_set_than_asked_for_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "drugbank_testset.h5")
    assert COMP6(path, sets=["DrugBank"]).sources == ["DrugBank"]
    message = refusal(path, sets=["S66x8"])
    assert f"{path} is a file of set DrugBank, but 'sets' is S66x8" in message


# What is refused


def test_unknown_set_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, sets=["GDB10to12"])
    assert "unknown set of COMP6 'GDB10to12' (known: ANI-MD, DrugBank, GDB07to09, GDB10to13" in message
    assert message.endswith("did you mean 'GDB10to13'?")


def test_set_given_twice_or_none_is_refused(tmp_path: Path) -> None:
    assert "set 'S66x8' of COMP6 is given 2 times; give it once" in refusal(tmp_path, sets=["S66x8", "S66x8"])
    assert "no set of COMP6 given: expected at least one of ANI-MD" in refusal(tmp_path, sets=[])


@pytest.mark.parametrize("exists", [True, False])
def test_root_without_any_file_says_where_to_download(tmp_path: Path, exists: bool) -> None:
    root = tmp_path if exists else tmp_path / "my root"
    message = refusal(root)
    assert f"{root}: no file of ANI-MD, DrugBank" in message
    assert f"download from {URL}, S66x8 for instance: curl -L --create-dirs -o " in message
    assert message.endswith(f"{URL}/raw/master/COMP6v1/s66x8/s66x8_wb97x6-31gd.h5")
    assert ("my root/raw/s66x8/s66x8_wb97x6-31gd.h5' https" in message) != exists


def test_missing_set_names_file_and_command_which_puts_it_in_place(tmp_path: Path) -> None:
    write_sets(tmp_path / "raw", ["S66x8"])
    message = refusal(tmp_path, sets=["S66x8", "DrugBank"])
    target = tmp_path / "raw" / "DrugBank" / "drugbank_testset.h5"
    assert message.startswith(f"{target}: no such file; download from {URL}: curl -L --create-dirs -o {target} ")
    assert message.endswith(f" {URL}/raw/master/COMP6v1/DrugBank/drugbank_testset.h5")
    write_file(target)
    assert len(COMP6(tmp_path, sets=["S66x8", "DrugBank"])) == 4


@pytest.mark.parametrize("sets", [None, ["GDB10to13"]])
def test_set_of_which_a_file_is_missing_names_it(tmp_path: Path, sets: list[str] | None) -> None:
    write_sets(tmp_path / "raw", ["S66x8", "GDB10to13"])
    (tmp_path / "raw" / "gdb13_12_test1000.h5").unlink()
    message = refusal(tmp_path, sets=sets)
    assert "gdb13_12_test1000.h5: no such file; GDB10to13 has 4 files, 1 of them missing; download from" in message
    assert message.count("curl") == 1
    assert len(COMP6(tmp_path, sets=["S66x8"])) == 2


def test_missing_single_file_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/s66x8.h5: no such file; expected a file of COMP6" in refusal(tmp_path / "s66x8.h5")


def test_single_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    for name in ("notes.h5", "drugbank_testset.h5"):
        (tmp_path / name).write_text("these are notes\n" * 100)
        assert f"{tmp_path / name}: not an HDF5 file; expected" in refusal(tmp_path / name)


def test_group_that_lacks_a_key_is_named_with_its_file(tmp_path: Path) -> None:
    write_sets(tmp_path / "raw", ["GDB07to09"])
    path = tmp_path / "raw" / "gdb11_09_test500.h5"
    with h5py.File(path, "r+") as file:
        del file["gdb/mol00/forces"]
    with pytest.raises(MFPyGError) as error:
        COMP6(tmp_path)
    assert str(error.value).startswith(f"{path}: group gdb/mol00 lacks the key 'forces' (keys: coordinates, ")
    assert not list((tmp_path / "processed").iterdir())


def test_unknown_fidelity_is_refused(tmp_path: Path) -> None:
    write_sets(tmp_path / "raw", ["S66x8"])
    assert r"unknown fidelity of s66x8_wb97x6-31gd.h5 'cc' (known: dz)" in refusal(tmp_path, fidelities=["cc"])


def test_copy_and_part_keep_the_sets(s66x8_file: Path, tmp_path: Path) -> None:
    write_sets(tmp_path / "raw", ["DrugBank"])
    shutil.copy(s66x8_file, tmp_path / "raw" / "s66x8_wb97x6-31gd.h5")
    part = COMP6(tmp_path)[[0, 1, 2, 529]].copy()
    assert part.sources == ["DrugBank", "S66x8"]
    assert [item.source.item() for item in part] == [0, 0, 1, 1]
    assert [part.molecules[item.molecule] for item in part][2:] == [
        "s66x8_wb97x6-31gd/s66x8/mol00",
        "s66x8_wb97x6-31gd/s66x8/mol65",
    ]


def test_true_forces_in_the_place_of_gradients_are_refused(s66x8_file: Path, tmp_path: Path) -> None:
    flipped = tmp_path / "s66x8_wb97x6-31gd.h5"
    shutil.copy(s66x8_file, flipped)
    with h5py.File(flipped, "r+") as file:
        for group in file["s66x8"].values():
            group["forces"][:] = -group["forces"][:]
    with pytest.raises(
        MFPyGError, match=r"the forces are true forces, not gradients .*slope of dE against work -1\.000"
    ):
        COMP6(flipped)
    assert not list(tmp_path.rglob("*.pt"))
    assert len(COMP6(s66x8_file)) == 528
