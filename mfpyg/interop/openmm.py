"""OpenMM forces of trained potentials (``pip install openmm``, 8.6 or later).

OpenMM's ``PythonForce`` calls the ASE calculator (:mod:`mfpyg.interop.ase`) with the positions and the box vectors of
the context. OpenMM uses kJ/mol and nm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from mfpyg.errors import MFPyGError
from mfpyg.inference.ensemble import Model
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.units import energy_factor

try:
    from openmm import PythonForce, State, System, unit
except ImportError as error:
    raise ImportError(f"OpenMM 8.6 or later is not installed ({error}); pip install 'mfpyg[openmm]'") from error

if TYPE_CHECKING:
    from openmm.app import Topology

_EV_TO_KJ_MOL = energy_factor("eV") / energy_factor("kJ/mol")
_ANGSTROM_PER_NM = 10.0


def create_system(
    topology: Topology, models: Model | Sequence[Model], fidelity: str | None = None, **options: Any
) -> System:
    """OpenMM system of all atoms of a topology, with one force and without constraints.

    Args:
        topology: elements, masses, and box vectors if it is periodic; bonds are ignored.
        models, fidelity, options: see :func:`create_force`; ``numbers`` and ``periodic`` are those of the topology.

    Returns:
        A system to which further forces, such as barostats and restraints, may be added.

    Raises:
        MFPyGError: for a particle without an element; see also :func:`create_force`.

    Example:
        >>> system = create_system(pdb.topology, "chno-1", "cc")              # doctest: +SKIP
        >>> simulation = Simulation(pdb.topology, system, integrator)         # doctest: +SKIP
    """
    system, numbers = System(), []
    for atom in topology.atoms():
        if atom.element is None:
            raise MFPyGError(f"particle {atom.index} ({atom.name}) has no element; expected a topology of atoms only")
        system.addParticle(atom.element.mass)
        numbers.append(atom.element.atomic_number)
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    system.addForce(create_force(numbers, models, fidelity, periodic=box is not None, **options))
    return system


def create_force(
    numbers: Sequence[int],
    models: Model | Sequence[Model],
    fidelity: str | None = None,
    *,
    periodic: bool = False,
    skin: float = 1.0,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    compiled: bool = False,
) -> PythonForce:
    """OpenMM force of one fidelity of a trained potential.

    It acts on all particles of a system, or on those given to its ``setParticles``.

    Args:
        numbers: atomic numbers of the particles, (n,).
        models: a potential, run folder, checkpoint or shipped model, such as ``"chno-1"``, or several, whose mean is
            taken; potentials are copied.
        fidelity: level of theory; optional if there is only one.
        periodic: whether the system is periodic in all three directions, with the box vectors of the context.
        skin, device, dtype, compiled: see :class:`mfpyg.interop.ase.MFPyGCalculator`.

    Returns:
        The force. ``openmm.XmlSerializer`` saves it together with the weights, as a pickle; loading a file can run any
        code that is in it.

    Raises:
        MFPyGError: for files that cannot be read, an unknown fidelity, none given although there are several, unknown
            elements, an unknown device or dtype, and a negative skin. Errors of a step, such as overlapping atoms, are
            ``openmm.OpenMMException`` with the same message.
    """
    atoms = Atoms(numbers, pbc=periodic)
    atoms.calc = MFPyGCalculator(models, fidelity, skin=skin, device=device, dtype=dtype, compiled=compiled)
    ensemble = atoms.calc.ensemble
    for member in ensemble.members:  # now rather than in the first step
        member.species_number(torch.tensor(atoms.numbers, device=ensemble.device))
    force = PythonForce(_Computation(atoms))
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setName(f"mfpyg {atoms.calc.parameters['fidelity']}")
    return force


class _Computation:
    """Function that OpenMM calls with the state of a context.

    Args:
        atoms: atoms with a calculator, whose positions and cell are set in each call.
    """

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms

    def __call__(self, state: State) -> tuple[float, NDArray[np.float64]]:
        """Energy in kJ/mol and forces (n, 3) in kJ/mol/nm."""
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        if len(positions) != len(self.atoms):
            raise MFPyGError(f"the force is of {len(self.atoms)} atoms, the system has {len(positions)} particles")
        self.atoms.positions = positions
        if self.atoms.pbc.any():
            self.atoms.cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
        forces = self.atoms.get_forces() * (_EV_TO_KJ_MOL * _ANGSTROM_PER_NM)
        return self.atoms.get_potential_energy() * _EV_TO_KJ_MOL, forces
