"""Padded arrays in npz files and in folders of npy files: content, units, masks, and what is refused."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.padded import PaddedNPY, PaddedNPZ
from mfpyg.datasets.spec import DatasetSpec, open_dataset
from mfpyg.errors import MFPyGError

HARTREE = 627.5094740631
DFT = "dft=E,F@kcal/mol"
Arrays = dict[str, np.ndarray]


def padded(n: int = 5) -> Arrays:
    """Water, hydrogen cyanide with a gap before its last atom, and a fluorine atom, over and over."""
    random = np.random.default_rng(3)
    z = np.array([[8, 1, 1, 0], [6, 7, 0, 1], [9, 0, 0, 0]])[np.arange(n) % 3]
    there = (z > 0)[..., None]
    return {
        "Z": z,
        "N": (z > 0).sum(axis=1),
        "R": 2 * random.normal(size=(n, 4, 3)) * there,
        "E": -100 + random.normal(size=n),
        "F": random.normal(size=(n, 4, 3)) * there,
    }


def md17(n: int = 4) -> Arrays:
    """One molecule in many conformations."""
    random = np.random.default_rng(5)
    r, f = random.normal(size=(2, n, 3, 3))
    return {"R": r, "z": np.array([8, 1, 1], np.uint8), "E": -47000 + random.normal(size=(n, 1)), "F": f}


def npz(path: Path, arrays: Arrays, compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def npy(folder: Path, arrays: Arrays, prefix: str = "mine-") -> Path:
    folder.mkdir(exist_ok=True)
    for key, array in arrays.items():
        np.save(folder / f"{prefix}{key}.npy", array)
    return folder


def opened(kind: str, tmp_path: Path, arrays: Arrays, levels: Any = (DFT,), **kwargs: Any) -> ConformationDataset:
    if kind == "npy":
        return PaddedNPY(npy(tmp_path / "folder", arrays), levels, **kwargs)
    return PaddedNPZ(npz(tmp_path / "mine.npz", arrays, kind == "compressed"), levels, **kwargs)


def refusal(open_it: Callable[..., ConformationDataset], *args: Any) -> str:
    with pytest.raises(MFPyGError) as error:
        open_it(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


KINDS = pytest.mark.parametrize("kind", ["npz", "compressed", "npy"])


# Content


@KINDS
def test_equals_a_slow_reading_element_for_element(kind: str, tmp_path: Path) -> None:
    arrays = padded(7)
    dataset = opened(kind, tmp_path, arrays, [DFT, "grad=E,-F@Hartree,Hartree/bohr"])
    assert len(dataset) == 7
    for i, item in enumerate(dataset):
        there = [k for k in range(4) if arrays["Z"][i, k] > 0]
        assert item.z.tolist() == arrays["Z"][i, there].tolist()
        assert np.array_equal(item.pos.numpy(), arrays["R"][i, there].astype(np.float32))
        assert item.energy.tolist() == [[arrays["E"][i], arrays["E"][i] * HARTREE]]
        np.testing.assert_allclose(item.forces[:, 0], arrays["F"][i, there], rtol=1e-6)
        np.testing.assert_allclose(item.forces[:, 1], -arrays["F"][i, there] * HARTREE / 0.529177210903, rtol=1e-6)
        assert dataset.molecules[item.molecule] == ["H2O1", "C1H1N1", "F1"][i % 3]
        assert item.conformation.item() == i
        assert (item.split.item(), item.energy_mask.tolist()) == (-1, [[True, True]])


@KINDS
@pytest.mark.parametrize("shape", [(7, 1), (7, 1, 1)])
def test_energies_may_have_extra_axes_of_length_one(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    arrays = padded(7)
    dataset = opened(kind, tmp_path, {**arrays, "E": arrays["E"].reshape(shape)}, ["grad=E@Hartree"])
    np.testing.assert_array_equal(dataset._data.energy.numpy()[:, 0], arrays["E"] * HARTREE)


@KINDS
def test_one_molecule_needs_its_atomic_numbers_once(kind: str, tmp_path: Path) -> None:
    arrays = md17()
    dataset = opened(kind, tmp_path, arrays)
    assert [item.z.tolist() for item in dataset] == [[8, 1, 1]] * 4
    assert np.array_equal(dataset._data.energy.numpy(), arrays["E"])
    assert np.array_equal(dataset._data.pos.numpy(), arrays["R"].reshape(-1, 3).astype(np.float32))
    assert dataset.molecules == ["H2O1"]


@pytest.mark.parametrize(
    "names",
    [
        {"R": "coords", "z": "nuclear_charges", "E": "energies", "F": "forces"},  # rMD17
        {"R": "coordinates", "z": "species", "E": "E", "F": "F"},
        {"R": "positions", "z": "atomic_numbers", "E": "E", "F": "F"},
        {"R": "R", "z": "Z", "E": "T", "F": "Grad"},
    ],
)
def test_well_known_names_of_positions_and_atomic_numbers(names: dict[str, str], tmp_path: Path) -> None:
    arrays = md17()
    file = npz(tmp_path / "named.npz", {names[key]: array for key, array in arrays.items()})
    dataset = PaddedNPZ(file, [f"dft={names['E']},{names['F']}@kcal/mol"])
    assert dataset.fingerprint == PaddedNPZ(npz(tmp_path / "plain.npz", arrays), [DFT]).fingerprint


def test_other_arrays_are_not_read_not_even_pickled_ones(tmp_path: Path) -> None:
    arrays = {**padded(), "D": np.zeros((5, 3)), "Q": np.zeros(5), "name": np.array({"a": print}, dtype=object)}
    assert len(PaddedNPZ(npz(tmp_path / "more.npz", arrays), [DFT])) == 5


@KINDS
def test_missing_labels_are_masked(kind: str, tmp_path: Path) -> None:
    arrays = padded()
    arrays["E"][1] = np.nan
    arrays["F"][2] = np.nan
    arrays["F"][3, 0, 1] = np.nan  # one component
    arrays["F"][0, 3] = np.nan  # where there is no atom
    dataset = opened(kind, tmp_path, arrays)
    assert dataset._data.energy_mask[:, 0].tolist() == [True, False, True, True, True]
    assert dataset._data.forces_mask[:, 0].tolist() == [True, True, False, False, True]
    assert dataset.incomplete["F"] == {"dft": 1}


@KINDS
def test_small_chunks_give_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = opened(kind, tmp_path, padded(11))
    monkeypatch.setattr("mfpyg.datasets.padded.ATOMS_IN_CHUNK", 8)
    shown: list[str] = []

    def track(names: Any) -> Any:
        shown.extend(names)
        return names

    parts = opened(kind, tmp_path, padded(11), root=tmp_path / "other", track=track)
    assert (len(shown), parts.fingerprint) == (6, whole.fingerprint)
    assert torch.equal(parts._data.conformation, whole._data.conformation)


@KINDS
def test_arrays_stored_by_column_and_of_other_types(kind: str, tmp_path: Path) -> None:
    arrays = padded()
    plain = opened(kind, tmp_path, arrays)
    stored = {key: np.asfortranarray(array) for key, array in arrays.items()}
    stored["E"], stored["Z"] = stored["E"].astype(">f8"), stored["Z"].astype(np.uint8, order="F")
    (tmp_path / "other").mkdir()
    assert opened(kind, tmp_path / "other", stored).fingerprint == plain.fingerprint


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfpyg.datasets.padded.ATOMS_IN_CHUNK", 400)
    arrays = padded(30_000)
    file, n_bytes = npz(tmp_path / "large.npz", arrays), arrays["R"].nbytes
    dataset = PaddedNPZ(file, [DFT])
    tracemalloc.start()
    for _ in dataset.chunks(dataset.levels):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n_bytes / 2


@KINDS
def test_distances_are_kept_far_from_the_origin(kind: str, tmp_path: Path) -> None:
    """In float32 positions are multiples of 0.06 Å there."""
    arrays = md17()
    dataset = opened(kind, tmp_path, {**arrays, "R": arrays["R"] + 1e6})
    for item, pos in zip(dataset, arrays["R"], strict=True):
        found = (item.pos[1:] - item.pos[0]).numpy()
        np.testing.assert_allclose(found, pos[1:] - pos[0], atol=1e-5)


def test_levels_may_add_up(tmp_path: Path) -> None:
    arrays = padded() | {"hf": np.arange(5.0), "corr": np.full(5, 0.5)}
    arrays["corr"][4] = np.nan
    energy = opened("npz", tmp_path, arrays, ["mp2=hf+corr@kcal/mol"])._data.energy[:, 0]
    assert energy[:4].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert energy[4].isnan()


# Folders


@pytest.mark.parametrize("prefix", ["mine-", "data-qm7", "", "OTHER"])
def test_folder_equals_what_hippynn_reads(prefix: str, tmp_path: Path) -> None:
    from hippynn.databases import DirectoryDatabase

    arrays = padded(9)
    del arrays["N"]
    folder = npy(tmp_path / "folder", {**arrays, "E": arrays["E"][:, None]}, prefix)
    torch.set_default_dtype(torch.float64)
    try:
        database = DirectoryDatabase(str(folder), prefix, ["Z", "R"], ["E", "F"], seed=1, quiet=True)
    finally:
        torch.set_default_dtype(torch.float32)
    theirs = {key: values.numpy() for key, values in database.arr_dict.items()}
    dataset = PaddedNPY(folder, [DFT])
    there = theirs["Z"] > 0
    assert np.array_equal(dataset._data.z.numpy(), theirs["Z"][there])
    assert np.array_equal(dataset._data.pos.numpy(), theirs["R"][there].astype(np.float32))
    assert np.array_equal(dataset._data.energy.numpy(), theirs["E"])
    assert np.array_equal(dataset._data.forces[:, 0].numpy(), theirs["F"][there].astype(np.float32))


def test_one_of_several_prefixes_is_chosen(tmp_path: Path) -> None:
    npy(tmp_path / "folder", padded(3), "a-")
    folder = npy(tmp_path / "folder", padded(5), "a-b-")
    message = refusal(PaddedNPY, folder, [DFT])
    assert "files of 2 prefixes ('a-', 'a-b-'); choose one, as npy:" in message
    for prefix, n in (("a-", 3), ("a-b-", 5), ("a-b", 5)):
        assert len(PaddedNPY(folder / prefix, [DFT])) == n


def test_folder_changes_with_any_of_its_files(tmp_path: Path) -> None:
    folder = npy(tmp_path / "folder", padded())
    first = PaddedNPY(folder, [DFT])
    npy(folder, {"E": padded()["E"] + 1})
    assert torch.allclose(PaddedNPY(folder, [DFT])._data.energy, first._data.energy + 1)


@pytest.mark.parametrize("start", ["nothing-", "", "-"])
def test_folder_without_positions_is_refused(start: str, tmp_path: Path) -> None:
    npy(tmp_path / "folder", {"R": padded()["R"], "E": padded()["E"]})
    message = refusal(PaddedNPY, tmp_path / "folder" / start, [DFT])
    assert "no positions and atomic numbers (keys found: mine-E, mine-R); expected files such as data-R.npy" in message


# By name


def test_specifications_open_them(tmp_path: Path) -> None:
    file, folder = npz(tmp_path / "mine.npz", padded()), npy(tmp_path / "folder", padded())
    fingerprints = set()
    for text in (f"{file}:{DFT}", f"npz:{file}:{DFT}", f"npy:{folder}:{DFT}", f"npy:{folder}/mine-:{DFT}"):
        dataset = open_dataset(DatasetSpec.parse(text), ["dft"])
        assert type(dataset) is (PaddedNPY if "npy" in text else PaddedNPZ)
        fingerprints.add(dataset.fingerprint)
    assert len(fingerprints) == 1


# What is refused


@KINDS
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"R": None}, "has no positions (keys found: E, F, N, Z); expected one of the keys R, coords, coordinates"),
        ({"coords": np.zeros((5, 4, 3))}, "has positions under R and coords"),
        ({"Z": None}, "has no atomic numbers (keys found: E, F, N, R); expected one of the keys Z, z, nuclear_charges"),
        ({"R": np.zeros((5, 12))}, "R has shape (5, 12), expected (n, n_max, 3)"),
        ({"R": np.zeros((0, 4, 3))}, "R has shape (0, 4, 3), expected (n, n_max, 3)"),
        ({"Z": np.ones((5, 3), int)}, "Z has shape (5, 3), expected (5, 4) or (4,), as R is (5, 4, 3)"),
        ({"Z": np.ones((5, 4))}, "Z has type float64, expected whole numbers"),
        ({"Z": np.array([["C", "O", "O", "H"]] * 5)}, "Z has type <U1, expected whole numbers"),
        ({"Z": np.full((5, 4), -1), "N": None}, "conformation 0: unknown atomic number -1"),
        ({"Z": np.zeros((5, 4), int), "N": None}, "conformation 0: no atoms"),
        ({"N": np.array([3, 3, 1, 2, 3])}, "conformation 3 has 2 atoms by N, but 3 by Z"),
        ({"N": np.array(4)}, "N has shape (), expected (5,)"),
        ({"E": np.zeros((5, 2))}, "E has shape (5, 2), expected (5,)"),
        ({"E": np.zeros(4)}, "E has shape (4,), expected (5,)"),
        ({"E": np.arange(5)}, "E has type int64, expected floating-point numbers"),
        ({"E": np.array([0, 0, np.inf, 0, 0])}, "conformation 2: an energy is infinite"),
        ({"F": np.zeros((5, 12))}, "F has shape (5, 12), expected (5, 4, 3)"),
        ({"F": np.full((5, 4, 3), 1e300)}, "conformation 0: a force is infinite"),
        ({"R": np.full((5, 4, 3), np.nan)}, "conformation 0: coordinates are NaN or infinite"),
        ({"E": None, "Energies": np.zeros(5)}, "lacks the key 'E' of 'dft' (keys found: Energies, F, N, R, Z)"),
        ({"cell": np.eye(3)}, "has the key 'cell', but periodic systems are not read from arrays"),
        ({"lattice": np.eye(3)}, "has the key 'lattice'"),
    ],
)
def test_wrong_arrays_are_named(kind: str, edit: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {key: array for key, array in (padded() | edit).items() if array is not None}
    found = refusal(opened, kind, tmp_path, arrays)
    if kind == "npy" and message.startswith("has no"):
        assert "no positions and atomic numbers" in found
    else:
        assert message in found
        assert found.startswith(str(tmp_path / ("folder/mine-" if kind == "npy" else "mine.npz")))


@KINDS
def test_mistyped_key_is_asked_about(kind: str, tmp_path: Path) -> None:
    arrays = padded() | {"energies": np.zeros(5)}
    assert refusal(opened, kind, tmp_path, arrays, ["dft=energy@eV"]).endswith("did you mean 'energies'?")


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    notes = tmp_path / "notes.npz"
    notes.write_text("notes\n" * 30)
    assert f"{notes}: cannot be read as NumPy arrays (BadZipFile" in refusal(PaddedNPZ, notes, [DFT])
    assert "no such file" in refusal(PaddedNPZ, tmp_path / "none.npz", [DFT])
    (tmp_path / "pickled.npz").write_bytes(
        npz(tmp_path / "object.npz", {**padded(), "E": np.array([{}] * 5)}).read_bytes()
    )
    assert "E has type object" in refusal(PaddedNPZ, tmp_path / "pickled.npz", [DFT])


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_truncated_files_are_refused(share: float, tmp_path: Path) -> None:
    file = npz(tmp_path / "mine.npz", padded())
    folder = npy(tmp_path / "folder", padded())
    for path in (file, folder / "mine-F.npy"):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{file}: cannot be read" in refusal(PaddedNPZ, file, [DFT])
    assert "mine-F.npy: cannot be read" in refusal(PaddedNPY, folder, [DFT])


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    file = npz(tmp_path / "mine.npz", padded())
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("F.npy").header_offset + 300
    content = bytearray(file.read_bytes())
    content[start] ^= 0xFF
    file.write_bytes(content)
    assert "Bad CRC-32" in refusal(PaddedNPZ, file, [DFT])


def test_header_that_says_too_much_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    with zipfile.ZipFile(npz(tmp_path / "good.npz", padded())) as good, zipfile.ZipFile(file, "w") as archive:
        for name in good.namelist():
            content = good.read(name)
            archive.writestr(name, content[:-8] if name == "F.npy" else content)
    assert "an array is shorter than its header says" in refusal(PaddedNPZ, file, [DFT])
