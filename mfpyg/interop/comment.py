"""Values of a frame in the comment line of extended XYZ, written so that ASE reads them back.

ASE's own writer is not enough: an empty string swallows the value behind it; backslashes, line ends and arrays of one
number are lost, and strings such as ``"1.5"`` or ``"T"`` come back as numbers and truth values. Where its text could
go wrong, it is read back with ASE's reader first, and JSON is the second try.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from ase.io.extxyz import SPECIAL_3_3_KEYS, key_val_str_to_dict
from ase.spacegroup import Spacegroup

_KEY = re.compile(r"(?!uid$)[A-Za-z_][A-Za-z0-9_.-]*", re.IGNORECASE)
_TEXT = re.compile(r"([A-Za-z_][A-Za-z0-9_.:/+-]*)( [A-Za-z0-9_.:/+ -]*)?")
_NO_TEXT = {"t", "f", "true", "false", "nan", "inf", "infinity", "_json"}
"""First words of what ASE may read as something else, in one capitalisation or another."""


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
    """The text of a value whose reading is certain: numbers, arrays of them, words."""
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
    """The first of the texts that ASE reads as the value, between other values."""
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
