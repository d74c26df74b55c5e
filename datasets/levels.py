"""Levels of theory of the known data sets, and user-defined ones given as text.

Importable without torch, so that commands can check their options at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, LabelKeys, LevelOfTheory
from mfpyg.properties import ENERGY, PROPERTIES, STRESS, in_order

LEVEL = re.compile(r"(?P<name>[^=@]+)=(?P<keys>[^@]+)@(?P<units>[^@]+)")
_VIRIAL = "V"
"""Letter before a key of virials, which are read as stresses."""

GRAMMAR = (
    "NAME=ENERGY[,FORCES][,LETTER=KEY...]@UNIT, such as dz=dft_energy,dft_forces@eV or dz=energy,forces,D=dipole@eV "
    f"(LETTER: {', '.join(f'{p.letter} {p.plural}' for p in PROPERTIES.values() if p.letter not in 'EF')}, "
    f"{_VIRIAL} virials)"
)


def level_of(name: str, method: str, energy_unit: str = "Hartree", /, **keys: str | tuple[str, ...]) -> LevelOfTheory:
    """Level of theory from a key, or several that add up, of each property by its letter.

    Units other than that of energies are the default ones, such as Hartree/Å. A ``-`` before a key is a negative.
    """
    labels = {}
    for letter, given in keys.items():
        each = (given,) if isinstance(given, str) else given
        plain = tuple(key.removeprefix("-") for key in each)
        labels[letter] = LabelKeys(plain, PROPERTIES[letter].default_unit.format(energy_unit), plain != each)
    return LevelOfTheory(name, labels, method)


_WB97X_DZ = level_of(
    *("dz", "ωB97X/6-31G(d)"),
    **{"E": "wb97x_dz.energy", "F": "wb97x_dz.forces", "H": "wb97x_dz.hessian"},
    **{"D": "wb97x_dz.dipole", "Q": "wb97x_dz.cm5_charges"},
)
_WB97X_TZ = level_of(
    *("tz", "ωB97X/def2-TZVPP"),
    **{"E": "wb97x_tz.energy", "F": "wb97x_tz.forces", "D": "wb97x_tz.dipole", "Q": "wb97x_tz.mbis_charges"},
)
_MP2_TZ = level_of("mp2", "MP2/cc-pVTZ", E=("hf_tz.energy", "mp2_tz.corr_energy"))
_MP2_DZ = level_of("mp2_dz", "MP2/cc-pVDZ", E=("hf_dz.energy", "mp2_dz.corr_energy"))
_HF_DZ = level_of("hf_dz", "HF/cc-pVDZ", E="hf_dz.energy")
_HF_TZ = level_of("hf_tz", "HF/cc-pVTZ", E="hf_tz.energy")

ANI1X_LEVELS = (
    _WB97X_DZ,
    _WB97X_TZ,
    _MP2_TZ,
    level_of("cc", "CCSD(T)*/CBS", E="ccsd(t)_cbs.energy"),
    _HF_DZ,
    _HF_TZ,
    level_of("hf_qz", "HF/cc-pVQZ", E="hf_qz.energy"),
    _MP2_DZ,
    level_of("mp2_qz", "MP2/cc-pVQZ", E=("hf_qz.energy", "mp2_qz.corr_energy")),
    level_of("npno_dz", "NPNO-CCSD(T)/cc-pVDZ", E=("hf_dz.energy", "npno_ccsd(t)_dz.corr_energy")),
    level_of("npno_tz", "NPNO-CCSD(T)/cc-pVTZ", E=("hf_tz.energy", "npno_ccsd(t)_tz.corr_energy")),
    level_of("tpno_dz", "TPNO-CCSD(T)/cc-pVDZ", E=("hf_dz.energy", "tpno_ccsd(t)_dz.corr_energy")),
)
"""Levels of the official ANI-1x release file (Smith et al., Sci. Data 7, 134 (2020)); charges of ``dz`` are CM5."""

MINICHNO_LEVELS = (
    _WB97X_DZ.only("EFHD"),
    _WB97X_TZ.only("EF"),
    _MP2_TZ,
    level_of("cc", "CCSD(T)/cc-pVDZ", E="ccsd(t)_dz.energy", F="ccsd(t)_dz.forces"),
    _HF_DZ,
    _HF_TZ,
    _MP2_DZ,
)
"""Levels of the data set bundled with the package."""

BUNDLED = Path(__file__).parent / "data" / "minichno.h5"
"""The raw file that ships with the package."""

DEFAULT_LEVELS = ("dz", "tz", "mp2", "cc")
"""Levels that are processed by default."""


COMP6_LEVELS = (level_of("dz", "ωB97X/6-31G(d)", E="energies", F="-forces"),)
"""The level of the COMP6 files (Smith et al., J. Chem. Phys. 148, 241733 (2018)); their ``forces`` are gradients."""

ANI2X_LEVELS = (level_of("dz", "ωB97X/6-31G(d)", E="energies", F="forces"),)
"""The level of ``ANI-2x-wB97X-631Gd.h5`` (Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020)); true forces."""

LEVELS = {
    "minichno": MINICHNO_LEVELS,
    "ani1x": ANI1X_LEVELS,
    "ani1ccx": ANI1X_LEVELS,
    "ani2x": ANI2X_LEVELS,
    "comp6": COMP6_LEVELS,
}
"""Levels of each known data set."""


def levels_named(names: tuple[str, ...], known: tuple[LevelOfTheory, ...], dataset: str) -> tuple[LevelOfTheory, ...]:
    """The levels with these names, in this order.

    Raises:
        MFPyGError: for an unknown or repeated name.
    """
    by_name = {level.name: level for level in known}
    for name in names:
        if names.count(name) > 1:
            raise MFPyGError(f"fidelity '{name}' of {dataset} is given {names.count(name)} times; give it once")
        if name not in by_name:
            raise unknown_name(f"fidelity of {dataset}", name, by_name)
    return tuple(by_name[name] for name in names)


def merged_levels(each: Iterable[tuple[LevelOfTheory, str]]) -> tuple[LevelOfTheory, ...]:
    """Merge levels of the same name; the result has the properties of all, and the method if any names it.

    Args:
        each: pairs of a level and the data set that has it.

    Raises:
        MFPyGError: if levels of the same name have different methods.
    """
    found: dict[str, LevelOfTheory] = {}
    named_in: dict[str, str] = {}  # data set that names the method of the level
    for level, where in each:
        known = found.setdefault(level.name, level)
        if level.method and known.method and level.method != known.method:
            raise MFPyGError(
                f"fidelity '{level.name}' is {known.method} in {named_in[level.name]}, but {level.method} in {where}; "
                f"different levels of theory need different names"
            )
        if level.method:
            named_in.setdefault(level.name, where)
        labels = {**level.labels, **known.labels}
        found[level.name] = replace(known, method=known.method or level.method, labels=labels)
    return tuple(found.values())


def parse_levels(texts: Iterable[str]) -> tuple[LevelOfTheory, ...]:
    """Parse levels such as ``dz=dft_energy,dft_forces@eV``.

    Raises:
        MFPyGError: for a malformed level, an unknown unit, or a repeated name.
    """
    return as_levels(list(texts))


def as_levels(given: Sequence[LevelOfTheory | str] | str) -> tuple[LevelOfTheory, ...]:
    """Levels from objects and from texts such as ``dz=dft_energy,dft_forces@eV``.

    Raises:
        MFPyGError: for a malformed level, an unknown unit, a repeated name, or no level at all.
    """
    each = [given] if isinstance(given, str) else given
    for level in each:
        if not isinstance(level, LevelOfTheory | str):
            raise MFPyGError(f"level is {level!r}, expected a LevelOfTheory, or a text such as dz=energies@Hartree")
    levels = tuple(level if isinstance(level, LevelOfTheory) else _parse_level(level) for level in each)
    if not levels:
        raise MFPyGError(f"no level of theory given; define one: {GRAMMAR}")
    names = [level.name for level in levels]
    for name in names:
        if names.count(name) > 1:
            raise MFPyGError(f"fidelity '{name}' is defined {names.count(name)} times; define it once")
    return levels


def _parse_level(text: str) -> LevelOfTheory:
    match = LEVEL.fullmatch(text)
    given = None if match is None else _by_letter(match["keys"].split(","), "EF", keys=True)
    units = None if match is None else _by_letter(match["units"].split(","), "EF", keys=False)
    if match is None or given is None or units is None or "E" not in given or "E" not in units:
        raise MFPyGError(f"malformed level '{text}': expected {GRAMMAR}")
    Fidelity(match["name"])  # checks the name
    for letter in units:
        if letter not in given:
            what = PROPERTIES[letter].plural
            raise MFPyGError(f"malformed level '{text}': it has a unit of {what}, but no key of {what}")
    labels: dict[str, LabelKeys] = {}
    optional: list[str] = []
    energy_unit = ENERGY.canonical_unit(units["E"])
    for letter, written in given.items():
        negative, virial = written.startswith("-") and letter != "E", letter == _VIRIAL
        each = [written[1:]] if negative else written.split("+") if letter == "E" else [written]
        keys = tuple(key.removesuffix("?") for key in each)
        if not all(keys):
            raise MFPyGError(f"malformed level '{text}': a key is empty; expected {GRAMMAR}")
        property = ENERGY if virial else PROPERTIES[letter]
        unit = property.canonical_unit(units.get(letter, property.default_unit.format(energy_unit)))
        if virial and STRESS.letter in given:
            raise MFPyGError(f"malformed level '{text}': it has both stresses and virials; name one")
        labels[STRESS.letter if virial else letter] = LabelKeys(keys, unit, negative, virial)
        optional += [key.removesuffix("?") for key in each if key.endswith("?")]
    return LevelOfTheory(match["name"], {letter: labels[letter] for letter in in_order(labels)}, "", tuple(optional))


def _by_letter(parts: Sequence[str], first: str, keys: bool) -> dict[str, str] | None:
    """Keys or units by the letter of their property: of ``first`` in this order, of others after ``LETTER=``.

    Returns:
        The parts, or ``None`` where a letter is unknown, repeated or missing.
    """
    found: dict[str, str] = {}
    for number, part in enumerate(parts):
        letter, equals, rest = part.partition("=")
        named = bool(equals) and (letter in PROPERTIES or letter == _VIRIAL)
        if not named and number >= len(first):
            return None
        letter, rest = (letter, rest) if named else (first[number], part)
        if letter in found or (not rest and not keys):
            return None
        found[letter] = rest
    return found


def level_as_text(level: LevelOfTheory) -> str:
    """Inverse of :func:`parse_levels` for one level."""
    keys, units, energy_unit = [], [], level.labels["E"].unit
    for letter in level.letters:
        label = level.labels[letter]
        name = _VIRIAL if label.virial else letter
        start = "" if letter in "EF" else f"{name}="
        written = "+".join(f"{key}?" if key in level.optional else key for key in label.keys)
        keys.append(f"{start}{'-' if label.negative else ''}{written}")
        default = "{}" if label.virial else PROPERTIES[letter].default_unit
        if letter == "E" or label.unit != default.format(energy_unit):
            units.append(f"{start}{label.unit}")
    return f"{level.name}={','.join(keys)}@{','.join(units)}"
