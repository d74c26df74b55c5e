"""Lock of a folder, for one command at a time."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mfpyg.errors import MFPyGError
from mfpyg.files import make_folder
from mfpyg.interrupt import uninterrupted

LOCK, HOLDER = ".lock", ".holder"
"""Files in the run folder: the one that is locked, and the process that has locked it."""


@contextmanager
def held(folder: Path, command: str = "mfpyg-train", option: str = "--out") -> Iterator[None]:
    """Hold the lock of the folder of a command, which is created if it does not exist.

    The lock is the operating system's, so a killed process leaves none behind. Folders that were created here and are
    empty in the end are removed.

    Args:
        folder: folder.
        command, option: name of the command, and its option for another folder, for errors.

    Raises:
        MFPyGError: if another process holds it, or the folder cannot be created or written to.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with uninterrupted():
            _acquire(lock, folder, command, option)
        yield
    finally:
        with uninterrupted():
            _release(lock, folder, created)


def _acquire(lock: FileLock, folder: Path, command: str, option: str) -> None:
    make_folder(folder)
    try:
        lock.acquire()
        (folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        raise MFPyGError(
            f"{folder}: another {command} is running in this folder ({_holder(folder)}); wait until it has ended, or "
            f"choose another folder with {option}"
        ) from None
    except OSError as error:
        raise MFPyGError(
            f"{folder / LOCK}: cannot write or lock it ({error.strerror}); choose another folder with {option}"
        ) from error


def _holder(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / HOLDER).read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    return "another process"


def _release(lock: FileLock, folder: Path, created: Sequence[Path]) -> None:
    if lock.is_locked:
        for name in (HOLDER, LOCK):  # removed while it is still held
            (folder / name).unlink(missing_ok=True)
        lock.release()
    with contextlib.suppress(OSError):  # not empty
        for path in created:
            path.rmdir()
