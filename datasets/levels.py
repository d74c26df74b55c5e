"""Levels of theory of the known data sets, and user-defined ones given as text.

Importable without torch, so that commands can check their options at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, LevelOfTheory
from mfpyg.units import energy_unit, force_unit

LEVEL = re.compile(r"(?P<name>[^=@]+)=(?P<energy>[^,@]+)(,(?P<forces>[^,@]+))?@(?P<unit>[^,@]+)(,(?P<per>[^,@]+))?")
GRAMMAR = "NAME=ENERGY[,FORCES]@UNIT, as cc=cc_energy@Hartree or dz=dft_energy,dft_forces@eV"

_WB97X_DZ = LevelOfTheory("dz", ("wb97x_dz.energy",), "wb97x_dz.forces", "ωB97X/6-31G(d)")
_WB97X_TZ = LevelOfTheory("tz", ("wb97x_tz.energy",), "wb97x_tz.forces", "ωB97X/def2-TZVPP")
_MP2_TZ = LevelOfTheory("mp2", ("hf_tz.energy", "mp2_tz.corr_energy"), None, "MP2/cc-pVTZ")
_MP2_DZ = LevelOfTheory("mp2_dz", ("hf_dz.energy", "mp2_dz.corr_energy"), None, "MP2/cc-pVDZ")
_HF_DZ = LevelOfTheory("hf_dz", ("hf_dz.energy",), None, "HF/cc-pVDZ")
_HF_TZ = LevelOfTheory("hf_tz", ("hf_tz.energy",), None, "HF/cc-pVTZ")

ANI1X_LEVELS = (
    _WB97X_DZ,
    _WB97X_TZ,
    _MP2_TZ,
    LevelOfTheory("cc", ("ccsd(t)_cbs.energy",), None, "CCSD(T)*/CBS"),
    _HF_DZ,
    _HF_TZ,
    LevelOfTheory("hf_qz", ("hf_qz.energy",), None, "HF/cc-pVQZ"),
    _MP2_DZ,
    LevelOfTheory("mp2_qz", ("hf_qz.energy", "mp2_qz.corr_energy"), None, "MP2/cc-pVQZ"),
    LevelOfTheory("npno_dz", ("hf_dz.energy", "npno_ccsd(t)_dz.corr_energy"), None, "NPNO-CCSD(T)/cc-pVDZ"),
    LevelOfTheory("npno_tz", ("hf_tz.energy", "npno_ccsd(t)_tz.corr_energy"), None, "NPNO-CCSD(T)/cc-pVTZ"),
    LevelOfTheory("tpno_dz", ("hf_dz.energy", "tpno_ccsd(t)_dz.corr_energy"), None, "TPNO-CCSD(T)/cc-pVDZ"),
)
"""Levels of the official ANI-1x release file (Smith et al., Sci. Data 7, 134 (2020))."""

MINICHNO_LEVELS = (
    _WB97X_DZ,
    _WB97X_TZ,
    _MP2_TZ,
    LevelOfTheory("cc", ("ccsd(t)_dz.energy",), "ccsd(t)_dz.forces", "CCSD(T)/cc-pVDZ"),
    _HF_DZ,
    _HF_TZ,
    _MP2_DZ,
)
"""Levels of the data set bundled with the package."""

BUNDLED = Path(__file__).parent / "data" / "minichno.h5"
"""The raw file that ships with the package."""

DEFAULT_LEVELS = ("dz", "tz", "mp2", "cc")
"""Levels that are processed by default."""


COMP6_LEVELS = (LevelOfTheory("dz", ("energies",), "forces", "ωB97X/6-31G(d)", gradient=True),)
"""The level of the COMP6 files (Smith et al., J. Chem. Phys. 148, 241733 (2018)); their ``forces`` are gradients."""

ANI2X_LEVELS = (LevelOfTheory("dz", ("energies",), "forces", "ωB97X/6-31G(d)"),)
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
    """Merge levels of the same name; the result has forces if any of them has, and the method if any names it.

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
        method, forces = known.method or level.method, known.forces or level.forces
        found[level.name] = replace(known, method=method, forces=forces)
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
    if match is None:
        raise MFPyGError(f"malformed level '{text}': expected {GRAMMAR}")
    name, unit, forces = match["name"], match["unit"], match["forces"]
    Fidelity(name)  # checks the name
    keys = match["energy"].split("+")
    gradient = forces is not None and forces.startswith("-")
    if gradient:
        forces = forces[1:]
    every = keys if forces is None else [*keys, forces]
    if not all(key.removesuffix("?") for key in every):
        raise MFPyGError(f"malformed level '{text}': a key is empty; expected {GRAMMAR}")
    if forces is None and match["per"] is not None:
        raise MFPyGError(f"malformed level '{text}': it has a unit of forces, but no key of forces")
    return LevelOfTheory(
        name,
        tuple(key.removesuffix("?") for key in keys),
        None if forces is None else forces.removesuffix("?"),
        method="",
        energy_unit=energy_unit(unit),
        forces_unit=force_unit(match["per"] or f"{unit}/Å"),
        gradient=gradient,
        optional=tuple(key.removesuffix("?") for key in every if key.endswith("?")),
    )


def level_as_text(level: LevelOfTheory) -> str:
    """Inverse of :func:`parse_levels` for one level."""

    def written(key: str) -> str:
        return f"{key}?" if key in level.optional else key

    text = f"{level.name}={'+'.join(written(key) for key in level.energy)}"
    if level.forces is not None:
        text += f",{'-' if level.gradient else ''}{written(level.forces)}"
    text += f"@{level.energy_unit}"
    default = f"{level.energy_unit}/Å"
    return text if level.forces_unit == default else f"{text},{level.forces_unit}"
