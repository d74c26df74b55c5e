"""Positions on their way into the store: those far from the origin keep their digits, whatever file they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mfpyg.datasets import ExtXYZ, UnionDataset
from mfpyg.datasets.chunks import Chunk
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.minichno import MiniCHNO
from mfpyg.datasets.pyanitools import Pyanitools

LEVEL = ["dz=dft_energy@eV"]


def _water(number: int = 0) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=number)
    atoms.info["dft_energy"] = -2000.0 - number
    return atoms


def _extxyz(folder: Path, images: list[Atoms]) -> ConformationDataset:
    ase.io.write(folder / "mine.xyz", images, format="extxyz")
    return ExtXYZ(folder / "mine.xyz", LEVEL, root=folder)


def _database(folder: Path, images: list[Atoms]) -> ConformationDataset:
    with ase.db.connect(folder / "mine.db") as base:
        for atoms in images:
            base.write(atoms, key_value_pairs=atoms.info)
    return ExtXYZ(folder / "mine.db", LEVEL, root=folder)


def _pyanitools(folder: Path, images: list[Atoms], dtype: str = "f8") -> ConformationDataset:
    with h5py.File(folder / "mine.h5", "w") as file:
        group = file.create_group("water")
        group["species"] = np.array([b"O", b"H", b"H"])
        group["coordinates"] = np.stack([atoms.positions for atoms in images]).astype(dtype)
        group["dft_energy"] = np.array([atoms.info["dft_energy"] for atoms in images])
    return Pyanitools(folder / "mine.h5", LEVEL, root=folder)


def _release(folder: Path, images: list[Atoms]) -> ConformationDataset:
    with h5py.File(folder / "mine.h5", "w") as file:
        group = file.create_group("H2O1")
        group["atomic_numbers"] = images[0].numbers
        group["coordinates"] = np.stack([atoms.positions for atoms in images])
        group["wb97x_dz.energy"] = np.array([atoms.info["dft_energy"] for atoms in images])
    return MiniCHNO(folder, ["dz"], file=folder / "mine.h5")


WAYS = {"extxyz": _extxyz, "db": _database, "pyanitools": _pyanitools, "release": _release}


def _between(pos: np.ndarray) -> np.ndarray:
    """Vectors from the first atom to all, (n, 3)."""
    return pos - pos[:1]


@pytest.mark.parametrize("way", WAYS)
def test_molecules_far_from_the_origin_keep_their_shape(tmp_path: Path, way: str) -> None:
    images = [_water(number) for number in range(3)]
    for atoms, by in zip(images, (0.0, 20_000.0, -1e5), strict=True):
        atoms.positions += by
    dataset = WAYS[way](tmp_path, images)
    for one, atoms in zip(dataset, images, strict=True):
        assert one.pos.dtype == torch.float32
        np.testing.assert_allclose(_between(one.pos.numpy()), _between(atoms.positions), atol=2e-7)
    np.testing.assert_array_equal(dataset[0].pos.numpy(), images[0].positions.astype(np.float32))  # as it is given
    union = UnionDataset(tmp_path / "union", [dataset])
    assert torch.equal(union._data.pos, dataset._data.pos)


def test_positions_in_float32_are_kept_to_the_bit(tmp_path: Path) -> None:
    """What such a file lacks can't be had back, and its fingerprint stays."""
    images = [_water()]
    images[0].positions += 20_000
    dataset = _pyanitools(tmp_path, images, "f4")
    np.testing.assert_array_equal(dataset[0].pos.numpy(), images[0].positions.astype(np.float32))


@pytest.mark.parametrize("way", ["extxyz", "db"])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True)])
def test_crystals_unwrapped_far_are_the_same_crystals(tmp_path: Path, way: str, pbc: tuple[bool, bool, bool]) -> None:
    crystal, random = bulk("C", cubic=True), np.random.default_rng(0)
    crystal.rattle(0.1, seed=0)
    crystal.pbc, crystal.info["dft_energy"] = pbc, -1000.0
    far = crystal.copy()
    far.positions += (random.integers(-1000, 1001, (len(far), 3)) * pbc) @ far.cell.array + [0, 5000, 0]
    near, moved = WAYS[way](tmp_path, [crystal, far])
    assert torch.equal(moved.cell, near.cell)
    between = _between(moved.pos.double().numpy()) - _between(crystal.positions)
    images = between @ np.linalg.inv(crystal.cell.array)
    np.testing.assert_allclose(images, np.rint(images), atol=1e-6)
    assert (np.rint(images)[:, ~np.array(pbc)] == 0).all()
    assert float(moved.pos.abs().max()) < 10


def test_the_case_of_molecules_20_000_angstrom_away(data_folder: Path, tmp_path: Path) -> None:
    file = data_folder.parent / "cases" / "far_from_origin.xyz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    dataset = ExtXYZ(file, ["dz=dft_energy,dft_forces@eV"], root=tmp_path)
    for one, atoms in zip(dataset, ase.io.iread(file, format="extxyz"), strict=True):
        np.testing.assert_allclose(_between(one.pos.numpy()), _between(atoms.positions), atol=1e-6)


def _chunk(pos: np.ndarray) -> Chunk:
    n = len(pos)
    return Chunk(
        n_atoms=np.array([n]), z=np.ones(n, np.int64), pos=pos, labels={}, molecule=np.zeros(1, np.int64), names=["H"],
        conformation=np.zeros(1, np.int64),
    )  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda pos: pos, lambda pos: pos.astype(">f8"), lambda pos: pos.astype(np.longdouble)]
)
def test_checked_positions_are_float32(make: Callable[[np.ndarray], np.ndarray]) -> None:
    chunk = _chunk(make(np.array([[20_000.0, 0, 0], [20_000.123456789, 0, 0]])))
    chunk.check(str)
    assert chunk.pos.dtype == np.float32
    np.testing.assert_allclose(chunk.pos[1, 0] - chunk.pos[0, 0], 0.123456789, atol=1e-8)
