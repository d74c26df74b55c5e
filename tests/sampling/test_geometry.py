"""Bonds, close contacts, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mfpyg.doctor.geometry import SUSPICIOUS
from mfpyg.sampling.geometry import TOO_CLOSE, Bonds, Distinct, pair_distances, too_close


def test_closeness_is_judged_as_by_the_doctor() -> None:
    assert TOO_CLOSE == SUSPICIOUS
    for name in ("H2", "N2", "CO", "C2H2", "C6H6"):
        assert not too_close(molecule(name))
    assert too_close(Atoms("CH", [[0, 0, 0], [0, 0, 0.66]]))
    assert not too_close(Atoms("CH", [[0, 0, 0], [0, 0, 0.67]]))
    assert too_close(Atoms("CH", [[0, 0, 0], [0, 0, np.nan]]))
    assert not too_close(Atoms("He"))


def test_distances_are_to_the_nearest_image() -> None:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    expected = atoms.get_all_distances(mic=True)[np.triu_indices(len(atoms), 1)]
    np.testing.assert_allclose(pair_distances(atoms), expected)
    atoms.positions[1] += atoms.cell[0]
    np.testing.assert_allclose(pair_distances(atoms), expected)
    assert not too_close(atoms)


def test_vibrations_are_no_reactions() -> None:
    ethanol = molecule("CH3CH2OH")
    bonds, rng = Bonds(ethanol), np.random.default_rng(0)
    for _ in range(50):
        shaken = ethanol.copy()
        shaken.positions += 0.07 * rng.normal(size=shaken.positions.shape)
        assert not bonds.changed(shaken)


@pytest.mark.parametrize(
    ("atom", "by", "changed"),
    [
        ("H", 0.3, False),
        ("H", 0.6, True),  # broken
    ],
)
def test_bonds_break(atom: str, by: float, changed: bool) -> None:
    water = molecule("H2O")
    bonds = Bonds(water)
    bond = water.positions[1] - water.positions[0]
    water.positions[1] += by * bond / np.linalg.norm(bond)
    assert bonds.changed(water) == changed


def test_bonds_form() -> None:
    reference = Atoms("OHO", [[0, 0, 0], [0, 0, 0.97], [0, 0, 2.8]])
    bonds = Bonds(reference)
    shared, moved = reference.copy(), reference.copy()
    shared.positions[1, 2], shared.positions[2, 2] = 1.15, 2.4
    moved.positions[1, 2], moved.positions[2, 2] = 1.35, 2.4
    assert not bonds.changed(shared)
    assert bonds.changed(moved)


def test_duplicates_are_rotations_reflections_and_permutations() -> None:
    ethanol = molecule("CH3CH2OH")
    known = Distinct(0.01)
    assert known.add(ethanol)
    turned = ethanol.copy()
    turned.rotate(50, (1, 2, 3))
    turned.translate([1, 2, 3])
    mirrored = ethanol.copy()
    mirrored.positions[:, 0] *= -1
    hydrogen = np.flatnonzero(ethanol.numbers == 1)
    permuted = ethanol.copy()
    permuted.positions[hydrogen] = ethanol.positions[hydrogen[::-1]]
    assert not any(known.add(atoms) for atoms in (turned, mirrored, permuted))
    moved = ethanol.copy()
    moved.rattle(0.05, seed=1)
    assert known.add(moved)
    assert not known.add(moved)
    assert known.add(molecule("CH3OCH3"))  # an isomer
    assert known.add(Atoms("He"))
    assert not known.add(Atoms("He"))
