"""Extended-XYZ files and ASE databases: values, units, missing labels, and what is refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch_geometric.loader import DataLoader

from mfpyg.datasets import ExtXYZ
from mfpyg.datasets.batches import BatchLoader
from mfpyg.datasets.frames import frames_of_database, frames_of_text
from mfpyg.datasets.levels import level_of
from mfpyg.datasets.spec import DatasetSpec
from mfpyg.errors import MFPyGError, UnreadableError
from mfpyg.graph import RadiusGraph

HARTREE, EV, BOHR = 627.5094740631, 23.060547830619, 0.529177210903
DZ = "dz=dft_energy,dft_forces@eV"
FORMULAS = {"H2O": "H2O1", "CH4": "C1H4", "NH3": "H3N1", "H": "H1", "CHFClBr": "C1H1Br1Cl1F1", "OCCO": "C2O2"}


def frames(n: int = 7) -> list[Atoms]:
    """Molecules of several sizes in turn, with all labels."""
    random = np.random.default_rng(0)
    found = []
    for i in range(n):
        symbols = list(FORMULAS)[i % len(FORMULAS)]
        size = len(Atoms(symbols))
        atoms = Atoms(symbols, positions=random.normal(size=(size, 3)).round(8))
        for key in ("dft_energy", "cc_energy", "hf", "corr"):
            atoms.info[key] = -1e4 + random.normal()
        for key in ("dft_forces", "gradient"):
            atoms.arrays[key] = random.normal(size=(size, 3)).round(8)
        found.append(atoms)
    return found


def written(path: Path, images: Sequence[Atoms]) -> Path:
    ase.io.write(path, list(images), format="extxyz")
    return path


def database(path: Path, images: Sequence[Atoms]) -> Path:
    with ase.db.connect(path) as base:
        for atoms in images:
            base.write(atoms, key_value_pairs=atoms.info, data=atoms.arrays)
    return path


def energies(dataset: ExtXYZ) -> np.ndarray:
    return dataset._data.energy.numpy()


def stacked(images: Sequence[Atoms], key: str) -> np.ndarray:
    return np.concatenate([atoms.arrays[key] for atoms in images])


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return written(tmp_path / "mine.xyz", frames())


# Values


def test_item_has_the_documented_shapes_and_types(mine: Path) -> None:
    dataset = ExtXYZ(mine, [DZ, "cc=cc_energy@Hartree"])
    for data, atoms in zip(dataset, frames(), strict=True):
        n = len(atoms)
        assert {name: (tuple(value.shape), value.dtype) for name, value in data.to_dict().items()} == {
            "z": ((n,), torch.int64),
            "pos": ((n, 3), torch.float32),
            "energy": ((1, 2), torch.float64),
            "energy_mask": ((1, 2), torch.bool),
            "forces": ((n, 2, 3), torch.float32),
            "forces_mask": ((1, 2), torch.bool),
            "molecule": ((1,), torch.int64),
            "conformation": ((1,), torch.int64),
            "split": ((1,), torch.int64),
            "source": ((1,), torch.int64),
        }
    assert repr(dataset) == "ExtXYZ(7, fidelities=[dz, cc])"
    assert (dataset.what, dataset.sources) == ("mine.xyz", ["mine.xyz"])


@pytest.mark.parametrize("kind", ["xyz", "extxyz", "db"])
def test_molecules_are_those_of_ase_in_their_order(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"mine.{kind}"
    (database if kind == "db" else written)(path, frames())
    dataset = ExtXYZ(path, [DZ])
    for number, (data, atoms) in enumerate(zip(dataset, frames(), strict=True)):
        assert data.z.tolist() == atoms.numbers.tolist()
        np.testing.assert_array_equal(data.pos.numpy(), atoms.positions.astype(np.float32))
        assert data.conformation.item() == number
        assert dataset.molecules[data.molecule.item()] == FORMULAS[list(FORMULAS)[number % 6]]
        assert (data.split.item(), data.source.item()) == (-1, 0)
    assert dataset[0].molecule.item() == dataset[6].molecule.item()


@pytest.mark.parametrize("kind", ["xyz", "db"])
@pytest.mark.parametrize(
    ("level", "keys", "factor"),
    [
        ("a=dft_energy@eV", ["dft_energy"], EV),
        ("a=cc_energy@Hartree", ["cc_energy"], HARTREE),
        ("a=dft_energy@kJ/mol", ["dft_energy"], 1 / 4.184),
        ("a=hf+corr@Hartree", ["hf", "corr"], HARTREE),
    ],
)
def test_energies_are_kcal_mol_in_double_precision(
    tmp_path: Path, kind: str, level: str, keys: list[str], factor: float
) -> None:
    path = (database if kind == "db" else written)(tmp_path / f"mine.{kind}", frames())
    expected = [sum(atoms.info[key] for key in keys) * factor for atoms in frames()]
    np.testing.assert_allclose(energies(ExtXYZ(path, [level]))[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("level", "key", "factor"),
    [
        ("a=dft_energy,dft_forces@eV", "dft_forces", EV),
        ("a=dft_energy,-gradient@eV", "gradient", -EV),
        ("a=dft_energy,dft_forces@eV,Hartree/bohr", "dft_forces", HARTREE / BOHR),
        ("a=dft_energy,-gradient@Hartree,kcal/mol/A", "gradient", -1.0),
    ],
)
@pytest.mark.parametrize("kind", ["xyz", "db"])
def test_forces_are_true_forces_in_kcal_mol_per_angstrom(
    tmp_path: Path, kind: str, level: str, key: str, factor: float
) -> None:
    path = (database if kind == "db" else written)(tmp_path / f"mine.{kind}", frames())
    dataset = ExtXYZ(path, [level])
    expected = (stacked(frames(), key) * factor).astype(np.float32)
    np.testing.assert_allclose(dataset._data.forces[:, 0].numpy(), expected, rtol=1e-6)
    assert dataset._data.forces_mask.all()


@pytest.mark.parametrize("kind", ["xyz", "db"])
def test_results_of_a_calculator_are_found_and_not_constrained(tmp_path: Path, kind: str) -> None:
    images = frames()
    for atoms in images:
        results = {"energy": atoms.info["cc_energy"], "forces": atoms.arrays["dft_forces"]}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.set_constraint(FixAtoms([0]))
        atoms.info.clear()
        del atoms.arrays["dft_forces"], atoms.arrays["gradient"]
    path = (database if kind == "db" else written)(tmp_path / f"mine.{kind}", images)
    dataset = ExtXYZ(path, ["a=energy,forces@eV"])
    np.testing.assert_allclose(energies(dataset)[:, 0], [a.info["cc_energy"] * EV for a in frames()], rtol=1e-12)
    expected = (stacked(frames(), "dft_forces") * EV).astype(np.float32)
    np.testing.assert_allclose(dataset._data.forces[:, 0].numpy(), expected, rtol=1e-6)


def test_levels_may_be_objects_and_chosen_among(mine: Path, tmp_path: Path) -> None:
    levels = [level_of("cc", "CCSD(T)", E="cc_energy"), DZ, "lacking=no_such_key@eV"]
    dataset = ExtXYZ(mine, levels, ["dz", "cc"], root=tmp_path / "root")
    assert dataset.fidelities == ("dz", "cc")
    assert dataset.present_levels[1].method == "CCSD(T)"
    assert Path(dataset.processed_paths[0]).parent == tmp_path / "root" / "processed"
    np.testing.assert_allclose(energies(dataset)[:, 1], [a.info["cc_energy"] * HARTREE for a in frames()], rtol=1e-12)


def test_small_chunks_give_the_same(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked: list[str] = []

    def track(names: Sequence[str]) -> Sequence[str]:
        tracked.extend(names)
        return names

    whole = ExtXYZ(mine, [DZ], root=tmp_path / "whole", track=track)
    assert tracked == [f"mine.xyz, {n} %" for n in range(1, 101)]
    monkeypatch.setattr("mfpyg.datasets.extxyz.ATOMS_IN_CHUNK", 5)
    sizes = [len(chunk) for chunk in whole.chunks(whole.levels)]
    assert len(sizes) > 3
    assert sum(sizes) == len(whole) == 7
    parts = ExtXYZ(mine, [DZ], root=tmp_path / "parts")
    assert (parts.fingerprint, parts.molecules) == (whole.fingerprint, whole.molecules)


@pytest.mark.parametrize("suffix", [".xyz", ".db"])
def test_progress_moves_with_the_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"many{suffix}"
    if suffix == ".xyz":
        path.write_text(WATER * 2000)
    else:
        with ase.db.connect(path) as database:
            for _ in range(500):
                database.write(Atoms("H"), e=1.5)
    taken, at_tick = [0], []

    def track(names: Sequence[str]) -> Iterator[str]:
        for name in names:
            at_tick.append(taken[0])
            yield name

    read = frames_of_database(path) if suffix == ".db" else frames_of_text(path)
    dataset = ExtXYZ(path, ["a=e@eV"], root=tmp_path / "root")
    dataset._track = track
    for _ in dataset._tracked(read):
        taken[0] += 1
    assert taken[0] == len(dataset)
    assert len(at_tick) == 100
    assert at_tick[0] == 0
    # A text file is read some kilobytes ahead.
    assert at_tick[50] == pytest.approx(0.5 * taken[0], abs=0.2 * taken[0])


def test_database_is_read_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(tmp_path / "mine.db", frames())
    with ase.db.connect(path) as base:
        base.delete([2])
    before = path.read_bytes()
    whole = ExtXYZ(path, [DZ], root=tmp_path / "whole")
    monkeypatch.setattr("mfpyg.datasets.frames._ROWS_AT_ONCE", 2)
    parts = ExtXYZ(path, [DZ], root=tmp_path / "parts")
    assert parts.fingerprint == whole.fingerprint
    assert whole._data.conformation.tolist() == list(range(6))
    assert path.read_bytes() == before


def test_loader_joins_molecules_of_different_sizes(mine: Path) -> None:
    batch = next(iter(DataLoader(ExtXYZ(mine, [DZ]), batch_size=7)))
    assert batch.energy.shape == (7, 1)
    assert batch.forces.shape == (sum(map(len, frames())), 1, 3)


# Missing labels


@pytest.mark.parametrize("kind", ["xyz", "db"])
def test_optional_key_may_be_lacking(tmp_path: Path, kind: str) -> None:
    images = frames()
    for i in (0, 3):
        del images[i].info["corr"], images[i].arrays["dft_forces"]
    path = (database if kind == "db" else written)(tmp_path / f"mine.{kind}", images)
    dataset = ExtXYZ(path, ["mp2=hf+corr?,dft_forces?@Hartree", "hf=hf@Hartree"])
    there = [i not in (0, 3) for i in range(7)]
    assert dataset._data.energy_mask.tolist() == [[here, True] for here in there]
    assert dataset._data.forces_mask.tolist() == [[here, False] for here in there]
    assert np.isnan(energies(dataset)[0, 0])
    assert dataset[0].forces.isnan().all()
    assert not dataset[1].forces[:, 0].isnan().any()
    assert [row["energies"] for row in dataset.label_counts()] == [5, 7]


def test_nan_is_a_missing_label(tmp_path: Path) -> None:
    images = frames()
    images[1].info["dft_energy"] = np.nan
    images[2].arrays["dft_forces"][:] = np.nan
    images[4].arrays["dft_forces"][1, 2] = np.nan
    dataset = ExtXYZ(written(tmp_path / "mine.xyz", images), [DZ])
    assert dataset._data.energy_mask[:, 0].tolist() == [i != 1 for i in range(7)]
    assert dataset._data.forces_mask[:, 0].tolist() == [i not in (2, 4) for i in range(7)]
    assert dataset.incomplete["F"] == {"dz": 1}


def test_required_energies_choose_the_frames(tmp_path: Path) -> None:
    images = frames()
    del images[2].info["cc_energy"]
    path = written(tmp_path / "mine.xyz", images)
    dataset = ExtXYZ(path, [DZ, "cc=cc_energy?@Hartree"], ["dz"], required=["cc"])
    assert dataset._data.conformation.tolist() == [0, 1, 3, 4, 5, 6]
    assert dataset.fidelities == ("dz",)


def test_names_and_division_of_the_file_are_used(tmp_path: Path) -> None:
    images = frames()
    for i, atoms in enumerate(images):
        atoms.info["split"] = i % 3
        if i != 3:
            atoms.info["molecule"] = 17 if i == 4 else "methyl group" if i % 2 else "b"
    for path in (written(tmp_path / "mine.xyz", images), database(tmp_path / "mine.db", images)):
        dataset = ExtXYZ(path, [DZ])
        assert dataset.given_split().tolist() == [0, 1, 2, 0, 1, 2, 0]
        names = [dataset.molecules[i] for i in dataset._data.molecule]
        assert names == ["b", "methyl group", "b", "H1", "17", "methyl group", "b"]


# Periodic frames

TRICLINIC = np.array([[9.1, 0.2, 0], [0.1, 8.3, -0.7], [1.3, 0, 7.7]])


def periodic_frames() -> list[Atoms]:
    """As ``frames``: periodic everywhere, along some lattice vectors, a molecule in a box, and molecules."""
    images = frames()
    images[1].set_cell(TRICLINIC)
    images[1].set_pbc(True)
    images[3].set_cell([9, 8, 0])
    images[3].set_pbc([True, True, False])
    images[4].set_cell([[5, 1, 0], [0, 0, 0], [0, 0, 0]])
    images[4].set_pbc([True, False, False])
    images[5].set_cell(2 * TRICLINIC)
    return images


@pytest.mark.parametrize("kind", ["xyz", "db"])
def test_periodic_frames_keep_cell_and_pbc(tmp_path: Path, kind: str) -> None:
    images = periodic_frames()
    dataset = ExtXYZ((database if kind == "db" else written)(tmp_path / f"mine.{kind}", images), [DZ])
    for data, atoms in zip(dataset, images, strict=True):
        assert (data.cell.shape, data.cell.dtype) == ((1, 3, 3), torch.float32)
        assert (data.pbc.shape, data.pbc.dtype) == ((1, 3), torch.bool)
        np.testing.assert_array_equal(data.cell[0].numpy(), atoms.cell.array.astype(np.float32))
        assert data.pbc[0].tolist() == atoms.pbc.tolist()
        assert data.pos.numpy() == pytest.approx(atoms.positions, rel=1e-6)


@pytest.mark.parametrize("kind", ["xyz", "db"])
def test_molecules_in_boxes_have_no_cells(tmp_path: Path, kind: str) -> None:
    write = database if kind == "db" else written
    plain = ExtXYZ(write(tmp_path / f"plain.{kind}", frames()), [DZ])
    images = frames()
    images[2].set_cell([9, 9, np.nan])
    boxed = ExtXYZ(write(tmp_path / f"boxed.{kind}", images), [DZ])
    assert "cell" not in boxed[2]
    assert "pbc" not in boxed[2]
    assert boxed.fingerprint == plain.fingerprint
    some = periodic_frames()[2:3] + periodic_frames()[5:]
    assert "pbc" not in ExtXYZ(write(tmp_path / f"some.{kind}", some), [DZ])[0]


def test_lattice_vector_that_is_no_number_becomes_zero_where_nothing_is_repeated(tmp_path: Path) -> None:
    images = periodic_frames()
    images[3].set_cell(np.diag([9, 8, np.inf]))
    images[5].set_cell(np.diag([9, 1e39, 7]))
    cells = ExtXYZ(written(tmp_path / "mine.xyz", images), [DZ])._data.cell
    assert cells[3].tolist() == [[9, 0, 0], [0, 8, 0], [0, 0, 0]]
    assert cells[5].tolist() == [[9, 0, 0], [0, 0, 0], [0, 0, 7]]


def test_lattice_without_pbc_is_periodic(mine: Path) -> None:
    mine.write_text(mine.read_text().replace('pbc="F F F"', 'Lattice="9 0 0 0 8 0 0 1 7"', 1))
    dataset = ExtXYZ(mine, [DZ])
    assert dataset._data.pbc.tolist() == [[True] * 3] + [[False] * 3] * 6
    assert dataset._data.cell[0].tolist() == [[9, 0, 0], [0, 8, 0], [0, 1, 7]]
    assert not dataset._data.cell[1:].any()


def test_fingerprint_depends_on_cell_and_pbc(tmp_path: Path) -> None:
    found = []
    for number, (scale, pbc) in enumerate([(1, True), (2, True), (1, [True, True, False]), (1, False)]):
        images = frames()
        images[1].set_cell(scale * TRICLINIC)
        images[1].set_pbc(pbc)
        found.append(ExtXYZ(written(tmp_path / f"{number}.xyz", images), [DZ]).fingerprint)
    assert len(set(found)) == 4
    assert found[3] == ExtXYZ(written(tmp_path / "none.xyz", frames()), [DZ]).fingerprint


def test_small_chunks_of_periodic_frames_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "mine.xyz", periodic_frames())
    whole = ExtXYZ(path, [DZ], root=tmp_path / "whole")
    monkeypatch.setattr("mfpyg.datasets.extxyz.ATOMS_IN_CHUNK", 1)
    parts = ExtXYZ(path, [DZ], root=tmp_path / "parts")
    assert torch.equal(parts._data.cell, whole._data.cell)
    assert parts.fingerprint == whole.fingerprint


def test_frames_that_are_chosen_decide_whether_there_are_cells(tmp_path: Path) -> None:
    images = periodic_frames()
    for i in (1, 3, 4):
        del images[i].info["cc_energy"]
    path = written(tmp_path / "mine.xyz", images)
    levels = [DZ, "cc=cc_energy?@Hartree"]
    assert "cell" not in ExtXYZ(path, levels, required=["cc"])[0]
    assert "cell" in ExtXYZ(path, levels)[0]


@pytest.mark.parametrize("part", [None, [6, 1, 3, 0]])
def test_batches_of_periodic_frames_are_those_of_pyg(tmp_path: Path, part: list[int] | None) -> None:
    dataset = ExtXYZ(written(tmp_path / "mine.xyz", periodic_frames()), [DZ])
    dataset = dataset if part is None else dataset[part]
    for ours, theirs in zip(BatchLoader(dataset, 3), DataLoader(dataset, 3), strict=True):
        assert set(ours.keys()) == set(theirs.keys()) >= {"cell", "pbc"}
        assert ours.cell.shape == (len(ours), 3, 3)
        assert ours.pbc.shape == (len(ours), 3)
        for key in ours.keys():  # noqa: SIM118
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, equal_nan=True)
        for one, other in zip(ours.to_data_list(), theirs.to_data_list(), strict=True):
            assert torch.equal(one.cell, other.cell)
            assert torch.equal(one.pbc, other.pbc)


def test_copied_part_keeps_cells(tmp_path: Path) -> None:
    dataset = ExtXYZ(written(tmp_path / "mine.xyz", periodic_frames()), [DZ])
    part = dataset.copy([3, 1])
    assert torch.equal(part._data.cell, dataset._data.cell[[3, 1]])
    assert torch.equal(part[1].pbc, dataset[1].pbc)


# What is refused


def fails(path: Path, message: str, *levels: str) -> None:
    with pytest.raises(MFPyGError, match=message) as error:
        ExtXYZ(path, levels or [DZ], root=path.parent / "root")
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    assert not list(path.parent.glob("root/processed/*"))


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (
            "a=dft_enrgy@eV",
            r"frame 0 lacks the key 'dft_enrgy' of 'a' \(keys found: .*'dft_enrgy\?' if .*did you mean 'dft_energy'\?",
        ),
        ("a=dft_energy,forces@eV", "lacks the key 'forces' .*write 'forces.' if frames may lack it"),
        ("a=dft_energy+zpe?@eV", r"no frame has the key 'zpe' of 'a' \(keys found: cc_energy, corr, dft_energy"),
        ("a=dft_energy,f?@eV", "no frame has the key 'f'"),
        ("a=dft_forces@eV", r"frame 0: dft_forces has shape \(3, 3\), expected one number"),
        ("a=dft_energy,hf@eV", r"frame 0: hf has shape \(\), expected \(3, 3\) numbers"),
    ],
)
def test_wrong_key_is_named(mine: Path, level: str, message: str) -> None:
    fails(mine, message, level)


@pytest.mark.parametrize("kind", ["xyz", "db"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dft_energy", None, "frame 4 lacks the key 'dft_energy'"),
        ("dft_energy", "unknown", "frame 4: dft_energy is 'unknown', expected one number; NaN means missing"),
        ("dft_energy", True, "frame 4: dft_energy is .*True.*, expected one number"),
        ("dft_energy", np.inf, "frame 4: dft_energy is infinite; NaN means missing"),
        ("dft_forces", None, "frame 4 lacks the key 'dft_forces'"),
        ("dft_forces", np.ones((5, 2)), r"frame 4: dft_forces has shape \(5, 2\), expected \(5, 3\) numbers"),
        ("dft_forces", np.ones(5), r"frame 4: dft_forces has shape \(5,\), expected \(5, 3\)"),
        ("dft_forces", np.full((5, 3), "a"), "frame 4: dft_forces is of type object, expected"),
        ("dft_forces", np.full((5, 3), True), "frame 4: dft_forces is of type bool, expected"),
        ("dft_forces", np.full((5, 3), np.inf), "frame 4: dft_forces is infinite"),
        ("dft_forces", np.full((5, 3), 1e39), "frame 4: a force is infinite"),
        ("split", 3, r"frame 4: split is .*3.*, expected 0 \(pool\), 1 \(test\) or 2"),
        ("split", "train", "frame 4: split is 'train', expected 0"),
        ("split", 1.5, "frame 4: split is .*1.5.*, expected 0"),
        ("split", True, "frame 4: split is .*True.*, expected 0"),
        ("split", 1, "some conformations have a split and some have none; expected all or none"),
        ("molecule", 1.5, "frame 4: molecule is .*1.5.*, expected a name"),
        ("molecule", False, "frame 4: molecule is .*False.*, expected a name"),
    ],
)
def test_wrong_value_is_named(tmp_path: Path, kind: str, key: str, value: Any, message: str) -> None:
    images = frames()
    where = images[4].arrays if key == "dft_forces" else images[4].info
    where.pop(key, None)
    if value is not None:
        where[key] = value
    if kind == "db" and isinstance(value, np.ndarray) and value.dtype.kind == "U":
        pytest.skip("a database cannot hold it")
    fails((database if kind == "db" else written)(tmp_path / f"mine.{kind}", images), message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1 + 2j, r"frame 0: x is \(1\+2j\), expected one number"),
        (np.ones(2), r"frame 0: x has shape \(2,\), expected one number"),
        (np.ones((1, 2)), r"frame 0: x has shape \(1, 2\), expected one number"),
        ([[1.0], [1.0, 2.0]], "frame 0: x is ragged, expected one number"),
        (None, "frame 0: x is None, expected one number; NaN means missing"),
        ("a" * 5000, "frame 0: x is 'a{59}, expected one number"),
    ],
)
def test_wrong_value_in_the_data_of_a_database_is_named(tmp_path: Path, value: Any, message: str) -> None:
    with ase.db.connect(tmp_path / "mine.db") as base:
        base.write(Atoms("H"), data={"x": value})
    fails(tmp_path / "mine.db", message, "a=x@eV")


@pytest.mark.parametrize("kind", ["xyz", "db"])
@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        (np.zeros((3, 3)), [False, True, False], "frame 2: periodic along its second lattice vector, which is zero"),
        (np.diag([9.0, 9, 0]), True, "frame 2: periodic along its third lattice vector, which is zero; .*or F in pbc"),
        (np.diag([np.nan, 9, 9]), True, "frame 2: periodic along its first lattice vector, which is NaN or infinite"),
        (np.diag([9, np.inf, 9]), True, "frame 2: periodic along its second lattice vector, which is NaN or infinite"),
        (np.diag([9, 9, 1e39]), True, "frame 2: periodic along its third lattice vector, which is NaN or infinite"),
        (
            [[9, 0, 0], [0, 9, 0], [9, 9, 1e-4]],
            True,
            "frame 2: periodic along lattice vectors that span hardly any vol",
        ),
        (
            [[9, 0, 0], [9, 0, 0], [0, 0, 9]],
            [True, True, False],
            "frame 2: periodic along lattice vectors that span ha",
        ),
        (np.diag([0.01, 9, 9]), [True, False, False], "frame 2: periodic along lattice vectors that span hardly any"),
        (np.diag([0.4, 0.4, 0.4]), True, "frame 2: periodic along lattice vectors that span hardly any volume"),
    ],
)
def test_periodic_frame_without_a_cell_is_refused(tmp_path: Path, kind: str, cell: Any, pbc: Any, message: str) -> None:
    images = frames()
    images[2].set_cell(cell)
    images[2].set_pbc(pbc)
    fails((database if kind == "db" else written)(tmp_path / f"mine.{kind}", images), message)


@pytest.mark.parametrize("pbc", ["t f f", "nonsense", "5", "1 0 2", "0.5 0 0", "nan 0 0"])
def test_periodicity_that_is_none_is_refused(mine: Path, pbc: str) -> None:
    mine.write_text(mine.read_text().replace('pbc="F F F"', f'Lattice="9 0 0 0 9 0 0 0 9" pbc="{pbc}"', 1))
    fails(mine, "frame 0: pbc is .*, expected T or F for each lattice vector")


@pytest.mark.parametrize("more", ["pbc=T", "Lattice"])
def test_periodicity_given_twice_is_refused(mine: Path, more: str) -> None:
    mine.write_text(mine.read_text().replace('pbc="F F F"', f'Lattice="9 0 0 0 9 0 0 0 9" pbc="F F F" {more}', 1))
    fails(mine, "frame 0: pbc is given .*; give it once" if more[0] == "p" else "frame 0 cannot be read .*Lattice")


def test_stored_edges_of_a_periodic_frame_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.xyz", periodic_frames())
    with pytest.raises(MFPyGError, match="conformation 1 of C1H4 is periodic; stored edges are for molecules; use --e"):
        ExtXYZ(path, [DZ], pre_transform=RadiusGraph(3.0))


WATER = "3\ne=1.5\nO 0 0 0\nH 0 0 1\nH 0 1 0\n"


@pytest.mark.parametrize("end", ["", "\n", "\n \n\n", "\r\n"])
def test_blank_lines_at_the_end_are_fine(tmp_path: Path, end: str) -> None:
    path = tmp_path / "mine.xyz"
    path.write_text(2 * WATER + end)
    assert len(ExtXYZ(path, ["a=e@eV"])) == 2
    path.write_text("\ufeff" + 3 * WATER.replace("\n", "\r\n") + end, encoding="utf-8")
    assert len(ExtXYZ(path, ["a=e@eV"])) == 3
    path.write_text((WATER + WATER)[:-1])
    assert len(ExtXYZ(path, ["a=e@eV"])) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; expected frames"),
        ("\n\n", "empty; expected frames"),
        (WATER + WATER[:-8], "frame 1: truncated, 3 atoms expected and 2 found"),
        (WATER + WATER[:2], "frame 1: truncated, 3 atoms expected and 0 found"),
        (WATER + WATER[:-5], "frame 1: atom 2 has 2 columns, expected 4 as in Properties"),
        (WATER + "2" + WATER[1:], "frame 2: expected the number of atoms, found 'H 0 1 0'; is the number of atoms"),
        (WATER + "4" + WATER[1:] + WATER, "frame 1: atom 3 has 1 columns, expected 4 as in Properties"),
        (WATER + "4" + WATER[1:], "frame 1: truncated, 4 atoms expected and 3 found"),
        (WATER + "\n" + WATER, "frame 1: expected the number of atoms, found a blank line; remove it"),
        ("\n" + WATER, "frame 0: expected the number of atoms, found a blank line"),
        (WATER + "\n\nthe end\n", "frame 1: expected the number of atoms, found a blank line"),
        (WATER + "the end\n", "frame 1: expected the number of atoms, found 'the end'"),
        (WATER + "0\ne=1.5\n", "frame 1: no atoms"),
        (WATER + "-1\ne=1.5\n", "frame 1: expected the number of atoms, found '-1'"),
        (WATER + "9" * 5000 + "\n", "frame 1: expected the number of atoms, found '9{40}'"),
        (WATER + WATER.replace("O", "Qq"), "frame 1: species of atom 0 is 'Qq', not an element symbol"),
        (WATER + WATER.replace("H 0 0", "h1 0 0"), "frame 1: species of atom 1 is 'h1'.*a separate column"),
        (WATER + WATER.replace("O", "C_alpha"), "frame 1: species of atom 0 is 'C_alpha', not an element symbol"),
        (WATER + WATER.replace("O", "8").replace("H", "1"), "frame 1: species of atom 0 is '8'.*Properties=Z:I:1:pos"),
        (
            WATER + "1\nProperties=pos:R:3:species:I:1 e=1\n0 0 0 8\n",
            "frame 1: species of atom 0 is '8', not an element symbol; if it is an atomic number",
        ),
        (WATER + WATER.replace("O", "X"), "frame 1: unknown atomic number 0"),
        (WATER + WATER.replace("O 0", "O zero"), "frame 1 cannot be read .ValueError"),
        (WATER + WATER.replace("O 0", "O nan"), "frame 1: coordinates are NaN or infinite"),
        (WATER + WATER.replace("O 0", "O 1e300"), "frame 1: coordinates are NaN or infinite"),
        (WATER + WATER.replace("e=1.5", 'e="1.5 2"'), r"frame 1: e has shape \(2,\), expected one number"),
        (WATER + WATER.replace("e=1.5", "e"), "frame 1: e is .*True.*, expected one number"),
        (WATER + WATER.replace("e=1.5", "e=1.5 Properties=species:S:1"), "frame 1: atom 0 has 4 columns, expected 1"),
        (WATER + "2\ne=1 Properties=species:S:1\nO\nH\n", "frame 1: all atoms have the same position"),
        (
            WATER + WATER.replace("e=1.5", "e=1.5 Properties=nonsense"),
            "frame 1: Properties=nonsense; expected NAME:TYPE:COL",
        ),
        (WATER + WATER.replace("e=1.5", "water in vacuum"), r"frame 1 lacks the key 'e' .*found: in, vacuum, water\)"),
        (WATER + WATER.replace("e=1.5", ""), r"frame 1 lacks the key 'e' of 'a' \(keys found: none\)"),
        (WATER + "VEC1 9 0 0\nVEC2 0 9 0\nVEC3 0 0 9\n", "frame 1: expected the number of atoms, found 'VEC1 9 0 0'"),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.xyz"
    path.write_text(text)
    fails(path, message, "a=e@eV")


def test_atomic_numbers_and_labels_have_columns_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.xyz"
    numbers = "2\nProperties=Z:I:1:pos:R:3 e=1.5\n8 0 0 0\n1 0 0 1\n"
    both = "2\nProperties=species:S:1:Z:I:1:pos:R:3 e=1.5\nO1 8 0 0 0\nH2 1 0 0 1\n"
    labels = "2\nProperties=species:S:1:label:S:1:pos:R:3 e=1.5\no O1 0 0 0\nH H2 0 0 1\n"
    path.write_text(numbers + both + labels)
    assert ExtXYZ(path, ["a=e@eV"])._data.z.tolist() == [8, 1] * 3


@pytest.mark.parametrize("empty", ['note=""', "note = ''", 'note="" list=[1,2]'])
def test_an_empty_string_does_not_swallow_what_follows(tmp_path: Path, empty: str) -> None:
    path = tmp_path / "mine.xyz"
    path.write_text(WATER.replace("e=1.5", f'other=\'a="" b\' {empty} e=1.5 pbc="F F F"'))
    (frame,) = frames_of_text(path)
    assert frame.values["note"] == ""
    assert frame.values["other"] == 'a="" b'
    assert frame.values["e"] == 1.5


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.xyz"
    path.write_bytes(b"\xff\xfe\x00\x80" * 100)
    fails(path, "frame 0 cannot be read .UnicodeDecodeError")
    path = tmp_path / "mine.db"
    path.write_text(WATER)
    fails(path, "cannot be read .DatabaseError")
    with sqlite3.connect(tmp_path / "mine_too.db") as connection:
        connection.execute("CREATE TABLE other (id INTEGER)")
    before = (tmp_path / "mine_too.db").read_bytes()
    fails(tmp_path / "mine_too.db", "not an ASE database, it has no table of systems")
    assert (tmp_path / "mine_too.db").read_bytes() == before
    (tmp_path / "empty.db").touch()
    fails(tmp_path / "empty.db", "not an ASE database")
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_damaged_database_is_refused(tmp_path: Path) -> None:
    path = database(tmp_path / "mine.db", frames(500))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    fails(path, "cannot be read .DatabaseError")
    path.write_bytes(content)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET positions = x'0102' WHERE id = 4")
    fails(path, "frame 3 cannot be read")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM systems")
    fails(path, "empty; expected rows")


def test_database_row_with_wrong_counts_is_refused(tmp_path: Path) -> None:
    path = database(tmp_path / "mine.db", frames())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET numbers = x'01000000' WHERE id = 1")
    fails(path, r"frame 0: 1 atomic numbers and positions of shape \(3, 3\)")


def test_missing_file_is_named(tmp_path: Path) -> None:
    fails(tmp_path / "mine.xyz", "no such file; expected an extended-XYZ file or an ASE database")
    fails(tmp_path, "is a folder; expected an extended-XYZ file")


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "no level of theory given"),
        (["dz"], "malformed level 'dz'"),
        ("dz", "malformed level 'dz'"),
        ([DZ, DZ], "fidelity 'dz' is defined 2 times"),
        (["dz=dft_energy@furlong"], "unknown energy unit 'furlong'"),
    ],
)
def test_wrong_levels_are_refused(mine: Path, levels: Any, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        ExtXYZ(mine, levels)


def test_unknown_fidelity_is_refused(mine: Path) -> None:
    with pytest.raises(MFPyGError, match=r"unknown fidelity of mine.xyz 'dzz' .*did you mean 'dz'"):
        ExtXYZ(mine, [DZ], ["dzz"])


# By name


@pytest.mark.parametrize("kind", ["xyz", "db", "dat"])
def test_specification_opens_the_file(tmp_path: Path, kind: str) -> None:
    from mfpyg.datasets.spec import open_dataset

    path = (database if kind == "db" else written)(tmp_path / f"mine.{kind}", frames())
    start = f"xyz:{path}" if kind == "dat" else str(path)
    spec = DatasetSpec.parse(f"{start}:{DZ}:mp2=hf+corr?@Hartree")
    dataset = open_dataset(spec, ["mp2"])
    assert type(dataset) is ExtXYZ
    assert dataset.fidelities == ("dz", "mp2")
    expected = [(a.info["hf"] + a.info["corr"]) * HARTREE for a in frames()]
    np.testing.assert_allclose(energies(dataset)[:, 1], expected, rtol=1e-12)
    assert open_dataset(DatasetSpec.parse(str(spec))).processed_paths == dataset.processed_paths
    assert ExtXYZ(path, spec.levels).processed_paths == dataset.processed_paths


@contextmanager
def kept_locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def test_a_database_that_is_written_to_is_locked_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(tmp_path / "mine.db", frames())
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.1))  # instead of 5 s
    with kept_locked(path), pytest.raises(UnreadableError, match=r"mine\.db: cannot be read \(database is locked\)"):
        list(frames_of_database(path))
    assert len(list(frames_of_database(path))) == 7


_KILLED = """
import os, sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("PRAGMA cache_size = 1")
base.execute("BEGIN")
for i in range(200):
    base.execute("INSERT INTO systems (unique_id, data) VALUES (?, ?)", (str(i), "x" * 5000))
os.kill(os.getpid(), 9)
"""


def test_a_database_whose_writer_was_killed_says_how_to_repair_it(tmp_path: Path) -> None:
    path = database(tmp_path / "mine.db", frames())
    subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    with pytest.raises(UnreadableError, match=r"stopped while writing.*`ase db`"):
        list(frames_of_database(path))
    subprocess.run([sys.executable, "-m", "ase", "db", str(path)], check=True, capture_output=True)
    assert len(list(frames_of_database(path))) == 7


@pytest.mark.parametrize("kind", ["xyz", "db"])
def test_a_single_number_may_have_axes(mine: Path, tmp_path: Path, kind: str) -> None:
    images = frames()
    for atoms in images:
        atoms.info["dft_energy"] = np.full((1, 1), atoms.info["dft_energy"])
    if kind == "xyz":
        path = written(tmp_path / "axes.xyz", images)
        assert 'dft_energy="_JSON [[' in path.read_text()
    else:
        path = tmp_path / "axes.db"
        with ase.db.connect(path) as base:  # as SchNetPack writes them
            for atoms in images:
                forces = atoms.arrays["dft_forces"][None]
                base.write(atoms, data={"dft_energy": atoms.info["dft_energy"][0], "dft_forces": forces})
    found = ExtXYZ(path, [DZ], root=tmp_path / "root")
    expected = ExtXYZ(mine, [DZ], root=tmp_path / "expected")
    assert torch.equal(found._data.energy, expected._data.energy)
    assert torch.equal(found._data.forces, expected._data.forces)
