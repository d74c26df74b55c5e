"""The pool of a growth, and what is written about its geometries."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from mfpyg.datasets.frames import frame_of_atoms
from mfpyg.growth.frames import Assignment, Pool, frame_text, n_validation, read_assignment, write_frames


def pool_of(symbols: list[str], share: float = 0.1, seed: int = 0) -> Pool:
    frames = [frame_of_atoms(Atoms(one, np.eye(3)[: len(Atoms(one))]), n) for n, one in enumerate(symbols)]
    return Pool(frames, share, seed)


@pytest.mark.parametrize(
    ("n", "share", "number"),
    [(400, 0.1, 40), (401, 0.1, 41), (100, 0.1, 10), (40, 0.1, 10), (20, 0.1, 5), (20, 0.4, 8), (2, 0.1, 1)],
)
def test_number_of_validation(n: int, share: float, number: int) -> None:
    """A share, or ten if these are at most a quarter, of which standard deviations are calibrated."""
    assert n_validation(n, share) == number


@pytest.mark.parametrize("seed", range(5))
def test_parts(seed: int) -> None:
    symbols = ["CO"] * 20 + ["H2"] * 19 + ["ClH"]
    pool = pool_of(symbols, seed=seed)
    assert sorted([*pool.train, *pool.val]) == list(range(40))
    assert len(pool.val) == 10
    assert 39 in pool.first  # the only one with chlorine
    assert pool.train[: len(pool.first)] == pool.first
    assert {z for number in pool.first for z in pool.frames[number].z} == {1, 6, 8, 17}
    assert len(pool.first) <= 3
    assert [pool.part(n) for n in (pool.val[0], pool.train[0])] == ["val", "train"]
    again, other = pool_of(symbols, seed=seed), pool_of(symbols, seed=seed + 1)
    assert (again.train, again.val) == (pool.train, pool.val)
    assert other.val != pool.val


def test_assignment_survives_its_file(tmp_path: Path) -> None:
    pool, assignment = pool_of(["CO", "H2", "CO", "O2"]), Assignment()
    assignment.add([2, 0], ["a"])
    assignment.add([3, 2], ["b", "a"])
    assert assignment.levels == {2: ("a", "b"), 0: ("a",), 3: ("b", "a")}
    assert assignment.numbers_at("b") == [2, 3]
    pool.write(tmp_path / "new" / "frames.xyz", assignment)
    assert read_assignment(tmp_path / "new" / "frames.xyz") == assignment
    frames = ase.io.read(tmp_path / "new" / "frames.xyz", ":")
    assert [str(frame.symbols) for frame in frames] == ["CO", "CO", "O2"]
    assert [frame.info["levels"] for frame in frames] == ["a b", "a", "b a"]


def test_frames_keep_their_values(tmp_path: Path) -> None:
    """Positions to the last digit, charge and spin; keys of a growth with another meaning are left out."""
    atoms = Atoms(
        "CO", [[0.1234567890123, 0, 0], [0, 0, 1 / 3]], info={"charge": -1, "multiplicity": 2, "levels": "dz"}
    )
    atoms.info.update(split="train", frame=7, molecule="[C-]=O")
    atoms.set_initial_magnetic_moments([1, 0])
    write_frames(tmp_path / "a.xyz", [frame_text(frame_of_atoms(atoms))])
    found = ase.io.read(tmp_path / "a.xyz")
    assert np.array_equal(found.positions, atoms.positions)
    assert found.info == {"charge": -1, "multiplicity": 2, "molecule": "[C-]=O"}
    assert found.get_initial_magnetic_moments().tolist() == [1, 0]
