"""Plain frames of extended XYZ: numbers as ASE reads them, in a quarter of the time, without its objects."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from ase.calculators.calculator import all_properties
from ase.data import atomic_numbers
from ase.io.extxyz import REV_PROPERTY_NAME_MAP, key_val_str_to_dict

from mfpyg.errors import shown

_PAIR = re.compile(r'[^\s"\'\\{}\[\]=]+=(?:"[^"\\]*"|[^\s"\'\\{}\[\]=]+)')
QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|\{(?:\\.|[^}\\])*\}|\[(?:\\.|[^\]\\])*\]')
"""A quoted part of a comment line, to ASE."""

_EMPTY = re.compile(rf"""({QUOTED.pattern})|=\s*(?:""|'')(?=\s|$)""")
_SCALARS = {"energy", "free_energy", "magmom"}
_RESULTS = {*all_properties} - _SCALARS
_ATOMIC = {"forces", "energies", "magmoms", "stresses"}
_UNLIKE = {*REV_PROPERTY_NAME_MAP, *REV_PROPERTY_NAME_MAP.values(), "move_mask", "initial_charges"} | (
    {*all_properties} - _ATOMIC
)
"""Columns that ASE does more with than to keep their numbers."""


def key_values(comment: str) -> dict[str, Any]:
    """What ASE's ``key_val_str_to_dict`` makes of a comment line; what all frames repeat is parsed once.

    A string that is empty stays one, while ASE takes the key behind it for the value.
    """
    if '""' in comment or "''" in comment:
        comment = _EMPTY.sub(lambda part: part[1] or '="_JSON \\"\\""', comment)
    pairs = _PAIR.findall(comment)
    if " ".join(pairs) != comment:  # words alone, brackets, escapes, spaces about =
        return key_val_str_to_dict(comment)
    values: dict[str, Any] = {}
    rest = []
    for pair in pairs:
        if pair.startswith(("Properties=", "pbc=")):
            values |= _repeated(pair)
        else:
            rest.append(pair)
    if rest:
        values |= key_val_str_to_dict(" ".join(rest))
    return values


@functools.lru_cache(maxsize=64)
def _repeated(pair: str) -> Mapping[str, Any]:
    return key_val_str_to_dict(pair)


@functools.lru_cache(maxsize=256)
def _number(symbol: str) -> int:
    """Atomic number of an element, however it is capitalised."""
    return int(atomic_numbers[symbol.capitalize()])


def first_no_element(properties: str, rows: Sequence[Sequence[str]]) -> tuple[int, str | None]:
    """The first atom whose species is no element, and this; ``None`` if there is none.

    Args:
        properties: of the frame, such as ``species:S:1:pos:R:3``.
        rows: words of the atoms' lines.
    """
    parts = properties.split(":")
    column = 0
    for name, width in zip(parts[::3], parts[2::3], strict=True):
        if name in ("species", "symbols"):
            for atom, words in enumerate(rows):
                if words[column].capitalize() not in atomic_numbers:
                    return atom, words[column]
        column += int(width)
    return 0, None


def no_element(label: str) -> str:
    """What is wrong with a species of XYZ, and what to do."""
    if label.isdecimal():
        advice = "if it is an atomic number, say so with Properties=Z:I:1:pos:R:3"
    else:
        advice = (
            "write the element alone, and the label into a column of its own, as Properties=species:S:1:label:S:1:…"
        )
    return f"{shown(label)}, no element symbol; {advice}"


@functools.lru_cache(maxsize=64)
def _columns(properties: str) -> tuple[tuple[str, int, int], ...] | None:
    """Name, first and end of each column of numbers but the species, which come first; ``None`` if it is less plain."""
    parts = properties.split(":")
    names, kinds, widths = parts[::3], parts[1::3], parts[2::3]
    if parts[:6] != ["species", "S", "1", "pos", "R", "3"] or len(set(names)) < len(names):
        return None
    if set(kinds[1:]) != {"R"} or _UNLIKE & {*names[2:]} or not all(width.isdecimal() for width in widths):
        return None
    ends = np.cumsum([int(width) for width in widths]).tolist()
    return tuple(zip(names[1:], ends[:-1], ends[1:], strict=True))


def plain_frame(
    values: dict[str, Any], rows: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """A frame whose columns are an element and real numbers.

    Args:
        values: of the comment, from :func:`key_values`.
        rows: words of the atoms' lines, n of them, as many as ``Properties`` has columns.

    Returns:
        Atomic numbers ``z`` (n,) int64, ``pos`` (n, 3) and ``cell`` (3, 3) float64 in Å, ``pbc`` (3,) bool; the
        other columns, (n,) or (n, width) float64; and the other values. ``None`` where ASE has to read it.
    """
    columns = _columns(values.get("Properties", "species:S:1:pos:R:3"))
    info = {key: value for key, value in values.items() if key not in ("Properties", "pbc", "Lattice")}
    if columns is None or not _RESULTS.isdisjoint(info) or any(name in info for name, _, _ in columns):
        return None
    by_column = list(zip(*rows, strict=True))
    try:
        z = [_number(symbol) for symbol in by_column[0]]
        numbers = np.fromiter(map(float, chain.from_iterable(by_column[1:])), np.float64)
    except (KeyError, ValueError):
        return None
    numbers = numbers.reshape(-1, len(z))  # (width, n)
    lattice, pbc = values.get("Lattice"), np.empty(3, dtype=bool)
    pbc[:] = values.get("pbc", lattice is not None)
    arrays = {
        name: numbers[first - 1] if end == first + 1 else numbers[first - 1 : end - 1].T.copy()
        for name, first, end in columns
    }
    frame = {
        "z": np.array(z, dtype=np.int64),
        "pos": arrays.pop("pos"),
        "cell": np.zeros((3, 3)) if lattice is None else np.array(lattice.T, dtype=np.float64),
        "pbc": pbc,
    }
    return frame, arrays, info
