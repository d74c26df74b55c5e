"""The data sets by name, and the levels of theory each one holds.

Plain data, importable without torch, so that a command can check its options at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class DatasetSpec:
    """What ``--dataset`` names: a data set, and where its raw file or its root is.

    Attributes:
        name: ``minichno``, ``ani1x`` or ``ani1ccx``.
        path: raw file or root folder; ``None`` for the bundled one.
    """

    name: str
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Read ``NAME`` or ``NAME:PATH``.

        Raises:
            MFPyGError: for an unknown name, or a path that does not exist.
        """
        name, colon, path = text.partition(":")
        if name not in LEVELS:
            raise unknown_name("data set", name, LEVELS)
        if not colon:
            return cls(name, None if name == "minichno" else Path("data/ani1x"))
        if not path:
            raise MFPyGError(f"data set '{text}' has no path after the colon: expected {name}:PATH")
        if not Path(path).exists():
            raise MFPyGError(f"{path}: no such file or folder; expected a raw HDF5 file or a data-set root")
        return cls(name, Path(path))

    @property
    def levels(self) -> tuple[LevelOfTheory, ...]:
        """Levels of theory that the data set can have."""
        return LEVELS[self.name]

    def __str__(self) -> str:
        return self.name if self.path is None else f"{self.name}:{self.path}"


LEVELS = {"minichno": MINICHNO_LEVELS, "ani1x": ANI1X_LEVELS, "ani1ccx": ANI1X_LEVELS}
"""Levels of each data set that ``--dataset`` can name."""


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
