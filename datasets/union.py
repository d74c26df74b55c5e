"""Union of several data sets, with missing labels masked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mfpyg.datasets.chunks import ATOMS_IN_CHUNK, Chunk
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.labels import Labels, joined, letters_of, most_rows
from mfpyg.datasets.levels import merged_levels
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import LevelOfTheory
from mfpyg.properties import PROPERTIES, Property


class UnionDataset(ConformationDataset):
    """Concatenation of several data sets, with the fidelities of all.

    Labels that a data set does not have are masked. ``source`` is the number of a conformation's source. If any data
    set has periodic conformations, those of the others have a ``cell`` of zeros; likewise ``charge`` is 0 where a data
    set has none.

    Args:
        root: folder for ``processed/``.
        members: whole data sets.
        kwargs: as in :class:`ConformationDataset`; a ``transform`` of a member is not applied.

    Raises:
        MFPyGError: if members use one name for different levels of theory.

    Example:
        >>> UnionDataset("data/both", [MiniCHNO(), ANI1x("data/ani1x")])         # doctest: +SKIP
    """

    reads_all: ClassVar[bool] = True

    def __init__(self, root: str | os.PathLike[str], members: Sequence[ConformationDataset], **kwargs: Any) -> None:
        if not members:
            raise MFPyGError("a union of no data sets; expected at least one")
        for member in members:
            if member._indices is not None:
                raise MFPyGError(f"{member} is a part of a data set; a union takes whole ones")
        self.members = list(members)
        self.levels = merged_levels((level, member.what) for member in members for level in member.present_levels)
        _check_files(members)
        super().__init__(root, files=[file for member in members for file in member.files], **kwargs)

    def source_names(self) -> list[str]:
        return [name for member in self.members for name in member.sources]

    def levels_read(self, levels: Sequence[LevelOfTheory]) -> list[tuple[LevelOfTheory, ...]]:
        names = [level.name for level in levels]
        each = [of_source for member in self.members for of_source in member.source_levels]
        return [tuple(level for level in of_source if level.name in names) for of_source in each]

    def raw_identity(self) -> list[Any]:
        return [[type(member).__name__, *member.processed_file_names, member.fingerprint] for member in self.members]

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        fidelities = [level.name for level in levels]
        first_source = 0
        periodic = any("cell" in member.slices for member in self.members)
        waiting = iter(self.members)
        for _ in self._track([member.what for member in self.members]):
            member = next(waiting)
            for number, chunk in enumerate(_chunks_of(member, levels, first_source, periodic)):
                if number == 0:  # counted when the member was processed
                    for letter, labels in chunk.labels.items():
                        of_member = member.incomplete.get(letter, {})
                        labels.incomplete[:] = [of_member.get(name, 0) for name in fidelities]
                yield chunk
            first_source += len(member.sources)


def _check_files(members: Sequence[ConformationDataset]) -> None:
    """Check that no raw file is in two members, which would duplicate its conformations."""
    owners: dict[Path, ConformationDataset] = {}
    for member in members:
        for file in member.files:
            other = owners.setdefault(file.resolve(), member)
            if other is not member:
                raise MFPyGError(f"{file} is in two of the data sets, {other} and {member}; give it once")


def _chunks_of(
    member: ConformationDataset, levels: Sequence[LevelOfTheory], first_source: int, periodic: bool
) -> Iterator[Chunk]:
    """Conformations of a member, with labels in the columns of the union and its sources renumbered.

    Args:
        member: data set to read.
        levels: levels of the union.
        first_source: number of the member's first source in the union.
        periodic: whether to give lattice vectors, zeros if the member has none.
    """
    data, first_atoms = member._data, member.slices["z"].numpy()
    fidelities, letters = [level.name for level in levels], letters_of(levels)
    n = len(first_atoms) - 1
    most = sum(most_rows(member.letters, size) for size in np.diff(first_atoms).tolist())
    per_chunk = max(1, ATOMS_IN_CHUNK * n // max(1, most))
    for start in range(0, n, per_chunk):
        rows = slice(start, min(start + per_chunk, n))
        atoms = slice(first_atoms[rows.start], first_atoms[rows.stop])
        n_atoms = np.diff(first_atoms[rows.start : rows.stop + 1])
        labels = {letter: _labels_of(member, PROPERTIES[letter], rows, n_atoms, fidelities) for letter in letters}
        cell, pbc = _cells_of(member, rows) if periodic else (None, None)
        yield Chunk(
            n_atoms=n_atoms,
            z=data.z[atoms].numpy(),
            pos=data.pos[atoms].numpy(),
            labels=labels,
            molecule=data.molecule[rows].numpy(),
            names=member.molecules,
            conformation=data.conformation[rows].numpy(),
            split=data.split[rows].numpy(),
            source=data.source[rows].numpy() + first_source,
            cell=cell,
            pbc=pbc,
            charge=member.total_charges[rows],
        )


def _labels_of(
    member: ConformationDataset, property: Property, rows: slice, n_atoms: np.ndarray, fidelities: list[str]
) -> Labels:
    """Labels of some conformations of a member, in the columns of these fidelities."""
    if property.mask not in member.slices:
        return Labels.of(property, n_atoms, [None] * len(fidelities))
    starts = member.slices[property.name]
    values = member._data[property.name][int(starts[rows.start]) : int(starts[rows.stop])].numpy()
    mask = member._data[property.mask][rows].numpy()
    n = len(n_atoms)
    found = Labels(property, values, mask, np.zeros(mask.shape[1], np.int64), np.zeros(n, bool))
    blank = Labels.of(property, n_atoms, [None])
    columns = [member.fidelities.index(name) if name in member.fidelities else None for name in fidelities]
    each = [blank if t is None else found.select(np.ones(n, bool), [t], n_atoms) for t in columns]
    return joined(each, n_atoms)


def _cells_of(member: ConformationDataset, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """``cell`` (n, 3, 3) and ``pbc`` (n, 3) of some conformations; zeros for molecules."""
    if "cell" in member.slices:
        return member._data.cell[rows].numpy(), member._data.pbc[rows].numpy()
    n = rows.stop - rows.start
    return np.zeros((n, 3, 3), np.float32), np.zeros((n, 3), bool)
