"""What all programs that compute labels have in common."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase import Atoms
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


def about_centre_of_mass(dipole: np.ndarray, atoms: Atoms, charge: int) -> np.ndarray:
    """Dipole moment relative to the centre of mass, from that relative to the origin, (3,) in e·Å."""
    masses = atomic_masses[atoms.numbers]
    return np.asarray(dipole) - charge * (masses @ atoms.positions) / masses.sum()
