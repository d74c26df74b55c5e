"""Normal modes: frequencies, and the variance of displacements."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.optimize import BFGS

from mfpyg.evaluation.frequencies import harmonic_frequencies
from mfpyg.labeling.program import hessian_of
from mfpyg.rigid import internal_motions
from mfpyg.sampling.modes import SOFT, TO_WAVENUMBER, Modes, normal_modes


@pytest.mark.parametrize("name", ["H2O", "CO2", "CH3OH", "H2"])
def test_wavenumbers_are_those_of_the_evaluation(name: str) -> None:
    atoms = molecule(name)
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-5, steps=500)
    matrix = hessian_of(atoms.calc, atoms).transpose(0, 2, 1, 3) * units.mol / units.kcal
    z, pos = torch.from_numpy(atoms.numbers.astype(np.int64)), torch.from_numpy(atoms.positions)
    expected = harmonic_frequencies(torch.from_numpy(matrix), z, pos).numpy()
    np.testing.assert_allclose(normal_modes(atoms).wavenumbers, expected, rtol=1e-6, atol=1e-3)


def test_crystals_keep_their_rotations() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    assert len(normal_modes(atoms).eigenvalues) == 3 * len(atoms) - 3
    assert internal_motions(np.array([[1.0, 2, 3]]), np.ones(1), rotations=True).shape == (3, 0)


def test_hessians_of_a_calculator_are_used(harmonic: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    calc = harmonic.calc
    by_differences = hessian_of(calc, harmonic)
    monkeypatch.setattr(calc, "implemented_properties", ["energy", "forces", "hessian"])
    monkeypatch.setattr(calc, "get_property", lambda name, atoms: {"hessian": calc.hessian}[name])
    monkeypatch.setattr(calc, "calculate", None)
    np.testing.assert_allclose(hessian_of(calc, harmonic), by_differences, atol=1e-8)


@pytest.mark.parametrize("temperature", [300.0, 1000.0])
def test_energy_is_half_kt_per_mode(harmonic: Atoms, temperature: float) -> None:
    """Of a classical harmonic oscillator; modes that are too soft have less, by the ratio of ω²."""
    modes, rng = normal_modes(harmonic), np.random.default_rng(0)
    start, energies = harmonic.positions.copy(), []
    for _ in range(3000):
        harmonic.positions = start + modes.displacement(temperature, rng)
        energies.append(harmonic.get_potential_energy())
    shares = np.minimum(modes.eigenvalues / (SOFT / TO_WAVENUMBER) ** 2, 1)
    expected = units.kB * temperature / 2 * shares.sum()
    assert np.mean(energies) == pytest.approx(expected, rel=0.03)
    assert np.var(energies) == pytest.approx((units.kB * temperature) ** 2 / 2 * (shares**2).sum(), rel=0.15)


def test_displacements_do_not_move_the_whole(harmonic: Atoms) -> None:
    moved = normal_modes(harmonic).displacement(1000, np.random.default_rng(0))
    masses = harmonic.get_masses()[:, None]
    assert np.abs((masses * moved).sum(axis=0)).max() < 1e-8
    from_center = harmonic.positions - harmonic.get_center_of_mass()
    assert np.abs((masses * np.cross(from_center, moved)).sum(axis=0)).max() < 1e-8


@pytest.mark.parametrize("quantum", [False, True])
def test_variance_of_a_diatomic(quantum: bool) -> None:
    """⟨(r − r₀)²⟩ of HF's Morse oscillator by the formulas in SI units."""
    depth, stiffness, length, temperature = 5.0, 2.0, 0.92, 600.0
    atoms = Atoms("HF", [[0, 0, 0], [0, 0, length]])
    atoms.calc = MorsePotential(epsilon=depth, rho0=stiffness * length, r0=length, rcut1=5.0, rcut2=6.0)
    modes, rng = normal_modes(atoms), np.random.default_rng(0)
    moved = np.array([modes.displacement(temperature, rng, quantum) for _ in range(20000)])
    found = ((moved[:, 1, 2] - moved[:, 0, 2]) ** 2).mean() * 1e-20
    spring = 2 * depth * stiffness**2 * units._e * 1e20
    one, two = atoms.get_masses() * units._amu
    reduced = one * two / (one + two)
    omega, thermal = np.sqrt(spring / reduced), units._k * temperature
    classical = thermal / spring
    wigner = units._hbar / (2 * reduced * omega) / np.tanh(units._hbar * omega / (2 * thermal))
    assert found == pytest.approx(wigner if quantum else classical, rel=0.03)
    assert wigner > 3 * classical


def test_soft_and_imaginary_modes_are_displaced_like_those_of_the_threshold() -> None:
    squares = np.array([-500.0, -10.0, 0.0, 50.0, SOFT, 400.0])
    values = np.sign(squares) * (squares / TO_WAVENUMBER) ** 2
    modes, rng = Modes(values, np.eye(6), np.ones(2)), np.random.default_rng(0)
    np.testing.assert_allclose(modes.wavenumbers, squares)
    found = np.array([modes.displacement(300, rng).ravel() for _ in range(20000)]).std(axis=0)
    expected = np.sqrt(units.kB * 300) / (np.array([500, SOFT, SOFT, SOFT, SOFT, 400]) / TO_WAVENUMBER)
    np.testing.assert_allclose(found, expected, rtol=0.03)
