"""Per-atom values as columns of extended XYZ, so that ASE reads back what was written."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
from ase.io.extxyz import per_config_properties

FORMATS = {"f": ("R", "%16.8f"), "i": ("I", "%8d"), "u": ("I", "%8d"), "b": ("L", " %.1s")} | dict.fromkeys(
    "UO", ("S", "%-2s")
)
"""Of a column in extended XYZ by numpy's kind, as ASE writes them."""

_ALL_DIGITS = "%16s"
"""Of a column of numbers that 8 digits after the point would change."""

_COLUMN_NAME = re.compile(r"""[^\s:="'\\{}\[\],]+""")
OF_FORMAT = {"symbols", "positions", "numbers", "species", "pos", "Z", "Properties", "Lattice", "pbc"}
_OF_ASE = {"charge", "move_mask"} | {*per_config_properties}
"""Columns that ASE reads as something else."""

Columns = dict[str, tuple[np.ndarray, str]]
"""Columns of the atoms' lines, (n_atoms, width), each with its format."""


def add_column(columns: Columns, name: str, value: Any) -> str | None:
    """Add per-atom values to the columns, of which ``pos`` is one, or say why that can't be done."""
    array = np.asarray(value)
    kind = array.dtype.kind
    rows = array.shape[:1] == columns["pos"][0].shape[:1]
    if kind not in FORMATS or not rows or array.ndim > 2 or 0 in array.shape:
        return f"per-atom array of {array.dtype} and shape {array.shape} that the format can't hold"
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
    """What is wrong with a column of this name beside others."""
    if not _COLUMN_NAME.fullmatch(name) or name in OF_FORMAT | _OF_ASE:
        return "a name that no column can have"
    if not _fields(name, width).isdisjoint({"species", *(field for other in others for field in _fields(*other))}):
        return "a name that with its number is that of another column"
    return None


def _fields(name: str, width: int) -> set[str]:
    """What ASE calls the columns of an array: by its name, or each with a number."""
    return {name} if width == 1 else {f"{name}{number}" for number in range(width)}


def _is_word(text: str) -> bool:
    """Whether the text stands alone in a line: no spaces of any kind, nothing that UTF-8 can't hold."""
    return text.isprintable() and text.split() == [text]


def choose_digits(columns: Columns) -> None:
    """Choose the format of columns of numbers: ASE's, or all digits where that would change them."""
    floats = [(name, array) for name, (array, _) in columns.items() if array.dtype.kind == "f"]
    exact = _has_8_digits(np.concatenate([array for _, array in floats], axis=1) if len(floats) > 1 else floats[0][1])
    for name, array in floats:
        columns[name] = array, FORMATS["f"][1] if exact or _has_8_digits(array) else _ALL_DIGITS


def _has_8_digits(values: np.ndarray) -> bool:
    """Whether numbers are what 8 digits after the point say."""
    values = values.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        return not np.count_nonzero(np.rint(values * 1e8) / 1e8 != values)
