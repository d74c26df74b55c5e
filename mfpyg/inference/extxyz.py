"""Writer for extended XYZ that ASE reads back without changes to any value.

ASE's own writer is not enough: an empty string swallows the next value; backslashes, line ends and arrays of one number
are lost, and strings such as ``"1.5"`` or ``"T"`` come back as numbers and booleans. Values in the comment line that
may be read differently are tested with ASE's reader first, as text and then as JSON.
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
from ase.stress import voigt_6_to_full_3x3_stress

from mfpyg.datasets.frames import Frame

FORMATS = {"f": ("R", "%16.8f"), "i": ("I", "%8d"), "u": ("I", "%8d"), "b": ("L", " %.1s")} | dict.fromkeys(
    "UO", ("S", "%-2s")
)
"""Type and format of a column by numpy dtype kind, as in ASE."""

_ALL_DIGITS = "%16s"
"""Format of a column of numbers that need more than 8 decimals."""

_COLUMN_NAME = re.compile(r"""[^\s:="'\\{}\[\],]+""")
RESERVED = {"symbols", "positions", "numbers", "species", "pos", "Z", "Properties", "Lattice", "pbc"}
_OF_ASE = {"charge", "move_mask"} | {*per_config_properties}
"""Column names with a special meaning in ASE."""

_KEY = re.compile(r"(?!uid$)[A-Za-z_][A-Za-z0-9_.-]*", re.IGNORECASE)
_TEXT = re.compile(r"([A-Za-z_][A-Za-z0-9_.:/+-]*)( [A-Za-z0-9_.:/+ -]*)?")
_NO_TEXT = {"t", "f", "true", "false", "nan", "inf", "infinity", "_json"}
"""First words, in lower case, of text that ASE may not read as text."""

Columns = dict[str, tuple[np.ndarray, str]]
"""Per-atom columns by name: values (n_atoms, width) and format."""


def frame_as_text(frame: Frame, columns: Columns, pairs: list[str]) -> str:
    """Format a frame with per-atom columns and ``key=value`` pairs in its comment line."""
    arrays = [array for array, _ in columns.values()]
    properties, formats, all_floats = _layout(
        tuple((name, array.dtype.kind, array.shape[1], form) for name, (array, form) in columns.items())
    )
    if all_floats:
        numbers = np.concatenate(arrays, axis=1).ravel().tolist()
    else:
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        numbers = [value for row in rows for values in row for value in values]
    cell = frame.cell.ravel().tolist()
    lattice = f'Lattice="{" ".join(map(str, cell))}" ' if any(cell) else ""
    comment = " ".join([*pairs, _pbc(*frame.pbc.tolist())])
    head = f"{len(frame.z)}\n{lattice}Properties={properties} {comment}\n"
    return head + _template(frame.z.tobytes(), formats) % tuple(numbers)


@functools.lru_cache(maxsize=256)
def _layout(columns: tuple[tuple[str, str, int, str], ...]) -> tuple[str, str, bool]:
    """``Properties``, format of a line, and whether all columns are real; columns are (name, kind, width, format)."""
    properties = "".join(f":{name}:{FORMATS[kind][0]}:{width}" for name, kind, width, _ in columns)
    formats = "".join(f" {form}" * width for _, _, width, form in columns)
    return f"species:S:1{properties}", formats, {kind for _, kind, _, _ in columns} == {"f"}


@functools.lru_cache(maxsize=1024)
def _template(numbers: bytes, formats: str) -> str:
    """Format string of the lines of all atoms; ``numbers`` are the bytes of atomic numbers (n,) int64."""
    symbols = [chemical_symbols[z] for z in np.frombuffer(numbers, dtype=np.int64).tolist()]
    return "".join(f"{symbol:<2}{formats}\n" for symbol in symbols)


@functools.lru_cache
def _pbc(*pbc: bool) -> str:
    return f'pbc="{" ".join("FT"[periodic] for periodic in pbc)}"'


def kept_values(frame: Frame, taken: set[str], lost: dict[str, str]) -> tuple[Columns, list[str]]:
    """Input values to keep, as per-atom columns and ``key=value`` pairs; others are added to ``lost``."""
    columns: Columns = {"pos": (frame.pos, "")}
    pairs, reasons = [], {"constraints": "not read"} if frame.constrained else {}
    for key, value in frame.values.items():
        if key in taken:
            reasons[key] = "replaced by the prediction"
        elif key in frame.columns:
            reason = add_column(columns, key, value)
            if reason is not None:
                reasons[key] = reason
        else:
            text = None if key in RESERVED else pair(key, _full_stress(value) if key == "stress" else value)
            if text is not None:
                pairs.append(text)
            if text is None or isinstance(value, Spacegroup):
                reasons[key] = (
                    "written as its symbol" if text else f"{type(value).__name__} that the format cannot hold"
                )
    for key, value in frame.hidden.items():
        reason = "replaced by the prediction" if key in taken else add_column(columns, key, value)
        if reason is not None:
            reasons[f"{key} of the atoms"] = reason
    for key, reason in reasons.items():
        lost.setdefault(str(key), f"{reason}, frame {frame.number}")
    choose_digits(columns)
    return columns, pairs


def _full_stress(value: Any) -> Any:
    return voigt_6_to_full_3x3_stress(value) if np.shape(value) == (6,) else value


def add_column(columns: Columns, name: str, value: Any) -> str | None:
    """Add per-atom values to columns, which must include ``pos``; if that is not possible, return the reason."""
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
        return "integers of more than 32 bits"  # ASE reads int32
    if kind in "UO" and not all(isinstance(word, str) and _is_word(word) for word in array.flat):
        return "per-atom values that are not words"
    columns[name] = array, FORMATS[kind][1]
    return None


@functools.lru_cache(maxsize=256)
def _problem(name: str, width: int, others: tuple[tuple[str, int], ...]) -> str | None:
    """Reason why a column cannot have this name, given the names and widths of other columns."""
    if not _COLUMN_NAME.fullmatch(name) or name in RESERVED | _OF_ASE:
        return "not a valid column name"
    if not _fields(name, width).isdisjoint({"species", *(field for other in others for field in _fields(*other))}):
        return "numbered names that clash with another column"
    return None


def _fields(name: str, width: int) -> set[str]:
    """ASE's names of the columns of an array: its name, followed by a number if there are several."""
    return {name} if width == 1 else {f"{name}{number}" for number in range(width)}


def _is_word(text: str) -> bool:
    """True for printable text without white space."""
    return text.isprintable() and text.split() == [text]


def choose_digits(columns: Columns) -> None:
    """Choose the format of columns of real numbers: ASE's 8 decimals, or all digits if needed."""
    floats = [(name, array) for name, (array, _) in columns.items() if array.dtype.kind == "f"]
    exact = _has_8_digits(np.concatenate([array for _, array in floats], axis=1) if len(floats) > 1 else floats[0][1])
    for name, array in floats:
        columns[name] = array, FORMATS["f"][1] if exact or _has_8_digits(array) else _ALL_DIGITS


def _has_8_digits(values: np.ndarray) -> bool:
    """True if 8 decimals represent all numbers exactly."""
    values = values.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        return not np.count_nonzero(np.rint(values * 1e8) / 1e8 != values)


def pair(key: Any, value: Any) -> str | None:
    """Format ``key=value`` such that ASE reads it back; ``None`` if that is not possible.

    Lists of numbers are read back as arrays, arrays of strings as lists, and a space group as its symbol.
    """
    text = _simple_text(key, value) if _is_plain(key) else None
    if text is not None:
        return f"{key}={text}"
    if type(value) is str:
        return _string_pair(key, value)
    return _first_readable(key, value, _candidates(value))


@functools.lru_cache(maxsize=1024)
def _is_plain(key: Any) -> bool:
    return isinstance(key, str) and _KEY.fullmatch(key) is not None


def _simple_text(key: str, value: Any) -> str | None:
    """Text of a value that ASE is known to read back: numbers, arrays of numbers, words."""
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


@functools.lru_cache(maxsize=1024)  # frames repeat their strings
def _string_pair(key: Any, value: str) -> str | None:
    return _first_readable(key, value, _candidates(value))


def _first_readable(key: Any, value: Any, texts: Iterator[str]) -> str | None:
    """``key=text`` with the first text that ASE reads as the value, with other pairs before and after."""
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
    except (TypeError, ValueError, RecursionError):  # not representable in JSON
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
