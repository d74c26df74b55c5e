"""What a job is made from: charge, multiplicity, cell, and the key that its labels are stored under."""

from __future__ import annotations

from typing import Any

import ase
import numpy as np
import pytest

from mfpyg.datasets.frames import frame_of_atoms
from mfpyg.labeling.electrons import multiplicity_of
from mfpyg.labeling.jobs import LabelJob, job_of
from mfpyg.labeling.level import LabelLevel
from mfpyg.labeling.program import LabelError


@pytest.mark.parametrize(
    ("values", "n_electrons", "expected"),
    [
        ({}, 10, 1),
        ({"multiplicity": 3}, 10, 3),
        ({"multiplicity": 2}, 9, 2),
        ({"spin": 0}, 10, 1),
        ({"spin": 1}, 9, 2),
        ({"multiplicity": 3, "spin": 0}, 16, 3),
        ({"initial_magmoms": np.array([1.0, 1.0])}, 16, 3),
        ({"initial_magmoms": np.array([0.3, 0.1])}, 16, 1),
        ({"initial_magmoms": np.zeros(2)}, 16, 1),
    ],
)
def test_multiplicity(values: dict[str, Any], n_electrons: int, expected: int) -> None:
    assert multiplicity_of(values, n_electrons) == expected


@pytest.mark.parametrize(
    ("values", "n_electrons", "message"),
    [
        ({}, 9, "odd number of electrons, 9, and no multiplicity; state it as 'multiplicity'"),
        ({"initial_magmoms": np.zeros(2)}, 9, "odd number of electrons"),
        ({"multiplicity": 1}, 9, "multiplicity is 1 with 9 electrons, expected an even multiplicity"),
        ({"multiplicity": 2}, 10, "expected an odd multiplicity"),
        ({"spin": 1}, 10, "spin is 1 with 10 electrons, expected an even number of unpaired electrons"),
        ({"spin": 0.5}, 9, "expected an odd number of unpaired electrons"),
        ({"multiplicity": 5}, 2, "multiplicity is 5 with 2 electrons"),
        ({"multiplicity": "two"}, 9, "multiplicity is 'two'"),
        ({"multiplicity": -1}, 10, "multiplicity is -1"),
        ({}, -1, "-1 electrons; check its charge"),
    ],
)
def test_multiplicity_is_not_guessed(values: dict[str, Any], n_electrons: int, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        multiplicity_of(values, n_electrons)


def test_programs_without_spin_do_not_need_it() -> None:
    assert multiplicity_of({}, 9, needs_spin=False) == 2


LEVEL = LabelLevel.parse("a=ase:lj:EF")


def job(atoms: ase.Atoms, level: LabelLevel = LEVEL) -> LabelJob:
    return job_of(frame_of_atoms(atoms), level, level.open())


def test_key_depends_on_all_that_labels_depend_on_and_nothing_else() -> None:
    water = ase.Atoms("OH2", [[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    moved, ion, other, box = water.copy(), water.copy(), ase.Atoms("SH2", water.positions), water.copy()
    moved.positions[0, 0] += 1e-12
    ion.info["charge"] = 1
    ion.info["multiplicity"] = 2
    triplet = ase.Atoms("OH2", water.positions, info={"multiplicity": 3})
    box.cell = [9, 9, 9]
    named = ase.Atoms("OH2", water.positions, info={"name": "water", "energy": 3.0})
    crystal = ase.Atoms("OH2", water.positions, cell=[9, 9, 9], pbc=True)
    different = [job(atoms).key for atoms in (water, moved, ion, other, triplet, crystal)]
    different += [job(water, LabelLevel.parse(text)).key for text in ("a=ase:lj:E", "a=ase:morse:EF")]
    assert len(set(different)) == len(different)
    same = [job(water), job(box), job(named), job(water, LabelLevel.parse("b=ase:lj:EF"))]
    assert {one.key for one in same} == {different[0]}


def test_jobs_travel_as_text() -> None:
    before = job(ase.Atoms("H2", [[0, 0, 0.1], [0, 0, 0.8]], cell=[5, 5, 5], pbc=[True, False, True]))
    assert LabelJob.from_line(before.as_line()) == before
    atoms = before.atoms()
    assert atoms.positions.tolist() == before.positions
    assert atoms.pbc.tolist() == [True, False, True]


def test_properties_that_are_not_defined_are_left_out() -> None:
    level = LabelLevel.parse("a=ase:lj:EFS")
    assert job(ase.Atoms("H2", [[0, 0, 0], [0, 0, 1]]), level).letters == "EF"
    assert job(ase.Atoms("H", cell=[3, 3, 3], pbc=True), level).letters == "EFS"


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (ase.Atoms(), "no atoms"),
        (ase.Atoms("H", [[0, np.nan, 0]]), "positions are not finite"),
        (ase.Atoms("H", pbc=True), "without the lattice vectors"),
        (ase.Atoms("H", cell=[1, 0, 0], pbc=[True, True, False]), "without the lattice vectors"),
        (ase.Atoms("H", info={"charge": 0.5}), "total charge is 0.5 e, expected a whole number"),
        (ase.Atoms("H", info={"charge": 2}), "-1 electrons"),
    ],
)
def test_frames_that_cannot_be_labelled(atoms: ase.Atoms, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        job(atoms)
