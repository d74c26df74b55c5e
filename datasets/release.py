"""Data sets in the ANI-1x release layout: one HDF5 group per molecular formula, NaN for missing labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from mfpyg.datasets.chunks import Chunk
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.hdf5 import Group, array, open_hdf5, reading, where
from mfpyg.datasets.labels import ALWAYS, letters_of
from mfpyg.datasets.levels import DEFAULT_LEVELS
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import LevelOfTheory

LAYOUT = "the ANI-1x release layout"


class ReleaseDataset(ConformationDataset):
    """A file in the ANI-1x release layout, see :class:`mfpyg.datasets.ConformationDataset`.

    There is one group per formula with ``atomic_numbers`` (n_atoms,), ``coordinates`` (n, n_atoms, 3) in Å, the keys of
    the ``levels``, and optionally ``split`` (n,), ``molecule`` (n,) and ``charge`` (n,), total charges in e. A group
    without the key of a property other than energies and forces has no labels of it.

    Args:
        root, fidelities: as in :class:`mfpyg.datasets.ConformationDataset`.
        whole_only: leave out a usual level if any group lacks its keys of energies or forces, instead of raising an
            error.
        kwargs: as in :class:`mfpyg.datasets.ConformationDataset`.
    """

    raw_name: ClassVar[str]
    usual: ClassVar[tuple[str, ...] | None] = DEFAULT_LEVELS

    def __init__(
        self,
        root: str | os.PathLike[str],
        fidelities: Sequence[str] | None = None,
        *,
        whole_only: bool = False,
        **kwargs: Any,
    ) -> None:
        self.whole_only = whole_only
        super().__init__(root, fidelities, **kwargs)

    def reading_options(self) -> dict[str, Any]:
        return {"whole_only": self.whole_only}

    def find_levels(self, asked: Sequence[LevelOfTheory] | None) -> tuple[LevelOfTheory, ...]:
        path = self.files[0]
        present = levels_in(path, self.levels)
        if asked is None:
            if self.whole_only:
                present = levels_in(path, self.levels, in_every_group=True)
            usual = tuple(level for level in present if level.name in DEFAULT_LEVELS)
            if not usual:
                keys = ", ".join(level.labels["E"].keys[0] for level in self.levels[:4])
                raise MFPyGError(f"{path}: none of the keys {keys} of the usual levels of theory")
            return usual
        by_name = {level.name: level for level in present}
        for level in asked:
            if level.name not in by_name:
                missing = ", ".join(f"'{key}'" for key in missing_keys(path, level))
                raise MFPyGError(
                    f"{path}: no level '{level.name}', its key {missing} is missing "
                    f"(levels in the file: {', '.join(p.name for p in present) or 'none'})"
                )
        return tuple(by_name[level.name] for level in asked)

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        path = self.files[0]
        with open_hdf5(path, LAYOUT) as file:
            for name in self._track(_group_names(file, path)):
                with reading(path):
                    group = Group(file[name], path, _atomic_numbers(file[name], path))
                    split, molecules = _split(group), _molecules(group)
                    keys = set(file[name])
                    present = [level.only(ALWAYS + _properties_in(level, keys)) for level in levels]
                    for rows, chunk in group.chunks(present, letters_of(levels)):
                        if split is not None:
                            chunk.split = split[rows]
                        if molecules is not None:
                            chunk.names, chunk.molecule = _numbered(molecules[rows])
                        yield chunk

    def download(self) -> None:
        """Raise ``MFPyGError`` with the name of the missing raw file."""
        raise MFPyGError(f"{self.files[0]}: no such file; expected an HDF5 file in {LAYOUT}")


def levels_in(path: Path, levels: Sequence[LevelOfTheory], in_every_group: bool = False) -> tuple[LevelOfTheory, ...]:
    """Levels whose energy keys are in the file, without properties whose keys no group has.

    Args:
        path: file in the release layout.
        levels: levels to look for.
        in_every_group: if True, all groups must have the keys of energies and forces that any has; otherwise one is
            enough.

    Raises:
        MFPyGError: if the file cannot be read, or has no group.
    """
    with open_hdf5(path, LAYOUT) as file, reading(path):
        each = [set(file[name].keys()) for name in _group_names(file, path)]
        keys = set.union(*each)
        present = [level.only(_properties_in(level, keys)) for level in levels]
        present = [level for level in present if "E" in level.labels]
        if in_every_group:
            common = set.intersection(*each)
            present = [level for level in present if common.issuperset(level.only(ALWAYS).keys)]
        return tuple(present)


def _properties_in(level: LevelOfTheory, keys: set[str]) -> str:
    return "".join(letter for letter, label in level.labels.items() if keys.issuperset(label.keys))


def missing_keys(path: Path, level: LevelOfTheory) -> list[str]:
    """Energy keys of a level that no group of the file has."""
    with open_hdf5(path, LAYOUT) as file, reading(path):
        keys = {key for name in _group_names(file, path) for key in file[name]}
        return [key for key in level.labels["E"].keys if key not in keys]


def _group_names(file: h5py.File, path: Path) -> list[str]:
    with reading(path):
        names = list(file)
        for name in names:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise MFPyGError(f"{path}: '{name[:60]}' is a link; expected groups only, one per molecular formula")
            if not isinstance(file.get(name), h5py.Group):
                raise MFPyGError(f"{path}: '{name[:60]}' is an array; expected groups only, one per molecular formula")
        places = {h5py.h5o.get_info(file.id, name.encode("utf-8", "surrogateescape")).addr for name in names}
        if len(places) < len(names):
            raise MFPyGError(f"{path}: two names refer to the same group, whose conformations would be read twice")
    if not names:
        raise MFPyGError(f"{path}: no groups; expected one per molecular formula, as in the ANI-1x release")
    return names


def _atomic_numbers(group: h5py.Group, path: Path) -> np.ndarray:
    z = array(group, path, "atomic_numbers")
    if z.ndim != 1:
        raise MFPyGError(f"{where(group, path)}: atomic_numbers has shape {z.shape}, expected (n_atoms,)")
    if z.dtype.kind not in "iu":
        raise MFPyGError(f"{where(group, path)}: atomic_numbers has type {z.dtype}, expected integers")
    numbers = z[:].astype(np.int64)
    if numbers.size and not 1 <= numbers.min() <= numbers.max() <= 118:
        raise MFPyGError(
            f"{where(group, path)}: atomic_numbers between {numbers.min()} and {numbers.max()}, expected 1 to 118"
        )
    return numbers


def _split(group: Group) -> np.ndarray | None:
    if "split" not in group.group:
        return None
    split = group.array("split")
    if split.shape != (group.count,) or split.dtype.kind not in "iu":
        raise MFPyGError(f"{group.where}: split has shape {split.shape}, expected ({group.count},) integers")
    values = split[:].astype(np.int64)
    if not np.isin(values, (0, 1, 2)).all():
        raise MFPyGError(f"{group.where}: split is {values.max()} somewhere, expected 0 (pool), 1 (test) or 2 (ood)")
    return values


def _molecules(group: Group) -> np.ndarray | None:
    if "molecule" not in group.group:
        return None
    molecule = group.array("molecule")
    if molecule.shape != (group.count,):
        raise MFPyGError(f"{group.where}: molecule has shape {molecule.shape}, expected ({group.count},)")
    if h5py.check_string_dtype(molecule.dtype) is None:
        raise MFPyGError(f"{group.where}: molecule has type {molecule.dtype}, expected names")
    return molecule.asstr()[:]


def _numbered(names: np.ndarray) -> tuple[list[str], np.ndarray]:
    unique, number = np.unique(names.astype(str), return_inverse=True)
    return [str(name) for name in unique], number.astype(np.int64)
