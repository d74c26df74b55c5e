"""Where padded arrays come from: ``.npz`` files, and folders of ``.npy`` files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.datasets.padded import COUNTS, POSITIONS, SPECIES, PaddedArrays, geometry_keys, listed, reading
from mfpyg.errors import MFPyGError


class PaddedNPZ(PaddedArrays):
    """An ``.npz`` file as of MD17, rMD17, sGDML, PhysNet and SchNetPack; its arrays are in :class:`PaddedArrays`.

    Args:
        file: raw file; compressed or not, its arrays are read a part at a time.
        levels, fidelities, root, kwargs: as in :class:`mfpyg.datasets.defined.DefinedDataset`.

    Raises:
        MFPyGError: if the file is missing or damaged, or a key is missing or its array not as it should be.

    Example:
        >>> PaddedNPZ("md17_aspirin.npz", ["pbe=E,F@kcal/mol"])                  # doctest: +SKIP
    """

    def _keys(self) -> list[str]:
        with reading(self._where), zipfile.ZipFile(self.files[0]) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    @contextmanager
    def _arrays(self, keys: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        with reading(self._where):
            archive = zipfile.ZipFile(self.files[0])
        with archive:
            with reading(self._where):
                members = {key: _Member(archive, key) for key in keys}
            yield members


class PaddedNPY(PaddedArrays):
    """A folder of ``PREFIX-R.npy``, ``PREFIX-Z.npy``, …, as hippynn's ``DirectoryDatabase`` reads.

    The names of the files are the prefix, whatever it is, and a key; the arrays are in :class:`PaddedArrays`.

    Args:
        file: folder, or ``FOLDER/PREFIX`` where it holds the files of several.
        levels, fidelities, root, kwargs: as in :class:`mfpyg.datasets.defined.DefinedDataset`.

    Raises:
        MFPyGError: if the folder holds no such files or those of several prefixes, or a key is missing or its array
            not as it should be.

    Example:
        >>> PaddedNPY("qm7_processed/data-qm7", ["b3lyp=T@kcal/mol"])            # doctest: +SKIP
    """

    def find_files(self, path: Path) -> list[Path]:
        self._folder, self._prefix = _folder_and_prefix(path)
        self._by_key = {
            name[len(self._prefix) :]: self._folder / f"{name}.npy"
            for name in _names(self._folder)
            if name.startswith(self._prefix)
        }
        read = {
            *geometry_keys(self._by_key, self._where),
            COUNTS,
            *(key for level in self.levels for key in level.keys),
        }
        return [file for key, file in self._by_key.items() if key in read]

    @property
    def _where(self) -> str:
        return str(self._folder / self._prefix)

    @property
    def what(self) -> str:
        return f"{self._folder.name}/{self._prefix}"

    def _keys(self) -> list[str]:
        return list(self._by_key)

    @contextmanager
    def _arrays(self, keys: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        arrays = {}
        for key in keys:
            with reading(str(self._by_key[key])):
                arrays[key] = np.load(self._by_key[key], mmap_mode="r", allow_pickle=False)
        yield arrays


class _Member:
    """An array of an npz file, of which rows are read one part after the other, so that it need not fit into memory."""

    def __init__(self, archive: zipfile.ZipFile, key: str) -> None:
        self._file = archive.open(f"{key}.npy")
        version = np.lib.format.read_magic(self._file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key} is of version {version[0]}.{version[1]} of the npy format")
        one, two = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        self.shape, by_column, self.dtype = (one if version == (1, 0) else two)(self._file)
        self.ndim = len(self.shape)
        self._whole = None
        if by_column and self.ndim > 1:  # the rows are spread over all of it
            with archive.open(f"{key}.npy") as file:
                self._whole = np.lib.format.read_array(file, allow_pickle=False)

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self._whole is not None:
            return self._whole[rows]
        shape = (rows.stop - rows.start, *self.shape[1:])
        n_bytes = prod(shape) * self.dtype.itemsize
        read = self._file.read(n_bytes)
        if len(read) < n_bytes:
            raise EOFError("an array is shorter than its header says")
        return np.frombuffer(read, self.dtype).reshape(shape)


def _names(folder: Path) -> list[str]:
    """Names of the ``.npy`` files in a folder, without the suffix."""
    return sorted(file.stem for file in folder.glob("*.npy"))


def _folder_and_prefix(path: Path) -> tuple[Path, str]:
    """Where the files are, and how their names begin, from a folder or from both joined by a slash.

    Raises:
        MFPyGError: if there are no positions and atomic numbers of any prefix, or of several.
    """
    folder, start = (path, "") if path.is_dir() else (path.parent, path.name)
    names = _names(folder)
    prefixes = {
        name.removesuffix(pos)
        for name in names
        for pos in POSITIONS
        if name.startswith(start) and name.endswith(pos) and any(name.removesuffix(pos) + z in names for z in SPECIES)
    }
    if not path.is_dir() and start in prefixes:
        return folder, start
    if not prefixes:
        expected = "expected files such as data-R.npy and data-Z.npy, a prefix and a key"
        raise MFPyGError(f"{path}: no positions and atomic numbers {listed(names)}; {expected}")
    if len(prefixes) > 1:
        some = sorted(prefixes)
        raise MFPyGError(
            f"{path}: files of {len(some)} prefixes ({', '.join(map(repr, some[:20]))}); "
            f"choose one, as npy:{folder / some[-1]}"
        )
    return folder, prefixes.pop()
