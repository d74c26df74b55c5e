"""Frames of any file that ASE reads, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import ase.io
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from mfpyg.datasets.frames import Frame, frame_of_atoms, frames_of_database, frames_of_text
from mfpyg.datasets.plain import no_element
from mfpyg.errors import MFPyGError, did_you_mean
from mfpyg.files import raise_if_unreadable

_COMPRESSED = (".gz", ".bz2", ".xz")
_OURS = {".xyz": "extxyz", ".extxyz": "extxyz", ".db": "db"}


def frames_of(path: Path, format: str | None = None, hint: str = "if it is, name it with --format") -> Iterator[Frame]:
    """The frames of a file, in their order.

    Extended XYZ and ASE databases are read a frame at a time, and checked for what ASE lets pass. Of other formats
    ASE reads ``.traj`` and most that hold trajectories a frame at a time, and some, those that its documentation
    shows with a reader of single configurations, all at once.

    Args:
        path: of a file, whose format ASE guesses by its name and its first bytes.
        format: ASE's name of the format, such as ``extxyz``, ``vasp``, ``traj``; ``ase info --formats`` lists them.
        hint: what to do where the format can't be guessed, for the error.

    Raises:
        MFPyGError: if there is no such file or format, the format can't be guessed or read, or a frame is damaged,
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
    """ASE's name of the format that a file has."""
    known = [name for name, found in ioformats.items() if found.can_read]
    if format is not None:
        if format not in known:
            meant = did_you_mean(format, known)
            raise MFPyGError(f"ASE reads no format '{format}'{meant}; `ase info --formats` lists what it reads")
        return format
    unpacked = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    if unpacked.suffix.lower() in _OURS:
        return _OURS[unpacked.suffix.lower()]
    try:
        guess = filetype(str(path))
    except (UnknownFileTypeError, OSError, EOFError) as error:  # the latter of compressed files that are damaged
        raise_if_unreadable(path, error)
        guess = ""
    if guess not in known:
        raise MFPyGError(f"{path}: its format is none that ASE knows; {hint}")
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
            raise MFPyGError(f"{where} can't be read as '{format}' ({reason})") from error
        if atoms is None:
            break
        yield frame_of_atoms(atoms, number)
    if number == 0:
        raise MFPyGError(f"{path}: empty; expected at least one configuration of atoms")
