"""Units: kcal/mol and Å inside the package, those of the level of theory in the files, eV at the border to ASE.

The constants are those of CODATA 2018; ASE's own ``units`` agree to 1e-8.
"""

from __future__ import annotations

from mfpyg.errors import MFPyGError, unknown_name

HARTREE_TO_KCAL_MOL = 627.5094740631
"""One Hartree in kcal/mol. Hartree/Å become kcal/mol/Å by the same factor."""

EV_TO_KCAL_MOL = 23.060547830619
"""One electronvolt in kcal/mol."""

BOHR_TO_ANGSTROM = 0.529177210903
"""One bohr in Å."""

ENERGY_UNIT = "kcal/mol"
LENGTH_UNIT = "Å"
FORCE_UNIT = "kcal/mol/Å"

ENERGY_UNITS = {
    "Hartree": HARTREE_TO_KCAL_MOL,
    "eV": EV_TO_KCAL_MOL,
    "meV": EV_TO_KCAL_MOL / 1000,
    "kcal/mol": 1.0,
    "kJ/mol": 1 / 4.184,
    "Rydberg": HARTREE_TO_KCAL_MOL / 2,
}
"""Energy units that a file may use, each in kcal/mol."""

LENGTH_UNITS = {"Å": 1.0, "A": 1.0, "Angstrom": 1.0, "bohr": BOHR_TO_ANGSTROM}
"""Length units that forces may be given per, each in Å."""


def energy_factor(unit: str) -> float:
    """What energies in this unit are multiplied by to become kcal/mol; upper and lower case are one.

    Raises:
        MFPyGError: for an unknown unit.
    """
    return _factor("energy unit", unit, ENERGY_UNITS)


def force_factor(unit: str) -> float:
    """What forces in this unit, such as ``eV/Å``, are multiplied by to become kcal/mol/Å.

    Raises:
        MFPyGError: for an unknown unit, or one that is no energy per length.
    """
    energy, slash, length = unit.rpartition("/")
    if not slash or length.lower() == "mol":
        raise MFPyGError(f"unknown force unit '{unit}': expected an energy per length, as eV/Å or Hartree/bohr")
    return energy_factor(energy) / length_factor(length)


def length_factor(unit: str) -> float:
    """What lengths in this unit are multiplied by to become Å.

    Raises:
        MFPyGError: for an unknown unit.
    """
    return _factor("length unit", unit, LENGTH_UNITS)


def _factor(kind: str, unit: str, known: dict[str, float]) -> float:
    by_lower_case = {name.lower(): value for name, value in known.items()}
    if unit.lower() not in by_lower_case:
        raise unknown_name(kind, unit, known)
    return by_lower_case[unit.lower()]
