"""Reader of the ANI-1x release layout: one HDF5 group a molecular formula, NaN for what was not computed.

Collated tensors are filled straight from the file, group by group, without an object a conformation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import LevelOfTheory
from mfpyg.units import HARTREE_TO_KCAL_MOL

Track = Callable[[Sequence[str]], Iterable[str]]
"""Iterates over the names of the groups and shows the progress; ``iter`` shows nothing."""


@dataclass
class Columns:
    """All conformations of a file, concatenated; units kcal/mol and Å.

    Attributes:
        n_atoms: atoms of each conformation, (n,) int64.
        z: atomic numbers, (Σ n_atoms,) int64.
        pos: positions, (Σ n_atoms, 3) float32.
        energy, energy_mask: (n, T) float64 and bool; NaN where the mask is false.
        forces, forces_mask: (Σ n_atoms, T, 3) float32 and (n, T) bool; NaN where the mask is false.
        conformation: number of the conformation within its group, (n,) int64.
        molecule: number of its molecule in ``molecules``, (n,) int64.
        split: 0 pool, 1 test, 2 out of sample, as the file says; -1 where it does not, (n,) int64.
        molecules: names; the formula where the file does not tell isomers apart.
    """

    n_atoms: np.ndarray
    z: np.ndarray
    pos: np.ndarray
    energy: np.ndarray
    energy_mask: np.ndarray
    forces: np.ndarray
    forces_mask: np.ndarray
    conformation: np.ndarray
    molecule: np.ndarray
    split: np.ndarray
    molecules: list[str]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what HDF5 says of a bad file, and only that, into one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise MFPyGError(f"{path}: truncated or damaged HDF5 file ({reason}); fetch it again") from error


@contextmanager
def open_release(path: Path) -> Iterator[h5py.File]:
    """Open a file of the release layout.

    Raises:
        MFPyGError: if the file is missing, not HDF5, or truncated.
    """
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected an HDF5 file in the ANI-1x release layout")
    if not h5py.is_hdf5(path):
        raise MFPyGError(f"{path}: not an HDF5 file; expected the ANI-1x release layout")
    with _reading(path):
        file = h5py.File(path, "r")
    with file:
        yield file


def levels_in(path: Path, levels: Sequence[LevelOfTheory], in_every_group: bool = False) -> tuple[LevelOfTheory, ...]:
    """Those of ``levels`` whose energy keys the file's groups have; without forces where no group has any.

    Args:
        path: file in the release layout.
        levels: to look for.
        in_every_group: whether all groups must have the keys, those of forces too; else one is enough.

    Raises:
        MFPyGError: if the file can't be read, or has no group.
    """
    with open_release(path) as file, _reading(path):
        each = [set(file[name].keys()) for name in _group_names(file, path)]
        keys = set.union(*each)
        if in_every_group:
            common = set.intersection(*each)
            levels = [v for v in levels if common.issuperset(v.energy) and (v.forces in common or v.forces not in keys)]
        present = (level for level in levels if keys.issuperset(level.energy))
        return tuple(level if level.forces in keys else replace(level, forces=None) for level in present)


def missing_keys(path: Path, level: LevelOfTheory) -> list[str]:
    """Energy keys of a level that no group of the file has."""
    with open_release(path) as file, _reading(path):
        return [key for key in level.energy if not any(key in file[name] for name in _group_names(file, path))]


def read_release(
    path: Path, levels: Sequence[LevelOfTheory], required: Sequence[LevelOfTheory] = (), track: Track = iter
) -> Columns:
    """Read the conformations of a file.

    Args:
        path: HDF5 file in the release layout, energies in Hartree, forces (−dE/dx) in Hartree/Å.
        levels: levels of theory to read.
        required: keep only conformations with an energy of each of these levels.
        track: shows the progress over the groups.

    Raises:
        MFPyGError: if the file lacks a key, if arrays of a group disagree in length, if there are NaN
            coordinates or infinite labels, or if no conformation is left.
    """
    with open_release(path) as file:
        with _reading(path):
            names = _group_names(file, path)
            kept = {name: _Group(file[name], path, levels).having(required) for name in names}
            sizes = np.array([len(file[name]["atomic_numbers"]) for name in names])
        counts = np.array([len(kept[name]) for name in names])
        if counts.sum() == 0:
            wanted = " and ".join(level.name for level in required) or "anything"
            raise MFPyGError(f"{path}: no conformation with {wanted}")
        columns = _empty(counts, sizes, len(levels))
        row = atom = 0
        for name in track(names):
            with _reading(path):
                n, size = len(kept[name]), len(file[name]["atomic_numbers"])
                rows, atoms = slice(row, row + n), slice(atom, atom + n * size)
                if n:
                    _Group(file[name], path, levels).fill(columns, kept[name], rows, atoms)
            row, atom = rows.stop, atoms.stop
    if (columns.split >= 0).any() and (columns.split < 0).any():
        raise MFPyGError(f"{path}: some groups have the key 'split' and some lack it; expected all or none")
    return columns


def _group_names(file: h5py.File, path: Path) -> list[str]:
    for name in file:
        if not isinstance(file[name], h5py.Group):
            raise MFPyGError(f"{path}: '{name}' is an array; expected groups only, one a molecular formula")
    if not len(file):
        raise MFPyGError(f"{path}: no groups; expected one a molecular formula, as in the ANI-1x release")
    return list(file)


def _empty(counts: np.ndarray, sizes: np.ndarray, n_levels: int) -> Columns:
    n, n_atoms = int(counts.sum()), int((counts * sizes).sum())
    return Columns(
        n_atoms=np.repeat(sizes, counts).astype(np.int64),
        z=np.empty(n_atoms, np.int64),
        pos=np.empty((n_atoms, 3), np.float32),
        energy=np.empty((n, n_levels), np.float64),
        energy_mask=np.empty((n, n_levels), bool),
        forces=np.full((n_atoms, n_levels, 3), np.nan, np.float32),
        forces_mask=np.zeros((n, n_levels), bool),
        conformation=np.empty(n, np.int64),
        molecule=np.empty(n, np.int64),
        split=np.full(n, -1, np.int64),
        molecules=[],
    )


class _Group:
    """One group of the file: its arrays, checked for shape as they are read."""

    def __init__(self, group: h5py.Group, path: Path, levels: Sequence[LevelOfTheory]) -> None:
        self.group, self.path, self.levels = group, path, levels
        self.where = f"{path}: group {group.name.strip('/')}"
        z = self._array("atomic_numbers")
        if z.ndim != 1:
            raise MFPyGError(f"{self.where}: atomic_numbers has shape {z.shape}, expected (n_atoms,)")
        if z.dtype.kind not in "iu":
            raise MFPyGError(f"{self.where}: atomic_numbers has type {z.dtype}, expected integers")
        self.size = len(z)
        coordinates = self._array("coordinates")
        if coordinates.ndim != 3 or coordinates.shape[1:] != (self.size, 3):
            raise MFPyGError(f"{self.where}: coordinates has shape {coordinates.shape}, expected (n, {self.size}, 3)")
        if coordinates.dtype.kind != "f":
            raise MFPyGError(f"{self.where}: coordinates has type {coordinates.dtype}, expected floating-point numbers")
        self.count = len(coordinates)
        for level in levels:
            for key in level.energy:
                self._expect(key, (self.count,))
            if level.forces is not None:
                self._expect(level.forces, (self.count, self.size, 3))

    def _array(self, key: str) -> h5py.Dataset:
        if not isinstance(self.group.get(key), h5py.Dataset):
            raise MFPyGError(f"{self.where} lacks the key '{key}'")
        return self.group[key]

    def _expect(self, key: str, shape: tuple[int, ...]) -> None:
        array = self._array(key)
        if array.shape != shape:
            raise MFPyGError(f"{self.where}: {key} has shape {array.shape}, expected {shape}")
        if array.dtype.kind != "f":
            raise MFPyGError(f"{self.where}: {key} has type {array.dtype}, expected floating-point numbers")

    def _energy(self, level: LevelOfTheory) -> np.ndarray:
        """(n,) float64 in Hartree."""
        return np.sum([self._array(key)[:].astype(np.float64) for key in level.energy], axis=0)

    def having(self, required: Sequence[LevelOfTheory]) -> np.ndarray:
        """Numbers of the conformations with an energy of each required level, (n_kept,) int64."""
        keep = np.ones(self.count, bool)
        for level in required:
            keep &= ~np.isnan(self._energy(level))
        return np.flatnonzero(keep)

    def fill(self, columns: Columns, kept: np.ndarray, rows: slice, atoms: slice) -> None:
        """Write the kept conformations into their rows."""
        z = self._array("atomic_numbers")[:].astype(np.int64)
        if z.size and not 1 <= z.min() <= z.max() <= 118:
            raise MFPyGError(f"{self.where}: atomic_numbers between {z.min()} and {z.max()}, expected 1 to 118")
        pos = self._array("coordinates")[:][kept]
        bad = np.flatnonzero(~np.isfinite(pos).all(axis=(1, 2)))
        if bad.size:
            raise MFPyGError(f"{self.where}: coordinates of conformation {kept[bad[0]]} are NaN or infinite")
        columns.z[atoms] = np.tile(z, len(kept))
        columns.pos[atoms] = pos.reshape(-1, 3)
        columns.conformation[rows] = kept
        for t, level in enumerate(self.levels):
            for key in level.energy:
                self._refuse_infinite(self._array(key)[:][kept], key, kept)
            energy = self._energy(level)[kept] * HARTREE_TO_KCAL_MOL
            columns.energy[rows, t] = energy
            columns.energy_mask[rows, t] = ~np.isnan(energy)
            if level.forces is not None:
                self._fill_forces(columns, t, level.forces, kept, rows, atoms)
        self._fill_names(columns, kept, rows)

    def _fill_forces(self, columns: Columns, t: int, key: str, kept: np.ndarray, rows: slice, atoms: slice) -> None:
        forces = self._array(key)[:][kept].astype(np.float64) * HARTREE_TO_KCAL_MOL  # (n_kept, n_atoms, 3)
        self._refuse_infinite(forces, key, kept)
        present = ~np.isnan(forces).any(axis=(1, 2))  # a conformation with a component missing has no forces
        forces[~present] = np.nan
        columns.forces[atoms, t] = forces.reshape(-1, 3)
        columns.forces_mask[rows, t] = present

    def _refuse_infinite(self, values: np.ndarray, key: str, kept: np.ndarray) -> None:
        bad = np.flatnonzero(np.isinf(values.reshape(len(values), -1)).any(axis=1))
        if bad.size:
            raise MFPyGError(f"{self.where}: {key} of conformation {kept[bad[0]]} is infinite; NaN means missing")

    def _fill_names(self, columns: Columns, kept: np.ndarray, rows: slice) -> None:
        if "split" in self.group:
            split = self._array("split")
            if split.shape != (self.count,) or split.dtype.kind not in "iu":
                raise MFPyGError(f"{self.where}: split has shape {split.shape}, expected ({self.count},) integers")
            values = split[:][kept]
            if not np.isin(values, (0, 1, 2)).all():
                raise MFPyGError(
                    f"{self.where}: split is {values.max()} somewhere, expected 0 (pool), 1 (test) or 2 (ood)"
                )
            columns.split[rows] = values
        formula = self.group.name.strip("/")
        names = np.full(len(kept), formula)
        if "molecule" in self.group:
            molecule = self._array("molecule")
            if molecule.shape != (self.count,):
                raise MFPyGError(f"{self.where}: molecule has shape {molecule.shape}, expected ({self.count},)")
            if h5py.check_string_dtype(molecule.dtype) is None:
                raise MFPyGError(f"{self.where}: molecule has type {molecule.dtype}, expected names")
            names = molecule.asstr()[:][kept]
        unique, number = np.unique(names, return_inverse=True)
        columns.molecule[rows] = len(columns.molecules) + number
        columns.molecules.extend(map(str, unique))
