"""Frames of files that ASE can read, one at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
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

from mfpyg.datasets.total_charges import KEYS, find_charges, whole_charges
from mfpyg.datasets.xyz import COMPRESSED, no_element, read_xyz, reading
from mfpyg.errors import MFPyGError, UnreadableError, did_you_mean
from mfpyg.files import raise_if_unreadable

_FORMATS = {".xyz": "extxyz", ".extxyz": "extxyz", ".db": "db"}

_INITIAL = "initial_charges"

_ARRAYS_OF_ROW = (_INITIAL, "initial_magmoms", "masses", "momenta", "tags")
"""Per-atom values of a database row that are not results."""

_BUSY_DATABASE = {
    "locked": "another process is writing to it: wait until it has finished, or copy the file",
    "readonly": "a process was stopped while writing to it: open the file once with `ase db`, which repairs it",
    "unable to open": "check the permissions of file and folder, and how many files are open (ulimit -n)",
    "I/O error": "the file itself may be fine: check the disk or the network, and try again",
}
"""Messages of SQLite that do not mean a damaged database, and advice."""

_ROWS_AT_ONCE = 1000
"""Rows per query; ASE fetches all selected rows at once."""


class Frame(NamedTuple):
    """A molecule or a periodic system as ASE reads it.

    Attributes:
        number: number in the file, from 0.
        z: atomic numbers, (n,) int64.
        pos: positions in Å, (n, 3) float64.
        cell: lattice vectors in Å, as rows, (3, 3) float64; zeros where there are none.
        pbc: periodicity along each of them, (3,) bool.
        values: all other values by key, as ASE reads them.
        read: fraction of the file read so far, for progress bars.
        columns: keys of the per-atom values.
        hidden: per-atom values replaced in ``values`` by a value of the frame with the same key.
        constrained: True if there are constraints, which are ignored.
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

    Extended XYZ and ASE databases are read frame by frame, with checks that ASE lacks. ASE reads ``.traj`` and most
    other trajectories frame by frame, and the remaining formats all at once.

    Args:
        path: file to read; ASE guesses the format from its name and first bytes if not given.
        format: ASE's name of the format, such as ``extxyz``, ``vasp``, ``traj``; ``ase info --formats`` lists them.
        hint: advice for the error message if the format cannot be guessed.

    Raises:
        MFPyGError: if there is no such file or format, the format cannot be guessed or read, or a frame is damaged,
            naming the frame.
    """
    if path.is_dir():
        raise MFPyGError(f"{path} is a folder; expected a file of atoms that ASE reads")
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected a file of atoms that ASE reads")
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
            raise MFPyGError(f"ASE cannot read format '{format}'{meant}; `ase info --formats` lists what it can read")
        return format
    unpacked = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    if unpacked.suffix.lower() in _FORMATS:
        return _FORMATS[unpacked.suffix.lower()]
    try:
        guess = filetype(str(path))
    except (UnknownFileTypeError, OSError, EOFError) as error:  # EOFError: a damaged compressed file
        raise_if_unreadable(path, error)
        guess = ""
    if guess not in known:
        raise MFPyGError(f"{path}: ASE does not know its format; {hint}")
    return guess


def _frames_of_ase(path: Path, format: str) -> Iterator[Frame]:
    images = None
    for number in count():
        where = str(path) if format == "xyz" else f"{path}: frame {number}"  # ASE reads xyz at once
        try:
            if images is None:
                images = ase.io.iread(str(path), ":", format, do_not_split_by_at_sign=True)
            atoms = next(images, None)
        except Exception as error:  # readers raise anything on files of another format
            raise_if_unreadable(where, error)
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            if format in ("xyz", "extxyz") and isinstance(error, KeyError):  # from ASE's table of elements
                reason = f"species {no_element(str(error.args[0]))}"
            raise MFPyGError(f"{where} cannot be read as '{format}' ({reason})") from error
        if atoms is None:
            break
        yield frame_of_atoms(atoms, number)
    if number == 0:
        raise MFPyGError(f"{path}: empty; expected at least one configuration of atoms")


def frame_of_atoms(atoms: ase.Atoms, number: int = 0, read: float = 0.0) -> Frame:
    """Convert ASE ``Atoms`` to a frame, ignoring constraints."""
    results = {} if atoms.calc is None else atoms.calc.results
    arrays = {key: value for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    z = atoms.numbers.astype(np.int64)  # some formats have smaller integers
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
    """Fields of a :class:`Frame`: all values, later ones replacing earlier ones, and which are per atom or replaced."""
    per_atom = {**{key: results[key] for key in per_atom_properties if key in results}, **arrays}
    return {
        "values": {**results, **arrays, **info},
        "columns": frozenset(per_atom.keys() - info.keys()),
        "hidden": {key: per_atom[key] for key in per_atom.keys() & info.keys()},
    }


def total_charge(frame: Frame, where: str = "", labels: Collection[str] = (), needed: bool = True) -> float:
    """Total charge of a frame in e: ``charge`` or ``total_charge``, else the sum of the initial charges, else 0.

    Args:
        frame: frame to read.
        where: name of the file and frame, for the error message.
        labels: keys that have another meaning.
        needed: whether dipoles or charges are read. For others, initial charges that do not add up to a whole number,
            such as those of a force field, say nothing.

    Raises:
        MFPyGError: if it, or the sum, is not a whole number.
    """
    colon = f"{where}: " if where else ""
    with reading(where or "the frame"):
        given = {key: np.asarray([frame.values[key]]) for key in KEYS if key in frame.values and key not in labels}
        key = find_charges(given, 1, len(frame.z), where)
        if key is None and (_INITIAL not in frame.columns or _INITIAL in labels):
            return 0.0
        total = float(np.sum(frame.values[_INITIAL]) if key is None else given[key].item())
        if not whole_charges(np.array([total]))[1].any():
            return total
        if key is not None:
            raise MFPyGError(f"{colon}the total charge is {total:g} e, expected a whole number")
        if needed:
            problem = f"the initial charges add up to {total:g} e, expected a whole number"
            raise MFPyGError(f"{colon}{problem}; give the total charge under the key 'charge'")
        return 0.0


def frames_of_text(path: Path) -> Iterator[Frame]:
    """Frames of an extended-XYZ file, see :func:`mfpyg.datasets.xyz.read_xyz`."""
    for number, (found, read) in enumerate(read_xyz(path)):
        yield frame_of_atoms(found, number, read) if isinstance(found, ase.Atoms) else Frame(number, read=read, **found)


@contextmanager
def _reading_database(where: str) -> Iterator[None]:
    """As :func:`reading`, with advice for messages of SQLite that do not mean a damaged file."""
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
        MFPyGError: if it is not an ASE database, has no rows, or a row cannot be read.
    """
    with _reading_database(str(path)):
        _check_database(path)
        database = ase.db.connect(path, type="db", use_lock_file=False, serial=True)
        n_rows = max(database.count(), 1)
    rows, last = iter(()), -1
    with database:  # otherwise ASE reconnects for every row
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
                    raise MFPyGError(f"{path}: frame {number}: {found}, expected one (3,) per atom")
                results = {key: row[key] for key in all_properties if key in row}
                arrays = {key: row[key] for key in _ARRAYS_OF_ROW if key in row}
                # Not the values of ASE, whose rows have a 'charge' of their own, the sum of the initial charges.
                pairs = {key: vars(row)[key] for key in row.key_value_pairs}
                merged = _merged(results, arrays, {**row.data, **pairs})
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
            raise MFPyGError(f"{path}: not an ASE database, it has no table of systems")
        (found,) = connection.execute("PRAGMA quick_check(systems)").fetchone()
        if found != "ok":  # SQLite would silently skip rows
            raise MFPyGError(f"{path}: damaged database ({' '.join(found.split())[:100]}); fetch it again")
