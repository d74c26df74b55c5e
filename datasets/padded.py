"""Arrays with a row a conformation, padded to the largest molecule; ``numpy_files.py`` says where they are."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from mfpyg.datasets.chunks import ATOMS_IN_CHUNK, Chunk, by_formula, same_numbers
from mfpyg.datasets.defined import DefinedDataset
from mfpyg.errors import MFPyGError, did_you_mean, shortened
from mfpyg.fidelity import LevelOfTheory
from mfpyg.files import raise_if_unreadable

POSITIONS = ("R", "coords", "coordinates", "positions")
SPECIES = ("Z", "z", "nuclear_charges", "atomic_numbers", "species")
"""Keys of the positions and of the atomic numbers; a file has one of each."""

COUNTS = "N"
"""Key of the numbers of atoms, where the file says them."""

_LATTICES = ("cell", "lattice")

_DAMAGED = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
"""What ``zipfile`` and numpy raise for files that are damaged, or something else."""


class PaddedArrays(DefinedDataset):
    """Molecules in arrays with a row each; what items hold is in :class:`mfpyg.datasets.ConformationDataset`.

    ================================ ================================================================================
    ``R`` (n, n_max, 3)              positions in Å; or ``coords``, ``coordinates``, ``positions``
    ``Z`` (n, n_max), or (n_max,)    atomic numbers, 0 where there is no atom, (n_max,) where all molecules are the
                                     same; or ``z``, ``nuclear_charges``, ``atomic_numbers``, ``species``
    ``N`` (n,)                       numbers of atoms; may be left out, and is checked where it is there
    energies (n,) or (n, 1)          as the levels call them, such as ``E``; NaN is a missing label
    forces (n, n_max, 3)             as the levels call them, such as ``F``
    ================================ ================================================================================

    A molecule's name is its formula, ``conformation`` the row. Other arrays are not read. They hold no periodic
    systems: arrays with lattice vectors (``cell``, ``lattice``) are refused.
    """

    def _keys(self) -> list[str]:
        """The keys that there are."""
        raise NotImplementedError

    def _arrays(self, keys: Sequence[str]) -> AbstractContextManager[Mapping[str, Any]]:
        """The arrays of these keys, to be sliced once from their first to their last row."""
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
                    raise MFPyGError(f"{lacks} {listed(keys)}{did_you_mean(key, keys)}")
        return levels

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        keys = self._keys()
        pos, species = geometry_keys(keys, self._where)
        for key in _LATTICES:
            if key in keys:
                raise MFPyGError(
                    f"{self._where}: has the key '{key}', but periodic systems are not read from arrays; "
                    f"write them as extended XYZ or an ASE database"
                )
        per_row = {key for level in levels for key in level.keys} | {pos, species} | ({COUNTS} & {*keys})
        with self._arrays(sorted(per_row)) as arrays, reading(self._where):
            n, size = self._check(arrays, pos, species, levels)
            same = arrays[species][0:size] if arrays[species].ndim == 1 else None
            starts = range(0, n, max(1, ATOMS_IN_CHUNK // size))
            names = [f"{self.what}, {start:,} of {n:,}" for start in starts]
            for start, _ in zip(starts, self._track(names), strict=True):
                rows = slice(start, min(start + starts.step, n))
                part = {key: array[rows] for key, array in arrays.items() if key != species or same is None}
                if same is not None:
                    part[species] = np.broadcast_to(same, (rows.stop - start, size))
                yield self._chunk(part, pos, species, start, levels)

    def _check(
        self, arrays: Mapping[str, Any], pos: str, species: str, levels: Sequence[LevelOfTheory]
    ) -> tuple[int, int]:
        """Check types and shapes.

        Returns:
            The number of conformations, and of atoms that there is room for.
        """
        found = arrays[pos].shape
        if len(found) != 3 or found[2] != 3 or 0 in found:
            raise MFPyGError(f"{self._where}: {pos} has shape {found}, expected (n, n_max, 3) positions")
        n, size = found[:2]
        expected: dict[str, tuple[list[tuple[int, ...]], str, str]] = {
            pos: ([(n, size, 3)], "f", "floating-point numbers"),
            species: ([(n, size), (size,)], "iu", "atomic numbers"),
            COUNTS: ([(n,), (n, 1)], "iu", "whole numbers"),
        }
        for level in levels:
            expected |= {key: ([(n,), (n, 1)], "f", "floating-point numbers") for key in level.energy}
            if level.forces is not None:
                expected[level.forces] = ([(n, size, 3)], "f", "floating-point numbers")
        for key, array in arrays.items():
            shapes, kinds, what = expected[key]
            one_each = shapes[0] == (n,) and array.shape[:1] == (n,) and same_numbers(array.shape, (n,))
            if array.shape not in shapes and not one_each:
                wanted = " or ".join(map(str, shapes))
                raise MFPyGError(
                    f"{self._where}: {key} has shape {array.shape}, expected {wanted}, as {pos} is {found}"
                )
            if array.dtype.kind not in kinds:
                raise MFPyGError(f"{self._where}: {key} has type {array.dtype}, expected {what}")
        return n, size

    def _chunk(
        self, part: Mapping[str, np.ndarray], pos: str, species: str, start: int, levels: Sequence[LevelOfTheory]
    ) -> Chunk:
        z = part[species].astype(np.int64)  # (m, size)
        there = z != 0
        n_atoms = there.sum(axis=1)
        if COUNTS in part:
            wrong = np.flatnonzero(n_atoms != part[COUNTS].reshape(-1))
            if wrong.size:
                i = int(wrong[0])
                said = f"{int(part[COUNTS].reshape(-1)[i])} atoms by {COUNTS}"
                raise MFPyGError(f"{self._where}: conformation {start + i} has {said}, but {n_atoms[i]} by {species}")
        energy = np.empty((len(z), len(levels)))
        forces = np.full((n_atoms.sum(), len(levels), 3), np.nan, np.float32)
        for t, level in enumerate(levels):
            summands = [part[key].reshape(-1).astype(np.float64) for key in level.energy]  # (m,) each
            energy[:, t] = np.sum(summands, axis=0) * level.energy_factor
            if level.forces is not None:
                with np.errstate(over="ignore"):  # becomes infinite, which is refused
                    forces[:, t] = part[level.forces][there].astype(np.float64) * level.forces_factor
        molecule, names = by_formula(z)
        chunk = Chunk(
            n_atoms=n_atoms,
            z=z[there],
            pos=part[pos][there],
            energy=energy,
            forces=forces,
            molecule=molecule,
            names=names,
            conformation=np.arange(start, start + len(z)),
        )
        chunk.check(lambda row: f"{self._where}: conformation {start + row}")
        return chunk


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what ``zipfile`` and numpy say of a bad file into one line."""
    try:
        yield
    except MFPyGError:  # a ValueError, and worded already
        raise
    except _DAMAGED as error:
        raise_if_unreadable(where, error)
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise MFPyGError(f"{where}: can't be read as numpy's arrays ({reason}); fetch it again") from error


def geometry_keys(keys: Mapping[str, Any] | Sequence[str], where: str) -> tuple[str, str]:
    """The keys of the positions and of the atomic numbers among those that there are.

    Raises:
        MFPyGError: if there is none or several of either.
    """
    found = []
    for what, known in (("positions", POSITIONS), ("atomic numbers", SPECIES)):
        there = [key for key in known if key in keys]
        if len(there) != 1:
            few = f"has {what} under {' and '.join(there)}" if there else f"has no {what}"
            raise MFPyGError(f"{where} {few} {listed(keys)}; expected one of the keys {', '.join(known)}")
        found += there
    return found[0], found[1]


def listed(keys: Mapping[str, Any] | Sequence[str]) -> str:
    """The keys that there are, for errors."""
    return f"(keys found: {', '.join(shortened(sorted(keys)[:20])) or 'none'})"
