"""What a frame came with is in the predictions as ASE reads them, or it is said that it is not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mfpyg.datasets.frames import Frame, frame_of_atoms, frames_of
from mfpyg.inference.files import as_extxyz, output_of
from mfpyg.inference.frames import FramePrediction, Values

ENERGY = -1.25


def written(frames: Iterable[Frame], target: Path, fidelities: Sequence[str] = ("cc",)) -> dict[str, str]:
    """Write frames with predictions, as mfpyg-predict does, and say what is lost."""
    output = output_of(fidelities, "eV")
    found = [
        FramePrediction(
            frame, {name: Values(energy=ENERGY, forces=np.full((len(frame.z), 3), 0.5)) for name in fidelities}
        )
        for frame in frames
    ]
    target.write_text("".join(as_extxyz(found, output)), encoding="utf-8")
    return output.lost


def plain(value: Any) -> Any:
    """Arrays as lists, and NaN as something that is equal to itself."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return "NaN" if value != value else value


def kinds(value: Any) -> Any:
    """Of a value, which 1, 1.0 and True have different ones of."""
    if isinstance(value, dict):
        return {key: kinds(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [kinds(one) for one in value]
    return type(value)


def assert_same(found: Any, value: Any, what: str) -> None:
    if isinstance(found, np.ndarray):
        value = np.asarray(value)  # ASE makes arrays of lists of numbers, of one kind
    assert plain(found) == plain(value), what
    assert kinds(plain(found)) == kinds(plain(value)), what


def assert_kept(atoms: ase.Atoms, found: ase.Atoms, lost: dict[str, str]) -> None:
    assert found.get_potential_energy() == ENERGY
    assert (found.get_forces() == 0.5).all()
    assert (found.positions == atoms.positions).all()
    assert (found.numbers == atoms.numbers).all()
    assert (found.cell == atoms.cell).all()
    assert (found.pbc == atoms.pbc).all()
    assert found.info.keys() == atoms.info.keys() - lost.keys()
    assert found.arrays.keys() == {
        key for key in atoms.arrays if (f"{key} of the atoms" if key in atoms.info else key) not in lost
    }
    for key in found.info:
        assert_same(found.info[key], atoms.info[key], key)
    for key in found.arrays:
        assert_same(found.arrays[key], atoms.arrays[key].reshape(found.arrays[key].shape), key)


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", " ", ",", "1.5", "1e5", "-3", "T", "F F", "true", "nan", "inf", "_JSON 1", "_JSON", "a b", ' a"b ', "it's",
     "a\\", "\\\\", 'a\\"b', "x=y", "two\nlines", "a\r", "{a}", "[1, 2]", "ü α 水", "\ud800", "\u2028", "1_25", 'k="v',
     "pbc", "water", "gdb/s01:C2", "#"]
)  # fmt: skip
KEYS = st.sampled_from(
    ["name", "a-b", "config_type", "two words", 'quo"te', "a=b", "uid", "α", "virial", "back\\slash", "x,y"]
)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans()
ARRAYS = npst.arrays(
    st.sampled_from([np.int64, np.int32, np.uint8, np.float64, np.float32, np.bool_]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
WORDS = npst.arrays("U4", npst.array_shapes(max_dims=2, max_side=3), elements=st.text("ab ü\"'", max_size=4))
NESTED = st.recursive(
    TEXTS | NUMBERS | st.none(), lambda one: st.lists(one, max_size=3) | st.dictionaries(TEXTS, one, max_size=3),
    max_leaves=6,
)  # fmt: skip
VALUES = (
    TEXTS | NUMBERS | ARRAYS | WORDS | NESTED | st.none() | st.sampled_from([np.float32(0.1), np.int32(3), np.True_])
)

N = 3
COLUMNS = st.one_of(
    npst.arrays(
        st.sampled_from([np.int64, np.int32, np.uint8, np.float64, np.float32, np.bool_]),
        npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3).map(lambda shape: (N, *shape)),
    ),
    npst.arrays("U5", st.sampled_from([(N,), (N, 2)]), elements=st.text("ab ü\"'=_1", max_size=5)),
)
NAMES = st.sampled_from(["site", "a0", "a1", "a", "label_1", "pos1", "two words", "α", "b:c", "hirshfeld"])


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(NAMES, COLUMNS, max_size=4), st.booleans())
@settings(max_examples=int(os.environ.get("MFPYG_EXAMPLES", "200")), deadline=None)
def test_what_a_frame_came_with_is_read_back(
    info: dict[str, Any], arrays: dict[str, np.ndarray], periodic: bool
) -> None:
    atoms = ase.Atoms("COH", np.arange(9).reshape(3, 3) / 7, info=info)
    if periodic:
        atoms.set_cell([[1 / 3, 0, 0], [0, 4, 1e-12], [0, 0, 5]])
        atoms.set_pbc([True, False, True])
    for name, array in arrays.items():
        atoms.new_array(name, array)
    with tempfile.TemporaryDirectory() as folder:
        once, twice = Path(folder) / "once.xyz", Path(folder) / "twice.xyz"
        lost = written([frame_of_atoms(atoms)], once)
        first = ase.io.read(once)
        assert_kept(atoms, first, lost)
        again = written(frames_of(once), twice)  # of what extended XYZ has held, nothing is lost
        assert {*again} == {"energy", "forces"}
        assert_kept(first, ase.io.read(twice), {})


def test_only_what_the_format_can_not_hold_is_lost(tmp_path: Path) -> None:
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])
    good = {
        "empty": "", "number": "1.5", "truth": "T", "lines": "a\nb", "slash": "a\\", "none": None, "one": np.ones(1),
        "two": np.ones((2, 2), int), "nothing": np.ones(0), "list": ["a", None, {"b": [1, "c"]}],
        "bools": [True, False], "single": [[1.0]], "huge": 2**70,
        "nested": {"a": {"b": 1.5}, "ü": "x = \"y\""}, "nan": np.array([np.nan, 1.0]), "two words": 1,
    }  # fmt: skip
    bad = {"complex": 1j, "ragged": [[1], [1, 2]], "flat": np.ones((0, 3)), "uid": 5, "virial": "none"}
    atoms.info = {**good, **bad}
    lost = written([frame_of_atoms(atoms)], tmp_path / "out.xyz")
    assert {*lost} == {*bad}
    assert_kept(atoms, ase.io.read(tmp_path / "out.xyz"), lost)


def full(magmoms: tuple[int, ...] = (2, 3)) -> ase.Atoms:
    """With everything that ASE knows by name."""
    n, random = 2, np.random.default_rng(0)
    atoms = ase.Atoms("CO", random.normal(size=(n, 3)), momenta=random.normal(size=(n, 3)), tags=[1, 2])
    atoms.set_masses([13.003, 15.995])
    atoms.set_initial_charges([0.1, -1e-9])
    atoms.set_initial_magnetic_moments(random.normal(size=magmoms))
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.0, free_energy=-4.0, forces=random.normal(size=(n, 3)), dipole=random.normal(size=3),
        charges=random.normal(size=n), magmoms=random.normal(size=n), magmom=0.3,
    )  # fmt: skip
    return atoms


@pytest.mark.parametrize("name", ["in.traj", "in.db"])
def test_what_ase_knows_by_name_is_kept(tmp_path: Path, name: str) -> None:
    atoms = full((2,) if name == "in.db" else (2, 3))  # the former holds no vectors of them
    ase.io.write(tmp_path / name, atoms)
    lost = written(frames_of(tmp_path / name), tmp_path / "out.xyz")
    assert {*lost} == {"energy", "free_energy", "forces"}
    found = ase.io.read(tmp_path / "out.xyz")
    assert_kept(atoms, found, lost)
    assert found.calc.results.keys() == atoms.calc.results.keys() - {"free_energy"}
    for key in ("dipole", "charges", "magmoms", "magmom"):
        assert_same(found.calc.results[key], atoms.calc.results[key], key)


def test_with_several_fidelities_results_are_kept(tmp_path: Path) -> None:
    atoms = full()
    ase.io.write(tmp_path / "in.traj", atoms)
    assert not written(frames_of(tmp_path / "in.traj"), tmp_path / "out.xyz", ["dz", "cc"])
    found = ase.io.read(tmp_path / "out.xyz")
    for key, value in atoms.calc.results.items():
        assert_same(found.calc.results[key], value, key)
    assert found.info["cc_energy"] == ENERGY


def test_columns_that_ase_would_confuse_are_not_written(tmp_path: Path) -> None:
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])
    for name in ("forces0", "pos2", "charge", "move_mask", "magmom", "Z"):
        atoms.arrays[name] = np.ones(2)
    lost = written([frame_of_atoms(atoms)], tmp_path / "out.xyz")
    assert {*lost} == {*atoms.arrays} - {"numbers", "positions"}
    assert_kept(atoms, ase.io.read(tmp_path / "out.xyz"), lost)


def test_a_column_and_a_value_may_have_one_name(tmp_path: Path) -> None:
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], info={"weight": 2.5})
    atoms.new_array("weight", np.array([0.1, 0.2]))
    ase.io.write(tmp_path / "in.xyz", atoms)
    lost = written(frames_of(tmp_path / "in.xyz"), tmp_path / "out.xyz")
    assert not lost
    assert_kept(atoms, ase.io.read(tmp_path / "out.xyz"), {})


def test_constraints_are_said_to_be_lost(tmp_path: Path) -> None:
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], constraint=FixAtoms([0]))
    for name in ("in.xyz", "in.traj", "in.db"):
        ase.io.write(tmp_path / name, [atoms] if name != "in.db" else atoms)
        assert written(frames_of(tmp_path / name), tmp_path / "out.xyz") == {"constraints": "not read, frame 0"}


def test_a_space_group_is_written_as_its_symbol(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "in.cif", ase.build.bulk("Si", cubic=True))
    (frame,) = frames_of(tmp_path / "in.cif")
    lost = written([frame], tmp_path / "out.xyz")
    assert ase.io.read(tmp_path / "out.xyz").info["spacegroup"] == frame.values["spacegroup"].symbol
    assert "as its symbol" in lost["spacegroup"]
