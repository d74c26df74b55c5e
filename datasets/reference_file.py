"""Reference energies that the user gives, as a YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ase.data import atomic_numbers, chemical_symbols

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.strict_yaml import read_yaml
from mfpyg.units import ENERGY_UNIT, energy_factor

GivenReferences = dict[str, dict[int, float]]
"""Energies in kcal/mol by fidelity and atomic number."""

_EXAMPLE = "'cc: {unit: Hartree, H: -0.4998, C: -37.78}'"


def read_references(path: str | Path, fidelities: Sequence[str] | None = None) -> GivenReferences:
    """Reference energies from a file such as::

        cc:
          unit: Hartree
          H: -0.4998
          C: -37.7817

    Elements that are not in it are fitted to the labels.

    Args:
        path: of the file.
        fidelities: that may be named; any if not given.

    Raises:
        MFPyGError: if it can't be read, for an unknown fidelity, element or unit, or an energy that is no number.
    """
    found: GivenReferences = {}
    for name, level in read_yaml(Path(path).expanduser(), "reference energies", _EXAMPLE).items():
        if fidelities is not None and name not in fidelities:
            raise unknown_name(f"fidelity in {path}", str(name), fidelities)
        if not isinstance(level, dict) or "unit" not in level:
            raise MFPyGError(f"{path}: {name} needs a unit and an energy for each element, as in {_EXAMPLE}")
        try:
            factor = energy_factor(str(level["unit"]))
        except MFPyGError as error:
            raise MFPyGError(f"{path}: {error}") from error
        found[name] = {
            _number(symbol, path): _energy(value, f"{path}: {name} of {symbol}") * factor
            for symbol, value in level.items()
            if symbol != "unit"
        }
    return found


def _number(symbol: Any, path: str | Path) -> int:
    if symbol not in atomic_numbers or symbol == "X":
        raise unknown_name(f"element in {path}", str(symbol), chemical_symbols[1:])
    return int(atomic_numbers[symbol])


def _energy(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MFPyGError(f"{where} is {value!r}, expected the energy of an isolated atom, as in {_EXAMPLE}")
    return float(value)


def as_text(references: Mapping[str, Mapping[int, float]]) -> str:
    """The file that :func:`read_references` reads the same numbers from."""
    values = {
        name: {"unit": ENERGY_UNIT, **{chemical_symbols[number]: energy for number, energy in level.items()}}
        for name, level in references.items()
    }
    return yaml.safe_dump(values, sort_keys=False)
