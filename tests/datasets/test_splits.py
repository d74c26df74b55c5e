"""Splits and reference energies on the bundled data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.data import covalent_radii
from ase.io import write

from mfpyg.datasets import ExtXYZ, MiniCHNO, UnionDataset
from mfpyg.datasets.isomers import same_molecule
from mfpyg.datasets.references import compositions, fit_references
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.settings import SplitSettings, TrainSettings
from mfpyg.training.folder import RunFolder


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


# By molecule


def made(tmp_path: Path, molecules: dict[str, tuple[str, list[np.ndarray]]], name: str = "made.xyz") -> ExtXYZ:
    """A data set of these molecules: symbols, and positions of each conformation."""
    frames = []
    for number, (symbols, geometries) in enumerate(molecules.values()):
        for i, positions in enumerate(geometries):
            atoms = Atoms(symbols, positions)
            atoms.info["e"] = -100.0 - number - 0.01 * i
            frames.append(atoms)
    write(tmp_path / name, frames, format="extxyz")
    return ExtXYZ(tmp_path / name, ["dz=e@eV"], root=tmp_path / name.removesuffix(".xyz"))


def partition(labels: Iterable[Any]) -> set[frozenset[int]]:
    """Which rows stand together, whatever the labels are."""
    together: dict[Any, set[int]] = {}
    for row, label in enumerate(labels):
        together.setdefault(label, set()).add(row)
    return {frozenset(rows) for rows in together.values()}


def rotation(random: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(random.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


ETHANOL, ETHER = molecule("CH3CH2OH"), molecule("CH3OCH3")


def test_molecules_found_from_bonds_are_those_the_file_names(dataset: MiniCHNO) -> None:
    found = same_molecule(dataset)
    assert found.dtype == np.int64
    assert found.shape == (788,)
    assert partition(found.tolist()) == partition(dataset._data.molecule.tolist())
    assert sorted(set(found.tolist())) == list(range(21))


@pytest.mark.parametrize("seed", range(3))
def test_turned_renumbered_and_shaken_molecule_is_the_same(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    names = ["CH3CH2OH", "CH3OCH3", "C6H6", "HCOOH", "CH3CN", "CH3NO2", "H2O"]
    frames, names_of = [], []
    for name in names:
        for _ in range(4):
            atoms = molecule(name)
            order = random.permutation(len(atoms))
            atoms = atoms[order]
            atoms.positions = atoms.positions @ rotation(random).T + random.normal(size=3)
            atoms.positions += 0.02 * random.normal(size=atoms.positions.shape)
            atoms.info["e"] = -1.0
            frames.append(atoms)
            names_of.append(name)
    order = random.permutation(len(frames))
    write(tmp_path / "shaken.xyz", [frames[i] for i in order], format="extxyz")
    shaken = ExtXYZ(tmp_path / "shaken.xyz", ["dz=e@eV"], root=tmp_path)
    assert partition(same_molecule(shaken).tolist()) == partition(names_of[i] for i in order)


def test_isomers_are_told_apart_and_mirror_images_are_not(tmp_path: Path) -> None:
    ethanol, ether = ETHANOL.positions, ETHER.positions
    data = made(
        tmp_path,
        {
            "ethanol": (str(ETHANOL.symbols), [ethanol, -ethanol]),
            "ether": (str(ETHER.symbols), [ether, ether + 0.01]),
        },
    )
    assert partition(same_molecule(data).tolist()) == {frozenset({0, 1}), frozenset({2, 3})}


def test_isomers_that_a_distorted_conformation_links_are_one(tmp_path: Path) -> None:
    # Two molecules of H2, and H4: a chain where the middle distance counts as a bond.
    reach = 2 * covalent_radii[1]

    def chain(middle: float) -> np.ndarray:
        x = np.array([0.0, 1.0, 1.0 + middle, 2.0 + middle]) * reach
        return np.stack([x, 0 * x, 0 * x], axis=1)

    apart, bonded, between = chain(3.0), chain(1.1), chain(1.3)
    two = made(tmp_path, {"apart": ("H4", [apart] * 2), "bonded": ("H4", [bonded] * 2)}, "two.xyz")
    assert partition(same_molecule(two).tolist()) == {frozenset({0, 1}), frozenset({2, 3})}
    linked = made(tmp_path, {"apart": ("H4", [apart] * 2), "rest": ("H4", [bonded, between])}, "linked.xyz")
    assert partition(same_molecule(linked).tolist()) == {frozenset({0, 1, 2, 3})}


def test_bond_of_an_intermediate_length_links_what_it_could_be(tmp_path: Path) -> None:
    # At 1.2 times the sum of the radii the shortest measure sees no bond and the next one does.
    reach = 2 * covalent_radii[6]

    def pair(stretch: float) -> np.ndarray:
        return np.array([[0.0, 0, 0], [stretch * reach, 0, 0]])

    for stretch, together in ((1.1, 1), (1.2, 3), (1.3, 3), (1.5, 2)):
        data = made(tmp_path, {"C2": ("C2", [pair(1.0), pair(stretch), pair(2.0)])}, f"pair{stretch}.xyz")
        found = same_molecule(data).tolist()
        expected = {1: [{0, 1}, {2}], 2: [{0}, {1, 2}], 3: [{0, 1, 2}]}[together]
        assert partition(found) == {frozenset(rows) for rows in expected}, stretch


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.3, 0.3), (0.001, 0.001), (0.1, 0.0)])
def test_no_molecule_is_in_two_splits(dataset: MiniCHNO, seed: int, val: float, test: float) -> None:
    splits = make_splits(dataset, SplitSettings(method="molecule", val=val, test=test), seed)
    assert sorted(splits) == ["test", "train", "val"][test == 0 :]
    assert sorted(np.concatenate(list(splits.values()))) == list(range(788))
    molecules = {name: set(dataset._data.molecule[rows].tolist()) for name, rows in splits.items()}
    assert sum(len(names) for names in molecules.values()) == 21
    smallest = np.bincount(dataset._data.molecule).min()
    for name, share in (("val", val), ("test", test)):
        if share:
            assert 0 < len(splits[name]) <= max(share * 788, smallest + 20)
    again = make_splits(dataset, SplitSettings(method="molecule", val=val, test=test), seed)
    assert all((again[name] == rows).all() for name, rows in splits.items())


def test_split_by_molecule_depends_on_the_seed_and_not_on_the_fidelities(dataset: MiniCHNO) -> None:
    by_molecule = SplitSettings(method="molecule")
    few = MiniCHNO(fidelities=["hf_dz"])
    each = [make_splits(dataset, by_molecule, seed) for seed in range(3)]
    for seed, splits in enumerate(each):
        for name, rows in make_splits(few, by_molecule, seed).items():
            assert (splits[name] == rows).all()
    assert len({tuple(splits["val"]) for splits in each}) > 1


def test_split_by_molecule_of_two_molecules_is_refused(tmp_path: Path) -> None:
    two = made(tmp_path, {"a": ("H2O", [molecule("H2O").positions] * 3), "b": ("CO2", [molecule("CO2").positions] * 3)})
    with pytest.raises(MFPyGError, match="2 molecules of different bonds; a split by molecule needs three"):
        make_splits(two, SplitSettings(method="molecule"), 0)


def test_split_by_molecule_takes_periodic_conformations_by_their_names(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames, names = [], []
    for name, symbols, periodic in (("", "Cu4", True), ("salt", "NaCl", True), ("", "H2O", False), ("", "CO2", False)):
        for _ in range(10):
            atoms = Atoms(symbols, random.uniform(0, 6, (len(Atoms(symbols)), 3)), cell=6 * np.eye(3), pbc=periodic)
            atoms.info["e"] = -1.0
            if name:
                atoms.info["molecule"] = name
            if not periodic:
                atoms.positions = molecule(symbols).positions
            frames.append(atoms)
            names.append(name or symbols)
    frames[30].set_pbc(True)  # a molecule in a box is one with those of its formula
    write(tmp_path / "mine.xyz", frames, format="extxyz")
    dataset = ExtXYZ(tmp_path / "mine.xyz", ["a=e@eV"])
    number = same_molecule(dataset)
    assert len(set(number)) == len(set(zip(number.tolist(), names, strict=True))) == 4
    splits = make_splits(dataset, SplitSettings(method="molecule", val=0.25, test=0.25), 0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 20, "val": 10, "test": 10}
    with pytest.raises(MFPyGError, match="2 molecules of different bonds or names"):
        make_splits(dataset.copy(range(20)), SplitSettings(method="molecule"), 0)


# By a file of numbers


def index_file(tmp_path: Path, **arrays: Any) -> SplitSettings:
    np.savez(tmp_path / "index.npz", **arrays)
    return SplitSettings(method="index", file=str(tmp_path / "index.npz"))


def test_index_file_says_what_is_what(dataset: MiniCHNO, tmp_path: Path) -> None:
    given = {"train": np.array([5, 3, 9]), "val": np.array([700, 0]), "ood": np.array([1], np.uint8)}
    splits = make_splits(dataset, index_file(tmp_path, **given), seed=0)
    assert {name: rows.tolist() for name, rows in splits.items()} == {"train": [3, 5, 9], "val": [0, 700], "ood": [1]}
    assert all(rows.dtype == np.int64 for rows in splits.values())


def test_splits_of_a_run_are_an_index_file(dataset: MiniCHNO, tmp_path: Path) -> None:
    splits = make_splits(dataset, SplitSettings(), seed=6)
    folder = RunFolder(tmp_path / "run")
    folder.create(TrainSettings(fidelities=["dz:E"]), splits, {})
    read = make_splits(dataset, SplitSettings(method="index", file=str(folder.splits)), seed=0)
    assert list(read) == list(splits)
    assert all((read[name] == rows).all() for name, rows in splits.items())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": [0, 1, 2], "val": [3, 2]}, "conformation 2 occurs twice"),
        ({"train": [0, 1, 1], "val": [3]}, "conformation 1 occurs twice"),
        ({"train": [0, 788], "val": [3]}, "train is from 0 to 788, expected 0 to 787"),
        ({"train": [0], "val": [-1]}, "val is from -1 to -1, expected 0 to 787"),
        ({"train": [0.0], "val": [3]}, "train is float64 of shape (1,), expected (n,) integers"),
        ({"train": [True] * 788, "val": [3]}, "train is bool of shape (788,)"),
        ({"train": [[0, 1]], "val": [3]}, "train is int64 of shape (1, 2)"),
        ({"train": [0], "val": 3}, "val is int64 of shape ()"),
        ({"train": [0], "valid": [3]}, "'valid' (known: train, val, test, ood); did you mean 'val'?"),
        ({"train": [0], "test": [3]}, "split 'val' of 788 conformations is empty"),
        ({"val": [0]}, "split 'train' of 788 conformations is empty"),
        ({"train": [0], "val": np.array([], np.int64)}, "split 'val' of 788 conformations is empty"),
        ({}, "split 'train' of 788 conformations is empty"),
    ],
)
def test_wrong_index_file_is_refused(dataset: MiniCHNO, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    settings = index_file(tmp_path, **{name: np.array(rows) for name, rows in arrays.items()})
    with pytest.raises(MFPyGError) as refused:
        make_splits(dataset, settings, seed=0)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"train: 1", "object", "npy"])
def test_index_file_that_cannot_be_read_is_refused(dataset: MiniCHNO, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "index.npz"
    if content == "object":
        np.savez(path, train=np.array([{}, 1], object), val=np.array([3]))
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(MFPyGError, match=r"index\.npz: missing or damaged; expected an npz file"):
        make_splits(dataset, SplitSettings(method="index", file=str(path)), seed=0)


def test_truncated_index_file_is_refused(dataset: MiniCHNO, tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    np.savez_compressed(path, train=np.arange(500), val=np.arange(500, 600))
    whole = path.read_bytes()
    for share in (0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(MFPyGError, match="missing or damaged"):
            make_splits(dataset, SplitSettings(method="index", file=str(path)), seed=0)
    damaged = bytearray(whole)
    damaged[100:120] = b"\xff" * 20  # within the compressed numbers
    path.write_bytes(damaged)
    with pytest.raises(MFPyGError, match="missing or damaged"):
        make_splits(dataset, SplitSettings(method="index", file=str(path)), seed=0)


# Unions


@pytest.mark.parametrize("method", ["auto", "random"])
def test_each_source_of_a_union_is_split_as_it_is_alone(dataset: MiniCHNO, tmp_path: Path, method: str) -> None:
    own = [molecule(name).positions for name in ["H2O"] * 30]
    silent = made(tmp_path, {"water": ("OH2", own)})
    union = UnionDataset(tmp_path / "union", [silent, dataset])
    for seed in (0, 1):
        settings = SplitSettings(method=method)
        first, second, both = (make_splits(data, settings, seed) for data in (silent, dataset, union))
        for name in {*first, *second, *both}:
            expected = [*first.get(name, []), *(30 + second.get(name, np.empty(0, int)))]
            assert both[name].tolist() == expected


def test_file_split_of_a_source_that_gives_none_is_refused(dataset: MiniCHNO, tmp_path: Path) -> None:
    silent = made(tmp_path, {"water": ("OH2", [molecule("H2O").positions] * 30)})
    union = UnionDataset(tmp_path / "union", [dataset, silent])
    with pytest.raises(MFPyGError, match=r"made\.xyz does not say which conformations are for the test"):
        make_splits(union, SplitSettings(method="file"), 0)


def test_molecule_in_two_sources_goes_one_way(dataset: MiniCHNO, tmp_path: Path) -> None:
    names = {"water": "H2O", "methane": "CH4", "ammonia": "NH3", "ethane": "C2H6", "carbon dioxide": "CO2"}
    own = {key: (str(molecule(name).symbols), [molecule(name).positions] * 5) for key, name in names.items()}
    silent = made(tmp_path, own)
    union = UnionDataset(tmp_path / "union", [dataset, silent])
    molecules = same_molecule(union)
    assert set(molecules[788:]) <= set(molecules[:788])
    for seed in range(5):
        splits = make_splits(union, SplitSettings(method="molecule"), seed)
        of = [set(molecules[rows]) for rows in splits.values()]
        assert sum(map(len, of)) == 21
