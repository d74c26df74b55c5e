"""Levels of theory, and which of their labels to train on; importable without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.units import energy_factor, force_factor

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def is_name(text: str) -> bool:
    """True for a valid name of a fidelity or a split; names become parts of file and column names."""
    return len(text) <= 100 and _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class LevelOfTheory:
    """Level of theory and its keys in a data file.

    Args:
        name: short name of the fidelity, such as ``"dz"``.
        energy: keys whose values add up to the total energy; for example, ``mp2`` is
            ``("hf_tz.energy", "mp2_tz.corr_energy")``.
        forces: key of the forces, or ``None`` if the level has none.
        method: full name, such as ``"ωB97X/6-31G(d)"``; empty if unknown.
        energy_unit, forces_unit: units in the file, see :mod:`mfpyg.units`.
        gradient: whether the key of the forces holds the gradient +dE/dx instead of −dE/dx.
        optional: keys that may be missing for a conformation, which then has no such label.
    """

    name: str
    energy: tuple[str, ...]
    forces: str | None
    method: str
    energy_unit: str = "Hartree"
    forces_unit: str = "Hartree/Å"
    gradient: bool = False
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of the file that the level is read from."""
        return self.energy if self.forces is None else (*self.energy, self.forces)

    @property
    def energy_factor(self) -> float:
        """Conversion factor from energies of the file to kcal/mol."""
        return energy_factor(self.energy_unit)

    @property
    def forces_factor(self) -> float:
        """Conversion factor from forces, or gradients, of the file to forces in kcal/mol/Å."""
        return force_factor(self.forces_unit) * (-1 if self.gradient else 1)


@dataclass(frozen=True)
class Fidelity:
    """Fidelity to train on: name of a level of theory and which of its labels to use.

    >>> Fidelity.parse("dz:EF")
    Fidelity(name='dz', energy=True, forces=True)
    """

    name: str
    energy: bool = True
    forces: bool = False

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise MFPyGError(
                f"malformed fidelity name '{self.name}': expected letters, digits, '_' or '-', as in dz:EF"
            )
        if not (self.energy or self.forces):
            raise MFPyGError(f"fidelity '{self.name}' has neither energies (E) nor forces (F)")

    @classmethod
    def parse(cls, text: str) -> Fidelity:
        """Parse ``name:labels``, with labels ``E``, ``F`` or ``EF``.

        Raises:
            MFPyGError: for anything else.
        """
        name, colon, labels = text.partition(":")
        if not colon or labels not in ("E", "F", "EF", "FE"):
            raise MFPyGError(f"malformed fidelity '{text}': expected NAME:E, NAME:F or NAME:EF, as in dz:EF")
        return cls(name, energy="E" in labels, forces="F" in labels)

    @property
    def labels(self) -> str:
        """``"E"``, ``"F"`` or ``"EF"``."""
        return "E" * self.energy + "F" * self.forces

    def __str__(self) -> str:
        return f"{self.name}:{self.labels}"


def parse_fidelities(texts: Iterable[str]) -> tuple[Fidelity, ...]:
    """Parse a list such as ``["dz:EF", "cc:E"]``.

    Raises:
        MFPyGError: for an empty list, a malformed entry, or a duplicate fidelity.
    """
    fidelities = tuple(Fidelity.parse(text) for text in texts)
    if not fidelities:
        raise MFPyGError("no fidelity given: expected at least one, as in --fidelities dz:EF cc:E")
    names = [f.name for f in fidelities]
    for name in names:
        if names.count(name) > 1:
            raise MFPyGError(f"fidelity '{name}' is given {names.count(name)} times; give it once, as in {name}:EF")
    return fidelities


def check_available(fidelities: Sequence[Fidelity], levels: Sequence[LevelOfTheory], dataset: str) -> None:
    """Check that a data set has the requested fidelities and forces.

    Raises:
        MFPyGError: naming the fidelity and what the data set has.
    """
    known = {level.name: level for level in levels}
    for fidelity in fidelities:
        if fidelity.name not in known:
            raise unknown_name(f"fidelity of {dataset}", fidelity.name, known)
        if fidelity.forces and known[fidelity.name].forces is None:
            having = ", ".join(name for name, level in known.items() if level.forces) or "none"
            raise MFPyGError(
                f"{dataset} has no forces of '{fidelity.name}' (levels with forces: {having}); use {fidelity.name}:E"
            )


def parse_weights(texts: Iterable[str], fidelities: Sequence[Fidelity]) -> dict[tuple[str, str], float]:
    """Parse loss weights such as ``["dz:F=1", "cc:E=0.1"]``; labels not named have weight 1.

    Returns:
        ``{(fidelity, "energy" | "forces"): weight}`` for every label trained on.

    Raises:
        MFPyGError: for a malformed entry, a negative or infinite weight, or a label not trained on.
    """
    weights = {(f.name, p): 1.0 for f in fidelities for p in ("energy", "forces") if getattr(f, p)}
    for text in texts:
        label, equals, number = text.partition("=")
        fidelity = Fidelity.parse(label)
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not equals or not 0 <= weight < float("inf"):
            raise MFPyGError(f"malformed weight '{text}': expected NAME:LABELS=NUMBER, as in dz:F=0.5")
        for prop in ("energy", "forces"):
            if getattr(fidelity, prop):
                if (fidelity.name, prop) not in weights:
                    trained = " ".join(map(str, fidelities))
                    raise MFPyGError(f"weight '{text}' is for a label that is not trained on (fidelities: {trained})")
                weights[fidelity.name, prop] = weight
    return weights


def parse_numbers(
    setting: str, texts: Iterable[str], fidelities: Sequence[Fidelity], high: float = float("inf")
) -> dict[str, float]:
    """Parse numbers per fidelity, such as ``["cc=0.1", "dz=0.5"]``.

    Args:
        setting: name of the setting, for errors.
        texts: values of the setting.
        fidelities: fidelities that may be named.
        high: largest allowed number; all must be greater than 0.

    Returns:
        ``{fidelity: number}`` for the named fidelities.

    Raises:
        MFPyGError: for a malformed entry, an unknown or duplicate fidelity, or a number out of bounds.
    """
    numbers: dict[str, float] = {}
    known = [f.name for f in fidelities]
    for text in texts:
        name, equals, written = text.partition("=")
        try:
            number = float(written)
        except ValueError:
            number = float("nan")
        if not equals or number != number:
            raise MFPyGError(f"{setting} is '{text}', expected a fidelity and a number, as in {known[-1]}=0.1")
        if name not in known:
            raise unknown_name(f"fidelity of {setting}", name, known)
        if name in numbers:
            raise MFPyGError(f"{setting} names '{name}' twice; give it once")
        if not 0 < number <= high or number == float("inf"):
            bound = "" if high == float("inf") else f" and at most {high:g}"
            raise MFPyGError(f"{setting} of {name} is {written}, expected a number above 0{bound}")
        numbers[name] = number
    return numbers
