"""Data set with its columns as arrays, as used by the checks, and their findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.levels import levels_named
from mfpyg.datasets.references import compositions, species_of
from mfpyg.datasets.splits import make_splits
from mfpyg.doctor.distances import Distances, measure
from mfpyg.errors import unknown_name
from mfpyg.fidelity import LevelOfTheory
from mfpyg.properties import PROPERTIES
from mfpyg.settings import SplitSettings

ATOMS_AT_ONCE = 1 << 20
"""Approximate number of atoms in a span."""

SAMPLE = 20_000
"""Maximum size of a sample of conformations for statistics."""

LABELS = {-1: "none", 0: "train", 1: "val", 2: "test", 3: "ood"}
"""Names of the numbers in ``View.split``."""

SEVERITIES = ("certain", "suspect", "note")
"""``certain``: wrong, and ruins training; ``suspect``: should be checked; ``note``: for information."""

EXAMPLES = 10
"""Maximum number of rows that a finding names."""


@dataclass(frozen=True)
class Span:
    """Consecutive conformations.

    Attributes:
        rows: rows of the data set.
        atoms: rows of the atomic columns.
        first: first of these atoms of each conformation, (n,) int64.
        n_atoms: atoms of each conformation, (n,) int64.
    """

    rows: slice
    atoms: slice
    first: np.ndarray
    n_atoms: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """Number within the span of each atom's conformation, (n_atoms,) int64."""
        return np.repeat(np.arange(len(self.first)), self.n_atoms)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over the atoms of each conformation: (n_atoms, …) -> (n, …)."""
        return np.add.reduceat(values, self.first, axis=0)

    def max(self, values: np.ndarray) -> np.ndarray:
        """Maximum over the atoms of each conformation: (n_atoms,) -> (n,)."""
        return np.maximum.reduceat(values, self.first)


class View:
    """Data set with its columns as arrays, in kcal/mol and Å; T is its number of fidelities.

    Args:
        dataset: data set to check; a part of a data set is copied.
        fidelities: names of the fidelities to check; all if not given.
        seed: seed of the split and of samples.

    Raises:
        MFPyGError: for a fidelity that the data set does not have.

    Attributes:
        levels: column and level of each fidelity to check; see :meth:`parts` for those of the sources of a union.
        names: names of the sources, numbered if several have the same.
        z, pos, forces: atomic columns, (n_atoms,), (n_atoms, 3), (n_atoms, T, 3).
        energy, energy_mask, forces_mask: labels and masks, (n, T).
        starts: first atom of each conformation, and the end, (n + 1,) int64.
    """

    def __init__(self, dataset: ConformationDataset, fidelities: Sequence[str] | None = None, seed: int = 0) -> None:
        self.dataset = dataset if dataset._indices is None else dataset.copy()
        present = self.dataset.present_levels
        asked = present if fidelities is None else levels_named(tuple(fidelities), present, dataset.what)
        self.levels: list[tuple[int, LevelOfTheory]] = [(present.index(level), level) for level in asked]
        self.seed = seed
        self.names = _distinct(self.dataset.sources)
        data = self.dataset._data
        self.z, self.pos, self.forces = data.z.numpy(), data.pos.numpy(), data.forces.numpy()
        self.energy, self.energy_mask = data.energy.numpy(), data.energy_mask.numpy()
        self.forces_mask = data.forces_mask.numpy()
        self.starts = self.dataset.slices["z"].numpy()

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def letters(self) -> str:
        """Letters of the properties that the data set has labels of."""
        return self.dataset.letters

    def mask(self, letter: str) -> np.ndarray:
        """Which conformations have labels of a property, (n, T) bool; none if the data set does not have it."""
        key = PROPERTIES[letter].mask
        return self.dataset._data[key].numpy() if letter in self.letters else np.zeros_like(self.energy_mask)

    def labels(self, letter: str) -> np.ndarray:
        """Labels of a property that the data set has, in the form of :class:`ConformationDataset`."""
        return self.dataset._data[PROPERTIES[letter].name].numpy()

    @cached_property
    def charge(self) -> np.ndarray:
        """Total charge of each conformation, (n,), e; 0 where the data set does not say."""
        return self.dataset._data.charge.numpy().reshape(-1) if "charge" in self.dataset.slices else np.zeros(len(self))

    @cached_property
    def lattice(self) -> np.ndarray | None:
        """Lattice vectors as rows, zero where nothing is repeated, (n, 3, 3) float32, Å; ``None`` for molecules."""
        data = self.dataset._data
        if "pbc" not in self.dataset.slices:
            return None
        return np.where(data.pbc.numpy()[:, :, None], data.cell.numpy(), np.float32(0))

    @cached_property
    def periodic(self) -> np.ndarray:
        """True for conformations that are periodic in some direction, (n,) bool."""
        return self.dataset.periodic

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of each conformation, (n,) int64."""
        return np.diff(self.starts)

    def spans(self) -> Iterator[Span]:
        """All conformations in order, about a million atoms at a time."""
        row = 0
        while row < len(self):
            stop = int(np.searchsorted(self.starts, self.starts[row] + ATOMS_AT_ONCE, side="right")) - 1
            stop = min(max(stop, row + 1), len(self))
            starts = self.starts[row : stop + 1]
            atoms = slice(int(starts[0]), int(starts[-1]))
            yield Span(slice(row, stop), atoms, starts[:-1] - starts[0], np.diff(starts))
            row = stop

    def atoms_of(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the atomic columns of conformations of one size: (m,) -> (m, size)."""
        size = int(self.starts[rows[0] + 1] - self.starts[rows[0]]) if len(rows) else 0
        return self.starts[rows][:, None] + np.arange(size)

    def parts(self, column: int) -> list[tuple[str, np.ndarray, LevelOfTheory]]:
        """Name, rows and own level of every source that has a fidelity.

        Args:
            column: column of the fidelity.

        Returns:
            For each source its name (empty if there is only one), its rows of the data set, and its level of theory
            with keys and units.
        """
        source = self.dataset._data.source.numpy()
        return [
            (self.names[number] if len(self.names) > 1 else "", np.flatnonzero(source == number), level)
            for number in range(len(self.names))
            if (level := self._level(number, column)) is not None
        ]

    def level_at(self, row: int, column: int) -> LevelOfTheory:
        """Level of theory, with keys and units, in the source of a conformation."""
        own = self._level(int(self.dataset._data.source[row]), column)
        return self.dataset.present_levels[column] if own is None else own

    def _level(self, source: int, column: int) -> LevelOfTheory | None:
        name = self.dataset.fidelities[column]
        return next((level for level in self.dataset.source_levels[source] if level.name == name), None)

    def sample(self, rows: np.ndarray, most: int = SAMPLE) -> np.ndarray:
        """Random sample of at most ``most`` of the rows, ascending."""
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng(self.seed).choice(rows, most, replace=False))

    @cached_property
    def sequence(self) -> np.ndarray:
        """Multilinear hash of the elements and their order in each conformation, (n,) uint64."""
        random = np.random.default_rng(1)
        of_element = random.integers(1 << 63, size=128, dtype=np.uint64)
        of_place = random.integers(1 << 63, size=int(self.n_atoms.max()), dtype=np.uint64) | np.uint64(1)
        result = np.empty(len(self), np.uint64)
        for span in self.spans():
            place = np.arange(span.atoms.stop - span.atoms.start) - np.repeat(span.first, span.n_atoms)
            result[span.rows] = span.sum(of_element[self.z[span.atoms]] * of_place[place])
        return result

    @cached_property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return species_of(self.dataset)

    @cached_property
    def counts(self) -> np.ndarray:
        """Atoms of each element in each conformation, (n, n_species) float64."""
        return compositions(self.dataset, self.species)

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        """The splits that training would make with default settings.

        Raises:
            MFPyGError: if one would be empty.
        """
        return make_splits(self.dataset, SplitSettings(), self.seed)

    @cached_property
    def split(self) -> np.ndarray:
        """Split of each conformation, numbers in ``LABELS``, (n,) int8."""
        result = np.full(len(self), -1, np.int8)
        for number, name in LABELS.items():
            if name in self.splits:
                result[self.splits[name]] = number
        return result

    @cached_property
    def distances(self) -> Distances:
        """Closest atoms and invariants of each conformation, from one pass over all distances."""
        return measure(self.z, self.pos, self.starts, self.lattice)

    def address(self, row: int) -> dict[str, Any]:
        """Row, molecule, conformation and source of a conformation."""
        data = self.dataset._data
        return {
            "row": int(row),
            "molecule": self.dataset.molecules[int(data.molecule[row])],
            "conformation": int(data.conformation[row]),
            "source": self.names[int(data.source[row])],
        }

    def where(self, row: int) -> str:
        """Molecule and conformation in words, with the source if there are several."""
        place = self.address(row)
        text = f"{place['molecule']} conformation {place['conformation']}"
        return text if len(self.names) == 1 else f"{text} of {place['source']}"


def _distinct(names: list[str]) -> list[str]:
    """Names with a number appended to repeated ones: mine.xyz #1, mine.xyz #2."""
    return [
        f"{name} #{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


@dataclass(frozen=True)
class Finding:
    """Finding of a check.

    Attributes:
        check: name of the check.
        severity: one of ``SEVERITIES``.
        fidelity: fidelity of the labels; ``None`` for geometries.
        evidence: one line with the numbers and an example.
        fix: advice in one line.
        rows: numbers of example conformations in the data set.
    """

    check: str
    severity: str
    fidelity: str | None
    evidence: str
    fix: str
    rows: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise unknown_name("severity", self.severity, SEVERITIES)
        object.__setattr__(self, "rows", tuple(int(row) for row in self.rows[:EXAMPLES]))

    def as_dict(self, view: View) -> dict[str, Any]:
        """Plain values for JSON, with molecule, conformation and source of the example rows."""
        return {
            "check": self.check,
            "severity": self.severity,
            "fidelity": self.fidelity,
            "evidence": self.evidence,
            "fix": self.fix,
            "rows": list(self.rows),
            "examples": [view.address(row) for row in self.rows],
        }
