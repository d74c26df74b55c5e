"""The levels of theory that each data set holds.

Plain data, importable without torch, so that a command can check its options at once.
"""

from __future__ import annotations

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import LevelOfTheory

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

DEFAULT_LEVELS = ("dz", "tz", "mp2", "cc")
"""Levels that are processed unless others are asked for."""


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
"""Levels of each data set whose levels are known."""


def levels_named(names: tuple[str, ...], known: tuple[LevelOfTheory, ...], dataset: str) -> tuple[LevelOfTheory, ...]:
    """The levels of these names, in this order.

    Raises:
        MFPyGError: for a name that the data set does not have, or that stands there twice.
    """
    by_name = {level.name: level for level in known}
    for name in names:
        if names.count(name) > 1:
            raise MFPyGError(f"fidelity '{name}' of {dataset} is given {names.count(name)} times; give it once")
        if name not in by_name:
            raise unknown_name(f"fidelity of {dataset}", name, by_name)
    return tuple(by_name[name] for name in names)
