"""One process in a run folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.files import make_folder
from mfpyg.interrupt import Postponed, unbroken

LOCK = ".lock"
"""Name of the file in the run folder that is locked; it says who has it."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems answer that know no locks, some network ones among them."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have a run folder for oneself, which is made if it is not there.

    The lock is the kernel's (``flock``), so that a killed process leaves none behind. Folders that were made here
    and hold nothing in the end are removed.

    Raises:
        MFPyGError: if another process has it, or the folder can't be made or written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    file = None
    try:
        with unbroken():
            file = _locked(folder)
        yield
    finally:
        signals = Postponed()
        try:
            signals.begin()
        finally:
            _give_back(folder, file, missing)
            signals.end()
        if signals.asked:
            raise KeyboardInterrupt


def _give_back(folder: Path, file: int | None, made: Sequence[Path]) -> None:
    if file is not None:
        (folder / LOCK).unlink(missing_ok=True)  # before it is given back, so that it is still this one
        os.close(file)
    with contextlib.suppress(OSError):  # not empty
        for path in made:
            path.rmdir()


def _locked(folder: Path) -> int:
    path = folder / LOCK
    while True:
        make_folder(folder)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a run that ended just now took the folder with it
            continue
        except OSError as error:
            raise MFPyGError(f"{folder}: can't write there ({error.strerror}); choose another place") from error
        try:
            _lock(file, folder)
            if _is_there(file, path):  # and not one that its holder has removed meanwhile
                _sign(file, path)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 200).decode(errors="replace") or "another process"
        raise MFPyGError(
            f"{folder}: another mfpyg-train works in this folder ({holder}); wait until it has ended, or choose "
            "another folder with --out"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise MFPyGError(f"{folder / LOCK}: can't lock it ({error.strerror})") from error
        warnings.warn(
            f"{folder}: the file system knows no locks ({error.strerror}); see to it that no two runs share a folder",
            MFPyGWarning,
            stacklevel=2,
        )


def _sign(file: int, path: Path) -> None:
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        path.unlink()
        raise MFPyGError(f"{path}: can't write it ({error.strerror})") from error


def _is_there(file: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
