"""Molecules in padded arrays: ``.npz`` files, and folders of ``.npy`` files."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.datasets.chunks import ATOMS_IN_CHUNK, Chunk, by_formula, keys_found, same_numbers
from mfpyg.datasets.file_dataset import FileDataset
from mfpyg.datasets.labels import as_rows, letters_of, most_rows, read_labels, shape_in_file
from mfpyg.datasets.total_charges import KEYS, OF_PHYSNET, find_charges
from mfpyg.errors import MFPyGError, did_you_mean
from mfpyg.fidelity import LevelOfTheory
from mfpyg.files import raise_if_unreadable
from mfpyg.properties import PROPERTIES, Property

POSITIONS = ("R", "coords", "coordinates", "positions")
SPECIES = ("Z", "z", "nuclear_charges", "atomic_numbers", "species")
"""Keys of positions and of atomic numbers; a file has exactly one of each."""

COUNTS = "N"
"""Key of the numbers of atoms; optional."""

_CHARGES = {*KEYS, OF_PHYSNET}

_LATTICES = ("cell", "lattice")

_DAMAGED = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
"""Exceptions that ``zipfile`` and NumPy raise for damaged or foreign files."""


class PaddedArrays(FileDataset):
    """Molecules in arrays with one row each; items are described in :class:`mfpyg.datasets.ConformationDataset`.

    ================================ ================================================================================
    ``R`` (n, n_max, 3)              positions in Å; or ``coords``, ``coordinates``, ``positions``
    ``Z`` (n, n_max), or (n_max,)    atomic numbers, 0 for padding, (n_max,) if all molecules are the same; or ``z``,
                                     ``nuclear_charges``, ``atomic_numbers``, ``species``
    ``N`` (n,)                       numbers of atoms; optional, checked if present
    energies (n,) or (n, 1)          under the keys of the levels, such as ``E``; NaN is a missing label
    forces (n, n_max, 3)             under the keys of the levels, such as ``F``
    ``charge`` (n,)                  total charges in e; or ``total_charge``, or PhysNet's ``Q``; optional
    ================================ ================================================================================

    A molecule's name is its formula, ``conformation`` its row. Other arrays are ignored. Periodic systems are not
    supported: files with lattice vectors (``cell``, ``lattice``) are refused.
    """

    def _keys(self) -> list[str]:
        """Keys of the arrays in the file or folder."""
        raise NotImplementedError

    def _arrays(self, keys: Sequence[str]) -> AbstractContextManager[Mapping[str, Any]]:
        """Arrays of these keys, to be read once in consecutive slices."""
        raise NotImplementedError

    @property
    def _where(self) -> str:
        return str(self.files[0])

    def find_levels(self, asked: Sequence[LevelOfTheory] | None) -> tuple[LevelOfTheory, ...]:
        levels, keys = super().find_levels(asked), self._keys()
        for level in levels:
            for key in level.keys:
                if key not in keys:
                    lacks = f"{self._where} lacks the key '{key}' of '{level.name}'"
                    raise MFPyGError(f"{lacks} {keys_found(keys)}{did_you_mean(key, keys)}")
        return levels

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        keys = self._keys()
        pos, species = _geometry_keys(keys, self._where)
        if lattice := [key for key in _LATTICES if key in keys]:
            problem = f"has the key '{lattice[0]}', but periodic systems are not read from arrays"
            raise MFPyGError(f"{self._where}: {problem}; write them as extended XYZ or an ASE database")
        per_row = {key for level in levels for key in level.keys} | {pos, species} | ({COUNTS} & {*keys})
        maybe = _CHARGES & {*keys} - per_row
        with self._arrays(sorted(per_row | maybe)) as found, _reading(self._where):
            arrays = {key: found[key] for key in sorted(per_row)}
            n, size = self._check(arrays, pos, species, levels)
            charge = find_charges({key: found[key] for key in sorted(maybe)}, n, size, self._where)
            arrays |= {} if charge is None else {charge: found[charge]}
            same = arrays[species][0:size] if arrays[species].ndim == 1 else None
            starts = range(0, n, max(1, ATOMS_IN_CHUNK // most_rows(letters_of(levels), size)))
            names = [f"{self.what}, {start:,} of {n:,}" for start in starts]
            for start, _ in zip(starts, self._track(names), strict=True):
                rows = slice(start, min(start + starts.step, n))
                part = {key: array[rows] for key, array in arrays.items() if key != species or same is None}
                if same is not None:
                    part[species] = np.broadcast_to(same, (rows.stop - start, size))
                yield self._chunk(part, pos, species, charge, start, levels)

    def _check(
        self, arrays: Mapping[str, Any], pos: str, species: str, levels: Sequence[LevelOfTheory]
    ) -> tuple[int, int]:
        """Check types and shapes; return the numbers of conformations and of atoms per row."""
        found = arrays[pos].shape
        if len(found) != 3 or found[2] != 3 or 0 in found:
            raise MFPyGError(f"{self._where}: {pos} has shape {found}, expected (n, n_max, 3) positions")
        n, size = found[:2]
        shapes = {pos: (n, size, 3)}
        for level in levels:
            for letter, label in level.labels.items():
                shapes |= dict.fromkeys(label.keys, (n, *shape_in_file(PROPERTIES[letter], size)))
        for key, array in arrays.items():
            numbers, kinds = ("whole", "iu") if key in (species, COUNTS) else ("floating-point", "f")
            if array.dtype.kind not in kinds:
                raise MFPyGError(f"{self._where}: {key} has type {array.dtype}, expected {numbers} numbers")
            if key == species:
                fits, wanted = array.shape in ((n, size), (size,)), f"({n}, {size}) or ({size},)"
            else:
                shape = shapes.get(key, (n,))
                same = array.shape == shape if len(shape) > 1 else same_numbers(array.shape, shape)
                fits, wanted = array.shape[:1] == (n,) and same, str(shape)
            if not fits:
                problem = f"{key} has shape {array.shape}, expected {wanted}"
                raise MFPyGError(f"{self._where}: {problem}, as {pos} is {found}")
        return n, size

    def _chunk(
        self,
        part: Mapping[str, np.ndarray],
        pos: str,
        species: str,
        charge: str | None,
        start: int,
        levels: Sequence[LevelOfTheory],
    ) -> Chunk:
        z = part[species].astype(np.int64)  # (m, size)
        is_atom = z != 0
        n_atoms = is_atom.sum(axis=1)
        if COUNTS in part:
            wrong = np.flatnonzero(n_atoms != part[COUNTS].reshape(-1))
            if wrong.size:
                i = int(wrong[0])
                said = f"{int(part[COUNTS].reshape(-1)[i])} atoms by {COUNTS}"
                raise MFPyGError(f"{self._where}: conformation {start + i} has {said}, but {n_atoms[i]} by {species}")

        def read(property: Property, key: str) -> np.ndarray:
            values = as_rows(property, part[key].reshape(len(z), *shape_in_file(property, z.shape[1])))
            if property.per == "graph":
                return values
            of_pairs = is_atom[:, :, None] & is_atom[:, None, :]
            return values[(is_atom if property.per == "atom" else of_pairs).reshape(-1)]

        labels = read_labels(levels, n_atoms, read)
        molecule, names = by_formula(z)
        chunk = Chunk(
            n_atoms=n_atoms,
            z=z[is_atom],
            pos=part[pos][is_atom],
            labels=labels,
            molecule=molecule,
            names=names,
            conformation=np.arange(start, start + len(z)),
        )
        if charge is not None:
            chunk.charge = part[charge].reshape(-1)
        chunk.check(lambda row: f"{self._where}: conformation {start + row}")
        return chunk


class PaddedNPZ(PaddedArrays):
    """An ``.npz`` file as in MD17, rMD17, sGDML, PhysNet and SchNetPack; see :class:`PaddedArrays`.

    Args:
        file: raw file, compressed or not; its arrays are read in parts.
        levels, fidelities, root, kwargs: as in :class:`mfpyg.datasets.file_dataset.FileDataset`.

    Raises:
        MFPyGError: if the file is missing or damaged, or an array is missing or invalid.

    Example:
        >>> PaddedNPZ("md17_aspirin.npz", ["pbe=E,F@kcal/mol"])                  # doctest: +SKIP
    """

    def _keys(self) -> list[str]:
        with _reading(self._where), zipfile.ZipFile(self.files[0]) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    @contextmanager
    def _arrays(self, keys: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        with _reading(self._where), zipfile.ZipFile(self.files[0]) as archive:
            yield {key: _Member(archive, key) for key in keys}


class PaddedNPY(PaddedArrays):
    """A folder of ``PREFIX-R.npy``, ``PREFIX-Z.npy``, …, as hippynn's ``DirectoryDatabase`` reads.

    File names are a prefix and a key; see :class:`PaddedArrays` for the arrays.

    Args:
        file: folder, or ``FOLDER/PREFIX`` if the folder holds several prefixes.
        levels, fidelities, root, kwargs: as in :class:`mfpyg.datasets.file_dataset.FileDataset`.

    Raises:
        MFPyGError: if the folder holds no such files or several prefixes, or an array is missing or invalid.

    Example:
        >>> PaddedNPY("qm7_processed/data-qm7", ["b3lyp=T@kcal/mol"])            # doctest: +SKIP
    """

    def find_files(self, path: Path) -> list[Path]:
        self._folder, self._prefix = _folder_and_prefix(path)
        names = [name for name in _names(self._folder) if name.startswith(self._prefix)]
        self._by_key = {name.removeprefix(self._prefix): self._folder / f"{name}.npy" for name in names}
        of_levels = {key for level in self.levels for key in level.keys}
        read = {*_geometry_keys(self._by_key, self._where), COUNTS, *_CHARGES, *of_levels}
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
            with _reading(str(self._by_key[key])):
                arrays[key] = np.load(self._by_key[key], mmap_mode="r", allow_pickle=False)
        yield arrays


class _Member:
    """An array of an npz file whose rows are read in parts, so that it need not fit into memory."""

    def __init__(self, archive: zipfile.ZipFile, key: str) -> None:
        self._file = archive.open(f"{key}.npy")
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        self.shape, fortran_order, self.dtype = headers[np.lib.format.read_magic(self._file)](self._file)
        self.ndim = len(self.shape)
        self._whole = None
        if fortran_order and self.ndim > 1:  # rows are not contiguous
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


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn exceptions of ``zipfile`` and NumPy about a bad file into one line."""
    try:
        yield
    except MFPyGError:  # a ValueError with its final message
        raise
    except _DAMAGED as error:
        raise_if_unreadable(where, error)
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise MFPyGError(f"{where}: cannot be read as NumPy arrays ({reason}); fetch it again") from error


def _geometry_keys(keys: Mapping[str, Any] | Sequence[str], where: str) -> tuple[str, str]:
    """Keys of the positions and of the atomic numbers among those present.

    Raises:
        MFPyGError: if there is none or several of either.
    """
    found = []
    for what, known in (("positions", POSITIONS), ("atomic numbers", SPECIES)):
        there = [key for key in known if key in keys]
        if len(there) != 1:
            few = f"has {what} under {' and '.join(there)}" if there else f"has no {what}"
            raise MFPyGError(f"{where} {few} {keys_found(keys)}; expected one of the keys {', '.join(known)}")
        found += there
    return found[0], found[1]


def _names(folder: Path) -> list[str]:
    """Names of the ``.npy`` files in a folder, without suffix."""
    return sorted(file.stem for file in folder.glob("*.npy"))


def _folder_and_prefix(path: Path) -> tuple[Path, str]:
    """Folder and prefix of the files, from a folder or from ``FOLDER/PREFIX``.

    Raises:
        MFPyGError: if no prefix, or more than one, has positions and atomic numbers.
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
        raise MFPyGError(f"{path}: no positions and atomic numbers {keys_found(names)}; {expected}")
    if len(prefixes) > 1:
        some = sorted(prefixes)
        raise MFPyGError(
            f"{path}: files of {len(some)} prefixes ({', '.join(map(repr, some[:20]))}); "
            f"choose one, as npy:{folder / some[-1]}"
        )
    return folder, prefixes.pop()
