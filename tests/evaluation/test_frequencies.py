"""Harmonic frequencies: analytic cases, and ASE's own vibrations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.data import atomic_masses
from ase.optimize import BFGS
from ase.units import _amu, _c, _e, kcal, mol
from ase.vibrations import Vibrations
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.frequencies import harmonic_frequencies
from mfpyg.rigid import LINEAR


def vibrations(atoms: Atoms, folder: Path, delta: float = 1e-3) -> tuple[np.ndarray, Tensor]:
    """ASE's 3n frequencies in cm⁻¹, imaginary ones as negative numbers, and its Hessian in kcal/mol/Å²."""
    vib = Vibrations(atoms, name=str(folder / "vib"), delta=delta, nfree=4)
    vib.run()
    data = vib.get_vibrations(read_cache=False)
    found = data.get_frequencies()
    hessian = torch.from_numpy(data.get_hessian()).permute(0, 2, 1, 3) * (mol / kcal)  # ASE's is (n, 3, n, 3)
    return np.sort(found.real - found.imag), hessian


def ours(atoms: Atoms, hessian: Tensor, **options: bool) -> np.ndarray:
    z, pos = torch.from_numpy(atoms.numbers.astype(np.int64)), torch.from_numpy(atoms.positions)
    return harmonic_frequencies(hessian, z, pos, **options).numpy()


@pytest.mark.parametrize("name", ["H2O", "CH4", "NH3", "CO2", "C2H2", "CH3OH"])
def test_frequencies_of_minima_are_those_of_ase(tmp_path: Path, name: str) -> None:
    atoms = molecule(name)
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-7, steps=500)
    theirs, hessian = vibrations(atoms, tmp_path)
    found = ours(atoms, hessian)
    assert len(found) == 3 * len(atoms) - (5 if name in ("CO2", "C2H2") else 6)
    largest = theirs[np.argsort(np.abs(theirs))[-len(found) :]]
    np.testing.assert_allclose(found, np.sort(largest), rtol=1e-5, atol=0.05)


def test_a_diatomic_has_the_frequency_of_its_spring(tmp_path: Path) -> None:
    depth, stiffness, length = 4.0, 5.0, 1.2
    atoms = Atoms("NO", [[0.3, 0.2, 0.1], [0.3 + length * 0.6, 0.2, 0.1 + length * 0.8]])
    atoms.calc = MorsePotential(epsilon=depth, rho0=stiffness, r0=length, rcut1=5.0, rcut2=6.0)
    spring = 2 * depth * (stiffness / length) ** 2 * _e * 1e20  # N/m
    one, two = atomic_masses[[7, 8]] * _amu
    expected = math.sqrt(spring * (one + two) / (one * two)) / (2 * math.pi * _c * 100)
    direction = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    block = 2 * depth * (stiffness / length) ** 2 * mol / kcal * torch.outer(direction, direction)
    hessian = torch.stack([torch.stack([block, -block]), torch.stack([-block, block])])
    assert ours(atoms, hessian) == pytest.approx([expected], rel=1e-6)
    assert ours(atoms, -hessian) == pytest.approx([-expected], rel=1e-6)
    assert ours(atoms, vibrations(atoms, tmp_path)[1]) == pytest.approx([expected], rel=1e-4)


def test_rotations_are_projected_out_where_there_are_forces(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.positions[0, 2] += 0.1
    atoms.calc = EMT()
    theirs, hessian = vibrations(atoms, tmp_path)
    found = ours(atoms, hessian)
    assert np.abs(theirs).min() < 1 < np.sort(np.abs(theirs))[3:6].max()  # rotations that are not zero
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3))
    turned.translate([5, -3, 2])
    turned.calc = EMT()
    np.testing.assert_allclose(ours(turned, vibrations(turned, tmp_path / "turned")[1]), found, rtol=1e-5)


def test_periodic_systems_have_three_translations_only(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-7, steps=200)
    theirs, hessian = vibrations(atoms, tmp_path)
    found = ours(atoms, hessian, periodic=True)
    assert len(found) == 9
    np.testing.assert_allclose(found, theirs[3:], rtol=1e-5, atol=0.05)


@pytest.mark.parametrize(("bend", "n"), [(LINEAR / 10, 4), (LINEAR * 10, 3)])
def test_molecules_are_linear_within_a_tolerance(bend: float, n: int) -> None:
    pos = torch.tensor([[-1.16, 0, 0], [0, bend, 0], [1.16, 0, 0]], dtype=torch.float64)
    assert len(harmonic_frequencies(torch.eye(9).view(3, 3, 3, 3), torch.tensor([8, 6, 8]), pos)) == n


def test_an_atom_has_no_frequencies() -> None:
    assert len(harmonic_frequencies(torch.zeros(1, 1, 3, 3), torch.tensor([8]), torch.ones(1, 3))) == 0
    assert len(harmonic_frequencies(torch.zeros(1, 1, 3, 3), torch.tensor([8]), torch.ones(1, 3), periodic=True)) == 0


def test_bad_arguments_are_named() -> None:
    z, pos = torch.tensor([8, 1]), torch.eye(3)[:2]
    with pytest.raises(MFPyGError, match=r"shape \(2, 3, 2, 3\), expected \(2, 2, 3, 3\) for 2 atoms"):
        harmonic_frequencies(torch.zeros(2, 3, 2, 3), z, pos)
    with pytest.raises(MFPyGError, match="NaN or infinite"):
        harmonic_frequencies(torch.full((2, 2, 3, 3), math.nan), z, pos)
    with pytest.raises(MFPyGError, match="no mass is known of atomic number 0"):
        harmonic_frequencies(torch.zeros(2, 2, 3, 3), 0 * z, pos)
