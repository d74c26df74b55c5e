"""Potentials in OpenMM, against the ASE calculator, differences of energies, and Newton's laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.data import chemical_symbols

from mfpyg.errors import MFPyGError
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.models import MultiFidelityPotential

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'mfpyg[openmm]'")

from openmm import app, unit  # noqa: E402

from mfpyg.interop.openmm import create_force, create_system  # noqa: E402

KJ_MOL = 1 / 96.48533212331
"""In eV, CODATA 2018."""


def box() -> Atoms:
    """Methane and water in a triclinic box smaller than two cutoffs, with atoms outside of it."""
    atoms = molecule("CH4") + molecule("H2O")
    atoms.positions[5:] += [2.6, 0.4, 0.3]
    atoms.set_cell([[5.5, 0, 0], [0.7, 6.0, 0], [-1.1, 0.9, 6.4]])
    atoms.pbc = True
    atoms.positions[:3] += 2 * atoms.cell.array[0]
    return atoms


def topology_of(atoms: Atoms) -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("SYS", topology.addChain())
    for number in atoms.numbers:
        topology.addAtom(chemical_symbols[number], app.Element.getByAtomicNumber(int(number)), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
    return topology


def context_of(
    system: openmm.System, positions: np.ndarray, platform: str = "Reference", fs: float = 0.25
) -> openmm.Context:
    """Positions in Å."""
    integrator = openmm.VerletIntegrator(fs * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPositions(positions * unit.angstrom)
    return context


def energy_of(context: openmm.Context) -> float:
    """In eV."""
    energy = context.getState(getEnergy=True).getPotentialEnergy()
    return float(energy.value_in_unit(unit.kilojoule_per_mole)) * KJ_MOL


def forces_of(context: openmm.Context) -> np.ndarray:
    """In eV/Å."""
    forces = context.getState(getForces=True).getForces(asNumpy=True)
    return forces.value_in_unit(unit.kilojoule_per_mole / unit.angstrom) * KJ_MOL


def assert_equal(context: openmm.Context, atoms: Atoms, rtol: float = 1e-12) -> None:
    """To the potential of the atoms' calculator."""
    assert energy_of(context) == pytest.approx(atoms.get_potential_energy(), rel=rtol)
    np.testing.assert_allclose(forces_of(context), atoms.get_forces(), rtol=1e-8, atol=1e-9)
    assert np.abs(forces_of(context)).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("level", ["xtb", "dz", "cc"])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_molecule_as_in_ase(platform: str, level: str, dtype: str) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    atoms.calc = MFPyGCalculator("chno-1", level, dtype=dtype)
    system = create_system(topology_of(atoms), "chno-1", level, dtype=dtype)
    assert_equal(context_of(system, atoms.positions, platform), atoms)
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(len(atoms))]
    np.testing.assert_allclose(masses, atoms.get_masses(), rtol=1e-4)
    assert not system.usesPeriodicBoundaryConditions()


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_box_as_in_ase(platform: str) -> None:
    """Also where the box and the positions have changed, within and beyond the skin."""
    atoms = box()
    atoms.calc = MFPyGCalculator("chno-1", "cc", dtype="float64")
    system = create_system(topology_of(atoms), "chno-1", "cc", dtype="float64")
    assert system.usesPeriodicBoundaryConditions()
    context = context_of(system, atoms.positions, platform)
    for strain in (0, 0.002, 0.1, -0.02):
        atoms.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
        context.setPeriodicBoxVectors(*atoms.cell.array * unit.angstrom)
        context.setPositions(atoms.positions * unit.angstrom)
        assert_equal(context, atoms)


def test_stress_is_the_derivative_by_the_box() -> None:
    """dE/dF = V σ for deformations F that keep OpenMM's triangular form."""
    atoms = box()
    atoms.calc = MFPyGCalculator("chno-1", "cc", dtype="float64")
    stress, volume, h = atoms.get_stress(voigt=False), atoms.get_volume(), 1e-4
    context = context_of(create_system(topology_of(atoms), "chno-1", "cc", dtype="float64"), atoms.positions)

    def energy(i: int, j: int, by: float) -> float:
        deformation = np.eye(3)
        deformation[i, j] += by
        context.setPeriodicBoxVectors(*atoms.cell.array @ deformation * unit.angstrom)
        context.setPositions(atoms.positions @ deformation * unit.angstrom)
        return energy_of(context)

    for i, j in zip(*np.tril_indices(3), strict=True):
        found = (energy(i, j, h) - energy(i, j, -h)) / (2 * h * volume)
        assert found == pytest.approx(stress[i, j], abs=1e-7)
    assert np.abs(stress).max() > 1e-3


def test_barostat_changes_the_box(random_potential: Callable[..., MultiFidelityPotential]) -> None:
    atoms, one = box(), random_potential()
    system = create_system(topology_of(atoms), one, "cc")
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 2)
    barostat.setRandomNumberSeed(1)
    system.addForce(barostat)
    context = context_of(system, atoms.positions, fs=0.1)
    context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    context.getIntegrator().step(100)
    state = context.getState(getPositions=True)
    before = atoms.get_volume()
    atoms.cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
    atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    atoms.calc = MFPyGCalculator(one, "cc")
    assert abs(atoms.get_volume() / before - 1) > 1e-4
    assert_equal(context, atoms)


def test_energy_is_conserved() -> None:
    """For 50 fs; the error of leapfrog is of second order in the time step."""

    def spread(fs: float) -> float:
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.02, seed=1)
        system = create_system(topology_of(atoms), "chno-1", "cc", dtype="float64")
        context, total = context_of(system, atoms.positions, fs=fs), []
        context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
        for _ in range(50):
            context.getIntegrator().step(round(1 / fs))
            state = context.getState(getEnergy=True)
            energy = state.getPotentialEnergy() + state.getKineticEnergy()
            total.append(energy.value_in_unit(unit.kilojoule_per_mole) * KJ_MOL)
        return float(np.std(total))

    coarse, fine = spread(0.25), spread(0.125)
    assert fine < 2e-4  # eV, of a kinetic energy of 0.35 eV
    assert coarse / fine == pytest.approx(4, rel=0.05)


def test_some_of_the_particles(random_potential: Callable[..., MultiFidelityPotential]) -> None:
    """The potential acts on water only, beside a force on all."""
    atoms, one = molecule("CH4") + molecule("H2O"), random_potential()
    atoms.positions[5:] += [2.6, 0.4, 0.3]
    water = atoms[5:]
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    force = create_force(water.numbers, one)
    force.setParticles(range(5, 8))
    system.addForce(force)
    well = openmm.CustomExternalForce("50*(x^2+y^2+z^2)")
    for number in range(len(atoms)):
        well.addParticle(number)
    system.addForce(well)
    water.calc = MFPyGCalculator(one)
    context = context_of(system, atoms.positions)
    expected = -np.array(atoms.positions) * KJ_MOL  # 100 kJ/mol/nm² is 1 kJ/mol/Å²
    expected[5:] += water.get_forces()
    np.testing.assert_allclose(forces_of(context), expected, atol=1e-9)
    in_well = 0.5 * (atoms.positions**2).sum() * KJ_MOL
    assert energy_of(context) == pytest.approx(water.get_potential_energy() + in_well, rel=1e-10)


def test_several_models_give_their_mean(random_potential: Callable[..., MultiFidelityPotential]) -> None:
    atoms, members = molecule("CH3CH2OH"), [random_potential(seed) for seed in range(2)]
    atoms.calc = MFPyGCalculator(members)
    assert_equal(context_of(create_system(topology_of(atoms), members), atoms.positions), atoms)


def test_xml(random_potential: Callable[..., MultiFidelityPotential]) -> None:
    """A saved system has the weights within, also after steps."""
    atoms, one = box(), random_potential()
    system = create_system(topology_of(atoms), one)
    context = context_of(system, atoms.positions)
    context.getIntegrator().step(3)
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert again.getForce(0).getName() == "mfpyg cc"
    atoms.calc = MFPyGCalculator(one)
    assert_equal(context_of(again, atoms.positions), atoms)


def test_errors(random_potential: Callable[..., MultiFidelityPotential]) -> None:
    water = molecule("H2O")
    with pytest.raises(MFPyGError, match=r"unknown fidelity 'ccc'.*did you mean 'cc'"):
        create_system(topology_of(water), "chno-1", "ccc")
    with pytest.raises(MFPyGError, match=r"no fidelity given.*xtb, dz, cc"):
        create_force(water.numbers, "chno-1")
    with pytest.raises(MFPyGError, match="Fe is unknown"):
        create_force([26], "chno-1", "cc")
    topology = topology_of(water)
    topology.addAtom("M", None, next(topology.residues()))
    with pytest.raises(MFPyGError, match=r"particle 3 \(M\) has no element"):
        create_system(topology, "chno-1", "cc")
    system = create_system(topology_of(water), random_potential())
    with pytest.raises(openmm.OpenMMException, match="atoms 0 and 1 are at the same place"):
        energy_of(context_of(system, water.positions[[0, 0, 1]]))
    system.addParticle(1)
    with pytest.raises(openmm.OpenMMException, match="force is of 3 atoms, the system has 4 particles"):
        energy_of(context_of(system, np.eye(4, 3)))
