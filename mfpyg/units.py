"""Units: kcal/mol and Å inside the package, those of the level of theory in data files, eV in the interface to ASE.

The constants are those of CODATA 2018; ASE's own ``units`` agree to 1e-8.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from mfpyg.errors import MFPyGError, unknown_name

HARTREE_TO_KCAL_MOL = 627.5094740631
"""One Hartree in kcal/mol. Hartree/Å become kcal/mol/Å by the same factor."""

EV_TO_KCAL_MOL = 23.060547830619
"""One electronvolt in kcal/mol."""

KCAL_MOL_TO_EV = 1 / EV_TO_KCAL_MOL
"""One kcal/mol in eV; kcal/mol/Å and kcal/mol/Å³ become eV/Å and eV/Å³ by the same factor."""

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

LENGTH_UNITS = {"Å": 1.0, "bohr": BOHR_TO_ANGSTROM}
"""Length units that forces may be given per, each in Å."""

PRESSURE_UNITS = {"GPa": EV_TO_KCAL_MOL / 160.2176634, "kbar": EV_TO_KCAL_MOL / 1602.176634}
"""Other units of stresses, each in kcal/mol/Å³."""

DIPOLE_UNITS = {"e·Å": 1.0, "e·bohr": BOHR_TO_ANGSTROM, "Debye": 0.20819433442462576}
"""Units of dipole moments, each in e·Å."""

CHARGE_UNITS = {"e": 1.0}
"""Units of charges."""

_ENERGY_SPELLINGS = {"Ha": "Hartree", "Eh": "Hartree", "Ry": "Rydberg"}
_LENGTH_SPELLINGS = {"A": "Å", "Ang": "Å", "Angstrom": "Å", "Ångström": "Å", "a0": "bohr"}
"""Other accepted spellings; stored data have the names above."""

_DERIVATIVE_UNIT = re.compile(r"(?P<energy>.+)/(?P<length>[^/²³^*]+)(?P<power>²|³|(?:\^|\*\*)[123])?")
_POWERS = {"": 1, "²": 2, "³": 3, **{f"{mark}{n}": n for mark in ("^", "**") for n in (1, 2, 3)}}
_MARKS = {1: "", 2: "²", 3: "³"}

_UNITS_OF_LEVEL = re.compile(r"(=[^=@:]+@)([^,@:]+)(?:,([^,@:]+))?(?=:|$)")
"""Text before the units of a level, and these units, in a data set such as ``mine.xyz:dz=energy,forces@eV,eV/Å``."""


def energy_unit(text: str) -> str:
    """Canonical name of an energy unit, a key of :data:`ENERGY_UNITS`: ``Hartree`` for ``hartree``, ``Ha`` or ``Eh``.

    Case is ignored, except that MeV is not meV.

    Raises:
        MFPyGError: for an unknown unit.
    """
    if text.lower() == "mev" and not text.startswith("m"):
        raise MFPyGError(f"energy unit '{text}' is a million eV; expected meV, a thousandth")
    return _known("energy unit", text, ENERGY_UNITS, _ENERGY_SPELLINGS)


def length_unit(text: str) -> str:
    """Canonical name of a length unit, a key of :data:`LENGTH_UNITS`: ``Å`` for ``Angstrom``, ``bohr`` for ``a0``.

    Raises:
        MFPyGError: for an unknown unit.
    """
    return _known("length unit", text, LENGTH_UNITS, _LENGTH_SPELLINGS)


def derivative_unit(text: str, power: int) -> str:
    """Canonical name of a unit of n-th derivatives of energies by positions, as ``Hartree/bohr²`` for ``Ha/a0^2``.

    Args:
        text: an energy per length; the power of the length is written ``²``, ``^2`` or ``**2``. For ``power`` 3 also a
            pressure, see :data:`PRESSURE_UNITS`.
        power: power of the length: 1 of forces, 2 of Hessians, 3 of stresses.

    Raises:
        MFPyGError: for an unknown unit, or one of another dimension.
    """
    pressure = {unit.lower(): unit for unit in PRESSURE_UNITS}.get(text.lower())
    if pressure is not None and power == 3:
        return pressure
    match = _DERIVATIVE_UNIT.fullmatch(unicodedata.normalize("NFC", text))
    if match is None or match["length"].lower() == "mol" or _POWERS.get(match["power"] or "") != power:
        kind, mark = {1: ("force", ""), 2: ("Hessian", "²"), 3: ("stress", "³")}[power]
        expected = "an energy per length" + (f", to the power of {power}" if power > 1 else "")
        raise MFPyGError(f"unknown {kind} unit '{text}': expected {expected}, as eV/Å{mark} or Hartree/bohr{mark}")
    return f"{energy_unit(match['energy'])}/{length_unit(match['length'])}{_MARKS[power]}"


def force_unit(text: str) -> str:
    """Canonical name of a force unit, as ``Hartree/bohr`` for ``Ha/a0``; see :func:`derivative_unit`."""
    return derivative_unit(text, 1)


def dipole_unit(text: str) -> str:
    """Canonical name of a unit of dipole moments, a key of :data:`DIPOLE_UNITS`: ``e·Å`` for ``e*A`` or ``eÅ``.

    Raises:
        MFPyGError: for an unknown unit.
    """
    charge, times, length = text[:1], text[1:2], text[1:].lstrip("·*")
    if charge == "e" and length and (times in "·*" or length.lower() in ("å", "a", "ang", "angstrom")):
        return f"e·{length_unit(length)}"
    return _known("dipole unit", text, DIPOLE_UNITS, {"D": "Debye"})


def charge_unit(text: str) -> str:
    """Canonical name of a unit of charges, a key of :data:`CHARGE_UNITS`.

    Raises:
        MFPyGError: for an unknown unit.
    """
    return _known("charge unit", text, CHARGE_UNITS, {})


def derivative_factor(unit: str, power: int) -> float:
    """Conversion factor from a unit of :func:`derivative_unit` to kcal/mol/Å, kcal/mol/Å² or kcal/mol/Å³."""
    unit = derivative_unit(unit, power)
    if unit in PRESSURE_UNITS:
        return PRESSURE_UNITS[unit]
    energy, _, length = unit.rpartition("/")
    return energy_factor(energy) / length_factor(length.removesuffix(_MARKS[power])) ** power


def dipole_factor(unit: str) -> float:
    """Conversion factor from a unit of dipole moments to e·Å."""
    return DIPOLE_UNITS[dipole_unit(unit)]


def charge_factor(unit: str) -> float:
    """Conversion factor from a unit of charges to e."""
    return CHARGE_UNITS[charge_unit(unit)]


def energy_factor(unit: str) -> float:
    """Conversion factor from an energy unit to kcal/mol.

    Raises:
        MFPyGError: for an unknown unit.
    """
    return ENERGY_UNITS[energy_unit(unit)]


def force_factor(unit: str) -> float:
    """Conversion factor from a force unit, such as ``eV/Å``, to kcal/mol/Å; see :func:`derivative_factor`."""
    return derivative_factor(unit, 1)


def length_factor(unit: str) -> float:
    """Conversion factor from a length unit to Å.

    Raises:
        MFPyGError: for an unknown unit.
    """
    return LENGTH_UNITS[length_unit(unit)]


def with_known_units(dataset: str) -> str:
    """Value of ``--dataset`` with the units of its levels in canonical spelling; unknown units are kept."""

    def spelled(match: re.Match[str]) -> str:
        before, energy, forces = match.groups()
        with contextlib.suppress(MFPyGError):
            return before + energy_unit(energy) + (f",{force_unit(forces)}" if forces else "")
        return match[0]

    return _UNITS_OF_LEVEL.sub(spelled, dataset)


def _known(kind: str, unit: str, known: Iterable[str], spellings: Mapping[str, str]) -> str:
    names = {**{name: name for name in known}, **spellings}
    by_lower_case = {name.lower(): meant for name, meant in names.items()}
    meant = by_lower_case.get(unicodedata.normalize("NFC", unit).lower())  # Å may be decomposed
    if meant is None:
        raise unknown_name(kind, unit, names)
    return meant


def atomic_estimate(numbers: Iterable[int]) -> list[float]:
    """All-electron energies of atoms in kcal/mol, as −0.7687 Z^(7/3) + ½ Z² − 0.2699 Z^(5/3) Hartree.

    Thomas-Fermi with Scott's and Schwinger's corrections (Schwinger, Phys. Rev. A 24, 2353 (1981)); within 8 % for
    hydrogen, 2 % from carbon on, and more for the heaviest, as it is not relativistic.
    """
    return [HARTREE_TO_KCAL_MOL * (-0.7687 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3)) for z in numbers]
