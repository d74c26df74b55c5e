"""Frames of files that ASE reads, one at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ase.db
import ase.io
import numpy as np
from ase.calculators.calculator import all_properties
from ase.io.extxyz import per_atom_properties
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from mfpyg.datasets.xyz import COMPRESSED, no_element, read_xyz, reading
from mfpyg.errors import MFPyGError, UnreadableError, did_you_mean
from mfpyg.files import raise_if_unreadable

_FORMATS = {".xyz": "extxyz", ".extxyz": "extxyz", ".db": "db"}

_ARRAYS_OF_ROW = ("initial_charges", "initial_magmoms", "masses", "momenta", "tags")
"""Per-atom values of a database row that are not results."""

_BUSY_DATABASE = {
    "locked": "another process is writing to it: wait until it has finished, or copy the file",
    "readonly": "a process was stopped while it wrote to it: open the file once with `ase db`, which repairs it",
    "unable to open": "check the permissions of file and folder, and how many files are open (ulimit -n)",
    "I/O error": "the file itself may be fine: check the disk or the network, and try again",
}
"""Messages of SQLite about databases that need not be damaged, and advice."""

_ROWS_AT_ONCE = 1000
"""Rows in a query; ASE fetches all rows that it selects."""


class Frame(NamedTuple):
    """A molecule or a periodic system as ASE reads it.

    Attributes:
        number: in the file, from 0.
        z: atomic numbers, (n,) int64.
        pos: positions in Å, (n, 3) float64.
        cell: lattice vectors in Å, as rows, (3, 3) float64; zeros where there are none.
        pbc: periodicity along each of them, (3,) bool.
        values: everything else by key, as ASE gives it.
        read: share of the file that has been read, from 0 to 1, for progress bars.
        columns: keys of the per-atom values.
        hidden: per-atom values that are not in ``values``, as a value of the frame has the same key.
        constrained: True if there are constraints, which are not read.
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


def frames_of(path: Path, format: str | None = None, hint: str = "name it with --format") -> Iterator[Frame]:
    """Frames of a file in any format that ASE reads, in their order.

    Extended XYZ and ASE databases are read a frame at a time, and checked for what ASE lets pass. Of other formats
    ASE reads ``.traj`` and most formats of trajectories a frame at a time, and some all at once.

    Args:
        path: of the file, whose format ASE guesses by its name and its first bytes.
        format: ASE's name of the format, such as ``extxyz``, ``vasp``, ``traj``; ``ase info --formats`` lists them.
        hint: advice in the error where the format cannot be guessed.

    Raises:
        MFPyGError: if there is no such file or format, the format cannot be guessed or read, or a frame is damaged,
            which it names.
    """
    if path.is_dir():
        raise MFPyGError(f"{path} is a folder; expected a file of atoms that ASE reads")
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected one of atoms that ASE reads")
    if path.stat().st_size == 0:
        raise MFPyGError(f"{path}: empty; expected at least one configuration of atoms")
    name = _format(path, format, hint)
    if name == "extxyz":
        return frames_of_text(path)
    if name == "db":
        return frames_of_database(path)
    return _frames_of_ase(path, name)


def _format(path: Path, format: str | None, hint: str) -> str:
    """ASE's name of the format of a file."""
    known = [name for name, found in ioformats.items() if found.can_read]
    if format is not None:
        if format not in known:
            meant = did_you_mean(format, known)
            raise MFPyGError(f"ASE reads no format '{format}'{meant}; `ase info --formats` lists what it reads")
        return format
    unpacked = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    if unpacked.suffix.lower() in _FORMATS:
        return _FORMATS[unpacked.suffix.lower()]
    try:
        guess = filetype(str(path))
    except (UnknownFileTypeError, OSError, EOFError) as error:  # the latter of compressed files that are damaged
        raise_if_unreadable(path, error)
        guess = ""
    if guess not in known:
        raise MFPyGError(f"{path}: ASE does not know its format; {hint}")
    return guess


def _frames_of_ase(path: Path, format: str) -> Iterator[Frame]:
    images = None
    for number in count():
        where = str(path) if format == "xyz" else f"{path}: frame {number}"  # ASE reads the former at once
        try:
            if images is None:
                images = ase.io.iread(str(path), ":", format, do_not_split_by_at_sign=True)
            atoms = next(images, None)
        except Exception as error:  # whatever a reader stumbles over in a file that is not what it says
            raise_if_unreadable(where, error)
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            if format in ("xyz", "extxyz") and isinstance(error, KeyError):  # of ASE's table of elements
                reason = f"species {no_element(str(error.args[0]))}"
            raise MFPyGError(f"{where} cannot be read as '{format}' ({reason})") from error
        if atoms is None:
            break
        yield frame_of_atoms(atoms, number)
    if number == 0:
        raise MFPyGError(f"{path}: empty; expected at least one configuration of atoms")


def frame_of_atoms(atoms: ase.Atoms, number: int = 0, read: float = 0.0) -> Frame:
    """Frame of ASE's atoms, without their constraints."""
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
    """Values by key, later ones replacing earlier ones; the per-atom ones among them, and those that are replaced."""
    per_atom = {**{key: results[key] for key in per_atom_properties if key in results}, **arrays}
    return {
        "values": {**results, **arrays, **info},
        "columns": frozenset(per_atom.keys() - info.keys()),
        "hidden": {key: per_atom[key] for key in per_atom.keys() & info.keys()},
    }


def frames_of_text(path: Path) -> Iterator[Frame]:
    """Frames of an extended-XYZ file, see :func:`mfpyg.datasets.xyz.read_xyz`."""
    for number, (found, read) in enumerate(read_xyz(path)):
        yield frame_of_atoms(found, number, read) if isinstance(found, ase.Atoms) else Frame(number, read=read, **found)


@contextmanager
def _reading_database(where: str) -> Iterator[None]:
    """Errors as in :func:`reading`, with advice where SQLite does not mean that the file is damaged."""
    with reading(where):
        try:
            yield
        except sqlite3.OperationalError as error:
            for message, advice in _BUSY_DATABASE.items():
                if message in str(error):
                    raise UnreadableError(f"{where}: cannot be read ({error}); {advice}") from error
            raise


def frames_of_database(path: Path) -> Iterator[Frame]:
    """Rows of an ASE database, in the order of their ids.

    Raises:
        MFPyGError: if it is no such database, has no rows, or one cannot be read.
    """
    with _reading_database(str(path)):
        _check_database(path)
        database = ase.db.connect(path, type="db", use_lock_file=False, serial=True)
        n_rows = max(database.count(), 1)
    rows, last = iter(()), -1
    with database:  # else ASE would connect again for every row
        for number in count():
            with _reading_database(f"{path}: frame {number}"):
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
