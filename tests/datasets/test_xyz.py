"""Plain frames of extended XYZ are what ASE reads, type for type."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from mfpyg.datasets import frames as frames_module
from mfpyg.datasets.frames import Frame, frame_of_atoms, frames_of_text

ATOMS = "2\n{}\nO 0.1 -2.5e-3 7 {}\nh 1 2 3 {}\n"
PLAIN = [
    ("Properties=species:S:1:pos:R:3", ""),
    ("molecule=water", ""),
    ("Properties=species:S:1:pos:R:3:forces:R:3 energy=-76.25", "1 2 3"),
    ("energy=-76 Properties=species:S:1:pos:R:3:my:R:1:cc_forces:R:3 split=1", "4 1 2 nan"),
    ('Lattice="5 0 0 1 6 0 0 2 7" Properties=species:S:1:pos:R:3 pbc="T F T"', ""),
    ('Lattice="5.5 0 0 0 6 0 0 0 7" name="two words" flags="T F" a=1,2 free_energy=-1.5', ""),
    ("pbc=T Lattice=5,0,0,0,6,0,0,0,7", ""),
    ('pbc="0 1 0" Lattice="5 0 0 0 6 0 0 0 7" uid=a1', ""),
]
LESS_PLAIN = [
    ("water at rest", ""),
    ('stress="1 2 3 2 4 5 3 5 6" energy=1', ""),
    ('dipole="1 2 3"', ""),
    ("Properties=species:S:1:pos:R:3:tags:I:1", "4"),
    ("Properties=species:S:1:pos:R:3:move_mask:L:1", "T"),
    ("Properties=species:S:1:pos:R:3:charge:R:1", "0.5"),
    ("Properties=species:S:1:pos:R:3:forces:R:3 forces=x", "1 2 3"),
    ("Properties=pos:R:3:species:S:1:Z:I:1", None),
    (r'name="a\"b" x={1 2 3} y=[1, 2]', ""),
    ('json="_JSON [[1, 2], [3, 4]]"', ""),
    ("a = 1", ""),
]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return type(two) is type(one) and one.dtype == two.dtype and np.array_equal(one, two, equal_nan=True)
    return type(one) is type(two) and one == two


def by_ase(text: str) -> Frame:
    return frame_of_atoms(ase.io.read(io.StringIO(text), format="extxyz"))


@pytest.mark.parametrize(("comment", "columns"), PLAIN + LESS_PLAIN)
def test_frame_is_that_of_ase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comment: str, columns: str | None
) -> None:
    text = ATOMS.format(comment, columns, columns)
    if columns is None:
        text = f"2\n{comment}\n0 0 0 O 8\n1 1 1 H 1\n"
    expected = by_ase(text)
    (tmp_path / "one.xyz").write_text(text, encoding="utf-8")
    if (comment, columns) in PLAIN:  # nothing is left for ASE
        monkeypatch.delattr(frames_module.ase.io, "iread")
    (found,) = frames_of_text(tmp_path / "one.xyz")
    for name in ("z", "pos", "cell", "pbc"):
        assert same(getattr(found, name), getattr(expected, name)), name
    assert found.columns == expected.columns
    assert found.values.keys() == expected.values.keys()
    for key, value in expected.values.items():
        assert same(found.values[key], value), key


def test_results_that_ase_has_written_are_read_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = []
    for n in (1, 2, 7):
        atoms = ase.Atoms(random.choice([1, 6, 8], n), random.normal(size=(n, 3)), info={"name": "x", "weight": 2.5})
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * n, forces=random.normal(size=(n, 3)))
        images.append(atoms)
    ase.io.write(tmp_path / "some.xyz", images, format="extxyz")
    for found, atoms in zip(frames_of_text(tmp_path / "some.xyz"), images, strict=True):
        assert found.values["energy"] == atoms.get_potential_energy()
        assert found.values["forces"] == pytest.approx(atoms.get_forces(), abs=1e-8)
        assert found.columns == {"forces"}
        assert found.values["weight"] == 2.5
