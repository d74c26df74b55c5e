"""The ASE calculator: against the potential itself, finite differences, and ASE's own dynamics and optimisers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculatorSetupError, PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.frequencies import harmonic_frequencies
from mfpyg.interop.ase import MFPyGCalculator, data_of
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.delta import DeltaPotential
from mfpyg.models.hessian import hessian

Potentials = Callable[..., MultiFidelityPotential]
KCAL_MOL = ase.units.kcal / ase.units.mol


def _crystal(seed: int = 0) -> Atoms:
    """Eight atoms of C and N in a skew cell that is smaller than twice the cutoff, off their sites."""
    atoms = bulk("C", "diamond", a=3.6) * (2, 2, 1)
    atoms.numbers[::2] = 7
    random = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * random.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += 0.1 * random.normal(size=atoms.positions.shape)
    return atoms


# Values and units


def test_results_are_those_of_the_potential_in_units_of_ase(random_potential: Potentials) -> None:
    potential, atoms = random_potential(fidelities=["dz", "cc"]), _crystal()
    atoms.calc = MFPyGCalculator(potential, fidelity="cc")
    expected = potential(data_of(atoms), fidelity="cc", stress=True)
    energy = expected.energy.item() * KCAL_MOL
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-7)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.atomic_energies * KCAL_MOL, rtol=1e-7)
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, rel=1e-7)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces * KCAL_MOL, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0] * KCAL_MOL, rtol=1e-7, atol=1e-14)
    assert atoms.get_stress().shape == (6,)


@pytest.mark.parametrize("make", [lambda: molecule("CH3CHO"), _crystal])
def test_forces_are_minus_the_gradient_of_the_energy(random_potential: Potentials, make: Callable[[], Atoms]) -> None:
    atoms = make()
    atoms.calc = MFPyGCalculator(random_potential())
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(calculate_numerical_forces(atoms, eps=1e-5), forces, atol=1e-7)


def test_stress_is_that_of_finite_strains(random_potential: Potentials) -> None:
    atoms = _crystal()
    atoms.calc = MFPyGCalculator(random_potential())
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-4
    np.testing.assert_allclose(calculate_numerical_stress(atoms, eps=1e-5), stress, atol=1e-8)


# What is computed when


def test_only_what_is_asked_for_is_computed(random_potential: Potentials) -> None:
    atoms = _crystal()
    calculator = atoms.calc = MFPyGCalculator(random_potential())
    atoms.get_potential_energy()
    assert set(calculator.results) == {"energy", "free_energy", "energies"}
    atoms.get_forces()
    assert set(calculator.results) == {"energy", "free_energy", "energies", "forces"}
    atoms.positions[0, 0] += 0.01
    atoms.get_potential_energy()  # of the geometry before the forces were asked for, too
    assert "forces" in calculator.results
    assert "stress" not in calculator.results
    atoms.positions[0, 0] += 0.01
    atoms.get_potential_energy()  # but of this one not
    assert "forces" not in calculator.results


def test_what_was_asked_for_before_comes_in_one_pass(random_potential: Potentials) -> None:
    atoms, passes = _crystal(), []
    calculator = atoms.calc = MFPyGCalculator(random_potential())
    predict = calculator.ensemble.predict
    calculator.ensemble.predict = lambda *a: passes.append(a) or predict(*a)  # type: ignore[method-assign, func-returns-value]
    for _ in range(3):
        atoms.positions[0, 0] += 0.01
        atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy()
    assert len(passes) == 2 + 1 + 1
    atoms.pbc = False  # where there is no stress any more, it is not computed
    atoms.get_forces()
    assert "stress" not in calculator.results


def test_nothing_is_computed_twice_and_charges_do_not_matter(random_potential: Potentials) -> None:
    atoms = molecule("CH3OH")
    calculator = atoms.calc = MFPyGCalculator(random_potential())
    before = atoms.get_forces()
    assert not calculator.calculation_required(atoms, ["energy", "forces"])
    atoms.set_initial_charges(np.ones(len(atoms)))
    assert not calculator.check_state(atoms)
    before += 1  # which is the caller's array
    assert np.abs(before - atoms.get_forces() - 1).max() < 1e-12
    atoms.positions[0, 0] += 1e-3
    assert calculator.check_state(atoms) == ["positions"]
    assert np.abs(before - atoms.get_forces() - 1).max() > 1e-6


# ASE's conventions


def test_name_parameters_and_set(random_potential: Potentials) -> None:
    atoms = molecule("H2O")
    calculator = MFPyGCalculator(random_potential(fidelities=["dz", "cc"]), "cc", atoms=atoms)
    assert atoms.calc is calculator
    assert calculator.name == "mfpygcalculator"
    assert calculator.todict() == {
        "models": ["MultiFidelityPotential"],
        "fidelity": "cc",
        "skin": 1.0,
        "device": "cpu",
        "dtype": "float64",
        "compiled": False,
    }
    high = atoms.get_potential_energy()
    calculator.set(fidelity="dz", skin=0.5)
    assert calculator.steps.neighbours.skin == 0.5
    assert abs(atoms.get_potential_energy() - high) > 1e-3
    with pytest.raises(MFPyGError, match="'dtype' cannot be set"):
        calculator.set(dtype="float32")
    with pytest.raises(MFPyGError, match="unknown fidelity 'd'"):
        calculator.set(fidelity="d")


def test_copies_and_pickles_give_the_same(random_potential: Potentials) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = MFPyGCalculator([random_potential(0), random_potential(1)])
    forces = atoms.get_forces()
    assert atoms.copy().calc is None
    for other in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        same = atoms.copy()
        same.calc = other
        assert other.results.keys() == atoms.calc.results.keys()
        same.rattle(0.1)
        assert np.abs(same.get_forces() - forces).max() > 1e-6
        same.positions = atoms.positions
        np.testing.assert_array_equal(same.get_forces(), forces)


def test_one_calculator_serves_several_systems(random_potential: Potentials) -> None:
    shared = MFPyGCalculator(random_potential())
    systems = [molecule("CH3OH"), molecule("H2O"), _crystal(), molecule("CH4"), molecule("NH3")]
    for atoms in [*systems, *systems]:
        expected = MFPyGCalculator(random_potential()).get_property("forces", atoms)
        np.testing.assert_array_equal(shared.get_property("forces", atoms), expected)


def test_the_potential_given_stays_as_it_is(random_potential: Potentials) -> None:
    potential, atoms = random_potential().train(), molecule("H2O")
    atoms.calc = MFPyGCalculator(potential, dtype="float32", compiled=False)
    energy = atoms.get_potential_energy()
    assert potential.training
    assert potential.dtype == torch.float64
    assert all(parameter.requires_grad for parameter in potential.parameters())
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.zero_()
    atoms.calc.reset()
    assert atoms.get_potential_energy() == energy


def test_results_go_into_files(random_potential: Potentials, tmp_path: Path) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = MFPyGCalculator([random_potential(seed, charges=["cc"]) for seed in (0, 1)])
    forces, charges, dipole = atoms.get_forces(), atoms.get_charges(), atoms.get_dipole_moment()
    write(tmp_path / "out.xyz", atoms)
    with Trajectory(tmp_path / "out.traj", "w", atoms) as trajectory:
        trajectory.write()
    for name in ("out.xyz", "out.traj"):
        back = read(tmp_path / name)
        np.testing.assert_allclose(back.get_forces(), forces, atol=1e-7)
        np.testing.assert_allclose(back.get_charges(), charges, atol=1e-7)
        np.testing.assert_allclose(back.get_dipole_moment(), dipole, atol=1e-7)
    assert set(atoms.calc.export_properties()) >= {"energy", "forces", "energies", "dipole", "charges"}


def test_precision(random_potential: Potentials) -> None:
    atoms = molecule("CH3OH")
    exact, rounded = (
        MFPyGCalculator(random_potential(), dtype=name).get_property("forces", atoms) for name in (None, "float32")
    )
    assert rounded.dtype == np.float64
    assert 1e-12 < np.abs(exact - rounded).max() < 1e-5
    assert MFPyGCalculator(random_potential().float()).parameters["dtype"] == "float32"


@pytest.mark.usefixtures("compile_soon")
def test_compiled(random_potential: Potentials) -> None:
    atoms = molecule("CH3OH")
    expected = MFPyGCalculator(random_potential()).get_property("forces", atoms)
    found = MFPyGCalculator(random_potential(), compiled=True).get_property("forces", atoms)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_delta_potential(random_potential: Potentials) -> None:
    delta = DeltaPotential(random_potential(0, ["dz"]), random_potential(1, ["cc-dz"]), "dz", "cc")
    atoms = _crystal()
    atoms.calc = MFPyGCalculator(delta, "cc")
    parts = [MFPyGCalculator(part).get_property("stress", atoms) for part in (delta.base, delta.difference)]
    np.testing.assert_allclose(atoms.get_stress(), sum(parts), atol=1e-12)


# Hessians


@pytest.mark.parametrize("make", [lambda: molecule("CH3CHO"), _crystal])
def test_hessian_is_that_of_displacements(
    random_potential: Potentials, tmp_path: Path, make: Callable[[], Atoms]
) -> None:
    atoms = make()
    atoms.calc = MFPyGCalculator(random_potential())
    found = atoms.calc.get_property("hessian", atoms)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-4, nfree=4)
    vibrations.run()
    expected = vibrations.get_vibrations().get_hessian_2d()
    assert found.shape == expected.shape == (3 * len(atoms), 3 * len(atoms))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_hessian_is_computed_only_when_requested(random_potential: Potentials) -> None:
    atoms = molecule("H2O")
    atoms.calc = MFPyGCalculator(random_potential())
    atoms.calc.get_property("hessian", atoms)
    energy = atoms.get_potential_energy()
    assert set(atoms.calc.results) == {"energy", "free_energy", "energies", "hessian"}
    atoms.positions[0, 0] += 0.1
    assert atoms.get_potential_energy() != energy
    assert "hessian" not in atoms.calc.results


def test_frequencies_are_those_of_vibrations(
    formaldehyde: tuple[MultiFidelityPotential, Atoms], tmp_path: Path
) -> None:
    potential, atoms = formaldehyde
    atoms = atoms.copy()
    atoms.calc = MFPyGCalculator(potential)
    BFGS(atoms, logfile=None).run(fmax=1e-5, steps=500)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-4, nfree=4)
    vibrations.run()
    data = data_of(atoms)
    found = harmonic_frequencies(hessian(potential, data, "dz"), data.z, data.pos)
    np.testing.assert_allclose(found, vibrations.get_frequencies().real[6:], rtol=1e-4)
    assert found.min() > 100


# Dipoles and charges


@pytest.mark.parametrize(("given", "charge"), [({}, 0), ({"charge": -1}, -1), ({"charge": 0.0}, 0), (None, 2)])
def test_charges_add_up_to_the_charge_of_the_atoms(
    random_potential: Potentials, given: dict[str, float] | None, charge: float
) -> None:
    potential, atoms = random_potential(fidelities=["dz", "cc"], charges=["cc"]), molecule("CH3CHO")
    if given != {}:
        atoms.set_initial_charges([2, *[0] * 6])
    atoms.info.update(given or {})
    atoms.calc = MFPyGCalculator(potential, "cc")
    data = data_of(atoms)
    data.charge = torch.tensor([charge])
    expected = potential(data, "cc", properties="DQ")
    np.testing.assert_allclose(atoms.get_charges(), expected.charges, rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected.dipole[0], rtol=0, atol=1e-12)
    assert atoms.get_charges().sum() == pytest.approx(charge, abs=1e-12)
    moment = atoms.get_charges() @ (atoms.positions - atoms.get_center_of_mass())
    np.testing.assert_allclose(atoms.get_dipole_moment(), moment, rtol=0, atol=1e-12)


def test_charges_are_computed_again_when_the_total_charge_changes(random_potential: Potentials) -> None:
    atoms = molecule("CH3OH")
    calculator = atoms.calc = MFPyGCalculator(random_potential(charges=["cc"]))
    energy, neutral = atoms.get_potential_energy(), atoms.get_charges()
    atoms.info["charge"] = 1
    assert calculator.check_state(atoms) == ["initial_charges"]
    np.testing.assert_allclose(atoms.get_charges(), neutral + 1 / 6, atol=1e-12)
    assert atoms.get_potential_energy() == energy
    assert not calculator.calculation_required(atoms, ["energy", "charges"])
    atoms.positions[0, 0] += 0.01
    atoms.get_potential_energy()  # together with what was asked for before
    assert "charges" in calculator.results
    assert "dipole" not in calculator.results
    atoms.info["charge"] = "1+"
    with pytest.raises(MFPyGError, match=r"^charge has type .*, expected total charges in e$"):
        atoms.get_charges()
    for charge in (0.5, np.nan):
        atoms.info["charge"] = charge
        with pytest.raises(MFPyGError, match=rf"^the total charge is {charge} e, expected a whole number$"):
            atoms.get_charges()


def test_only_fidelities_with_a_charge_head_have_charges(random_potential: Potentials) -> None:
    atoms = molecule("CH3OH")
    calculator = MFPyGCalculator(random_potential(fidelities=["dz", "cc"], charges=["cc"]), "cc", atoms=atoms)
    assert {"dipole", "charges"} < {*calculator.implemented_properties}
    atoms.get_charges(), atoms.get_dipole_moment()
    calculator.set(fidelity="dz")
    assert {"dipole", "charges"}.isdisjoint(calculator.implemented_properties)
    assert np.isfinite(atoms.get_forces()).all()  # without the charges that were asked for before
    for ask in (atoms.get_charges, atoms.get_dipole_moment):
        with pytest.raises(PropertyNotImplementedError):
            ask()
    mixed = MFPyGCalculator([random_potential(charges=["cc"]), random_potential()])
    assert "charges" not in mixed.implemented_properties


def test_dipole_of_what_is_periodic(random_potential: Potentials) -> None:
    atoms = molecule("CH3OH", vacuum=2.0)
    atoms.calc = MFPyGCalculator(random_potential(charges=["cc"]))
    atoms.get_dipole_moment()
    atoms.pbc = [False, True, False]
    assert atoms.get_charges().sum() == pytest.approx(0, abs=1e-12)
    assert "dipole" not in atoms.calc.results
    for _ in range(2):
        with pytest.raises(
            PropertyNotImplementedError,
            match=r"^dipole is not defined: pbc is \[False, True, False\], expected False.*$",
        ):
            atoms.get_dipole_moment()


# Ensembles


def test_ensemble(random_potential: Potentials) -> None:
    members, atoms = [random_potential(seed) for seed in range(3)], _crystal()
    atoms.calc = MFPyGCalculator(members)
    each = [MFPyGCalculator(member) for member in members]
    for name in ("energy", "energies", "forces", "stress", "hessian"):
        values = np.array([one.get_property(name, atoms) for one in each])
        np.testing.assert_allclose(atoms.calc.get_property(name, atoms), values.mean(axis=0), rtol=1e-10, atol=1e-12)
        spread = atoms.calc.get_property(f"{name}_std", atoms)
        np.testing.assert_allclose(spread, values.std(axis=0, ddof=1), rtol=1e-8, atol=1e-12)
        assert np.abs(atoms.calc.results[f"{name}_std"] - spread).max() == 0
    with pytest.raises(PropertyNotImplementedError):
        each[0].get_property("forces_std", atoms)
    ion, several = molecule("CH3OH"), MFPyGCalculator([random_potential(seed, charges=["cc"]) for seed in range(3)])
    ion.info["charge"] = 1
    for name in ("dipole", "charges"):
        values = np.array([MFPyGCalculator(one).get_property(name, ion) for one in several.ensemble.members])
        np.testing.assert_allclose(several.get_property(name, ion), values.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(several.get_property(f"{name}_std", ion), values.std(axis=0, ddof=1), atol=1e-12)
    fresh = MFPyGCalculator(members)
    assert fresh.get_property("forces_std", atoms).shape == (len(atoms), 3)


# Standard deviations of a single potential


def test_standard_deviations_are_those_of_the_potential(random_potential: Potentials, add_std: Potentials) -> None:
    potential = add_std(random_potential(fidelities=["dz", "cc"]), "cc")
    for atoms in (molecule("CH3OH"), _crystal()):
        atoms.calc = MFPyGCalculator(potential, fidelity="cc")
        expected = potential.predict(data_of(atoms), {"cc": "EF"}, std=True)["cc"]
        assert expected.energy_std is not None
        assert expected.forces_std is not None
        energy_std = atoms.calc.get_property("energy_std", atoms)
        assert isinstance(energy_std, float)
        assert energy_std == pytest.approx(float(expected.energy_std) * KCAL_MOL, rel=1e-7)
        assert "forces" not in atoms.calc.results
        forces_std = atoms.calc.get_property("forces_std", atoms)
        np.testing.assert_allclose(forces_std, expected.forces_std * KCAL_MOL, rtol=1e-7)
        assert forces_std.shape == (len(atoms), 3)
        plain = MFPyGCalculator(potential, fidelity="cc")
        np.testing.assert_array_equal(atoms.get_forces(), plain.get_forces(atoms))
        assert atoms.get_potential_energy() == plain.get_potential_energy(atoms)


def test_standard_deviations_are_computed_when_requested(
    random_potential: Potentials, add_std: Potentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the geometry itself, and together with the forces at the next one."""
    requested: list[bool] = []
    predict = MultiFidelityPotential.predict

    def counted(self: MultiFidelityPotential, data: object, wanted: object, std: bool = False) -> object:
        requested.append(std)
        return predict(self, data, wanted, std)  # type: ignore[arg-type]

    monkeypatch.setattr(MultiFidelityPotential, "predict", counted)
    atoms, found = molecule("CH3OH"), []
    atoms.calc = MFPyGCalculator(add_std(random_potential()))
    for with_std in (False, False, True, True, False, False):
        atoms.rattle(0.01, rng=np.random.default_rng(len(found)))
        atoms.get_forces()
        if with_std:
            found.append(atoms.calc.get_property("forces_std", atoms))
    assert requested == [False, False, False, True, True, True, False]
    assert not np.array_equal(*found)


def test_standard_deviations_of_the_fidelity_that_has_them(random_potential: Potentials, add_std: Potentials) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = MFPyGCalculator(add_std(random_potential(fidelities=["dz", "cc"]), "cc"), fidelity="cc")
    names = {"energy_std", "forces_std"}
    assert names <= set(atoms.calc.implemented_properties)
    assert "energies_std" not in atoms.calc.implemented_properties
    atoms.calc.get_property("forces_std", atoms)
    atoms.calc.set(fidelity="dz")
    assert names.isdisjoint(atoms.calc.implemented_properties)
    atoms.get_forces()
    for name in names:
        with pytest.raises(PropertyNotImplementedError):
            atoms.calc.get_property(name, atoms)
    single, double = (MFPyGCalculator(atoms.calc.ensemble.members[0], "cc", dtype=f"float{n}") for n in (32, 64))
    one, two = (calculator.get_property("forces_std", atoms) for calculator in (single, double))
    np.testing.assert_allclose(one, two, rtol=1e-3)
    copied = pickle.loads(pickle.dumps(double))
    np.testing.assert_array_equal(copied.get_property("forces_std", atoms), two)


# What is refused, in one line


def test_stress_of_what_has_no_volume(random_potential: Potentials) -> None:
    atoms = _crystal()
    atoms.pbc = [True, True, False]
    atoms.calc = MFPyGCalculator(random_potential())
    for name in ("stress", "stress"):  # again after the error
        with pytest.raises(
            PropertyNotImplementedError, match=r"^stress is not defined: pbc is \[True, True, False\].*$"
        ):
            atoms.calc.get_property(name, atoms)
    assert np.isfinite(atoms.get_forces()).all()


def _at(value: float) -> Atoms:
    atoms = molecule("H2O")
    atoms.positions[1, 2] = value
    return atoms


def _together(apart: float) -> Atoms:
    return Atoms("CHOH", [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, apart]])


WRONG = {
    "NaN": (lambda: _at(np.nan), "position of atom 1 is NaN or infinite"),
    "infinite": (lambda: _at(np.inf), "position of atom 1 is NaN or infinite"),
    "no atoms": (lambda: Atoms(), "no atoms; expected at least one"),
    "unknown element": (lambda: molecule("SiH4"), "element Si is unknown to this potential (it knows H, C, N, O)"),
    "ghost": (lambda: Atoms("XH", [[0, 0, 0], [1, 0, 0]]), "element X is unknown"),
    "one place": (lambda: _together(0.0), "atoms 1 and 3 are at the same place"),
    "image at one place": (
        lambda: Atoms("CO", [[0, 0, 0], [3, 0, 0]], cell=[3, 3, 3], pbc=True),
        "atoms 0 and 1 are at the same place",
    ),
    "no cell": (lambda: Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], pbc=True), "span no volume"),
    "flat cell": (
        lambda: Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True),
        "span no volume",
    ),
    "NaN cell": (lambda: Atoms("C", cell=[np.nan, 3, 3], pbc=True), "cell is NaN or infinite"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_geometries_that_make_no_sense(random_potential: Potentials, name: str, dtype: str) -> None:
    make, message = WRONG[name]
    atoms = make()
    atoms.calc = MFPyGCalculator(random_potential(), dtype=dtype)
    for _ in range(2):
        with pytest.raises(MFPyGError) as caught:
            atoms.get_forces()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not atoms.calc.results
    good = molecule("H2O")
    good.calc = atoms.calc
    assert np.isfinite(good.get_forces()).all()


@pytest.mark.parametrize("apart", [1e-200, 1e-30, 1e-12, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_almost_one_place_is_finite_or_an_error(random_potential: Potentials, apart: float, dtype: str) -> None:
    atoms = _together(apart)
    atoms.calc = MFPyGCalculator(random_potential(), dtype=dtype)
    message, values = "", []
    try:
        values = [atoms.get_potential_energy(), atoms.get_forces()]
    except MFPyGError as error:
        message = str(error)
    assert all(np.isfinite(value).all() for value in values)
    assert values or (apart < 1e-6 and "atoms 1 and 3 are at the same place" in message)


def test_settings_that_make_no_sense(random_potential: Potentials, tmp_path: Path) -> None:
    several = random_potential(fidelities=["dz", "cc"])
    for options, message in (
        ({"fidelity": "c"}, r"unknown fidelity 'c'.*'cc'"),
        ({}, "no fidelity given"),
        ({"fidelity": "cc", "dtype": "float16"}, "unknown dtype 'float16'"),
        ({"fidelity": "cc", "device": "abacus"}, "device 'abacus' cannot be used"),
        ({"fidelity": "cc", "skin": -1.0}, "skin is -1.0, expected a distance"),
        ({"fidelity": "cc", "skin": float("nan")}, "skin is nan, expected a distance"),
    ):
        with pytest.raises(MFPyGError, match=message) as caught:
            MFPyGCalculator(several, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(MFPyGError, match="no such checkpoint"):
        MFPyGCalculator(tmp_path / "nothing")
    with pytest.raises(MFPyGError, match="no model given"):
        MFPyGCalculator([])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_atoms_alone_and_far_apart(random_potential: Potentials, dtype: str) -> None:
    calculator = MFPyGCalculator(random_potential(), dtype=dtype)
    for atoms in (Atoms("C"), Atoms("CO", [[0, 0, 0], [50, 0, 0]]), Atoms("C", cell=[20, 20, 20], pbc=True)):
        np.testing.assert_array_equal(calculator.get_property("forces", atoms), np.zeros((len(atoms), 3)))
    np.testing.assert_allclose(calculator.get_property("stress", atoms), np.zeros(6), atol=1e-12)


# Dynamics, relaxations, vibrations


@pytest.mark.slow
def test_energy_is_conserved(formaldehyde: tuple[MultiFidelityPotential, Atoms]) -> None:
    """The slope of a line through the total energies of 0.25 ps at some 300 K, after the structure has been relaxed."""
    potential, atoms = formaldehyde
    atoms = atoms.copy()
    atoms.calc = MFPyGCalculator(potential)
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    random = np.random.default_rng(0)
    atoms.set_momenta(random.normal(size=(4, 3)) * np.sqrt(atoms.get_masses() * ase.units.kB * 600)[:, None])
    dynamics, energies = VelocityVerlet(atoms, 0.25 * ase.units.fs), []
    dynamics.attach(lambda: energies.append((dynamics.nsteps * 0.25e-3, atoms.get_total_energy())))
    dynamics.run(1000)
    picoseconds, total = np.array(energies).T
    drift = np.polyfit(picoseconds, total / KCAL_MOL / len(atoms), 1)[0]
    print(f"drift {drift:.1e} kcal/mol/atom/ps, spread {np.std(total) / KCAL_MOL / len(atoms):.1e} kcal/mol/atom")
    assert abs(drift) < 0.01
    assert 100 < atoms.get_temperature() < 1000  # something moved
    assert atoms.calc.steps.neighbours.searches < 100


def test_relaxation_and_vibrations(formaldehyde: tuple[MultiFidelityPotential, Atoms], tmp_path: Path) -> None:
    potential, atoms = formaldehyde
    atoms = atoms.copy()
    atoms.calc = MFPyGCalculator(potential)
    assert BFGS(atoms, logfile=None).run(fmax=1e-5, steps=200)
    carbon, oxygen = (list(atoms.numbers).index(z) for z in (6, 8))
    assert 1.1 < atoms.get_distance(carbon, oxygen) < 1.35
    # The norms of HIP-NN-TS are round on a scale of 1e-3 (its cusp): displacements must be smaller than that.
    vibrations = Vibrations(atoms, name=str(tmp_path / "vibrations"), delta=1e-4)
    vibrations.run()
    frequencies = vibrations.get_frequencies()  # in cm⁻¹
    assert np.abs(frequencies[:6]).max() < 10  # translations and rotations
    assert frequencies[6:].real.min() > 500


def test_other_dynamics_and_a_cell_that_relaxes(random_potential: Potentials) -> None:
    crystal, log = _crystal(), io.StringIO()
    crystal.calc = MFPyGCalculator(random_potential())
    start = crystal.get_potential_energy()
    BFGS(FrechetCellFilter(crystal), logfile=log).run(fmax=0.01, steps=8)
    assert crystal.get_potential_energy() < start
    fresh = MFPyGCalculator(random_potential())
    np.testing.assert_allclose(crystal.get_stress(), fresh.get_property("stress", crystal), atol=1e-12)
    atoms = molecule("CH3CHO")
    atoms.calc = MFPyGCalculator(random_potential())
    atoms.set_constraint(FixAtoms([0]))
    fixed = atoms.positions[0].copy()
    rng = np.random.default_rng(0)
    Langevin(atoms, 0.25 * ase.units.fs, temperature_K=300, friction=0.01 / ase.units.fs, rng=rng, fixcm=False).run(10)
    np.testing.assert_array_equal(atoms.positions[0], fixed)
    assert np.isfinite(atoms.get_total_energy())


# Without atoms


def test_without_atoms_it_is_the_last_ones(random_potential: Potentials) -> None:
    atoms = _crystal()
    calculator = atoms.calc = MFPyGCalculator(random_potential())
    energy = atoms.get_potential_energy()
    assert calculator.get_potential_energy() == energy
    forces, stress = calculator.get_forces(), calculator.get_stress()  # not computed before
    np.testing.assert_array_equal(forces, atoms.get_forces())
    np.testing.assert_array_equal(stress, atoms.get_stress())
    atoms.positions[0] += 0.1
    assert calculator.get_potential_energy() == energy  # the last that was computed, as with ASE's own


def test_without_any_atoms_before_it_says_so(random_potential: Potentials) -> None:
    calculator = MFPyGCalculator(random_potential(), atoms=molecule("H2O"))
    for ask in (calculator.get_potential_energy, calculator.get_forces, calculator.calculate):
        with pytest.raises(CalculatorSetupError, match=r"no atoms yet.*get_potential_energy\(atoms\)"):
            ask()
    assert calculator.get_property("energy", allow_calculation=False) is None
    calculator.get_potential_energy(molecule("H2O"))
    calculator.reset()
    with pytest.raises(CalculatorSetupError, match="no atoms yet"):
        calculator.get_potential_energy()


# Several threads


@pytest.mark.parametrize("skin", [0.0, 1.0])
def test_threads_that_share_a_calculator_get_what_one_would(random_potential: Potentials, skin: float) -> None:
    frames = [atoms for seed in range(12) for atoms in (_crystal(seed), molecule("CH3CHO"), molecule("H2O"))]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=number)
    potentials = [random_potential(), random_potential(1)]

    def asked(calculator: MFPyGCalculator, atoms: Atoms) -> list[np.ndarray]:
        found = [calculator.get_potential_energy(atoms), calculator.get_forces(atoms)]
        together = calculator.calculate_properties(atoms, ["energy", "forces"])
        own = atoms.copy()
        own.calc = calculator
        return [*found, own.get_potential_energy(force_consistent=True), together["energy"], together["forces"]]

    one = MFPyGCalculator(potentials, skin=skin)
    expected = [asked(one, atoms) for atoms in frames]
    shared = copy.deepcopy(MFPyGCalculator(potentials, skin=skin))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda atoms: asked(shared, atoms), frames * 2))
    for ours, theirs in zip(found, expected * 2, strict=True):
        for value, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-10, atol=1e-10)


# Far from the origin


def _single(random_potential: Potentials) -> MultiFidelityPotential:
    return random_potential().float()


@pytest.mark.parametrize("make", [lambda: molecule("CH3CHO"), _crystal])
def test_forces_do_not_depend_on_where_atoms_are(random_potential: Potentials, make: Callable[[], Atoms]) -> None:
    near, calculator = make(), MFPyGCalculator(_single(random_potential))
    expected, far = calculator.get_forces(near), near.copy()
    far.positions += 1e5
    np.testing.assert_allclose(calculator.get_forces(far), expected, atol=1e-6)
    if near.pbc.any():
        images = np.random.default_rng(0).integers(-1000, 1001, (len(near), 3))
        far.positions += images @ near.cell.array
        np.testing.assert_allclose(calculator.get_forces(far), expected, atol=1e-6)
        stress = calculator.get_stress(near)
        np.testing.assert_allclose(calculator.get_stress(far), stress, atol=1e-7)


@pytest.mark.parametrize("make", [lambda: molecule("CH3CHO"), _crystal])
def test_dynamics_far_away_are_those_near_the_origin(random_potential: Potentials, make: Callable[[], Atoms]) -> None:
    runs, searches = [], []
    for offset in (0.0, 5000.0):
        atoms, random = make(), np.random.default_rng(0)
        velocities = 0.02 * random.normal(size=atoms.positions.shape)
        atoms.positions += offset
        calculator = atoms.calc = MFPyGCalculator(_single(random_potential))
        atoms.set_velocities(velocities)
        VelocityVerlet(atoms, 0.5 * ase.units.fs).run(60)
        runs.append((atoms.positions - offset, atoms.get_total_energy()))
        searches.append(calculator.steps.neighbours.searches)
    np.testing.assert_allclose(runs[1][0], runs[0][0], atol=2e-5)
    assert runs[1][1] == pytest.approx(runs[0][1], abs=2e-5)
    assert abs(searches[1] - searches[0]) <= 1  # and no more of them
