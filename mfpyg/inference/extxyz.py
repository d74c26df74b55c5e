"""Frames in extended XYZ, written so that ASE reads back every value as it was.

ASE's own writer is not enough: an empty string swallows the value behind it; backslashes, line ends and arrays of one
number are lost, and strings such as ``"1.5"`` or ``"T"`` come back as numbers and truth values. Where the text of a
value in the comment line is not certain, it is read back with ASE's reader first, and JSON is the second try.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.io.extxyz import SPECIAL_3_3_KEYS, key_val_str_to_dict, per_config_properties
from ase.spacegroup import Spacegroup

from mfpyg.datasets.frames import Frame

FORMATS = {"f": ("R", "%16.8f"), "i": ("I", "%8d"), "u": ("I", "%8d"), "b": ("L", " %.1s")} | dict.fromkeys(
    "UO", ("S", "%-2s")
)
"""Type and format of a column by numpy's kind, as ASE writes them."""

_ALL_DIGITS = "%16s"
"""Format of a column of numbers that 8 decimals would change."""

_COLUMN_NAME = re.compile(r"""[^\s:="'\\{}\[\],]+""")
RESERVED = {"symbols", "positions", "numbers", "species", "pos", "Z", "Properties", "Lattice", "pbc"}
_OF_ASE = {"charge", "move_mask"} | {*per_config_properties}
"""Columns that ASE takes for something else."""

_KEY = re.compile(r"(?!uid$)[A-Za-z_][A-Za-z0-9_.-]*", re.IGNORECASE)
_TEXT = re.compile(r"([A-Za-z_][A-Za-z0-9_.:/+-]*)( [A-Za-z0-9_.:/+ -]*)?")
_NO_TEXT = {"t", "f", "true", "false", "nan", "inf", "infinity", "_json"}
"""First words of what ASE may read as something else, in one capitalisation or another."""

Columns = dict[str, tuple[np.ndarray, str]]
"""Columns of the atoms' lines by name: values (n_atoms, width) and format."""


def frame_as_text(frame: Frame, columns: Columns, pairs: list[str]) -> str:
    """The lines of a frame with these columns and these ``key=value`` in its comment."""
    arrays = [array for array, _ in columns.values()]
    properties, formats, all_floats = _layout(
        tuple((name, array.dtype.kind, array.shape[1], form) for name, (array, form) in columns.items())
    )
    if all_floats:
        numbers = np.concatenate(arrays, axis=1).ravel().tolist()
    else:
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        numbers = [value for of_atom in rows for values in of_atom for value in values]
    cell = frame.cell.ravel().tolist()
    lattice = f'Lattice="{" ".join(map(str, cell))}" ' if any(cell) else ""
    about = " ".join([*pairs, _pbc(*frame.pbc.tolist())])
    head = f"{len(frame.z)}\n{lattice}Properties={properties} {about}\n"
    return head + _template(frame.z.tobytes(), formats) % tuple(numbers)


@functools.lru_cache(maxsize=256)
def _layout(columns: tuple[tuple[str, str, int, str], ...]) -> tuple[str, str, bool]:
    """``Properties``, the format of a line, and whether all are reals, of columns by name, kind, width and format."""
    properties = "".join(f":{name}:{FORMATS[kind][0]}:{width}" for name, kind, width, _ in columns)
    formats = "".join(f" {form}" * width for _, _, width, form in columns)
    return f"species:S:1{properties}", formats, {kind for _, kind, _, _ in columns} == {"f"}


@functools.lru_cache(maxsize=1024)
def _template(numbers: bytes, formats: str) -> str:
    """The lines of the atoms of these atomic numbers, (n,) int64 as bytes, each with these formats to be filled."""
    symbols = [chemical_symbols[z] for z in np.frombuffer(numbers, dtype=np.int64).tolist()]
    return "".join(f"{symbol:<2}{formats}\n" for symbol in symbols)


@functools.lru_cache
def _pbc(*repeats: bool) -> str:
    return f'pbc="{" ".join("FT"[repeated] for repeated in repeats)}"'


def add_column(columns: Columns, name: str, value: Any) -> str | None:
    """Add per-atom values to the columns, of which ``pos`` is one, or return why that is not possible."""
    array = np.asarray(value)
    kind = array.dtype.kind
    rows = array.shape[:1] == columns["pos"][0].shape[:1]
    if kind not in FORMATS or not rows or array.ndim > 2 or 0 in array.shape:
        return f"per-atom array of {array.dtype} and shape {array.shape} that the format cannot hold"
    array = array.reshape(len(array), -1)
    problem = _problem(name, array.shape[1], tuple((other, a.shape[1]) for other, (a, _) in columns.items()))
    if problem is not None:
        return problem
    if kind in "iu" and array.dtype != np.int32 and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        return "whole numbers of more than 32 bits"  # which ASE reads them with
    if kind in "UO" and not all(isinstance(word, str) and _is_word(word) for word in array.flat):
        return "per-atom values that are no words"
    columns[name] = array, FORMATS[kind][1]
    return None


@functools.lru_cache(maxsize=256)
def _problem(name: str, width: int, others: tuple[tuple[str, int], ...]) -> str | None:
    """Why a column cannot have this name beside others."""
    if not _COLUMN_NAME.fullmatch(name) or name in RESERVED | _OF_ASE:
        return "a name that no column can have"
    if not _fields(name, width).isdisjoint({"species", *(field for other in others for field in _fields(*other))}):
        return "a name that with its number is that of another column"
    return None


def _fields(name: str, width: int) -> set[str]:
    """ASE's names of the columns of an array: the array's own, or one with a number for each."""
    return {name} if width == 1 else {f"{name}{number}" for number in range(width)}


def _is_word(text: str) -> bool:
    """True for text without white space that UTF-8 can hold."""
    return text.isprintable() and text.split() == [text]


def choose_digits(columns: Columns) -> None:
    """Choose the format of columns of numbers: ASE's 8 decimals, or all digits where those would change them."""
    floats = [(name, array) for name, (array, _) in columns.items() if array.dtype.kind == "f"]
    exact = _has_8_digits(np.concatenate([array for _, array in floats], axis=1) if len(floats) > 1 else floats[0][1])
    for name, array in floats:
        columns[name] = array, FORMATS["f"][1] if exact or _has_8_digits(array) else _ALL_DIGITS


def _has_8_digits(values: np.ndarray) -> bool:
    """True if 8 decimals hold all numbers."""
    values = values.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        return not np.count_nonzero(np.rint(values * 1e8) / 1e8 != values)


def pair(key: Any, value: Any) -> str | None:
    """``key=value`` as ASE reads it back; ``None`` if there is no such text.

    Lists of numbers come back as arrays and arrays of strings as lists, with the same content; a space group as its
    symbol.
    """
    text = _certain(key, value) if _is_plain(key) else None
    if text is not None:
        return f"{key}={text}"
    if type(value) is str:
        return _of_text(key, value)
    return _read_back(key, value, _candidates(value))


@functools.lru_cache(maxsize=1024)
def _is_plain(key: Any) -> bool:
    return isinstance(key, str) and _KEY.fullmatch(key) is not None


def _certain(key: str, value: Any) -> str | None:
    """Text of a value that ASE certainly reads back: numbers, arrays of numbers, words."""
    if key in SPECIAL_3_3_KEYS:
        if not isinstance(value, np.ndarray) or value.shape != (3, 3):
            return None
        value = value.ravel(order="F")
    if type(value) is float:
        return str(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "if" and value.size > 1:
        if value.ndim == 1:
            return f'"{" ".join(map(str, value.tolist()))}"'
        return f'"_JSON {json.dumps(value.tolist())}"'
    if isinstance(value, bool | np.bool_):
        return "T" if value else "F"
    if isinstance(value, np.int64 | np.float64):
        return str(value.item())
    if isinstance(value, str) and (words := _TEXT.fullmatch(value)) and words[1].lower() not in _NO_TEXT:
        return value if words[2] is None else f'"{value}"'
    return None


@functools.lru_cache(maxsize=1024)  # frames repeat their words
def _of_text(key: Any, value: str) -> str | None:
    return _read_back(key, value, _candidates(value))


def _read_back(key: Any, value: Any, texts: Iterator[str]) -> str | None:
    """First of the texts that ASE reads as the value, between other values."""
    if not isinstance(key, str) or not key.isprintable():
        return None
    name = key if _is_plain(key) else _quoted(key)
    try:
        for text in texts:
            try:
                found = key_val_str_to_dict(f"_before=1 {name}={text} _after=1")
            except (ValueError, IndexError):
                continue
            if len(found) == 3 and key in found and _same(found[key], value):
                return f"{name}={text}"
    except (TypeError, ValueError, RecursionError):  # no JSON: an object, a circle
        pass
    return None


def _candidates(value: Any) -> Iterator[str]:
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Spacegroup):
        value = value.symbol
    if isinstance(value, str) and value.isprintable():
        yield _quoted(value)
    elif isinstance(value, bool):
        yield "T" if value else "F"
    elif isinstance(value, Integral):
        yield str(int(value))
    elif isinstance(value, Real):
        yield str(float(value))
    elif isinstance(value, list) and value and all(isinstance(one, bool) for one in value):
        yield f'"{" ".join("T" if one else "F" for one in value)}"'
    yield _quoted(f"_JSON {json.dumps(value, default=_as_list)}")


def _as_list(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"no JSON for {type(value).__name__}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _same(found: Any, value: Any) -> bool:
    if isinstance(value, Spacegroup):
        return bool(found == value.symbol)
    if isinstance(value, Mapping):
        return (
            isinstance(found, dict) and found.keys() == value.keys() and all(_same(found[k], value[k]) for k in value)
        )
    if value is None or isinstance(value, str) or found is None or isinstance(found, str):
        return isinstance(found, str) == isinstance(value, str) and bool(found == value)
    if isinstance(value, list | tuple) and isinstance(found, list):
        return len(found) == len(value) and all(map(_same, found, value))
    one, two = np.asarray(found), np.asarray(value)
    if one.shape != two.shape or one.dtype.kind.replace("u", "i") != two.dtype.kind.replace("u", "i"):
        return False
    return np.array_equal(one, two, equal_nan=True) if one.dtype.kind == "f" else one.tolist() == two.tolist()
