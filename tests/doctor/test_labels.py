"""Checks of stresses, Hessians, dipoles and charges: clean data pass, and planted defects are found."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import atomic_masses
from torch import Tensor

from mfpyg.datasets import ANI1x, ConformationDataset, ExtXYZ, MiniCHNO
from mfpyg.doctor import CHECKS, Finding, View, diagnose
from mfpyg.doctor.hessians import blocks
from mfpyg.units import BOHR_TO_ANGSTROM, DIPOLE_UNITS, EV_TO_KCAL_MOL, HARTREE_TO_KCAL_MOL

from .conftest import Planted, only

EV = HARTREE_TO_KCAL_MOL / EV_TO_KCAL_MOL
DEBYE = 1 / DIPOLE_UNITS["Debye"]


def found_by(check: str, dataset: ConformationDataset) -> list[Finding]:
    return list(CHECKS[check](View(dataset)))


def opened(path: Path, images: Sequence[Atoms], *levels: str) -> ExtXYZ:
    ase.io.write(path / "mine.xyz", list(images), format="extxyz")
    return ExtXYZ(path / "mine.xyz", list(levels), root=path)


# Hessians


@pytest.fixture
def minichno() -> ConformationDataset:
    return MiniCHNO(properties="HD").copy()


def test_bundled_hessians_and_dipoles_are_clean(minichno: ConformationDataset) -> None:
    findings = diagnose(minichno)
    assert {f.severity for f in findings} == {"note"}
    assert {f.check for f in findings} == {"sums of Hessians", "labels outside training"}
    noise = only(findings, "sums of Hessians", "note", "dz")
    assert "111 Hessians add up to 0.0031 of the largest" in noise.evidence
    assert "at most to 0.022 in HCN" in noise.evidence


@pytest.mark.parametrize(
    ("factor", "words", "fix"),
    [
        (-1.0, "the Hessians are of the wrong sign", "must take the key 'wb97x_dz.hessian' negated"),
        (BOHR_TO_ANGSTROM**2, "are in Hartree/bohr², but read as Hartree/Å²", "with Hessians in Hartree/bohr²"),
        (BOHR_TO_ANGSTROM**-2, "1 Å² is 3.57 bohr²", "missing or applied twice"),
        (EV, "the Hessians are in eV/Å²", "with Hessians in eV/Å²"),
        (-HARTREE_TO_KCAL_MOL, "of the wrong sign, and the Hessians are in kcal/mol/Å²", "negated; define"),
    ],
)
def test_hessians_against_forces(minichno: ConformationDataset, factor: float, words: str, fix: str) -> None:
    minichno._data.hessian *= factor
    found = only(found_by("Hessians", minichno), "forces against Hessians", "certain", "dz")
    assert words in found.evidence
    assert fix in found.fix
    assert "over 307 pairs" in found.evidence
    assert minichno._data.hessian_mask[list(found.rows), 0].all()


def test_hessians_of_another_level(minichno: ConformationDataset) -> None:
    minichno._data.hessian *= 1.4
    found = only(found_by("Hessians", minichno), "forces against Hessians", "suspect", "dz")
    assert "forces and Hessians do not belong together" in found.evidence


def each_hessian(dataset: ConformationDataset, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Change the Hessians (n, n, 3, 3) of the only labelled level, given the atomic numbers."""
    for row in np.flatnonzero(dataset._data.hessian_mask[:, 0]):
        z = dataset[int(row)].z
        rows = slice(*dataset.slices["hessian"][row : row + 2].tolist())
        hessian = dataset._data.hessian[rows].reshape(len(z), len(z), 3, 3)
        dataset._data.hessian[rows] = change(hessian, z).reshape(-1, 3, 3)


def test_axes_in_another_order(minichno: ConformationDataset) -> None:
    """As if (n, n, 3, 3) were in the file instead of (n, 3, n, 3)."""
    each_hessian(minichno, lambda h, z: h.reshape(len(z), 3, len(z), 3).permute(0, 2, 1, 3))
    found = only(found_by("Hessians", minichno), "asymmetric Hessians", "certain", "dz")
    assert "111 of 111 Hessians are not symmetric" in found.evidence


def test_one_asymmetric_hessian(minichno: ConformationDataset) -> None:
    row = int(np.flatnonzero(minichno._data.hessian_mask[:, 0])[40])
    largest = blocks(View(minichno), 0, np.array([row])).max()
    minichno._data.hessian[minichno.slices["hessian"][row] + 1, 0, 2] += 0.03 * largest
    found = only(found_by("Hessians", minichno), "asymmetric Hessians", "suspect", "dz")
    assert "1 of 111" in found.evidence
    assert "0.03 of the largest component" in found.evidence
    assert found.rows == (row,)


def test_mass_weighted_hessians(minichno: ConformationDataset) -> None:
    def weighted(hessian: Tensor, z: Tensor) -> Tensor:
        root = torch.from_numpy(atomic_masses[z.numpy()] ** -0.5)
        return hessian * (root[:, None] * root)[..., None, None]

    each_hessian(minichno, weighted)
    found = only(found_by("Hessians", minichno), "sums of Hessians", "suspect", "dz")
    assert "; 111 to more than 0.05" in found.evidence
    assert "mass-weighted" in found.fix


def test_zero_hessians(minichno: ConformationDataset) -> None:
    row = int(np.flatnonzero(minichno._data.hessian_mask[:, 0])[7])
    minichno._data.hessian[slice(*minichno.slices["hessian"][row : row + 2].tolist())] = 0
    found = only(found_by("Hessians", minichno), "zero Hessians", "certain", "dz")
    assert "1 of 111" in found.evidence
    assert found.rows == (row,)


def springs(pos: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy and Hessian (n, 3, n, 3) of springs between all atoms, at rest at 1 Å, in eV and Å."""
    n, energy, hessian = len(pos), 0.0, np.zeros((len(pos), 3, len(pos), 3))
    for i, j in zip(*np.triu_indices(n, 1), strict=True):
        r = pos[i] - pos[j]
        d = np.linalg.norm(r)
        along = np.outer(r, r) / d**2
        block = 20 * ((1 - 1 / d) * (np.eye(3) - along) + along)
        energy += 10 * (d - 1) ** 2
        for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            hessian[a, :, b] += sign * block
    return energy, hessian


def test_hessians_against_energies_of_opposite_displacements(tmp_path: Path) -> None:
    """Without forces; and each level has Hessians of its own."""
    random, images = np.random.default_rng(0), []
    centre = np.array([[0, 0, 0], [1.1, 0, 0], [0, 0.9, 0], [0.1, 0.2, 1.0]])
    for number, step in enumerate([np.zeros((4, 3)), *0.05 * random.normal(size=(12, 4, 3))]):
        for sign in (1, -1) if number else (1,):
            atoms = Atoms("OCNF", centre + sign * step + random.normal(size=3))
            energy, hessian = springs(atoms.positions)
            atoms.info = {"e": energy - 8000}
            if number == 0:
                atoms.info |= {"right": hessian.ravel(), "wrong": -hessian.ravel()}
            images.append(atoms)
    dataset = opened(tmp_path, images, "right=e,H=right?@eV", "wrong=e,H=wrong?@eV")
    view = View(dataset)
    expected = springs(centre)[1].transpose(0, 2, 1, 3) * EV_TO_KCAL_MOL
    np.testing.assert_allclose(blocks(view, 0, np.array([0]))[0], expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(blocks(view, 1, np.array([0]))[0], -expected, rtol=1e-5, atol=1e-3)
    (found,) = found_by("Hessians", dataset)
    assert (found.check, found.severity, found.fidelity) == ("energies against Hessians", "certain", "wrong")
    assert "over 12 pairs" in found.evidence
    assert "wrong sign" in found.evidence


# Stresses


def crystals(unit: str = "cubic", rattle: float = 0.02) -> list[Atoms]:
    """Strained copper in its effective-medium potential: energies e, forces f, stresses s, virials w; eV and Å."""
    return copy.deepcopy(_crystals(unit, rattle))


@functools.cache
def _crystals(unit: str, rattle: float) -> list[Atoms]:
    random, images = np.random.default_rng(0), []
    for _ in range(30):
        atoms = bulk("Cu", cubic=unit == "cubic")
        g = 0.02 * random.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (g + g.T) / 2), scale_atoms=True)
        atoms.positions += rattle * random.normal(size=atoms.positions.shape)
        atoms.wrap()
        atoms.calc = EMT()
        stress = atoms.get_stress(voigt=False)
        info = {"e": atoms.get_potential_energy(), "s": stress, "w": -stress * atoms.get_volume()}
        forces = atoms.get_forces()
        atoms.calc = None
        atoms.info, atoms.arrays["f"] = info, forces
        images.append(atoms)
    return images


@pytest.mark.parametrize(
    ("unit", "rattle", "level"),
    [
        ("cubic", 0.02, "dz=e,f,S=s@eV"),
        ("cubic", 0.0, "dz=e,S=s@eV"),
        ("cubic", 0.02, "dz=e,S=s@eV"),  # no forces: nothing can be said
        ("primitive", 0.0, "dz=e,V=w@eV"),  # one atom
    ],
)
def test_right_stresses(tmp_path: Path, unit: str, rattle: float, level: str) -> None:
    assert not found_by("stresses", opened(tmp_path, crystals(unit, rattle=rattle), level))


@pytest.mark.parametrize(
    ("unit", "rattle", "level", "words", "fix"),
    [
        ("cubic", 0.02, "dz=e,f,S=-s@eV", "the stresses are of the wrong sign", "'s' not negated"),
        ("cubic", 0.0, "dz=e,S=s@eV,S=GPa", "are in eV/Å³, but read as GPa", "with stresses in eV/Å³"),
        ("cubic", 0.02, "dz=e,f,S=s@eV,S=Ha/bohr^3", "are in eV/Å³, but read as Hartree/bohr³", "eV/Å³"),
        ("primitive", 0.0, "dz=e,V=-w@eV", "of the wrong sign", "'w' not negated"),
        ("primitive", 0.0, "dz=e,V=w@eV,V=Hartree", "are in eV, but read as Hartree", "stresses in eV"),
        ("primitive", 0.0, "dz=e,S=w@eV", "they are virials", "with V=w instead of S"),
        ("primitive", 0.0, "dz=e,S=-w@eV", "they are virials", "with V=w instead of S"),
    ],
)
def test_wrong_stresses(tmp_path: Path, unit: str, rattle: float, level: str, words: str, fix: str) -> None:
    findings = found_by("stresses", opened(tmp_path, crystals(unit, rattle=rattle), level))
    found = only(findings, "energies against stresses", "certain", "dz")
    assert words in found.evidence
    assert fix in found.fix


def test_gradients_are_not_blamed_on_stresses(tmp_path: Path) -> None:
    findings = found_by("stresses", opened(tmp_path, crystals(), "dz=e,-f,S=s@eV"))
    assert {f.severity for f in findings} <= {"note"}


@pytest.mark.parametrize(("unit", "factor"), [("GPa", 160.21766), ("kbar", 1602.1766)])
def test_pressures_read_as_another_unit(tmp_path: Path, unit: str, factor: float) -> None:
    images = crystals(rattle=0)
    for atoms in images:
        atoms.info["s"] = atoms.info["s"] * factor
    assert not found_by("stresses", opened(tmp_path, images, f"dz=e,S=s@eV,S={unit}"))
    found = only(found_by("stresses", opened(tmp_path, images, "dz=e,S=s@eV")), *_wrong_stress)
    assert f"the stresses are in {unit}, but read as eV/Å³" in found.evidence


_wrong_stress = ("energies against stresses", "certain", "dz")


def test_asymmetric_stress(tmp_path: Path) -> None:
    images = crystals()
    images[4].info["s"][0, 1] += 0.03 * np.abs(images[4].info["s"]).max()
    images[9].info["s"][2, 1] += 0.2 * np.abs(images[9].info["s"]).max()
    found = only(
        found_by("stresses", opened(tmp_path, images, "dz=e,f,S=s@eV")), "asymmetric stresses", "certain", "dz"
    )
    assert found.evidence.startswith("2 of 30 stresses are not symmetric")
    assert found.rows == (9, 4)


# Dipoles and charges


def waters(n: int = 20) -> list[Atoms]:
    """Water with charges q, their dipoles d in e·Å, and dipoles t of a higher level."""
    random, images = np.random.default_rng(0), []
    for _ in range(n):
        rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
        pos = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]) + 0.05 * random.normal(size=(3, 3))
        atoms = Atoms("OH2", pos @ rotation + 5)
        charges = np.array([-0.7, 0.35, 0.35]) + 0.02 * random.normal(size=3)
        charges -= charges.mean()
        atoms.arrays["q"] = charges
        dipole = charges @ atoms.positions
        atoms.info = {"e": -2080.0 + 0.1 * random.normal(), "d": dipole, "t": 1.05 * dipole}
        images.append(atoms)
    return images


@pytest.mark.parametrize(
    "levels",
    [
        ("a=e,D=d,Q=q@eV", "b=e,D=t@eV"),
        ("a=e,D=d@eV", "b=e,D=t@eV"),
        ("a=e,D=d@eV",),
    ],
)
def test_right_dipoles(tmp_path: Path, levels: tuple[str, ...]) -> None:
    dataset = opened(tmp_path, waters(), *levels)
    assert not found_by("dipoles", dataset)
    assert not found_by("total charges", dataset)


@pytest.mark.parametrize(
    ("levels", "fidelity", "words", "fix"),
    [
        (("a=e,D=d,Q=q@eV,D=Debye",), "a", "of a are in e·Å, but read as Debye", "define a with dipoles in e·Å"),
        (("a=e,D=-d,Q=q@eV",), "a", "times Σ q x of its charges", "'d' not negated"),
        (("a=e,Q=q@eV", "b=e,D=t@eV,D=Debye"), "b", "times Σ q x of charges of a", "define b with dipoles in e·Å"),
        (("a=e,D=d@eV", "b=e,D=t@eV,D=Debye"), "b", "of b are in e·Å, but read as Debye", "define b"),
        (("a=e,D=d@eV,D=Debye", "b=e,D=t@eV"), "b", "or the dipoles of a are in e·Å, but read as Debye", "or define a"),
        (
            ("a=e,D=d@eV,D=e*bohr", "b=e,D=t@eV"),
            "b",
            "or the dipoles of a are in e·Å, but read as e·bohr",
            "or define a",
        ),
    ],
)
def test_wrong_dipoles(tmp_path: Path, levels: tuple[str, ...], fidelity: str, words: str, fix: str) -> None:
    (found,) = found_by("dipoles", opened(tmp_path, waters(), *levels))
    assert (found.check, found.severity, found.fidelity) == ("unit of dipoles", "certain", fidelity)
    assert words in found.evidence
    assert "dipoles of 20 neutral conformations" in found.evidence
    assert fix in found.fix


def test_debye_taken_for_the_unit_of_the_package(tmp_path: Path) -> None:
    images = waters()
    for atoms in images:
        atoms.info["d"] *= DEBYE
    (found,) = found_by("dipoles", opened(tmp_path, images, "a=e,D=d,Q=q@eV"))
    assert "are in Debye, but read as e·Å" in found.evidence
    assert found.severity == "certain"
    (found,) = found_by("dipoles", opened(tmp_path, images, "a=e,D=d@eV"))
    assert "exceed that of a charge e moved across the molecule" in found.evidence
    assert found.severity == "suspect"
    assert not found_by("dipoles", opened(tmp_path, images, "a=e,D=d,Q=q@eV,D=Debye"))


@pytest.mark.parametrize(("deviation", "severity"), [(0.03, "note"), (0.2, "suspect"), (1.0, "certain")])
def test_charges_that_do_not_add_up(tmp_path: Path, deviation: float, severity: str) -> None:
    images = waters()
    images[3].arrays["q"][1] -= deviation
    images[7].arrays["q"][1] += deviation / 2
    images[8].arrays["q"][1] += 0.005
    dataset = opened(tmp_path, images, "a=e,Q=q@eV")
    found = only(found_by("total charges", dataset), "total charge", severity, "a")
    assert "2 of 20 conformations have charges that do not add up to the total charge within 0.01 e" in found.evidence
    assert f"-{deviation:g} e in" in found.evidence
    assert found.rows == (3, 7)


def test_charges_of_ions(tmp_path: Path) -> None:
    """With the total charge known, they add up; and dipoles of ions, which depend on the origin, are not compared."""
    images = waters()
    for atoms in images:
        atoms.arrays["q"] += 1 / 3
        atoms.info["d"] *= DEBYE
    dataset = opened(tmp_path, images, "a=e,D=d,Q=q@eV")
    only(found_by("total charges", dataset), "total charge", "certain", "a")
    dataset._data.charge, dataset.slices["charge"] = torch.ones(len(dataset)), dataset.slices["energy"]
    assert not found_by("total charges", dataset)
    assert not found_by("dipoles", dataset)


@pytest.fixture(scope="module")
def ani1x(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ANI1x:
    file = data_folder / "ani1x_excerpt.h5"
    if not file.is_file():
        pytest.skip(f"no {file}")
    return ANI1x(tmp_path_factory.mktemp("ani1x"), file=file, properties="DQ")


def test_ani1x_excerpt(ani1x: ANI1x) -> None:
    findings = [*found_by("dipoles", ani1x), *found_by("total charges", ani1x)]
    assert [(f.severity, f.fidelity) for f in findings] == [("note", "tz")]
    assert "largest deviation is -0.0204 e" in findings[0].evidence  # MBIS charges


@pytest.mark.parametrize(
    ("factor", "words"), [(DEBYE, "are in Debye, but read as e·Å"), (-1, "from minus to plus"), (1 / DEBYE, "4.803")]
)
def test_ani1x_excerpt_with_wrong_dipoles(ani1x: ANI1x, factor: float, words: str) -> None:
    dataset = ani1x.copy()
    dataset._data.dipole[:, 0] *= factor
    found = only(found_by("dipoles", dataset), "unit of dipoles", "certain", "dz")
    assert words in found.evidence
    assert len(found_by("dipoles", dataset)) == 1


# Coverage, and how data are opened


def test_missing_labels(planted: Planted) -> None:
    def edit(file: h5py.File) -> None:
        group = file["HCN"] if "HCN" in file else next(iter(file.values()))
        group["wb97x_dz.dipole"][:3, 1] = np.nan
        group["wb97x_dz.energy"][:] = np.nan
        for group in file.values():
            group["wb97x_dz.hessian"][...] = np.full_like(group["wb97x_dz.hessian"][...], np.nan)

    findings = planted(edit, ["dz"], "HD")
    texts = [f.evidence for f in findings if f.check == "missing labels"]
    assert "3 conformations lack some dipole components; all of their dipoles are taken as missing" in texts
    assert "the key 'wb97x_dz.hessian' is there, but all Hessians are NaN" in texts
    assert "train with dz:EFD" in [f.fix for f in findings]
    assert not any("with dipoles have no energy" in text for text in texts)
    assert any("conformations with forces have no energy" in text for text in texts)


def test_hessians_only_in_the_test(planted: Planted) -> None:
    def edit(file: h5py.File) -> None:
        for group in file.values():
            hessian = group["wb97x_dz.hessian"][:]
            hessian[group["split"][:] == 0] = np.nan
            group["wb97x_dz.hessian"][:] = hessian

    found = only(planted(edit, ["dz"], "HD"), "labels outside training", "note", "dz")
    assert "Hessians are in the test or out of sample" in found.evidence


def test_a_property_that_some_groups_lack_hides_no_level(planted: Planted) -> None:
    def edit(file: h5py.File) -> None:
        del next(iter(file.values()))["wb97x_dz.hessian"]

    dataset = MiniCHNO(planted.folder, file=planted.file(edit), properties="HD", whole_only=True)
    assert dataset.fidelities == MiniCHNO().fidelities
    assert dataset.letters == "EFHD"
