"""Labels of the conformations of a chunk, property by property."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mfpyg.fidelity import LevelOfTheory
from mfpyg.properties import PROPERTIES, Property, in_order

Read = Callable[[Property, str], np.ndarray]
"""Reads the values of a key in the order of :func:`rows_of`."""

ALWAYS = "EF"
"""Properties that every data set has columns for."""


def rows_of(property: Property, n_atoms: np.ndarray) -> np.ndarray:
    """Number of values that conformations have, (n,) int64: 1, their atoms, or their ordered pairs of atoms."""
    return {"graph": np.ones_like(n_atoms), "atom": n_atoms, "pair": n_atoms**2}[property.per]


def most_rows(letters: str, n_atoms: int) -> int:
    """Largest number of values of one of these properties: the atoms of a conformation, or their pairs."""
    return n_atoms**2 if any(PROPERTIES[letter].per == "pair" for letter in letters) else n_atoms


def shape_in_file(property: Property, n_atoms: int) -> tuple[int, ...]:
    """Shape of a property of one conformation in files: (n_atoms, 3, n_atoms, 3) of Hessians."""
    if property.per == "pair":
        return tuple(size for component in property.shape for size in (n_atoms, component))
    return ((n_atoms,) if property.per == "atom" else ()) + property.shape


def as_rows(property: Property, values: np.ndarray) -> np.ndarray:
    """Values (n, …) in the shape that they have in files, in the order of :func:`rows_of`."""
    if property.per == "pair":
        values = np.moveaxis(values, 3, 2)  # (n, n_atoms, n_atoms, 3, 3)
    return values.reshape(-1, *property.shape)


def letters_of(levels: Sequence[LevelOfTheory]) -> str:
    """Letters of the properties that a data set of these levels has columns for."""
    return in_order({*ALWAYS, *(letter for level in levels for letter in level.labels)})


@dataclass
class Labels:
    """Labels of a property in n conformations at T levels, in the package's units.

    Those of graphs and atoms have a column for each level, with NaN where they are missing. Pairs of atoms are too many
    for that: only labelled ones are stored, those of a conformation at one level after those at another.

    Attributes:
        property: the property.
        values: (n, T, …) of graphs, (Σ n_atoms, T, …) of atoms, (Σ n_atoms², …) of labelled pairs, row by row.
        mask: whether a conformation is labelled, (n, T) bool.
        incomplete: number of conformations that lack some components, and are therefore not labelled, (T,) int64.
        infinite: whether a label of the conformation is infinite, (n,) bool.
    """

    property: Property
    values: np.ndarray
    mask: np.ndarray
    incomplete: np.ndarray
    infinite: np.ndarray

    @classmethod
    def of(cls, property: Property, n_atoms: np.ndarray, columns: Sequence[np.ndarray | None]) -> Labels:
        """Labels from the values of each level, (Σ rows, …) with NaN where missing, ``None`` for none at all."""
        counts, n = rows_of(property, n_atoms), len(n_atoms)
        owner = np.repeat(np.arange(n), counts)
        mask, infinite = np.zeros((n, len(columns)), bool), np.zeros(n, bool)
        incomplete = np.zeros(len(columns), np.int64)
        found: list[np.ndarray | None] = []
        for t, column in enumerate(columns):
            if column is None:
                found.append(None)
                continue
            with np.errstate(over="ignore"):  # infinities are refused later
                values = column.astype(property.dtype)
            flat = values.reshape(len(values), math.prod(property.shape))
            missing = np.isnan(flat)
            some = np.bincount(owner[missing.any(axis=1)], minlength=n) > 0
            any_there = np.bincount(owner[~missing.all(axis=1)], minlength=n) > 0
            infinite |= np.bincount(owner[np.isinf(flat).any(axis=1)], minlength=n) > 0
            mask[:, t], incomplete[t] = ~some, (some & any_there).sum()
            found.append(values)
        assemble = _pairs if property.per == "pair" else _columns
        return cls(property, assemble(property, owner, found, mask), mask, incomplete, infinite)

    def counts(self, n_atoms: np.ndarray) -> np.ndarray:
        """Number of rows of ``values`` of each conformation, (n,) int64."""
        rows = rows_of(self.property, n_atoms)
        return rows * self.mask.sum(axis=1) if self.property.per == "pair" else rows

    def select(self, keep: np.ndarray, levels: Sequence[int], n_atoms: np.ndarray) -> Labels:
        """Labels of conformations where ``keep`` (n,) is true, at some of the T levels."""
        columns = list(levels)
        mask, incomplete, infinite = self.mask[keep][:, columns], self.incomplete[columns], self.infinite[keep]
        if self.property.per != "pair":
            values = self.values[np.repeat(keep, self.counts(n_atoms))][:, columns]
            return Labels(self.property, values, mask, incomplete, infinite)
        blocks = self.blocks(n_atoms)
        kept = [blocks[i, t] for i in np.flatnonzero(keep).tolist() for t in columns if (i, t) in blocks]
        values = np.concatenate(kept) if kept else self.values[:0]
        return Labels(self.property, values, mask, incomplete, infinite)

    def blocks(self, n_atoms: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
        """Values of pairs by the number of the conformation and of the level, (n_atoms², …) each."""
        which = np.argwhere(self.mask)
        ends = np.cumsum(n_atoms[which[:, 0]] ** 2)
        parts = np.split(self.values, ends[:-1]) if len(which) else []
        return {(i, t): part for (i, t), part in zip(which.tolist(), parts, strict=True)}


def _columns(property: Property, owner: np.ndarray, found: list[np.ndarray | None], mask: np.ndarray) -> np.ndarray:
    values = np.full((len(owner), len(found), *property.shape), np.nan, property.dtype)
    for t, column in enumerate(found):
        if column is not None:
            there = mask[owner, t]
            values[there, t] = column[there]
    return values


def _pairs(property: Property, owner: np.ndarray, found: list[np.ndarray | None], mask: np.ndarray) -> np.ndarray:
    labelled = [t for t in range(len(found)) if mask[:, t].any()]
    if not labelled:
        return np.empty((0, *property.shape), property.dtype)
    parts = [column[mask[owner, t]] for t in labelled if (column := found[t]) is not None]
    order = np.concatenate([owner[mask[owner, t]] for t in labelled])
    # By conformation; those of one stay in the order of the levels.
    return np.concatenate(parts)[np.argsort(order, kind="stable")]


def read_labels(
    levels: Sequence[LevelOfTheory],
    n_atoms: np.ndarray,
    read: Read,
    letters: str | None = None,
    volume: np.ndarray | None = None,
) -> dict[str, Labels]:
    """Read the labels of some levels, and convert them to the package's units.

    Args:
        levels: the T levels to read.
        n_atoms: atoms of each conformation, (n,) int64.
        read: reads a key.
        letters: properties to give; those of the levels if not given.
        volume: volume of each cell in Å³, (n,), for virials; NaN where there is none.
    """
    found = {}
    for letter in letters_of(levels) if letters is None else letters:
        property = PROPERTIES[letter]
        columns = [_values(level, property, read, volume) if letter in level.labels else None for level in levels]
        found[letter] = Labels.of(property, n_atoms, columns)
    return found


def _values(level: LevelOfTheory, property: Property, read: Read, volume: np.ndarray | None) -> np.ndarray:
    label = level.labels[property.letter]
    summands = (read(property, key).astype(np.float64) for key in label.keys)
    with np.errstate(over="ignore"):  # infinities are refused later
        values = functools.reduce(np.add, summands) * level.factor(property.letter)
        if label.virial:
            # Without a volume they are no stresses, and refused as those of molecules are.
            known = np.ones(len(values)) if volume is None else np.where(np.isnan(volume), 1.0, volume)
            values = -values / known[:, None, None]
    return values


def joined(each: Sequence[Labels], n_atoms: np.ndarray) -> Labels:
    """Labels of one level each, of the same conformations, as those of several levels."""
    property, mask = each[0].property, np.concatenate([labels.mask for labels in each], axis=1)
    if property.per == "pair":
        owners = [np.repeat(np.arange(len(n_atoms)), labels.counts(n_atoms)) for labels in each]
        order = np.argsort(np.concatenate(owners), kind="stable")
        values = np.concatenate([labels.values for labels in each])[order]
    else:
        values = np.concatenate([labels.values for labels in each], axis=1)
    incomplete = np.concatenate([labels.incomplete for labels in each])
    return Labels(property, values, mask, incomplete, np.logical_or.reduce([labels.infinite for labels in each]))
