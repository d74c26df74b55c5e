"""Writing files so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mfpyg.errors import MFPyGError


def replace_file(path: Path, write: Callable[[str], Any]) -> None:
    """Call ``write(temporary name)`` and move the result to ``path`` in one step.

    The temporary file stands beside the final one, as a move is atomic only within a file system, and
    is removed if anything goes wrong.

    Raises:
        MFPyGError: if the place can't be written to, or the disk is full.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise MFPyGError(f"{path}: can't write there ({error.strerror}); choose another place") from error
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise MFPyGError(f"{path}: can't write it ({error.strerror or error})") from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, as far as they are not there.

    Raises:
        MFPyGError: if that can't be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MFPyGError(f"{path}: can't make this folder ({error.strerror})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, in UTF-8."""
    replace_file(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
