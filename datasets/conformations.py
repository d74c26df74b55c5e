"""Base class of all data sets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from mfpyg.datasets.batches import gather
from mfpyg.datasets.chunks import Chunk, Track
from mfpyg.datasets.labels import ALWAYS, letters_of
from mfpyg.datasets.levels import levels_named
from mfpyg.datasets.processing import ColumnFiles, Processing, check_given_split, item, transformed
from mfpyg.datasets.storage import (
    FORMAT,
    fingerprint,
    geometries_fingerprint,
    label_counts,
    level_from,
    make_processed_folder,
    processed_name,
    read_processed,
    settings_of,
    write_processed,
)
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import LevelOfTheory
from mfpyg.graph import RadiusGraph
from mfpyg.properties import PROPERTIES, in_order, parse_letters
from mfpyg.torch_defaults import with_default_torch_settings

KEEP_ITEMS_UP_TO = 100_000
"""Largest size of data sets whose items are cached as objects."""


class ConformationDataset(InMemoryDataset):
    """Conformations with labels of several levels of theory.

    Each item is a ``Data`` with, T being the number of ``fidelities``:

    ================ ================= ===============================================================
    ``z``            (n,) int64        atomic numbers
    ``pos``          (n, 3) float32    positions in Å
    ``energy``       (1, T) float64    total energies in kcal/mol, NaN where missing
    ``energy_mask``  (1, T) bool       whether there is an energy
    ``forces``       (n, T, 3) float32 true forces −dE/dx in kcal/mol/Å, NaN where missing
    ``forces_mask``  (1, T) bool       whether there are forces; the others have masks of the same form
    ``stress``       (1, T, 3, 3)      stresses in kcal/mol/Å³, NaN where missing
    ``dipole``       (1, T, 3)         dipole moments in e·Å, NaN where missing
    ``charges``      (n, T)            atomic charges in e, NaN where missing
    ``hessian``      (k n², 3, 3)      d²E/dx dx' in kcal/mol/Å² of the k labelled levels in turn, for each the pairs of
                                       atoms row by row
    ``molecule``     (1,) int64        number in ``dataset.molecules``
    ``conformation`` (1,) int64        number within the group of the file, or within the file
    ``split``        (1,) int64        0 pool, 1 test, 2 out of sample, -1 if the file does not say
    ``source``       (1,) int64        number of the source in a union, else 0
    ``cell``         (1, 3, 3) float32 lattice vectors in Å, as rows; zeros where there are none
    ``pbc``          (1, 3) bool       periodicity along each lattice vector
    ``charge``       (1,) float32      total charge in e, a whole number
    ================ ================= ===============================================================

    Stresses, dipoles, atomic charges and Hessians are there if they were asked for. All items have ``cell`` and ``pbc``
    if any conformation is periodic, and ``charge`` if any has a total charge other than 0; it is read from the key
    ``charge`` or ``total_charge``, and 0 where a conformation has none.

    Processing streams chunks of conformations from the raw files to columns on disk, in bounded memory; the processed
    file is written atomically, and memory-mapped when it is opened. Its name contains a hash of the raw files' sizes
    and dates, the requested levels, the subset and the ``pre_transform``; if any of them changes, the data are
    processed again.

    Subclasses define ``levels`` and :meth:`chunks`.

    Args:
        root: folder for ``processed/``.
        fidelities: names among ``levels``; by default the usual ones that the raw files have.
        files: raw files.
        properties: letters of the properties to read besides energies and forces, see :mod:`mfpyg.properties`.
        required: keep only conformations with an energy of each of these fidelities.
        transform, pre_transform, pre_filter, force_reload: as in PyTorch Geometric. A ``pre_filter``, and a
            ``pre_transform`` other than :class:`mfpyg.graph.RadiusGraph`, need an object per conformation.
        track: wraps the list of the files' groups to show progress.

    Raises:
        MFPyGError: if a raw file is missing or invalid, or lacks a requested fidelity.
    """

    levels: tuple[LevelOfTheory, ...]
    usual: ClassVar[tuple[str, ...] | None] = None
    """Names of the levels that are processed by default; all if ``None``."""

    reads_all: ClassVar[bool] = False
    """Whether all properties of the levels are read by default, instead of energies and forces."""

    @with_default_torch_settings
    def __init__(
        self,
        root: str | os.PathLike[str],
        fidelities: Sequence[str] | None = None,
        *,
        files: Sequence[Path],
        properties: str | None = None,
        required: Sequence[str] = (),
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
        force_reload: bool = False,
        track: Track = iter,
    ) -> None:
        self.files = [Path(file) for file in files]
        self._track = track
        if isinstance(fidelities, str):
            raise MFPyGError(f"fidelities of {self.what} is '{fidelities}', expected a list such as ['{fidelities}']")
        if fidelities is not None and not len(fidelities):
            raise MFPyGError(f"fidelities of {self.what} is empty; name one, or leave it out for the usual ones")
        letters = {*ALWAYS, *parse_letters(properties or ALWAYS, f"properties '{properties}'")}
        if properties is not None or not self.reads_all:
            self.levels = tuple(level.only(in_order(letters)) for level in self.levels)
        self._required = levels_named(tuple(required), self.levels, self.what)
        self._asked = None if fidelities is None else levels_named(tuple(fidelities), self.levels, self.what)
        if not all(file.is_file() for file in self.files):
            self.download()
        stem = self.files[0].stem if len(self.files) == 1 else type(self).__name__.lower()
        self._processed_name = processed_name(stem, self._settings(pre_transform, pre_filter))
        super().__init__(str(root), transform, pre_transform, pre_filter, log=False, force_reload=force_reload)
        stored = read_processed(Path(self.processed_paths[0]))
        self._present = tuple(level_from(values) for values in stored["levels"])
        self.molecules: list[str] = stored["molecules"]
        self.sources: list[str] = stored["sources"]
        self.source_levels = [tuple(level_from(values) for values in levels) for levels in stored["source_levels"]]
        self.fingerprint: str = stored["fingerprint"]
        self.incomplete: dict[str, dict[str, int]] = stored["incomplete"]
        """Number of conformations that lack some components of a property, ``{letter: {fidelity: number}}``."""
        self._data, self.slices = Data.from_dict(stored["data"]), stored["slices"]

    @property
    def what(self) -> str:
        """Name of the data set in error messages."""
        return self.files[0].name if len(self.files) == 1 else type(self).__name__

    @property
    def fidelities(self) -> tuple[str, ...]:
        """Names of the T levels, in the order of the labels."""
        return tuple(level.name for level in self._present)

    @property
    def letters(self) -> str:
        """Letters of the properties that items have."""
        return in_order(letter for letter, p in PROPERTIES.items() if p.mask in self.slices)

    @property
    def present_levels(self) -> tuple[LevelOfTheory, ...]:
        """The T levels, with the properties that the raw files have."""
        return self._present

    def find_levels(self, asked: Sequence[LevelOfTheory] | None) -> tuple[LevelOfTheory, ...]:
        """Levels to read: the requested ones, or the usual ones that the raw files have.

        Raises:
            MFPyGError: if a requested level is missing, or all of the usual ones are.
        """
        return self.levels if asked is None else tuple(asked)

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        """Read all conformations, in the order of the raw files, with the labels of these levels."""
        raise NotImplementedError

    def source_names(self) -> list[str]:
        """Names of the sources, in the order of their numbers."""
        return [self.what]

    def levels_read(self, levels: Sequence[LevelOfTheory]) -> list[tuple[LevelOfTheory, ...]]:
        """Levels of each source, with its keys and units."""
        return [tuple(levels) for _ in self.source_names()]

    def download(self) -> None:
        """Raise ``MFPyGError`` with the name of the missing raw file; nothing is downloaded automatically."""
        missing = next(file for file in self.files if not file.is_file())
        raise MFPyGError(f"{missing}: no such file; expected a raw file of {type(self).__name__}")

    @property
    def raw_paths(self) -> list[str]:
        return [str(file) for file in self.files]

    @property
    def processed_file_names(self) -> list[str]:
        return [self._processed_name]

    def _settings(
        self, pre_transform: Callable[..., Any] | None, pre_filter: Callable[..., Any] | None
    ) -> dict[str, Any]:
        """All settings that a processed file depends on, as plain values."""
        usual = [level for level in self.levels if self.usual is None or level.name in self.usual]
        return {
            "format": FORMAT,
            "class": type(self).__name__,
            "raw": self.raw_identity(),
            "asked": None if self._asked is None else [level.name for level in self._asked],
            "levels": [dataclasses.asdict(level) for level in self._asked or usual],
            "options": self.reading_options(),
            "required": [dataclasses.asdict(level) for level in self._required],
            "pre_transform": settings_of(pre_transform, "pre_transform"),
            "pre_filter": settings_of(pre_filter, "pre_filter"),
        }

    def raw_identity(self) -> list[Any]:
        """Name, size and date of each raw file."""
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in self.files]

    def reading_options(self) -> dict[str, Any]:
        """Options of a subclass that change what is read, as plain values."""
        return {}

    def _process(self) -> None:
        # PyG warns about a changed pre_transform; here it is a part of the processed file's name.
        processed = Path(self.processed_paths[0])
        if self.force_reload or not processed.is_file():
            make_processed_folder(processed.parent)
            lock = processed.with_name(f"{processed.name}.lock")
            with FileLock(lock):  # other processes of the same training wait for the first
                try:
                    if self.force_reload or not processed.is_file():
                        self.process()
                finally:
                    lock.unlink(missing_ok=True)

    def process(self) -> None:
        """Read the raw files and write the processed one."""
        levels = self.find_levels(self._asked)
        needed = self.find_levels(self._required) if self._required else ()
        read = [*levels, *(level for level in needed if level not in levels)]
        columns, required = list(range(len(levels))), [read.index(level) for level in needed]
        edges = self.pre_transform if isinstance(self.pre_transform, RadiusGraph) and not self.pre_filter else None
        with ColumnFiles(Path(self.processed_dir)) as files:
            processing = Processing(files, edges, letters_of(read), len(levels))
            for chunk in self.chunks(read):
                keep = np.logical_and.reduce(chunk.labels["E"].mask[:, required], axis=1)
                whole = keep.all() and len(read) == len(levels)
                processing.add(chunk if whole else chunk.select(keep, columns))
            if not processing.molecules:
                wanted = " with " + " and ".join(level.name for level in self._required) if self._required else ""
                raise MFPyGError(f"{self.files[0]}: no conformation{wanted}")
            data, slices = processing.collated()
            check_given_split(data, [str(self.files[0])] if len(self.files) == 1 else self.source_names())
            self.check_content(data, slices, levels)
            if edges is None and (self.pre_filter is not None or self.pre_transform is not None):
                data, slices = transformed(data, slices, self.pre_filter, self.pre_transform, str(self.files[0]))
            names = [level.name for level in levels]
            incomplete = {
                letter: dict(zip(names, counts.tolist(), strict=True))
                for letter, counts in processing.incomplete.items()
            }
            about = {
                "levels": [dataclasses.asdict(level) for level in levels],
                "molecules": list(processing.molecules),
                "sources": self.source_names(),
                "source_levels": [[dataclasses.asdict(v) for v in of_source] for of_source in self.levels_read(levels)],
                "fingerprint": fingerprint(data, slices),
                "incomplete": incomplete,
            }
            write_processed(Path(self.processed_paths[0]), data, slices, about)

    def check_content(self, data: Data, slices: Mapping[str, Tensor], levels: Sequence[LevelOfTheory]) -> None:
        """Check the data before they are written; a hook for subclasses.

        Raises:
            MFPyGError: if the data are invalid.
        """

    @property
    def geometries(self) -> str:
        """Fingerprint of the geometries alone."""
        return geometries_fingerprint(self._data, self.slices)

    @property
    def periodic(self) -> np.ndarray:
        """True for conformations that are periodic in some direction, (n,) bool."""
        if "pbc" not in self.slices:
            return np.zeros(len(self.slices["z"]) - 1, bool)
        return self._data.pbc.numpy().any(axis=1)

    @property
    def total_charges(self) -> np.ndarray:
        """Total charge of each conformation in e, (n,) float32."""
        if "charge" not in self.slices:
            return np.zeros(len(self.slices["z"]) - 1, np.float32)
        return self._data.charge.numpy().astype(np.float32, copy=False)

    @property
    def isolated_atoms(self) -> np.ndarray:
        """True for conformations of a single atom without periodicity, (n,) bool."""
        return (self.slices["z"].diff().numpy() == 1) & ~self.periodic

    def given_split(self) -> np.ndarray:
        """Split given by the files, (n,) int64: 0 pool, 1 test, 2 out of sample, -1 if there is none."""
        return self._data.split.numpy()

    def get(self, idx: int) -> Data:
        """One conformation; cached in small data sets only, as each object takes some kilobytes."""
        if len(self.slices["energy"]) <= KEEP_ITEMS_UP_TO:
            return super().get(idx)
        return item(self._data, self.slices, idx)

    @with_default_torch_settings
    def copy(self, idx: Any = None) -> ConformationDataset:
        """Copy of the tensors, like PyG's ``copy`` but without an object per conformation.

        Args:
            idx: conformations to copy, as a slice, list, tuple, tensor or array; all if not given.
        """
        chosen = self if idx is None else self.index_select(idx)
        rows = torch.as_tensor(list(chosen.indices()), dtype=torch.int64)
        copied = self.__class__.__new__(self.__class__)
        copied.__dict__.update(self.__dict__)
        copied._indices = copied._data_list = None
        copied._data, copied.slices = gather(self._data, self.slices, rows)
        copied.fingerprint = fingerprint(copied._data, copied.slices)
        return copied

    def label_counts(self) -> list[dict[str, Any]]:
        """Name, method, and numbers of labelled conformations and of components of each fidelity."""
        return label_counts(self._data, self.slices, self._present)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)}, fidelities=[{', '.join(self.fidelities)}])"
