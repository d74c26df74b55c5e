"""HDF5 files whose groups hold conformations of one size: checked arrays, read in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpyg.datasets.chunks import ATOMS_IN_CHUNK, Chunk, by_formula, same_numbers
from mfpyg.datasets.labels import as_rows, letters_of, most_rows, read_labels, shape_in_file
from mfpyg.datasets.total_charges import KEYS, find_charges
from mfpyg.errors import MFPyGError, UnreadableError
from mfpyg.fidelity import LevelOfTheory
from mfpyg.files import raise_if_unreadable
from mfpyg.properties import PROPERTIES, Property


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn exceptions of HDF5 about a damaged or unreadable file into one line."""
    try:
        yield
    except MFPyGError:  # a ValueError with its final message
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        _raise_if_locked(path, reason, error)
        raise_if_unreadable(path, error)
        raise MFPyGError(f"{path}: truncated or damaged HDF5 file ({reason}); fetch it again") from error


def _raise_if_locked(path: Path, reason: str, error: Exception) -> None:
    if "unable to lock file" in reason:
        why = reason.rpartition("error message = ")[2].strip("')")
        raise UnreadableError(
            f"{path}: cannot be locked for reading ({why}): another process has it open for writing, or the file "
            "system does not support locks; wait for that process, or if nothing writes to it, set "
            "HDF5_USE_FILE_LOCKING=FALSE in the environment"
        ) from error
    if "already open for write" in reason:
        raise UnreadableError(
            f"{path}: marked as open for writing: a process is writing to it, or was killed doing so; wait for it, "
            f"or if there is none, clear the mark with `h5clear -s {path}`"
        ) from error


@contextmanager
def open_hdf5(path: Path, layout: str) -> Iterator[h5py.File]:
    """Open a file for reading.

    Args:
        path: file to open.
        layout: expected content, for the error message.

    Raises:
        MFPyGError: if the file is missing, locked, not HDF5, or truncated.
    """
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected an HDF5 file in {layout}")
    with reading(path):
        if not h5py.is_hdf5(path):
            raise MFPyGError(f"{path}: not an HDF5 file; expected {layout}")
        file = h5py.File(path, "r")
    with file:
        yield file


class Group:
    """One group of a file: ``count`` conformations of one size, its arrays checked as they are read.

    Args:
        group: group of the open file.
        path: the file, for error messages.
        z: atomic numbers of all conformations, (size,) int64, or the file's array with those of each,
            (count, size).

    Raises:
        MFPyGError: if the coordinates are missing or have the wrong shape or type.
    """

    def __init__(self, group: h5py.Group, path: Path, z: np.ndarray | h5py.Dataset) -> None:
        self.group, self.path, self.z = group, path, z
        self.size = z.shape[-1]
        self._arrays: dict[str, h5py.Dataset] = {}  # opening one takes as long as reading it
        coordinates = self.array("coordinates")
        if coordinates.ndim != 3 or coordinates.shape[1:] != (self.size, 3):
            raise MFPyGError(f"{self.where}: coordinates has shape {coordinates.shape}, expected (n, {self.size}, 3)")
        self.count = len(coordinates)
        if z.ndim == 2 and len(z) != self.count:
            raise MFPyGError(f"{self.where}: species has shape {z.shape}, expected ({self.count}, {self.size})")
        self._expect("coordinates", (self.count, self.size, 3))

    @property
    def where(self) -> str:
        """File and group, for error messages."""
        return where(self.group, self.path)

    def array(self, key: str) -> h5py.Dataset:
        """An array of the group.

        Raises:
            MFPyGError: if the group has no such array.
        """
        if key not in self._arrays:
            self._arrays[key] = array(self.group, self.path, key)
        return self._arrays[key]

    def _expect(self, key: str, shape: tuple[int, ...]) -> None:
        found = self.array(key)
        if found.shape[:1] != shape[:1] or not same_numbers(found.shape, shape):
            raise MFPyGError(f"{self.where}: {key} has shape {found.shape}, expected {shape}")
        if found.dtype.kind != "f":
            raise MFPyGError(f"{self.where}: {key} has type {found.dtype}, expected floating-point numbers")

    def expect(self, levels: Sequence[LevelOfTheory]) -> None:
        """Check that the labels of these levels are present, with the right shapes and types.

        Raises:
            MFPyGError: naming the first array that is missing or wrong.
        """
        for level in levels:
            for letter, label in level.labels.items():
                for key in label.keys:
                    self._expect(key, (self.count, *shape_in_file(PROPERTIES[letter], self.size)))

    def chunks(self, levels: Sequence[LevelOfTheory], letters: str | None = None) -> Iterator[tuple[slice, Chunk]]:
        """Read the conformations with the labels of these levels, in chunks.

        Args:
            levels: the levels to read.
            letters: properties of the chunks; those of the levels if not given.

        Yields:
            Rows of the group and their chunk, whose molecule is the group's name, or the formula if each conformation
            has its own atomic numbers.

        Raises:
            MFPyGError: if an array is missing or has the wrong shape or type, or a value is invalid.
        """
        self.expect(levels)
        letters = letters_of(levels) if letters is None else letters
        labels = {key for level in levels for key in level.keys}
        charges = {key: self.array(key) for key in KEYS if key in self.group and key not in labels}
        charge = find_charges(charges, self.count, self.size, self.where)
        step = max(1, ATOMS_IN_CHUNK // max(1, most_rows(letters, self.size)))
        for start in range(0, self.count, step):
            rows = slice(start, min(start + step, self.count))
            yield rows, self._chunk(levels, letters, charge, rows)

    def _chunk(self, levels: Sequence[LevelOfTheory], letters: str, charge: str | None, rows: slice) -> Chunk:
        n = rows.stop - rows.start
        n_atoms = np.full(n, self.size, np.int64)

        def read(property: Property, key: str) -> np.ndarray:
            values = self._numbers(key, rows).reshape(n, *shape_in_file(property, self.size))
            return as_rows(property, values)

        labels = read_labels(levels, n_atoms, read, letters)
        pos = self.array("coordinates")[rows]
        bad = np.flatnonzero(~np.isfinite(pos).all(axis=(1, 2)))
        if bad.size:
            raise MFPyGError(f"{self.where}: coordinates of conformation {rows.start + bad[0]} are NaN or infinite")
        if self.z.ndim == 1:
            z, molecule, names = np.tile(self.z, n), np.zeros(n, np.int64), [self.group.name.strip("/")]
        else:
            z = self.z[rows].astype(np.int64)  # (n, size)
            molecule, names = by_formula(z)
        chunk = Chunk(
            n_atoms=n_atoms,
            z=z.reshape(-1),
            pos=pos.reshape(-1, 3),
            labels=labels,
            molecule=molecule,
            names=names,
            conformation=np.arange(rows.start, rows.stop),
        )
        if charge is not None:
            chunk.charge = self.array(charge)[rows].reshape(-1)
        chunk.check(lambda row: f"{self.where}: conformation {rows.start + row}")
        return chunk

    def _numbers(self, key: str, rows: slice) -> np.ndarray:
        values = self.array(key)[rows]
        bad = np.flatnonzero(np.isinf(values.reshape(len(values), -1)).any(axis=1))
        if bad.size:
            conformation = rows.start + bad[0]
            raise MFPyGError(f"{self.where}: {key} of conformation {conformation} is infinite; NaN means missing")
        return values


def where(group: h5py.Group, path: Path) -> str:
    """File and group, for error messages."""
    return f"{path}: group {str(group.name).strip('/')[:60]}"


def array(group: h5py.Group, path: Path, key: str) -> h5py.Dataset:
    """An array of a group.

    Raises:
        MFPyGError: if there is no such array, it is a link to another file, or it was not fully written.
    """
    found: Any = group.get(key)
    if not isinstance(found, h5py.Dataset):
        raise MFPyGError(f"{where(group, path)} lacks the key '{key}'")
    hard = isinstance(group.get(key, getlink=True), h5py.HardLink)
    if not hard or found.is_virtual or found.external:
        raise MFPyGError(
            f"{where(group, path)}: {key} is stored elsewhere; expected the array itself, not a link to it"
        )
    if not _is_written(found):
        raise MFPyGError(f"{where(group, path)}: {key} was not fully written; fetch the file again")
    return found


def _is_written(found: h5py.Dataset) -> bool:
    """False if a program was stopped while writing the array, of which HDF5 would return zeros."""
    if not found.size or (found.dtype.kind == "f" and np.isnan(found.fillvalue)):
        return True
    layout = found.id.get_create_plist().get_layout()
    if layout == h5py.h5d.CHUNKED:
        n_chunks = math.prod(-(-n // c) for n, c in zip(found.shape, found.chunks, strict=True))
        return found.id.get_num_chunks() >= n_chunks
    return layout != h5py.h5d.CONTIGUOUS or found.id.get_offset() is not None
