"""Writing files so that a reader sees the old one or the new one, never half of it."""

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

_NOT_THE_SYSTEMS = (None, 0, errno.EINVAL, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
"""Error numbers that say something of the file: none, places in it where nothing can be, a wrong name."""

_NOT_PERMITTED = (errno.EACCES, errno.EPERM)
_TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)

_CODE = re.compile(r"\berrno = (\d+)|^unable to .*\((\d+)\)$")
"""Where HDF5 and torch mention the system's error number in exceptions that are no ``OSError``."""

_NO_ZIP = (
    *(OSError, ValueError, EOFError, NotImplementedError, RuntimeError, IndexError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""Exceptions of ``zipfile`` for damaged files."""

_NO_NPZ = (*_NO_ZIP, TypeError, KeyError, AttributeError, MemoryError)
"""Exceptions of numpy for files that are damaged, or no npz at all."""

_FOLDER = 0x10
"""The bit by which torch takes an entry for a folder, and leaves the memory of its contents as it was."""

_UNPACKED = 1 << 30
"""Bytes of an npz file's arrays from which on they may not be twenty times those of the file."""


def raise_if_unreadable(what: str | Path, error: BaseException) -> None:
    """Raise if an exception is the system's refusal to read a file, rather than a complaint about its contents.

    Called first wherever an exception would otherwise mean a damaged or foreign file, which users then delete or
    download again.

    Args:
        what: the file, for the message.
        error: raised while the file was opened or read.

    Raises:
        UnreadableError: with what the system says, and what to do.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := _CODE.search(str(error))) is not None:
        code = int(found[1] or found[2])
    if code in _NOT_THE_SYSTEMS:
        return
    advice = "the file itself may be fine: check the disk or the network, and try again"
    if code in _NOT_PERMITTED:
        advice = "ask its owner for permission"
    elif code in _TOO_MANY_OPEN:
        advice = "close some files, or raise the limit (ulimit -n)"
    raise UnreadableError(f"{what}: can't be read ({os.strerror(code)}); {advice}") from error


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
        Path(temporary).unlink(missing_ok=True)  # an interrupt may come when it has just been moved
        if isinstance(error, OSError):
            raise MFPyGError(f"{path}: can't write it ({error.strerror or error})") from error
        raise


def save_torch(path: Path, values: Any) -> None:
    """Write what ``torch.load(weights_only=True)`` reads, in one step.

    Raises:
        MFPyGError: if the place can't be written to, or the disk is full.
    """
    import torch

    def save(name: str) -> None:
        try:
            torch.save(values, name)
        except RuntimeError as error:  # what torch makes of a failed write
            if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
                raise OSError("the disk is full, or a limit on the size of files is reached") from error
            raise

    replace_file(path, save)


def check_archive(path: Path, what: str) -> None:
    """Check that a file is what ``torch.save`` writes, and that every byte of it is as it was written.

    ``torch.load`` looks neither at checksums nor at how large a compressed entry becomes.

    Args:
        path: of the file.
        what: it should be, for the error.

    Raises:
        MFPyGError: if it can't be read, is no zip file or damaged, or has compressed entries.
    """
    foreign = f"{path}: damaged, or not {what}"
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":  # which torch would take for a file of another kind
                raise MFPyGError(f"{foreign}; copy it again, or make it anew")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise MFPyGError(f"{foreign} (its entries are larger than the file)")
            if any(entry.external_attr & _FOLDER for entry in entries):
                raise MFPyGError(f"{foreign} (it holds folders)")
            if len({entry.filename for entry in entries}) < len(entries):
                raise MFPyGError(f"{foreign} (it holds an entry twice)")
            damaged = archive.testzip()
    except MFPyGError:
        raise
    except _NO_ZIP as error:
        raise_if_unreadable(path, error)
        raise MFPyGError(f"{foreign}; copy it again, or make it anew") from error
    if damaged is not None:
        raise MFPyGError(f"{path}: damaged, the checksum of its entry '{damaged}' is wrong; copy it again")


def read_torch(path: Path, what: str) -> Any:
    """Read a file of ``torch.save`` as plain values and tensors on the CPU; code in it is never run.

    Args:
        path: of the file.
        what: it should be, for the error.

    Raises:
        MFPyGError: if it is damaged, or holds more than plain values.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MFPyGError(f"{path}: damaged, or not {what} (holds more than plain values)") from error
    except Exception as error:  # whatever the remains of a pickle may lead to
        raise_if_unreadable(path, error)
        reason = str(error).split("\n")[0].strip()[:120] or type(error).__name__
        raise MFPyGError(f"{path}: damaged, or not {what} ({reason})") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Raises:
        MFPyGError: if it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            unpacked = sum(entry.file_size for entry in stored.zip.infolist())
            if unpacked > max(_UNPACKED, 20 * path.stat().st_size):
                raise ValueError("more than it could have been")
            arrays = {name: stored[name] for name in stored.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("an entry that is no array")
            return arrays
    except _NO_NPZ as error:
        raise_if_unreadable(path, error)
        raise MFPyGError(f"{path}: missing or damaged; expected an npz file with train, val, test") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents.

    Raises:
        MFPyGError: if it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise MFPyGError(f"{path}: can't read it ({error.strerror}); expected the checkpoint of a run") from error
    return digest.hexdigest()


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


def append_text(path: Path, text: str) -> None:
    """Add to a text file in UTF-8, or leave it as it was.

    Raises:
        MFPyGError: if it can't be written to, or the disk is full.
    """
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(text.encode())
                if written < len(text.encode()):  # what fits on a full disk
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
    except OSError as error:
        raise MFPyGError(f"{path}: can't write it ({error.strerror or error})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
