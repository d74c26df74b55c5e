"""Units by whatever name people write them, and one name for what is stored."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mfpyg.datasets.levels import level_as_text, parse_levels
from mfpyg.errors import MFPyGError
from mfpyg.settings import from_dict, to_dict
from mfpyg.units import energy_factor, energy_unit, force_factor, force_unit, length_unit, with_known_units

SPELLINGS = {
    "Hartree": ("Hartree", "hartree", "HARTREE", "Ha", "ha", "Eh", "EH"),
    "eV": ("eV", "ev", "EV"),
    "meV": ("meV", "mev"),
    "Rydberg": ("Rydberg", "rydberg", "Ry", "ry"),
    "kcal/mol": ("kcal/mol", "Kcal/mol", "kcal/Mol"),
    "kJ/mol": ("kJ/mol", "kj/mol", "KJ/mol"),
}
LENGTHS = {
    "Å": ("Å", "\u212b", "A\u030a", "å", "A", "Ang", "ang", "Angstrom", "angstrom", "Ångström"),
    "bohr": ("bohr", "Bohr", "BOHR", "a0"),
}


@pytest.mark.parametrize(("unit", "spelling"), [(unit, one) for unit, each in SPELLINGS.items() for one in each])
def test_energies(unit: str, spelling: str) -> None:
    assert energy_unit(spelling) == unit
    assert energy_factor(spelling) == energy_factor(unit)
    assert force_unit(f"{spelling}/A") == f"{unit}/Å"


@pytest.mark.parametrize(("unit", "spelling"), [(unit, one) for unit, each in LENGTHS.items() for one in each])
def test_lengths(unit: str, spelling: str) -> None:
    assert length_unit(spelling) == unit
    assert force_unit(f"Ha/{spelling}") == f"Hartree/{unit}"
    assert force_factor(f"Ha/{spelling}") == force_factor(f"Hartree/{unit}")


@pytest.mark.parametrize(
    ("read", "unit", "message"),
    [
        (energy_unit, "Hartee", "unknown energy unit 'Hartee'.*did you mean 'Hartree'"),
        (energy_unit, "kcal/mole", "did you mean 'kcal/mol'"),
        (energy_unit, "au", "unknown energy unit 'au'"),
        (energy_unit, "MeV", "'MeV' is a million eV; expected meV"),
        (energy_unit, "", "unknown energy unit ''"),
        (length_unit, "Angstroem", "did you mean 'Angstrom'"),
        (length_unit, "nm", "unknown length unit 'nm'"),
        (force_unit, "kcal/mol", "expected an energy per length"),
        (force_unit, "eV", "expected an energy per length"),
    ],
)
def test_unknown_units_are_refused(read: Callable[[str], str], unit: str, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        read(unit)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("dz=e,f@Ha", "dz=e,f@Hartree"),
        ("dz=e,-f@ha,Ha/a0", "dz=e,-f@Hartree,Hartree/bohr"),
        ("dz=e,f@ev,eV/A", "dz=e,f@eV"),
        ("dz=e,f@eV", "dz=e,f@eV"),
    ],
)
def test_a_level_has_the_first_name_of_its_unit(written: str, stored: str) -> None:
    (level,) = parse_levels([written])
    assert level_as_text(level) == stored


def test_settings_have_the_first_name_too() -> None:
    texts = ["minichno", "a@ha/x.xyz:dz=e+c?,f@ry,Ry/ang:cc=cc@Eh", "b.xyz:cc=e@none", "c.xyz:dz=e,f@eV"]
    stored = ["minichno", "a@ha/x.xyz:dz=e+c?,f@Rydberg,Rydberg/Å:cc=cc@Hartree", "b.xyz:cc=e@none", "c.xyz:dz=e,f@eV"]
    assert to_dict(from_dict({"dataset": texts}))["dataset"] == stored
    assert [with_known_units(text) for text in stored] == stored
