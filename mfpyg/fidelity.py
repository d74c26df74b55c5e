"""Levels of theory, and which of their labels to train on; importable without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.properties import ENERGY, PROPERTIES, Property, in_order, parse_letters

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def is_name(text: str) -> bool:
    """True for a valid name of a fidelity or a split; names become parts of file and column names."""
    return len(text) <= 100 and _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class LabelKeys:
    """Where a file has the labels of a property.

    Attributes:
        keys: keys whose values add up to the label; ``mp2`` energies are ``("hf_tz.energy", "mp2_tz.corr_energy")``.
        unit: unit in the file, see :mod:`mfpyg.units`.
        negative: whether the file has the negative of the label, such as the gradient +dE/dx instead of forces.
        virial: whether the file has virials −V·stress instead of stresses, in a unit of energy.
    """

    keys: tuple[str, ...]
    unit: str
    negative: bool = False
    virial: bool = False


@dataclass(frozen=True)
class LevelOfTheory:
    """Level of theory and its keys in a data file.

    Args:
        name: short name of the fidelity, such as ``"dz"``.
        labels: keys of each property that the level has, by its letter, see :mod:`mfpyg.properties`.
        method: full name, such as ``"ωB97X/6-31G(d)"``; empty if unknown.
        optional: keys that may be missing for a conformation, which then has no such label.
    """

    name: str
    labels: Mapping[str, LabelKeys]
    method: str = ""
    optional: tuple[str, ...] = ()

    @property
    def letters(self) -> str:
        """Letters of the properties that the level has, in order."""
        return in_order(self.labels)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of the file that the level is read from."""
        return tuple(key for letter in self.letters for key in self.labels[letter].keys)

    def factor(self, letter: str) -> float:
        """Conversion factor from the values of the file to labels of a property; virials still lack −1/V."""
        label = self.labels[letter]
        property = ENERGY if label.virial else PROPERTIES[letter]
        return property.factor(label.unit) * (-1 if label.negative else 1)

    def only(self, letters: str) -> LevelOfTheory:
        """The level without other properties than these."""
        return replace(self, labels={letter: self.labels[letter] for letter in self.letters if letter in letters})


@dataclass(frozen=True)
class Fidelity:
    """Fidelity to train on: name of a level of theory, and the letters of the properties whose labels are used.

    >>> Fidelity.parse("dz:FE")
    Fidelity(name='dz', labels='EF')
    """

    name: str
    labels: str = "E"

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise MFPyGError(
                f"malformed fidelity name '{self.name}': expected letters, digits, '_' or '-', as in dz:EF"
            )
        object.__setattr__(self, "labels", parse_letters(self.labels, f"fidelity '{self}'"))

    @classmethod
    def parse(cls, text: str) -> Fidelity:
        """Parse ``name:labels``, with the letters of :mod:`mfpyg.properties`.

        Raises:
            MFPyGError: for anything else.
        """
        name, colon, labels = text.partition(":")
        if not colon:
            raise MFPyGError(f"malformed fidelity '{text}': expected NAME:LABELS, as in dz:EF")
        if "," in labels:
            raise MFPyGError(f"malformed fidelity '{text}': separate fidelities by spaces, as in dz:EF cc:E")
        return cls(name, labels)

    @property
    def properties(self) -> tuple[Property, ...]:
        """Properties whose labels are used, in order."""
        return tuple(PROPERTIES[letter] for letter in self.labels)

    def __str__(self) -> str:
        return f"{self.name}:{self.labels}"


def further_letters(fidelities: Iterable[Fidelity]) -> str | None:
    """Letters of the properties of some fidelities; ``None`` if there are only energies and forces, as in all data."""
    letters = in_order("".join(fidelity.labels for fidelity in fidelities))
    return letters if set(letters) - set("EF") else None


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
    """Check that a data set has the requested fidelities and properties.

    Raises:
        MFPyGError: naming the fidelity and what the data set has.
    """
    known = {level.name: level for level in levels}
    for fidelity in fidelities:
        if fidelity.name not in known:
            raise unknown_name(f"fidelity of {dataset}", fidelity.name, known)
        has = known[fidelity.name].labels
        for letter in fidelity.labels:
            if letter not in has:
                what = PROPERTIES[letter].plural
                having = ", ".join(name for name, level in known.items() if letter in level.labels) or "none"
                rest = in_order(set(fidelity.labels) & has.keys())
                use = f"; use {fidelity.name}:{rest}" if rest else ""
                raise MFPyGError(f"{dataset} has no {what} of '{fidelity.name}' (levels with {what}: {having}){use}")


def parse_weights(texts: Iterable[str], fidelities: Sequence[Fidelity]) -> dict[tuple[str, str], float]:
    """Parse loss weights such as ``["F=10", "cc:E=0.1"]``; labels not named have the weight of their property.

    Letters without a fidelity are those of all that have such labels; what comes later replaces what came before.

    Returns:
        ``{(fidelity, name of the property): weight}`` for every label trained on.

    Raises:
        MFPyGError: for a malformed entry, a negative or infinite weight, or a label not trained on.
    """
    weights = {(f.name, p.name): p.weight for f in fidelities for p in f.properties}
    for text in texts:
        label, _, number = text.partition("=")
        try:
            name, colon, letters = label.rpartition(":")
            properties, weight = [PROPERTIES[letter] for letter in parse_letters(letters, "weight")], float(number)
            if not 0 <= weight < float("inf") or (colon and not is_name(name)):
                raise ValueError(text)
        except ValueError:  # which MFPyGError is as well
            raise MFPyGError(
                f"malformed weight '{text}': expected NAME:LABELS=NUMBER, or LABELS=NUMBER for all fidelities, such as "
                "dz:F=0.5 or F=10"
            ) from None
        named = {property.name for property in properties}
        keys = {(name, prop) for prop in named} if name else {key for key in weights if key[1] in named}
        if not keys <= weights.keys():
            trained = " ".join(map(str, fidelities))
            raise MFPyGError(f"weight '{text}' is for a label that is not trained on (fidelities: {trained})")
        weights.update(dict.fromkeys(keys, weight))
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
