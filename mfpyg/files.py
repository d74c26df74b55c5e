"""Atomic writing of files, and reading of files that may be damaged."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.errors import MFPyGError, UnreadableError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, a quota, and a limit on the size of files."""

_ABOUT_THE_FILE = (None, 0, errno.EINVAL, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
"""Error numbers that point to the contents or the name of a file rather than to the system."""

_NOT_PERMITTED = (errno.EACCES, errno.EPERM)
_TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)

_CODE = re.compile(r"\berrno = (\d+)|^unable to .*\((\d+)\)$")
"""The system's error number in messages of HDF5 and torch that are not an ``OSError``."""

_ZIP_ERRORS = (
    *(OSError, ValueError, EOFError, NotImplementedError, RuntimeError, IndexError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""Exceptions that ``zipfile`` raises for damaged files."""

_NPZ_ERRORS = (*_ZIP_ERRORS, TypeError, KeyError, AttributeError, MemoryError)
"""Exceptions that numpy raises for files that are damaged or not npz."""

_FOLDER_BIT = 0x10
"""Attribute bit of a folder entry, whose contents torch leaves as uninitialised memory."""

_MAX_UNPACKED = 1 << 30
"""Unpacked size in bytes above which an npz file may not be compressed by more than a factor of 20."""


def raise_if_unreadable(what: str | Path, error: BaseException) -> None:
    """Raise if an exception comes from the operating system rather than from the contents of a file.

    To be called before a file is reported as damaged, which users would then delete or download again.

    Args:
        what: the file, for the message.
        error: exception raised while the file was opened or read.

    Raises:
        UnreadableError: with the system's message and what to do.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := _CODE.search(str(error))) is not None:
        code = int(found[1] or found[2])
    if code in _ABOUT_THE_FILE:
        return
    advice = "the file itself may be fine: check the disk or the network, and try again"
    if code in _NOT_PERMITTED:
        advice = "ask its owner for permission"
    elif code in _TOO_MANY_OPEN:
        advice = "close some files, or raise the limit (ulimit -n)"
    raise UnreadableError(f"{what}: cannot be read ({os.strerror(code)}); {advice}") from error


def replace_file(path: Path, write: Callable[[str], Any]) -> None:
    """Call ``write(temporary name)`` and move the result to ``path`` in one step.

    The temporary file is in the same folder, as a move is atomic only within a file system; it is removed on failure.

    Raises:
        MFPyGError: if the file cannot be written, or the disk is full.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise MFPyGError(f"{path}: cannot write there ({error.strerror}); choose another place") from error
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)  # an interrupt may come when it has just been moved
        if isinstance(error, OSError):
            raise MFPyGError(f"{path}: cannot write it ({error.strerror or error})") from error
        raise


def sidecar(path: Path) -> Path:
    """YAML file beside an output that says how it was made."""
    return path.with_name(f"{path.name}.yaml")


def save_torch(path: Path, values: Any) -> None:
    """Save values atomically, to be read with ``torch.load(weights_only=True)``.

    Raises:
        MFPyGError: if the file cannot be written, or the disk is full.
    """
    import torch

    def save(name: str) -> None:
        try:
            torch.save(values, name)
        except RuntimeError as error:  # raised by torch for a failed write
            if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
                raise OSError("the disk is full, or a limit on the size of files is reached") from error
            raise

    replace_file(path, save)


def check_archive(path: Path, what: str) -> None:
    """Check that a file is an intact archive of ``torch.save``.

    ``torch.load`` checks neither checksums nor the unpacked size of compressed entries.

    Args:
        path: path of the file.
        what: expected kind of file, for the error.

    Raises:
        MFPyGError: if it cannot be read, is damaged or not a zip file, or has compressed entries.
    """
    foreign = f"{path}: damaged, or not {what}"
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":  # torch would read another kind of file
                raise MFPyGError(f"{foreign}; copy or create it again")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise MFPyGError(f"{foreign} (its entries are larger than the file)")
            if any(entry.external_attr & _FOLDER_BIT for entry in entries):
                raise MFPyGError(f"{foreign} (it contains folders)")
            if len({entry.filename for entry in entries}) < len(entries):
                raise MFPyGError(f"{foreign} (it contains an entry twice)")
            damaged = archive.testzip()
    except MFPyGError:
        raise
    except _ZIP_ERRORS as error:
        raise_if_unreadable(path, error)
        raise MFPyGError(f"{foreign}; copy or create it again") from error
    if damaged is not None:
        raise MFPyGError(f"{path}: damaged, the checksum of its entry '{damaged}' is wrong; copy it again")


def read_torch(path: Path, what: str) -> Any:
    """Read a file of ``torch.save`` as plain values and tensors on the CPU; code in it is never run.

    Args:
        path: path of the file.
        what: expected kind of file, for the error.

    Raises:
        MFPyGError: if it is damaged, or holds more than plain values.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MFPyGError(f"{path}: damaged, or not {what} (contains more than plain values)") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise_if_unreadable(path, error)
        reason = str(error).split("\n")[0].strip()[:120] or type(error).__name__
        raise MFPyGError(f"{path}: damaged, or not {what} ({reason})") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file.

    Raises:
        MFPyGError: if it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            unpacked = sum(entry.file_size for entry in stored.zip.infolist())
            if unpacked > max(_MAX_UNPACKED, 20 * path.stat().st_size):
                raise ValueError("implausible unpacked size")
            arrays = {name: stored[name] for name in stored.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("an entry is not an array")
            return arrays
    except _NPZ_ERRORS as error:
        raise_if_unreadable(path, error)
        raise MFPyGError(f"{path}: missing or damaged; expected an npz file with train, val, test") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents.

    Raises:
        MFPyGError: if it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise MFPyGError(f"{path}: cannot read it ({error.strerror}); expected the checkpoint of a run") from error
    return digest.hexdigest()


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist.

    Raises:
        MFPyGError: if they cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MFPyGError(f"{path}: cannot create this folder ({error.strerror})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    replace_file(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def append_text(path: Path, text: str) -> None:
    """Append to a text file in UTF-8; on failure it is left unchanged.

    Raises:
        MFPyGError: if it cannot be written, or the disk is full.
    """
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(text.encode())
                if written < len(text.encode()):  # the disk is full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
    except OSError as error:
        raise MFPyGError(f"{path}: cannot write it ({error.strerror or error})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
