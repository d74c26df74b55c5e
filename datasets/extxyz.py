"""Data sets of files that ASE reads: extended XYZ, ASE databases, trajectories."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.datasets.chunks import ATOMS_IN_CHUNK, Chunk, formula, keys_found, same_numbers
from mfpyg.datasets.file_dataset import FileDataset
from mfpyg.datasets.frames import Frame, frames_of, frames_of_database, frames_of_text, total_charge
from mfpyg.datasets.labels import as_rows, letters_of, most_rows, read_labels, shape_in_file
from mfpyg.errors import MFPyGError, did_you_mean
from mfpyg.fidelity import LevelOfTheory
from mfpyg.properties import FORCES, PROPERTIES, STRESS, Property, heads_of


class ExtXYZ(FileDataset):
    """Molecules and periodic systems in an extended-XYZ file or an ASE database.

    Items are described in :class:`mfpyg.datasets.ConformationDataset`. Positions are in Å, as always in ASE. The keys
    of levels are looked up in ``atoms.info`` and ``atoms.arrays``, then in the calculator's results, where ASE puts
    ``energy`` and ``forces``; in a database in the key-value pairs, the ``data`` and the results. Results are used as
    stored, whatever the constraints. NaN is a missing label; so is an optional key (``key?``) that a frame lacks. If
    frames have them, ``split`` (0 pool, 1 test, 2 out of sample; in all frames or none) is the file's split, and
    ``molecule`` the molecule's name, which is its formula otherwise. ``conformation`` is the number of the frame from
    0, in a database in the order of row ids.

    Total charges are read from ``charge`` or ``total_charge``, a number in the values of a frame; without them they are
    the sum of ASE's initial charges, or 0. Keys of a level are labels, and no total charges.

    If any frame is periodic, all items have ``cell`` and ``pbc``, as ASE reads them. A frame with ``Lattice`` but no
    ``pbc`` is periodic in all directions; a molecule in a box needs ``pbc="F F F"``.

    No code in a file is executed: extended XYZ is text, and a database holds numbers and JSON; ASE neither unpickles
    nor imports anything.

    Args:
        file: a database if its name ends in ``.db``, else extended XYZ, which may be compressed (``.gz``, ``.bz2``,
            ``.xz``).
        levels, fidelities, root, kwargs: as in :class:`mfpyg.datasets.file_dataset.FileDataset`.

    Raises:
        MFPyGError: if the file is missing or cannot be read to its end, a frame lacks a key or is periodic along
            lattice vectors that are missing or span no volume, or a label is not a number (energies) or (n, 3)
            numbers (forces). The message names the frame.
    """

    _expected = "an extended-XYZ file or an ASE database (.db)"

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        path = self.files[0]
        seen: set[str] = set()
        part = _Part(path, levels)
        for frame in self._tracked(self._frames()):
            seen.update(frame.values)
            part.add(frame)
            if part.rows >= ATOMS_IN_CHUNK:
                yield part.chunk()
                part = _Part(path, levels)
        if part.frames:
            yield part.chunk()
        for level in levels:
            for key in level.keys:
                if key not in seen:  # always an optional one: a frame that lacks another key is refused
                    missing = f"{path}: no frame has the key '{key}' of '{level.name}'"
                    raise MFPyGError(f"{missing} {keys_found(seen)}{did_you_mean(key, seen)}")

    def _frames(self) -> Iterator[Frame]:
        path = self.files[0]
        return frames_of_database(path) if path.suffix.lower() == ".db" else frames_of_text(path)

    def _tracked(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Show progress in hundredths of the file, as the number of frames is unknown."""
        names = [f"{self.files[0].name}, {n} %" for n in range(1, 101)]
        frame = next(frames, None)
        for hundredth, _ in enumerate(self._track(names), start=1):
            while frame is not None and (100 * frame.read <= hundredth or hundredth == 100):
                yield frame
                frame = next(frames, None)

    def download(self) -> None:
        """Raise ``MFPyGError`` for a missing file."""
        what = "is a folder" if self.files[0].is_dir() else "no such file"
        raise MFPyGError(f"{self.files[0]}: {what}; expected {self._expected}")


class ASEFile(ExtXYZ):
    """Frames of a file in any format that ASE reads, such as ``.traj``, ``.json`` or the output of a program.

    Keys, names and periodicity are as in :class:`ExtXYZ`; results of the calculator have ASE's names, ``energy`` in eV
    and ``forces`` in eV/Å. Formats that ASE reads all at once (see :func:`mfpyg.datasets.frames.frames_of`) take the
    memory of the whole file.

    Args:
        file: raw file; ASE guesses the format from its name and first bytes.
        levels, fidelities, root, kwargs: as in :class:`mfpyg.datasets.file_dataset.FileDataset`.

    Raises:
        MFPyGError: as :class:`ExtXYZ`, and if ASE does not know the format.

    Example:
        >>> ASEFile("md.traj", ["dft=energy,forces@eV"])                         # doctest: +SKIP
    """

    _expected = "a file of atoms that ASE reads"

    def _frames(self) -> Iterator[Frame]:
        return frames_of(self.files[0], hint="if it is extended XYZ, write xyz:FILE")


@dataclass
class _Part:
    """Collects frames for one chunk and converts their labels."""

    path: Path
    levels: Sequence[LevelOfTheory]
    frames: list[Frame] = field(default_factory=list)
    values: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    names: list[str] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    charge: list[float] = field(default_factory=list)
    rows: int = 0

    def add(self, frame: Frame) -> None:
        where = f"{self.path}: frame {frame.number}"
        n = len(frame.z)
        if n == 0:
            raise MFPyGError(f"{where}: no atoms; expected species and positions")
        if n > 1 and (frame.pos == frame.pos[0]).all():
            raise MFPyGError(
                f"{where}: all atoms have the same position; expected positions, as in Properties=…:pos:R:3"
            )
        found: dict[tuple[str, str], np.ndarray] = {}
        for level in self.levels:
            for letter, label in level.labels.items():
                for key in label.keys:
                    found[letter, key] = _label(frame.values, level, PROPERTIES[letter], key, n, where)
        for of_key, values in found.items():
            self.values[of_key].append(values)
        self.names.append(_molecule(frame, where))
        self.split.append(_split(frame.values, where))
        self.charge.append(
            total_charge(frame, where, {key for _, key in found}, bool(heads_of(letter for letter, _ in found)))
        )
        self.frames.append(frame._replace(values={}, hidden={}))  # the labels have been copied
        self.rows += most_rows(letters_of(self.levels), n)

    def _read(self, property: Property, key: str) -> np.ndarray:
        return np.concatenate(self.values[property.letter, key])

    def chunk(self) -> Chunk:
        names = {name: number for number, name in enumerate(dict.fromkeys(self.names))}
        n_atoms = np.array([len(frame.z) for frame in self.frames], np.int64)
        volume = np.array([abs(np.linalg.det(f.cell)) if f.pbc.all() else np.nan for f in self.frames])
        chunk = Chunk(
            n_atoms=n_atoms,
            z=np.concatenate([frame.z for frame in self.frames]).astype(np.int64),
            pos=np.concatenate([frame.pos for frame in self.frames]).astype(np.float64, copy=False),
            labels=read_labels(self.levels, n_atoms, self._read, volume=volume),
            molecule=np.array([names[name] for name in self.names], np.int64),
            names=list(names),
            conformation=np.array([frame.number for frame in self.frames], np.int64),
            split=np.array(self.split, np.int64),
            cell=np.stack([frame.cell for frame in self.frames]).astype(np.float64, copy=False),
            pbc=np.stack([frame.pbc for frame in self.frames]),
            charge=np.array(self.charge),
        )
        chunk.check(lambda row: f"{self.path}: frame {self.frames[row].number}")
        return chunk


def _label(
    values: Mapping[str, Any], level: LevelOfTheory, property: Property, key: str, n_atoms: int, where: str
) -> np.ndarray:
    """Value of a key in a frame, (rows, …) float64 in the file's unit; NaN if an optional key is missing.

    Stresses and virials may be in the order of Voigt, as ASE has them: xx, yy, zz, yz, xz, xy.
    """
    shape = shape_in_file(property, n_atoms)
    if key not in values:
        if key in level.optional:
            return as_rows(property, np.full((1, *shape), np.nan))
        raise MFPyGError(
            f"{where} lacks the key '{key}' of '{level.name}' {keys_found(values)}; "
            f"write '{key}?' if frames may lack it{did_you_mean(key, values)}"
        )
    expected = f"expected {shape} numbers" if shape else "expected one number"
    try:
        found = np.asarray(values[key])
    except ValueError as error:  # lists of different lengths
        raise MFPyGError(f"{where}: {key} is ragged, {expected}") from error
    if found.dtype.kind not in "iuf":
        text = repr(values[key]) if found.ndim == 0 else f"of type {found.dtype}"
        raise MFPyGError(f"{where}: {key} is {text[:60]}, {expected}; NaN means missing")
    if found.shape == (6,) and property is STRESS:
        found = found[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    flat = (math.prod(shape),), (3 * n_atoms, 3 * n_atoms) if property.per == "pair" else shape
    if not same_numbers(found.shape, shape) and not (len(shape) > 1 and found.shape in flat and property is not FORCES):
        raise MFPyGError(f"{where}: {key} has shape {found.shape}, {expected}")
    numbers = found.astype(np.float64).reshape(1, *shape)
    if np.isinf(numbers).any():
        raise MFPyGError(f"{where}: {key} is infinite; NaN means missing")
    return as_rows(property, numbers)


def _split(values: Mapping[str, Any], where: str) -> int:
    value = values.get("split", -1)
    known = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if "split" in values and not (known and 0 <= value <= 2):
        raise MFPyGError(f"{where}: split is {repr(value)[:60]}, expected 0 (pool), 1 (test) or 2 (out of sample)")
    return int(value)


def _molecule(frame: Frame, where: str) -> str:
    """Name given by the frame, else the formula in Hill order with all counts, such as C1H4."""
    name = frame.values.get("molecule")
    if isinstance(name, (int, np.integer)) and not isinstance(name, bool):  # ASE turns a name of digits into a number
        return str(name)
    if name is not None and not isinstance(name, str):
        raise MFPyGError(f"{where}: molecule is {repr(name)[:60]}, expected a name, not a number or truth value")
    return name or formula(frame.z)
