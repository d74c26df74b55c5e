"""HDF5 files in the layout of pyanitools, the reader that came with ANI-1 and COMP6."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from ase.data import chemical_symbols

from mfpyg.datasets.chunks import Chunk, Track
from mfpyg.datasets.file_dataset import FileDataset
from mfpyg.datasets.hdf5 import Group, array, open_hdf5, reading, where
from mfpyg.datasets.labels import letters_of
from mfpyg.errors import MFPyGError, did_you_mean, shortened
from mfpyg.fidelity import LevelOfTheory

LAYOUT = "the pyanitools layout: in groups, the arrays species, coordinates and labels of one molecule each"

_NUMBERS = {symbol: number for number, symbol in enumerate(chemical_symbols) if number > 0}


class Pyanitools(FileDataset):
    """A file in the layout of pyanitools, such as those of ANI-1; see :class:`mfpyg.datasets.ConformationDataset`.

    Groups may be nested at any depth. A group with arrays is a molecule, named by its path: ``species`` (n_atoms,)
    element symbols, ``coordinates`` (n, n_atoms, 3) in Å, and the keys of the ``levels``, energies (n,) and forces
    (n, n_atoms, 3) in the units of the levels; optionally ``charge`` (n,), total charges in e. Alternatively, as in
    ANI-2x and other files of torchani, it holds several molecules of one size: ``species`` (n, n_atoms) atomic numbers
    of each conformation, named by its formula.
    Other arrays are ignored, such as ANI-1's high-energy conformers (``coordinatesHE``, ``energiesHE``) and ``smiles``.
    Soft and external links are not followed; a group with several hard links is read once.

    Args:
        file: raw file.
        levels, fidelities, root, kwargs: as in :class:`mfpyg.datasets.file_dataset.FileDataset`.

    Raises:
        MFPyGError: if the file is missing or invalid, a group lacks a required key, all groups lack an optional key,
            or the levels are malformed.

    Example:
        >>> Pyanitools("ani_gdb_s01.h5", ["dz=energies@Hartree"])                # doctest: +SKIP

    Smith, Isayev, Roitberg, Sci. Data 4, 170193 (2017).
    """

    def find_levels(self, asked: Sequence[LevelOfTheory] | None) -> tuple[LevelOfTheory, ...]:
        levels = super().find_levels(asked)
        check_keys(self.files, levels)
        return levels

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        return chunks_of_file(self.files[0], levels, self._track)


def chunks_of_file(
    path: Path, levels: Sequence[LevelOfTheory], track: Track = iter, *, source: int = 0, prefix: str = ""
) -> Iterator[Chunk]:
    """Read all conformations of a file in the pyanitools layout, group by group.

    Args:
        path: file to read.
        levels: levels to read; labels are NaN where a group lacks an optional key.
        track: wraps the list of the groups' paths to show progress.
        source: value of the conformations' ``source``.
        prefix: prefix of the molecules' names.

    Raises:
        MFPyGError: if the file is invalid, naming the group and the key.
    """
    with open_hdf5(path, LAYOUT) as file:
        with reading(path):
            names = [name for name, _ in molecules_in(file, path)]
        for name in track(names):
            with reading(path):
                group = file[name]
                keys = set(_members(group)[0])
                _check_group(group, path, keys, levels)
                present = [_present_labels(level, keys) for level in levels]
                for _, chunk in Group(group, path, _atomic_numbers(group, path)).chunks(present, letters_of(levels)):
                    chunk.names = [prefix + molecule for molecule in chunk.names]
                    chunk.source[:] = source
                    yield chunk


def check_keys(paths: Sequence[Path], levels: Sequence[LevelOfTheory]) -> None:
    """Check that every group has the required keys of these levels, and some group each optional key.

    Raises:
        MFPyGError: if a key is missing, naming file, group and key, or a file cannot be read or holds no molecule.
    """
    optional = {key: level.name for level in levels for key in level.keys if key in level.optional}
    for path in paths:
        with open_hdf5(path, LAYOUT) as file, reading(path):
            known: set[str] = set()
            for name, keys in molecules_in(file, path):
                _check_group(file[name], path, keys, levels)
                known |= keys
        for key in known.intersection(optional):
            del optional[key]
    for key, name in optional.items():
        listed = ", ".join(shortened(sorted(known)[:20]))
        raise MFPyGError(
            f"{paths[-1]}: no group has the key '{key}' of level '{name}' (keys: {listed}){did_you_mean(key, known)}"
        )


def molecules_in(file: h5py.File, path: Path) -> Iterator[tuple[str, set[str]]]:
    """Paths of the groups that hold arrays, in the file's order, and the names of these arrays.

    Raises:
        MFPyGError: if there is no such group, or an array is misplaced.
    """
    found = False
    for name, arrays in _molecules_below(file, path, "", {h5py.h5o.get_info(file.id).addr}):
        found = True
        yield name, arrays
    if not found:
        raise MFPyGError(f"{path}: no group holds arrays (links are not followed); expected {LAYOUT}")


def _molecules_below(group: h5py.Group, path: Path, name: str, seen: set[int]) -> Iterator[tuple[str, set[str]]]:
    """Molecules in a group and its subgroups; ``seen`` are the addresses of groups that have been read."""
    arrays, groups = _members(group)
    groups = {child: address for child, address in groups.items() if address not in seen}
    if name and not len(group):
        raise MFPyGError(f"{path}: group {name} is empty; expected the arrays of a molecule, or groups")
    if arrays and not name:
        raise MFPyGError(f"{path}: the array '{arrays[0]}' is in no group; expected {LAYOUT}")
    if arrays and groups:
        raise MFPyGError(
            f"{path}: group {name}: the array '{arrays[0]}' is beside the group '{next(iter(groups))}'; expected a "
            "group to hold either groups or the arrays of one molecule"
        )
    if arrays:
        yield name, set(arrays)
    for child, address in groups.items():
        if address not in seen:
            seen.add(address)
            yield from _molecules_below(group[child], path, f"{name}/{child}" if name else child, seen)


def _members(group: h5py.Group) -> tuple[list[str], dict[str, int]]:
    """Names of a group's arrays, and of its groups with their addresses; soft and external links are left out."""
    arrays, groups = [], {}
    for name in group:
        link = group.get(name, getlink=True)
        if link is None:  # a name is listed, but cannot be resolved
            raise KeyError(f"{group.name} lists {name}, which cannot be found")
        if isinstance(link, h5py.HardLink):
            info = h5py.h5o.get_info(group.id, name.encode("utf-8", "surrogateescape"))  # cheaper than opening it
            if info.type == h5py.h5o.TYPE_DATASET:
                arrays.append(name)
            elif info.type == h5py.h5o.TYPE_GROUP:
                groups[name] = info.addr
    return arrays, groups


def _check_group(group: h5py.Group, path: Path, keys: set[str], levels: Sequence[LevelOfTheory]) -> None:
    needed = ["species", "coordinates", *(key for level in levels for key in level.keys if key not in level.optional)]
    for key in needed:
        if key not in keys:
            link = " but a link, which is not followed" if key in list(group) else ""
            raise MFPyGError(
                f"{where(group, path)} lacks the key '{key}'{link} "
                f"(keys: {', '.join(shortened(sorted(keys)[:20]))}){did_you_mean(key, keys)}"
            )


def _present_labels(level: LevelOfTheory, keys: set[str]) -> LevelOfTheory:
    """The level without properties whose keys are missing."""
    return level.only("".join(letter for letter, label in level.labels.items() if keys.issuperset(label.keys)))


def _atomic_numbers(group: h5py.Group, path: Path) -> np.ndarray | h5py.Dataset:
    """Atomic numbers (n_atoms,) of the molecule, or the array (n, n_atoms) with those of each conformation."""
    species = array(group, path, "species")
    if species.ndim == 2 and species.dtype.kind in "iu":
        return species
    if species.ndim != 1:
        raise MFPyGError(
            f"{where(group, path)}: species has shape {species.shape}, expected (n_atoms,) element symbols, or "
            f"(n, n_atoms) atomic numbers"
        )
    if h5py.check_string_dtype(species.dtype) is None:
        raise MFPyGError(f"{where(group, path)}: species has type {species.dtype}, expected element symbols")
    symbols = [bytes(symbol).decode("utf-8", "replace").strip(" \0") for symbol in species[:]]
    for atom, symbol in enumerate(symbols):
        if symbol not in _NUMBERS:
            raise MFPyGError(f"{where(group, path)}: species of atom {atom} is {symbol[:20]!r}, not an element symbol")
    return np.array([_NUMBERS[symbol] for symbol in symbols], np.int64)
