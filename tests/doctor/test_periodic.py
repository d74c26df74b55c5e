"""Periodic conformations: distances to images, forces within a cell, duplicates with their lattice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import get_distances
from scipy.spatial.transform import Rotation

from mfpyg.datasets import ExtXYZ
from mfpyg.doctor import View, diagnose
from mfpyg.doctor.distances import closest_images, followed
from mfpyg.units import EV_TO_KCAL_MOL

from .conftest import only

CELL = np.array([[4.5, 0, 0], [1.75, 4.25, 0], [-0.75, 1.5, 4.75]])
LEVEL = "dz=e,f@eV"


def opened(path: Path, images: Sequence[Atoms]) -> ExtXYZ:
    ase.io.write(path, list(images), format="extxyz")
    return ExtXYZ(path, [LEVEL])


def springs(n: int, pbc: bool | Sequence[bool] = True, sign: float = 1.0, wrap: bool = True) -> list[Atoms]:
    """Conformations of six carbon atoms bound to their places by springs, eV and Å, some through a boundary."""
    random = np.random.default_rng(0)
    places = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5], [0.5, 0, 0.5]]) @ CELL
    stiff = np.array([[3.0], [5], [4], [7], [2], [6]])
    found = []
    for _ in range(n):
        moved = 0.05 * random.normal(size=(6, 3))
        moved -= (stiff * moved).sum(axis=0) / stiff.sum()  # no sum of forces
        atoms = Atoms("C6", places + moved, cell=CELL, pbc=pbc)
        atoms.info["e"] = -6000 + float((stiff * moved**2).sum()) / 2
        atoms.arrays["f"] = -sign * stiff * moved
        if wrap:
            atoms.wrap()
        found.append(atoms)
    return found


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False)])
@pytest.mark.parametrize("skew", [0, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_closest_images_are_those_of_ase(pbc: tuple[bool, ...], skew: int, scale: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        cell = scale * (CELL + random.normal(size=(3, 3)))
        cell[1] += skew * cell[0]
        z, pos = random.choice([1, 6, 8], 7), random.random((7, 3)) @ cell + 2 * random.normal(size=(7, 3))
        lattice = np.where(np.array(pbc)[:, None], cell, 0)
        ratio, distance, i, j = closest_images(pos, z, lattice)
        radii = covalent_radii[z][:, None] + covalent_radii[z]
        every = get_distances(pos, cell=lattice, pbc=pbc)[1]
        lengths = np.linalg.norm((np.array(list(np.ndindex(15, 15, 15))) - 7) @ lattice, axis=1)
        np.fill_diagonal(every, lengths[lengths > 1e-6].min())
        assert ratio == pytest.approx((every / radii).min(), rel=1e-6)
        assert distance == pytest.approx(every[i, j], rel=1e-6)


def test_atom_too_close_to_its_image_and_through_a_boundary(tmp_path: Path) -> None:
    images = springs(20)
    images[3].positions[:2] = [0.1, 0, 0], [4.1, 0, 0]
    images[7].set_cell([[0.4, 0, 0], [0, 6, 0], [0, 0, 6]])
    images[7].positions[:, 0] = 0
    images[7].positions[:, 1:] = [[0, 0], [2, 0], [4, 0], [0, 2], [2, 2], [4, 4]]
    finding = only(diagnose(opened(tmp_path / "mine.xyz", images)), "atoms too close", "certain")
    assert set(finding.rows) == {3, 7}
    assert "2 conformations" in finding.evidence
    assert "C and C (images of atom 0) of C6 conformation 7 at 0.4 Å" in finding.evidence
    del images[7]
    finding = only(diagnose(opened(tmp_path / "other.xyz", images)), "atoms too close", "certain")
    assert "C and C (atoms 0 and 1, or images) of C6 conformation 3 at 0.5 Å" in finding.evidence
    for atoms in images:
        atoms.set_pbc(False)
    found = diagnose(opened(tmp_path / "none.xyz", images))
    assert "atoms too close" not in [f.check for f in found]


@pytest.mark.parametrize("pbc", [True, [True, True, False]])
def test_right_forces_in_a_cell_are_found_right(tmp_path: Path, pbc: bool | list[bool]) -> None:
    found = diagnose(opened(tmp_path / "mine.xyz", springs(60, pbc)))
    assert {f.check for f in found if f.severity != "note"} <= {"unit of energies", "reference energies"}
    assert not [f for f in found if f.check in ("energies against forces", "net torque")]
    note = only(found, "periodic conformations", "note")
    assert note.evidence.startswith("60 of 60 conformations are periodic, e.g. C6 conformation 0")


def test_gradients_in_a_cell_are_found(tmp_path: Path) -> None:
    finding = only(
        diagnose(opened(tmp_path / "m.xyz", springs(60, sign=-1))), "energies against forces", "certain", "dz"
    )
    assert "slope of ΔE against work -1" in finding.evidence


def test_conformations_in_cells_of_their_own_are_not_compared(tmp_path: Path) -> None:
    images = springs(60, sign=-1)
    for number, atoms in enumerate(images):
        atoms.set_cell(atoms.cell * (1 + 1e-4 * number))
    finding = only(diagnose(opened(tmp_path / "mine.xyz", images)), "energies against forces", "note", "dz")
    assert "only 0 pairs of conformations are near enough" in finding.evidence


def test_atoms_are_followed_through_boundaries() -> None:
    random = np.random.default_rng(0)
    lattice = CELL * [[1], [1], [0]]
    first = random.random((1, 5, 3)) @ CELL
    path = first + 0.1 * random.normal(size=(4, 5, 3))
    path[0] = first
    jumps = random.integers(-2, 3, (4, 5, 3)) @ lattice
    jumps[0] = 0
    np.testing.assert_allclose(followed(path + jumps, lattice), path, atol=1e-9)


def test_duplicates_have_one_lattice(tmp_path: Path) -> None:
    images = springs(30, wrap=False)
    turned = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    same, rotated, wider, flat, molecule = (images[i].copy() for i in (1, 2, 3, 4, 5))
    rotated.set_positions(rotated.positions @ turned + 1.0)
    rotated.set_cell(rotated.cell.array @ turned)
    wider.set_cell(wider.cell.array * 1.001)
    flat.set_pbc([True, True, False])
    molecule.set_pbc(False)
    same.positions += 0.25  # a translation of float32 numbers
    for atoms in (same, rotated, wider, flat, molecule):
        atoms.info["e"] += 1.0
    dataset = opened(tmp_path / "mine.xyz", [*images, same, rotated, wider, flat, molecule])
    found = diagnose(dataset)
    finding = only(found, "duplicated conformations", "suspect")
    assert "2 conformations repeat others (0 pairs identical, 2 up to rotation" in finding.evidence
    assert set(finding.rows) == {1, 30, 2, 31}
    difference = only(found, "contradicting labels", "certain", "dz").evidence
    assert f"{EV_TO_KCAL_MOL:.4g} kcal/mol" in difference


def test_one_atom_in_cells_of_several_sizes_is_no_duplicate(tmp_path: Path) -> None:
    images = []
    for number in range(40):
        atoms = Atoms("Cu", cell=(3.5 + 0.01 * (number % 30)) * np.eye(3), pbc=True)
        atoms.info["e"], atoms.arrays["f"] = -45000.0 + (number % 30) ** 2, np.zeros((1, 3))
        images.append(atoms)
    dataset = opened(tmp_path / "mine.xyz", images)
    finding = only(diagnose(dataset), "duplicated conformations", "suspect")
    assert "10 conformations repeat others (10 pairs identical" in finding.evidence
    assert np.isfinite(View(dataset).distances.closest).all()
