"""Files in the pyanitools layout: content, units, masks, links, names, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mfpyg.cache import cache_dir
from mfpyg.datasets.levels import level_of
from mfpyg.datasets.pyanitools import Pyanitools, chunks_of_file
from mfpyg.datasets.spec import DatasetSpec, open_dataset, parse_levels
from mfpyg.errors import MFPyGError

HARTREE = 627.5094740631
DZ = "dz=energies,-forces@Hartree"
MOLECULES = {
    "gdb/s01/water": (b"OHH", 4),
    "gdb/s01/ammonia": (b"NHHH", 2),
    "gdb/s02/methane": (b"CHHHH", 3),
    "atoms/neon": (("Ne",), 1),
}


def add_molecule(file: h5py.File, name: str, symbols: Any, n: int, seed: int = 0) -> h5py.Group:
    random = np.random.default_rng([seed, *name.encode()])
    letters = [bytes([s]) if isinstance(s, int) else s.encode() for s in symbols]
    group = file.create_group(name)
    group["species"] = np.array(letters)
    group["coordinates"] = (2 * random.normal(size=(n, len(letters), 3))).astype(np.float32)
    group["energies"] = -40 + random.normal(size=n)
    group["forces"] = (0.1 * random.normal(size=(n, len(letters), 3))).astype(np.float32)
    return group


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four molecules at two depths; one of them with the high-energy conformers of the ANI-1 files."""
    path = tmp_path / "tiny.h5"
    with h5py.File(path, "w", track_order=True) as opened:
        for name, (symbols, n) in MOLECULES.items():
            add_molecule(opened, name, symbols, n)
        water = opened["gdb/s01/water"]
        water["coordinatesHE"] = np.zeros((7, 3, 3), np.float32)
        water["energiesHE"] = np.zeros(7)
        water["smiles"] = np.array([b"O", b"[", b"H", b"]"])
    return path


def refusal(file: Path, levels: Any = (DZ,)) -> str:
    """Message with which a file is refused; nothing processed may be left behind."""
    root = file.parent / "root"
    with pytest.raises(MFPyGError) as error:
        Pyanitools(file, levels, root=root)
    message = str(error.value)
    assert "\n" not in message
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


# Content


def test_equals_a_slow_reading_element_for_element(file: Path) -> None:
    dataset = Pyanitools(file, [DZ])
    numbers = {"H": 1, "C": 6, "N": 7, "O": 8, "Ne": 10}
    i = 0
    with h5py.File(file) as opened:
        for name in dataset.molecules:
            group = opened[name]
            for row in range(len(group["energies"])):
                item = dataset[i]
                assert item.z.tolist() == [numbers[s.decode()] for s in group["species"][:]]
                assert np.array_equal(item.pos.numpy(), group["coordinates"][row])
                assert item.energy.item() == group["energies"][row] * HARTREE
                expected = (-group["forces"][row].astype(np.float64) * HARTREE).astype(np.float32)
                assert np.array_equal(item.forces[:, 0].numpy(), expected)
                assert dataset.molecules[item.molecule] == name
                assert item.conformation.item() == row
                i += 1
    assert i == len(dataset) == 10
    assert set(dataset.molecules) == set(MOLECULES)


def test_item_has_the_documented_shapes_and_types(file: Path) -> None:
    data = next(item for item in Pyanitools(file, [DZ, "gradient=energies,forces@eV"]) if len(item.z) == 5)
    found = {name: (tuple(value.shape), value.dtype) for name, value in data.to_dict().items()}
    assert found == {
        "z": ((5,), torch.int64),
        "pos": ((5, 3), torch.float32),
        "energy": ((1, 2), torch.float64),
        "energy_mask": ((1, 2), torch.bool),
        "forces": ((5, 2, 3), torch.float32),
        "forces_mask": ((1, 2), torch.bool),
        "molecule": ((1,), torch.int64),
        "conformation": ((1,), torch.int64),
        "split": ((1,), torch.int64),
        "source": ((1,), torch.int64),
    }
    assert (data.split.item(), data.source.item()) == (-1, 0)
    assert torch.allclose(data.forces[:, 0] / HARTREE, -data.forces[:, 1] / 23.060547830619)


@pytest.mark.parametrize(
    "species",
    [
        np.array([b"Cl", b"H"], "S2"),
        np.array([b"Cl", b"H "], "S8"),
        np.array(["Cl", "H"], h5py.string_dtype()),
        np.array(["Cl", "H"], h5py.string_dtype("ascii")),
        np.array([b"Cl", b"H"], h5py.string_dtype("utf-8", 4)),
    ],
)
def test_species_may_be_strings_of_any_kind(tmp_path: Path, species: np.ndarray) -> None:
    path = tmp_path / "hcl.h5"
    with h5py.File(path, "w") as opened:
        del add_molecule(opened, "a/hcl", ["Cl", "H"], 2)["species"]
        opened["a/hcl"].create_dataset("species", data=species)
    assert Pyanitools(path, [DZ])[1].z.tolist() == [17, 1]


def add_size(file: h5py.File, name: str, species: Any, seed: int = 0) -> h5py.Group:
    """A group of torchani's: molecules of one size, with atomic numbers of each conformation."""
    species = np.array(species)
    random = np.random.default_rng(seed)
    group = file.create_group(name)
    group["species"] = species
    group["coordinates"] = (2 * random.normal(size=(*species.shape, 3))).astype(np.float32)
    group["energies"] = -40 + random.normal(size=len(species))
    group["forces"] = 0.1 * random.normal(size=(*species.shape, 3))
    return group


@pytest.fixture
def by_size(tmp_path: Path) -> Path:
    """Groups of two sizes, molecules of different formulas and orders of atoms in turn."""
    path = tmp_path / "by_size.h5"
    with h5py.File(path, "w") as opened:
        add_size(opened, "002", [[6, 8], [8, 8], [8, 6], [17, 1]])
        add_size(opened, "003", [[8, 1, 1], [1, 8, 1], [16, 1, 1]], seed=1)
    return path


@pytest.mark.parametrize("atoms_in_chunk", [1, 4, 1000])
def test_conformations_may_have_species_of_their_own(
    by_size: Path, atoms_in_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfpyg.datasets.hdf5.ATOMS_IN_CHUNK", atoms_in_chunk)
    dataset = Pyanitools(by_size, [DZ], force_reload=True)
    found = [(item.z.tolist(), dataset.molecules[item.molecule], item.conformation.item()) for item in dataset]
    assert found == [
        ([6, 8], "C1O1", 0), ([8, 8], "O2", 1), ([8, 6], "C1O1", 2), ([17, 1], "Cl1H1", 3),
        ([8, 1, 1], "H2O1", 0), ([1, 8, 1], "H2O1", 1), ([16, 1, 1], "H2S1", 2),
    ]  # fmt: skip
    with h5py.File(by_size) as opened:
        for i, (group, row) in enumerate([("002", k) for k in range(4)] + [("003", k) for k in range(3)]):
            item, arrays = dataset[i], opened[group]
            assert np.array_equal(item.pos.numpy(), arrays["coordinates"][row])
            assert item.energy.item() == arrays["energies"][row] * HARTREE
            np.testing.assert_allclose(item.forces[:, 0], -arrays["forces"][row] * HARTREE, rtol=1e-6)


@pytest.mark.parametrize(
    ("species", "complaint"),
    [
        (np.full((3, 2), 6), "species has shape (3, 2), expected (4, 2)"),
        (np.full((4, 3), 6), "coordinates has shape (4, 2, 3), expected (n, 3, 3)"),
        (np.array([[6, 8], [8, -1], [6, 8], [6, 8]]), "conformation 1: unknown atomic number -1"),
        (np.array([[6, 8], [8, 8], [6, 0], [6, 8]]), "conformation 2: unknown atomic number 0"),
        (np.full((4, 2), 6.0), "species has shape (4, 2), expected (n_atoms,) element symbols, or (n, n_atoms)"),
    ],
)
def test_wrong_species_of_conformations_are_refused(by_size: Path, species: np.ndarray, complaint: str) -> None:
    replace(by_size, "002", "species", species)
    assert f"{by_size}: group 002: {complaint}" in refusal(by_size)


def test_small_chunks_give_the_same(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Pyanitools(file, [DZ])
    monkeypatch.setattr("mfpyg.datasets.hdf5.ATOMS_IN_CHUNK", 8)
    parts = Pyanitools(file, [DZ], root=tmp_path / "other")
    assert len(list(chunks_of_file(file, parts.levels))) == 7
    assert parts.fingerprint == whole.fingerprint
    assert parts.molecules == whole.molecules
    assert torch.equal(parts._data.conformation, whole._data.conformation)


def test_progress_is_shown_over_the_paths_of_the_groups(file: Path) -> None:
    shown: list[str] = []

    def track(names: Any) -> Any:
        shown.extend(names)
        return names

    dataset = Pyanitools(file, [DZ], track=track)
    assert shown == dataset.molecules


# Levels


def test_levels_may_be_texts_or_levels_of_theory(file: Path) -> None:
    level = level_of("dz", "", E="energies", F="-forces")
    fingerprints = {Pyanitools(file, given).fingerprint for given in ([DZ], DZ, [level], parse_levels([DZ]))}
    assert len(fingerprints) == 1


def test_fidelities_choose_among_the_levels(file: Path) -> None:
    levels = [DZ, "e=energies@eV"]
    assert Pyanitools(file, levels).fidelities == ("dz", "e")
    dataset = Pyanitools(file, levels, ["e"])
    assert dataset.fidelities == ("e",)
    assert not dataset._data.forces_mask.any()
    with pytest.raises(MFPyGError, match=r"unknown fidelity of tiny\.h5 'f' \(known: dz, e\)"):
        Pyanitools(file, levels, ["f"])


def test_other_units_are_never_those_of_an_old_processed_file(file: Path) -> None:
    in_hartree, in_ev = (Pyanitools(file, [f"dz=energies@{unit}"]) for unit in ("Hartree", "eV"))
    assert torch.allclose(in_hartree._data.energy * 23.060547830619, in_ev._data.energy * HARTREE)


@pytest.mark.parametrize("levels", [[], "", [3]])
def test_levels_that_are_none_are_refused(file: Path, levels: Any) -> None:
    with pytest.raises(MFPyGError, match=r"no level of theory given|malformed level ''|level is 3, expected"):
        Pyanitools(file, levels)


def test_two_levels_of_one_name_are_refused(file: Path) -> None:
    level = level_of("dz", "", E="energies")
    for levels in ([level, level], [DZ, DZ]):
        with pytest.raises(MFPyGError, match="fidelity 'dz' is defined 2 times"):
            Pyanitools(file, levels)


def test_optional_keys_that_a_group_lacks_are_masked(file: Path) -> None:
    replace(file, "gdb/s01/water", "energies", None)
    replace(file, "gdb/s02/methane", "forces", None)
    with h5py.File(file, "r+") as opened:
        opened["gdb/s01/ammonia"]["correction"] = np.full(2, -0.25)
    dataset = Pyanitools(file, ["dz=energies?,-forces?@Hartree", "cc=energies?+correction?@Hartree"])
    by_molecule = {dataset.molecules[item.molecule]: item for item in dataset}
    found = {name: (item.energy_mask[0].tolist(), item.forces_mask[0, 0].item()) for name, item in by_molecule.items()}
    assert found == {
        "gdb/s01/water": ([False, False], True),
        "gdb/s01/ammonia": ([True, True], True),
        "gdb/s02/methane": ([True, False], False),
        "atoms/neon": ([True, False], True),
    }
    ammonia = by_molecule["gdb/s01/ammonia"].energy[0]
    assert (ammonia[1] - ammonia[0]).item() == pytest.approx(-0.25 * HARTREE)
    assert by_molecule["gdb/s01/water"].energy.isnan().all()


def test_optional_key_that_no_group_has_is_refused(file: Path) -> None:
    message = refusal(file, ["dz=energies,-force?@Hartree"])
    assert f"{file}: no group has the key 'force' of level 'dz' (keys: " in message
    assert message.endswith("did you mean 'forces'?")


# Links


def test_links_are_not_followed(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as opened:
        add_molecule(opened, "a/b", b"CO", 3)
    with h5py.File(file, "r+") as opened:
        opened["soft"] = h5py.SoftLink("/gdb/s01")
        opened["loop"] = h5py.SoftLink("/")
        opened["nowhere"] = h5py.SoftLink("/absent")
        opened["external"] = h5py.ExternalLink(str(other), "/a")
        opened["gdb/s01/water/extra"] = h5py.ExternalLink(str(other), "/a")
    assert sorted(Pyanitools(file, [DZ]).molecules) == sorted(MOLECULES)


def test_cycles_of_hard_links_end_and_nothing_is_read_twice(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        opened["gdb/s01/back"] = opened["gdb"]
        opened["gdb/top"] = opened["/"]
        opened["gdb/s01/water/up"] = opened["gdb/s01"]
        opened["gdb/again"] = opened["gdb/s02/methane"]
        opened["gdb/s02/itself"] = opened["gdb/s02"]
    dataset = Pyanitools(file, [DZ])
    assert len(dataset) == 10
    assert len(dataset.molecules) == 4


def test_key_that_is_a_link_is_not_read(file: Path, tmp_path: Path) -> None:
    replace(file, "atoms/neon", "energies", h5py.ExternalLink(str(tmp_path / "other.h5"), "/a/b/energies"))
    assert "group atoms/neon lacks the key 'energies' but a link, which is not followed" in refusal(file)


# Where files are


def test_file_is_processed_in_the_cache_or_in_the_root_given(file: Path, tmp_path: Path) -> None:
    dataset = Pyanitools(file, [DZ])
    assert Path(dataset.processed_paths[0]).is_relative_to(cache_dir() / "files")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.h5"]
    dataset = Pyanitools(file, [DZ], root=tmp_path / "root")
    assert Path(dataset.processed_paths[0]).parent == tmp_path / "root" / "processed"


def test_opens_by_its_specification(file: Path) -> None:
    dataset = open_dataset(DatasetSpec.parse(f"pyanitools:{file}:{DZ}"))
    assert isinstance(dataset, Pyanitools)
    assert dataset.processed_paths == Pyanitools(file, [DZ]).processed_paths
    assert (len(dataset), dataset.fidelities) == (10, ("dz",))
    assert len(open_dataset(DatasetSpec.parse(f"pyanitools:{file}:{DZ}:e=energies@eV"), ["e"]).fidelities) == 2


# What is refused


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/nothing.h5: no such file" in refusal(tmp_path / "nothing.h5")


def test_other_files_are_no_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "notes.h5"
    path.write_text("these are notes\n" * 100)
    message = refusal(path)
    assert f"{path}: not an HDF5 file; expected the pyanitools layout" in message


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_said_to_be_damaged(file: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    message = refusal(file)
    assert "truncated or damaged" in message or "not an HDF5 file" in message


def test_file_without_molecules_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    with h5py.File(path, "w") as opened:
        opened["loop"] = h5py.SoftLink("/")
    assert f"{path}: no group holds arrays (links are not followed); expected" in refusal(path)


def test_empty_group_is_refused(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        opened.create_group("gdb/lost")
    assert f"{file}: group gdb/lost is empty; expected the arrays of a molecule, or groups" in refusal(file)


def test_array_outside_any_group_is_refused(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        opened["energies"] = np.zeros(3)
    assert f"{file}: the array 'energies' is in no group; expected the pyanitools layout" in refusal(file)


def test_array_beside_a_group_is_refused(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        opened["gdb/s01/readme"] = np.zeros(3)
    message = refusal(file)
    assert f"{file}: group gdb/s01: the array 'readme' is beside the group" in message
    assert "expected a group to hold either groups or the arrays of one molecule" in message


@pytest.mark.parametrize("key", ["species", "coordinates", "energies", "forces"])
def test_key_missing_in_a_group_is_named_with_those_there(file: Path, key: str) -> None:
    replace(file, "gdb/s02/methane", key, None)
    having = ", ".join(sorted({"species", "coordinates", "energies", "forces"} - {key}))
    assert f"{file}: group gdb/s02/methane lacks the key '{key}' (keys: {having})" in refusal(file)


def test_mistyped_key_is_asked_about(file: Path) -> None:
    message = refusal(file, ["dz=energy@Hartree"])
    assert "lacks the key 'energy' (keys: " in message
    assert message.endswith("did you mean 'energies'?")


@pytest.mark.parametrize("key", ["/gdb/s01/water/energies", ".", "./energies"])
def test_key_is_a_name_and_no_path(file: Path, key: str) -> None:
    assert f"lacks the key '{key}'" in refusal(file, [level_of("dz", "", E=key)])


def test_group_where_an_array_should_be_is_refused(file: Path) -> None:
    replace(file, "atoms/neon", "energies", None)
    with h5py.File(file, "r+") as opened:
        opened["atoms/neon"].create_group("energies")
    assert "group atoms/neon: the array 'coordinates' is beside the group 'energies'" in refusal(file)


@pytest.mark.parametrize(
    ("species", "complaint"),
    [
        (np.array([b"N", b"H", b"Q", b"H"]), "species of atom 2 is 'Q', not an element symbol"),
        (np.array([b"N", b"H", b"X", b"H"]), "species of atom 2 is 'X', not an element symbol"),
        (np.array([b"N", b"H", b"", b"H"]), "species of atom 2 is '', not an element symbol"),
        (np.array([b"N", b"H", b"\n\xff", b"H"]), "species of atom 2 is"),
        (np.array([7, 1, 1, 1]), "species has type int64, expected element symbols"),
        (np.array([b"N", b"H", b"H"]), "coordinates has shape (2, 4, 3), expected (n, 3, 3)"),
        (np.array([[b"N", b"H", b"H", b"H"]] * 2), "species has shape (2, 4), expected (n_atoms,)"),
        (np.bytes_(b"NHHH"), "species has shape (), expected (n_atoms,)"),
    ],
)
def test_species_that_are_no_elements_are_refused(file: Path, species: Any, complaint: str) -> None:
    replace(file, "gdb/s01/ammonia", "species", species)
    message = refusal(file)
    assert f"{file}: group gdb/s01/ammonia: " in message
    assert complaint in message


@pytest.mark.parametrize(
    ("key", "edit", "complaint"),
    [
        ("energies", lambda a: a[:-1], "energies has shape (1,), expected (2,)"),
        ("energies", lambda a: np.stack([a, a], axis=1), "energies has shape (2, 2), expected (2,)"),
        ("energies", lambda a: a[None], "energies has shape (1, 2), expected (2,)"),
        ("energies", lambda a: a.astype(np.int64), "energies has type int64"),
        ("forces", lambda a: a[:, :-1], "forces has shape (2, 3, 3), expected (2, 4, 3)"),
        ("forces", lambda a: a.astype("S8"), "forces has type |S8"),
        ("coordinates", lambda a: a[0], "coordinates has shape (4, 3), expected (n, 4, 3)"),
        ("coordinates", lambda a: a * np.nan, "are NaN or infinite"),
        ("energies", lambda a: a + np.inf, "energies of conformation 0 is infinite; NaN means missing"),
    ],
)
def test_wrong_arrays_are_named(file: Path, key: str, edit: Callable[..., Any], complaint: str) -> None:
    change(file, "gdb/s01/ammonia", key, edit)
    message = refusal(file)
    assert f"{file}: group gdb/s01/ammonia: " in message
    assert complaint in message


@pytest.mark.parametrize("key", ["energies", "forces"])
def test_axes_of_length_one_change_nothing(file: Path, key: str) -> None:
    expected = Pyanitools(file, [DZ], root=file.parent / "before")._data
    with h5py.File(file, "r+") as opened:
        for name in MOLECULES:
            values = opened[name][key][:]
            del opened[name][key]
            opened[name][key] = values[:, None] if key == "forces" else values[:, None, None]
    found = Pyanitools(file, [DZ], root=file.parent / "after")._data
    assert torch.equal(found.energy, expected.energy)
    assert torch.equal(found.forces, expected.forces)
