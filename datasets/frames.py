"""Frames of extended-XYZ files and ASE databases, one at a time. ASE reads them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TextIO

import ase.db
import ase.io
import numpy as np
from ase.calculators.calculator import all_properties
from ase.io.extxyz import per_atom_properties

from mfpyg.datasets.plain import QUOTED, first_no_element, key_values, no_element, plain_frame
from mfpyg.errors import MFPyGError, UnreadableError
from mfpyg.files import raise_if_unreadable

_COUNT = re.compile(r"\s*\d{1,9}\s*", re.ASCII)
_KEY = re.compile(r"(?:^|\s)([^\s=]+)\s*=")
_PAIR = re.compile(r"[^\s=]+\s*=\s*\S+")
_VALUE = re.compile(rf"=\s*({QUOTED.pattern}|\S+)")
_PROPERTIES = re.compile(r"(?:^|\s)Properties\s*=\s*_?(\S+)")  # without quotes
_PLAIN = "species:S:1:pos:R:3"
_SEPARATORS = re.compile(r"[\s\"'{}\[\],=]+")

_UNPACKED: Mapping[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""What reads compressed files, by their suffix."""
_NOT_THE_DATABASES = {
    "locked": "another process is writing to it: wait until it has finished, or copy the file",
    "readonly": "a process was stopped while it wrote to it: open the file once with `ase db`, which repairs it",
    "unable to open": "check the permissions of file and folder, and how many files are open (ulimit -n)",
    "I/O error": "the file itself may be fine: check the disk or the network, and try again",
}
"""What SQLite says where a database need not be damaged, and what to do."""

_ARRAYS_OF_ROW = ("initial_charges", "initial_magmoms", "masses", "momenta", "tags")
"""Per-atom values of a row that are no results."""

_ROWS_AT_ONCE = 1000
"""ASE fetches all rows that it selects; so many a query keep the memory bounded."""


class Frame(NamedTuple):
    """A molecule or a periodic system as ASE read it.

    Attributes:
        number: in the file, from 0.
        z: atomic numbers, (n,) int64.
        pos: positions in Å, (n, 3) float64.
        cell: lattice vectors in Å, as rows, (3, 3) float64; zeros where there are none.
        pbc: whether it is repeated along each of them, (3,) bool.
        values: all else by its key, as ASE gives it.
        read: share of the file that has been read, from 0 to 1, for the progress.
        columns: keys of those values that have a row an atom.
        hidden: per-atom values that are not in ``values``, as a value of the frame has the same key.
        constrained: whether there are constraints, which are not read.
    """

    number: int
    z: np.ndarray
    pos: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    values: Mapping[str, Any]
    read: float = 0.0
    columns: frozenset[str] = frozenset()
    hidden: Mapping[str, np.ndarray] = MappingProxyType({})
    constrained: bool = False


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what ASE, Python or SQLite says of a bad file, which may be any exception, into one line."""
    try:
        yield
    except MFPyGError:
        raise
    except Exception as error:
        raise_if_unreadable(where, error)
        if isinstance(error, sqlite3.OperationalError):
            for message, advice in _NOT_THE_DATABASES.items():
                if message in str(error):
                    raise UnreadableError(f"{where}: can't be read ({error}); {advice}") from error
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise MFPyGError(f"{where} can't be read ({reason[:200]}); expected extended XYZ or an ASE .db") from error


def frames_of_text(path: Path) -> Iterator[Frame]:
    """The frames of an extended-XYZ file, which may be compressed; ASE is given one at a time.

    Given the file, it would first list all frames, end without a word at a blank line, and not tell
    which frame an error is in.

    Raises:
        MFPyGError: if the file is empty, truncated, or anything in it is no frame.
    """
    with _reading(str(path)):
        raw = path.open("rb")
        unpacked = _UNPACKED[path.suffix.lower()](raw) if path.suffix.lower() in _UNPACKED else raw
        file = io.TextIOWrapper(unpacked, encoding="utf-8-sig")
        size = max(path.stat().st_size, 1)
    with raw, file:
        for number in count():
            where = f"{path}: frame {number}"
            with _reading(where):
                lines, rows = _lines_of_frame(file, where)
                frame = _frame(lines, rows, number, raw.tell() / size, where) if lines else None
            if frame is None:
                if number == 0:
                    raise MFPyGError(f"{path}: empty; expected frames in extended XYZ")
                return
            yield frame


def _frame(lines: list[str], rows: list[list[str]], number: int, read: float, where: str) -> Frame:
    """The frame in these lines, whose atoms' have these words, read by ASE unless it is plain, as most are."""
    comment = lines[1].strip()
    if comment:
        found = plain_frame(_parsed_comment(where, comment), rows)
        if found is not None:
            frame, arrays, info = found
            return Frame(number, **frame, values={**arrays, **info}, read=read, columns=frozenset(arrays))
    parser = partial(_parsed_comment, where)
    try:
        atoms = next(ase.io.iread(io.StringIO("".join(lines)), format="extxyz", properties_parser=parser))
    except (KeyError, AttributeError) as error:  # of its table of elements; of numbers for symbols
        atom, label = first_no_element(_properties(_unquoted(comment)), rows)
        if label is None:
            raise
        raise MFPyGError(f"{where}: species of atom {atom} is {no_element(label)}") from error
    return frame_of_atoms(atoms, number, read)


def frame_of_atoms(atoms: ase.Atoms, number: int = 0, read: float = 0.0) -> Frame:
    """Atoms as ASE read them; constraints are left out."""
    results = {} if atoms.calc is None else atoms.calc.results
    arrays = {key: value for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    z = atoms.numbers.astype(np.int64)  # some formats give fewer bytes
    return Frame(
        number,
        z,
        atoms.positions,
        atoms.cell.array,
        atoms.pbc,
        **_merged(results, arrays, atoms.info),
        read=read,
        constrained=bool(atoms.constraints),
    )


def _merged(results: Mapping[str, Any], arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> dict[str, Any]:
    """All values by their keys, of one key the last; those of atoms among them, and those that another one hides."""
    per_atom = {**{key: results[key] for key in per_atom_properties if key in results}, **arrays}
    return {
        "values": {**results, **arrays, **info},
        "columns": frozenset(per_atom.keys() - info.keys()),
        "hidden": {key: per_atom[key] for key in per_atom.keys() & info.keys()},
    }


def _lines_of_frame(file: TextIO, where: str) -> tuple[list[str], list[list[str]]]:
    """The lines of the next frame, and the words of its atoms' lines; none at the end of the file, where blank lines
    may stand."""
    line = file.readline()
    if not line.strip():
        if any(later.strip() for later in file):
            raise MFPyGError(f"{where}: expected the number of atoms, found a blank line; remove it")
        return [], []
    if _COUNT.fullmatch(line) is None:
        raise MFPyGError(
            f"{where}: expected the number of atoms, found '{line.strip()[:40]}'; "
            f"is the number of the frame before too small?"
        )
    n = int(line)
    if n == 0:
        raise MFPyGError(f"{where}: no atoms")
    lines = list(islice(file, 1 + n))
    if len(lines) < 1 + n:
        raise MFPyGError(f"{where}: truncated, {n} atoms expected and {max(len(lines) - 1, 0)} found")
    rows = [atom.split() for atom in lines[1:]]
    _check_text(lines, rows, where)
    return [line, *lines], rows


def _check_text(lines: list[str], rows: list[list[str]], where: str) -> None:
    """Refuse what ASE takes without a word: columns too many, keys given twice, numbers such as 1_25."""
    n = _columns_of_comment(lines[0])
    if isinstance(n, str):
        raise MFPyGError(f"{where}: {n}")
    for number, words in enumerate(rows):
        if len(words) != n:
            raise MFPyGError(f"{where}: atom {number} has {len(words)} columns, expected {n} as in Properties")
    text = "".join(lines)
    for word in _SEPARATORS.split(text) if "_" in text else ():
        if "_" in word and _is_number(word) and (word not in lines[0] or _is_value(word, lines[0])):
            raise MFPyGError(f"{where}: {word[:40]} is no number")


def _is_value(word: str, comment: str) -> bool:
    """Whether a word that Python takes for a number is among numbers alone, and not in a text."""
    values = (_SEPARATORS.split(value[1]) for value in _VALUE.finditer(comment))
    return any(word in parts and all(_is_number(part) for part in parts if part) for parts in values)


def _unquoted(comment: str) -> str:
    """The comment with its quoted parts as single words."""
    return QUOTED.sub(lambda part: "_" + re.sub(r"[\s=]", ".", part[0][1:-1]), comment)


def _properties(unquoted: str) -> str:
    given = _PROPERTIES.search(unquoted)
    return given[1] if given else _PLAIN


@lru_cache(maxsize=64)  # where frames come without values all of them may say the same
def _columns_of_comment(comment: str) -> int | str:
    """Columns of the atoms' lines, or what is wrong with the comment line."""
    unquoted = _unquoted(comment)
    keys = _KEY.findall(unquoted)
    for key in keys:
        if keys.count(key) > 1:
            return f"{key[:40]} is given {keys.count(key)} times; give it once"
    if "pbc" in keys and "pbc" in _PAIR.sub(" ", unquoted).split():
        return "pbc is given twice, once without a value, which says periodic; give it once"
    properties = _properties(unquoted)
    n = _n_columns(properties)
    return n if n is not None else f"Properties={properties[:60]}; expected NAME:TYPE:COLUMNS, repeated"


def _parsed_comment(where: str, line: str) -> dict[str, Any]:
    """What ASE makes of a comment line; it would take any text for ``pbc`` as periodic everywhere."""
    values = key_values(line)
    if "pbc" in values:
        pbc = np.asarray(values["pbc"])
        sound = pbc.dtype.kind == "b" or (pbc.dtype.kind == "i" and np.isin(pbc, (0, 1)).all())
        if not sound or pbc.shape not in ((), (3,)):
            found = repr(values["pbc"])[:60]
            raise MFPyGError(f'{where}: pbc is {found}, expected T or F for each lattice vector, as in pbc="T T F"')
    return values


@lru_cache(maxsize=64)
def _n_columns(properties: str) -> int | None:
    """Columns of the atoms' lines: ``species:S:1:pos:R:3`` has 4; ``None`` for what is no such list."""
    parts = properties.split(":")
    if len(parts) % 3 or not all(width.isdecimal() for width in parts[2::3]):
        return None
    return sum(int(width) for width in parts[2::3])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def frames_of_database(path: Path) -> Iterator[Frame]:
    """The rows of an ASE database, in the order of their ids.

    Raises:
        MFPyGError: if it is no such database, has no rows, or one can't be read.
    """
    with _reading(str(path)):
        _check_database(path)
        database = ase.db.connect(path, type="db", use_lock_file=False, serial=True)
        n_rows = max(database.count(), 1)
    rows, last = iter(()), -1
    with database:  # else ASE would connect again for every row
        for number in count():
            with _reading(f"{path}: frame {number}"):
                row = next(rows, None)
                if row is None:
                    rows = database.select(f"id>{last}", sort="id", limit=_ROWS_AT_ONCE)
                    row = next(rows, None)
                if row is None:
                    break
                last = row.id
                if row.positions.shape != (len(row.numbers), 3):
                    found = f"{len(row.numbers)} atomic numbers and positions of shape {row.positions.shape}"
                    raise MFPyGError(f"{path}: frame {number}: {found}, expected one (3,) an atom")
                results = {key: row[key] for key in all_properties if key in row}
                arrays = {key: row[key] for key in _ARRAYS_OF_ROW if key in row}
                merged = _merged(results, arrays, {**row.data, **row.key_value_pairs})
                cell = np.zeros((3, 3)) if row.cell is None else row.cell
                about = {"read": (number + 1) / n_rows, "constrained": row.get("_constraints") not in (None, [], "[]")}
                frame = Frame(number, row.numbers.astype(np.int64), row.positions, cell, row.pbc, **merged, **about)
            yield frame
    if number == 0:
        raise MFPyGError(f"{path}: empty; expected rows of an ASE database")


def _check_database(path: Path) -> None:
    # ASE would write its tables into an empty or a foreign file.
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'systems'").fetchone():
            raise MFPyGError(f"{path}: no ASE database, it has no table of systems")
        (found,) = connection.execute("PRAGMA quick_check(systems)").fetchone()
        if found != "ok":  # SQLite would leave out rows without a word
            raise MFPyGError(f"{path}: damaged database ({' '.join(found.split())[:100]}); fetch it again")
