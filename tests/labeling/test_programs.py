"""Numbers of the programs: forces against differences of energies, dipoles of ions, Hessians, failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import h5py
import numpy as np
import pytest
from ase.build import bulk

from mfpyg.datasets.levels import BUNDLED
from mfpyg.errors import MFPyGError
from mfpyg.labeling.level import LabelLevel, open_program
from mfpyg.labeling.program import LabelError, Program

EV_PER_ANGSTROM = 27.211386245988 / 0.529177210903  # in one Hartree/bohr

Shaken = Callable[..., ase.Atoms]


def opened(text: str) -> Program:
    """The program of a level, or the test is skipped."""
    level = LabelLevel.parse(text)
    if level.program in ("tblite", "pyscf"):
        pytest.importorskip(level.program, reason=f"{level.program} is not installed: pip install 'mfpyg[label]'")
    return level.open()


def force_by_differences(
    program: Program, atoms: ase.Atoms, charge: int, multiplicity: int, place: tuple[int, int], h: float = 4e-3
) -> float:
    """−dE/dx of one component from four energies, to the fourth order in h (Å)."""

    def difference(step: float) -> float:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[place] += sign * step
            energies.append(float(program.compute(moved, charge, multiplicity, "E")["E"]))
        return (energies[1] - energies[0]) / (2 * step)

    return (4 * difference(h / 2) - difference(h)) / 3


@pytest.mark.parametrize(
    ("level", "molecules", "tolerance"),
    [
        ("a=tblite:GFN2-xTB:EF", ("H2O", "NH2", "CH3OH"), 2e-6),
        ("a=tblite:GFN1-xTB:EF", ("H2O", "NH2"), 2e-6),
        ("a=tblite:IPEA1-xTB:EF", ("H2O",), 2e-6),
        ("a=pyscf:HF/sto-3g:EF", ("H2O", "NH2"), 5e-6),
        ("a=pyscf:wB97X/sto-3g:EF", ("H2O", "NH2"), 5e-6),
        ("a=pyscf:TPSS/sto-3g,grid=1:EF", ("H2O",), 5e-6),
        ("a=pyscf:MP2/6-31g:EF", ("H2O", "NH2"), 5e-6),
        ("a=pyscf:CCSD/sto-3g,frozen_core=false:EF", ("H2O", "NH2"), 5e-6),
        ("a=pyscf:CCSD(T)/6-31g:EF", ("H2O",), 5e-6),
    ],
)
def test_forces_are_derivatives_of_energies(
    level: str, molecules: tuple[str, ...], tolerance: float, shaken: Shaken
) -> None:
    """To a few 1e-6 Hartree/bohr, with the default thresholds."""
    program = opened(level)
    for name in molecules:
        atoms, multiplicity = shaken(name), 2 if name == "NH2" else 1
        forces = np.array(program.compute(atoms, 0, multiplicity, "EF")["F"])
        expected = force_by_differences(program, atoms, 0, multiplicity, (1, 2))
        assert abs(forces[1, 2] - expected) / EV_PER_ANGSTROM < tolerance
        assert abs(forces.sum(axis=0)).max() < 1e-5


def test_forces_of_ions(shaken: Shaken) -> None:
    for level in ("a=tblite:GFN2-xTB:EF", "a=pyscf:HF/sto-3g:EF"):
        program, water = opened(level), shaken("H2O")
        forces = program.compute(water, 1, 2, "EF")["F"]
        assert abs(forces[1, 2] - force_by_differences(program, water, 1, 2, (1, 2))) / EV_PER_ANGSTROM < 5e-6


def test_forces_and_stress_of_crystals() -> None:
    program = opened("a=tblite:GFN1-xTB:EFS")
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.05, seed=0)
    found = program.compute(crystal, 0, 1, "EFS")
    assert abs(found["F"][1, 2] - force_by_differences(program, crystal, 0, 1, (1, 2))) < 1e-4
    energies = []
    for sign in (1, -1):
        strained = crystal.copy()
        strained.set_cell(crystal.cell.array @ np.diag([1, 1, 1 + sign * 1e-3]), scale_atoms=True)
        energies.append(float(program.compute(strained, 0, 1, "E")["E"]))
    assert found["S"].shape == (3, 3)
    assert found["S"][2, 2] == pytest.approx((energies[0] - energies[1]) / 2e-3 / crystal.get_volume(), abs=5e-5)


@pytest.mark.parametrize("level", ["a=tblite:GFN2-xTB:ED", "a=pyscf:HF/sto-3g:ED"])
def test_dipoles_are_relative_to_the_centre_of_mass(level: str, shaken: Shaken) -> None:
    program = opened(level)
    for charge, multiplicity in ((0, 1), (1, 2)):
        water = shaken("H2O")
        before = program.compute(water, charge, multiplicity, "ED")["D"]
        assert 0.2 < np.linalg.norm(before) < 1
        water.positions += [3.0, -2.0, 1.0]
        np.testing.assert_allclose(program.compute(water, charge, multiplicity, "ED")["D"], before, atol=1e-6)


@pytest.mark.parametrize("level", ["a=tblite:GFN2-xTB:EFH", "a=pyscf:HF/sto-3g:EFH", "a=pyscf:MP2/sto-3g:EFH"])
def test_hessians_are_derivatives_of_forces(level: str) -> None:
    program = opened(level)
    atoms, h = ase.Atoms("HF", [[0.1, 0, 0], [0, 0.2, 0.95]]), 1e-3
    hessian = np.array(program.compute(atoms, 0, 1, "EFH")["H"])
    assert hessian.shape == (2, 3, 2, 3)
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * h
        forces.append(np.array(program.compute(moved, 0, 1, "EF")["F"]))
    np.testing.assert_allclose(hessian[1, 2], (forces[1] - forces[0]) / (2 * h), atol=1e-3 * abs(hessian).max())
    np.testing.assert_allclose(hessian.sum(axis=2), 0, atol=1e-4 * abs(hessian).max())
    np.testing.assert_allclose(hessian.reshape(6, 6), hessian.reshape(6, 6).T, atol=1e-6 * abs(hessian).max())


def test_bundled_labels_are_reproduced() -> None:
    """Energies and forces of the data set that comes with the package, computed with PySCF directly."""
    dz, cc = opened("dz=pyscf:wB97X/6-31G*:EF"), opened("cc=pyscf:CCSD(T)/cc-pVDZ:EF")
    with h5py.File(BUNDLED) as file:
        group = file["H2O1"]
        row = int(np.flatnonzero(group["split"][:] == 1)[0])
        atoms = ase.Atoms(group["atomic_numbers"][:], group["coordinates"][row].astype(float))
        expected = {key: np.asarray(group[key][row]) for key in group if key.startswith(("wb97x_dz", "ccsd"))}
    for program, key in ((dz, "wb97x_dz"), (cc, "ccsd(t)_dz")):
        found = program.compute(atoms, 0, 1, "EF")
        assert found["E"] / 27.211386245988 == pytest.approx(float(expected[f"{key}.energy"]), abs=5e-6)
        np.testing.assert_allclose(
            found["F"] / 27.211386245988, expected[f"{key}.forces"], atol=1e-4
        )  # dz without the response of the grid


def test_forces_of_open_shells_at_ccsd_t_are_refused(shaken: Shaken) -> None:
    program = opened("a=pyscf:CCSD(T)/sto-3g:EF")
    with pytest.raises(LabelError, match="not the derivative of its energy"):
        program.compute(shaken("NH2"), 0, 2, "EF")
    assert program.compute(shaken("NH2"), 0, 2, "E")["E"] < -1400


def test_atoms_alone() -> None:
    for level in ("a=pyscf:CCSD(T)/6-31g:EFH", "a=pyscf:PBE/sto-3g:EFH"):
        found = opened(level).compute(ase.Atoms("H", [[1.0, 2, 3]]), 0, 2, "EFH")
        assert -14 < found["E"] < -11
        assert not found["F"].any()
        assert found["H"].shape == (1, 3, 1, 3)


def test_effective_core_potentials_come_with_their_basis() -> None:
    found = opened("a=pyscf:HF/def2-svp:E").compute(ase.Atoms("HI", [[0, 0, 0], [0, 0, 1.6]]), 0, 1, "E")
    assert found["E"] / 27.211386245988 == pytest.approx(-297.23, abs=0.05)  # −6,918 with all electrons


@pytest.mark.parametrize(
    ("level", "atoms", "message"),
    [
        ("a=pyscf:HF/6-31G*:E", ase.Atoms("U"), "basis 6-31G\\* lacks the element U"),
        (
            "a=pyscf:HF/sto-3g,max_cycle=1:E",
            ase.Atoms("OH2", [[0, 0, 0], [0, 0, 1], [0, 1, 0]]),
            "SCF did not converge",
        ),
        (
            "a=pyscf:CCSD/sto-3g,cc_max_cycle=1:E",
            ase.Atoms("LiH", [[0, 0, 0], [0, 0, 1]]),
            "CCSD did not converge in 1",
        ),
        ("a=pyscf:HF/sto-3g:E", ase.Atoms("He", cell=[3, 3, 3], pbc=True), "periodic, but PySCF's levels"),
        ("a=tblite:GFN2-xTB:E", ase.Atoms("Og"), "No support for elements"),
        ("a=tblite:GFN2-xTB:E", ase.Atoms("H2", np.zeros((2, 3))), "Too close"),
    ],
)
def test_failures(level: str, atoms: ase.Atoms, message: str) -> None:
    with pytest.raises(Exception, match=message):
        opened(level).compute(atoms, 0, 1, "E")


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("a=pyscf:wB97/X/sto-3g:E", "knows no method or functional 'wB97/X'"),
        ("a=pyscf:b2plyp/sto-3g:E", "knows no method or functional 'b2plyp'"),
        ("a=pyscf:wb97x-d/sto-3g:E", "does not support the functional 'wb97x-d'"),
        ("a=pyscf:HF/cc-pVDY:E", "does not know the basis 'cc-pVDY'"),
        ("a=pyscf:MP2/cc-pVDZ:ED", r"pyscf computes no dipoles with MP2/cc-pVDZ \(it computes .*EFH\)"),
    ],
)
def test_methods_that_do_not_exist(level: str, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        opened(level)


def test_second_order_steps_follow_where_diis_fails() -> None:
    """OH with a pure functional, whose two π orbitals are degenerate."""
    program = opened("a=pyscf:PBE/6-31g,max_cycle=30:E")
    found = program.compute(ase.Atoms("OH", [[0.01, 0.02, 0.03], [0.2, 0.3, 0.95]]), 0, 2, "E")
    assert found["E"] / 27.211386245988 == pytest.approx(-75.61, abs=0.05)


@pytest.mark.parametrize("text", ["tblite:GFN2-xTB", "pyscf:HF/sto-3g"])
def test_calculators_of_programs(text: str, shaken: Shaken) -> None:
    pytest.importorskip(text.partition(":")[0], reason="of the extra label")
    program, water = open_program(text), shaken("H2O")
    expected = program.compute(water, 1, 2, "EF")
    with program.calculator(1, 2) as water.calc:
        folder = Path(water.calc.directory)
        assert folder.is_dir()
        assert water.get_potential_energy() == pytest.approx(expected["E"], abs=1e-8)
        np.testing.assert_allclose(water.get_forces(), expected["F"], atol=1e-6)
        first = water.get_forces()
        water.positions[0, 2] += 0.1
        assert abs(water.get_forces() - first).max() > 0.1
    assert not folder.exists()


def test_any_calculator_of_ase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lj.yaml").write_text("calculator: lj\narguments: {sigma: 0.9, epsilon: 0.2, rc: 8.0}\n")
    program = opened("a=ase:lj.yaml:EFH")
    atoms = ase.Atoms("Ar3", [[0, 0, 0], [0, 0.1, 1.0], [0.9, 0, 0.2]])
    found: dict[str, Any] = program.compute(atoms, 0, 1, "EFH")
    assert abs(found["F"][1, 2] - force_by_differences(program, atoms, 0, 1, (1, 2))) < 1e-4
    assert found["H"].shape == (3, 3, 3, 3)
    assert program.version == ase.__version__
    with pytest.raises(LabelError, match="charge is 1, but no YAML file says which argument of lj takes it"):
        program.compute(atoms, 1, 2, "E")


def test_trained_potentials_label_too(untrained: Callable[..., Path], shaken: Shaken) -> None:
    from mfpyg.interop.ase import MFPyGCalculator

    path = untrained("dz:EFD", "cc:E")
    program = opened(f"a=mfpyg:{path}@dz:EFHD")
    atoms = shaken("H2O")
    found = program.compute(atoms, 0, 1, "EFHD")
    atoms.calc = MFPyGCalculator(path, "dz")
    assert found["E"] == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(found["F"], atoms.get_forces(), atol=1e-6)
    np.testing.assert_allclose(found["D"], atoms.get_dipole_moment(), atol=1e-6)
    assert found["H"].shape == (3, 3, 3, 3)
    with pytest.raises(MFPyGError, match="unknown fidelity"):
        opened(f"a=mfpyg:{path}@tz:E")
