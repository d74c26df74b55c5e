"""Base of the programs that compute labels."""

from __future__ import annotations

import dataclasses
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_masses

from mfpyg.errors import MFPyGError, unknown_name

_HESSIAN_STEP = 0.005
"""Displacement in Å for Hessians by central differences."""


class LabelError(MFPyGError):
    """A label that cannot be computed, and why; the other labels are."""


class Program(ABC):
    """A program and a method, which computes labels of one structure at a time.

    Args:
        method: method as :meth:`parse` returns it.
        settings: settings as :meth:`parse` returns them.

    Attributes:
        letters: letters of the properties that it computes, see :mod:`mfpyg.properties`.
        version: version of the program; labels of another version are computed anew.
        needs_spin: whether the multiplicity matters, so that it may not be guessed for an odd number of electrons.

    Raises:
        MFPyGError: if the program is not installed, or does not know the method.
    """

    letters = "EF"
    version = ""
    needs_spin = True

    def __init__(self, method: str, settings: Mapping[str, Any]) -> None:
        self.method, self.settings = method, dict(settings)

    @classmethod
    @abstractmethod
    def parse(cls, method: str, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        """Canonical method, and all settings with their defaults, from the text of a level; imports no program.

        Raises:
            MFPyGError: for an unknown method or setting.
        """

    @abstractmethod
    def compute(self, atoms: Atoms, charge: int, multiplicity: int, letters: str) -> dict[str, Any]:
        """Labels of a structure by letter, in eV, Å and e.

        Args:
            atoms: a molecule or a periodic system, with at least one atom.
            charge: total charge in e.
            multiplicity: spin multiplicity 2S + 1.
            letters: properties to compute, which must be defined for the structure; with ``E``.

        Returns:
            Energy ``E``, forces ``F`` (n, 3), stress ``S`` (3, 3), Hessian ``H`` (n, 3, n, 3), dipole ``D`` (3,),
            of ions relative to the centre of mass, charges ``Q`` (n,). Derivatives are those of the energy ``E``.

        Raises:
            LabelError: with the reason, for example that the calculation did not converge.
        """

    def make(self, charge: int, multiplicity: int) -> Any:
        """New ASE calculator of energies and forces for structures of this charge and multiplicity.

        Raises:
            LabelError: if the program does not take them.
        """
        return ProgramCalculator(self, charge, multiplicity)

    @contextmanager
    def calculator(self, charge: int, multiplicity: int) -> Iterator[Any]:
        """As :meth:`make`, with a temporary folder for the files of programs, which parallel jobs must not share."""
        with tempfile.TemporaryDirectory(prefix="mfpyg-label-") as folder:
            calculator = self.make(charge, multiplicity)
            if hasattr(calculator, "directory"):
                calculator.directory = folder
            yield calculator


class ProgramCalculator(Calculator):
    """ASE calculator of the energies and forces that a program computes.

    Args:
        program: program that computes them.
        charge: total charge in e.
        multiplicity: spin multiplicity 2S + 1.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (as in ASE)

    def __init__(self, program: Program, charge: int, multiplicity: int) -> None:
        super().__init__()
        self.program, self.state = program, (charge, multiplicity)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy and forces of the atoms."""
        assert atoms is not None
        super().calculate(atoms, properties, system_changes)
        found = self.program.compute(atoms, *self.state, "EF")
        self.results = {"energy": found["E"], "forces": np.asarray(found["F"])}


def settings_from(cls: type, given: Mapping[str, str], method: str) -> dict[str, Any]:
    """Fields of a dataclass with their defaults, and values of the command line converted to their types.

    Raises:
        MFPyGError: for an unknown name, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    settings = {name: field.default for name, field in fields.items()}
    for name, text in given.items():
        if name not in fields:
            raise unknown_name(f"setting of {method}", name, fields)
        settings[name] = _converted(name, text, type(settings[name]))
    return settings


def _converted(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise MFPyGError(f"{name} is '{text}', expected true or false")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not 0 < value < float("inf"):
        what = "a whole number" if kind is int else "a number"
        raise MFPyGError(f"{name} is '{text}', expected {what} above 0")
    return value


def hessian_from_forces(forces: Callable[[np.ndarray], np.ndarray], pos: np.ndarray) -> np.ndarray:
    """Hessian by central differences of forces, symmetrised.

    Args:
        forces: forces (n, 3) in eV/Å at positions (n, 3) in Å.
        pos: positions, (n, 3).

    Returns:
        (n, 3, n, 3) in eV/Å².
    """
    n = len(pos)
    hessian = np.zeros((3 * n, 3 * n))
    for row in range(3 * n):
        step = np.zeros((n, 3))
        step[divmod(row, 3)] = _HESSIAN_STEP
        hessian[row] = ((forces(pos - step) - forces(pos + step)) / (2 * _HESSIAN_STEP)).ravel()
    return ((hessian + hessian.T) / 2).reshape(n, 3, n, 3)


def hessian_of(calculator: Any, atoms: Atoms) -> np.ndarray:
    """Hessian (n, 3, n, 3) in eV/Å²: a calculator's own, or by central differences of its forces, symmetrised."""
    n, moved = len(atoms), atoms.copy()
    if "hessian" in calculator.implemented_properties:
        hessian = np.asarray(calculator.get_property("hessian", atoms)).reshape(3 * n, 3 * n)
        return ((hessian + hessian.T) / 2).reshape(n, 3, n, 3)

    def forces(pos: np.ndarray) -> np.ndarray:
        moved.positions = pos
        return np.array(calculator.get_property("forces", moved))

    return hessian_from_forces(forces, atoms.positions)


def about_centre_of_mass(dipole: np.ndarray, atoms: Atoms, charge: int) -> np.ndarray:
    """Dipole moment relative to the centre of mass, from that relative to the origin, (3,) in e·Å."""
    masses = atomic_masses[atoms.numbers]
    return np.asarray(dipole) - charge * (masses @ atoms.positions) / masses.sum()
