"""Pairs of near geometries in training: finding them, and keeping their members in one split and one batch.

The data set of a training on pairs has two more columns, with a row for each conformation: ``pair``, the number of its
pair, positive for the first member and negative for the second, 0 for single conformations; and ``pair_length``, the
distance of the members in Å, see :mod:`mfpyg.evaluation.pairs`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.metrics import pair_members
from mfpyg.evaluation.pairs import NEAR, SAME, pairs_of
from mfpyg.fidelity import Fidelity
from mfpyg.properties import ENERGY


def groups_of_pairs(dataset: ConformationDataset) -> np.ndarray:
    """Number of a group for each conformation, the same for the members of a pair only, (n,) int64."""
    group = np.arange(len(dataset))
    for pair in pairs_of(dataset, group):
        group[pair.second] = pair.first
    return group


def with_pairs(
    dataset: ConformationDataset, splits: Mapping[str, np.ndarray], fidelities: Sequence[Fidelity]
) -> tuple[ConformationDataset, str]:
    """Mark the pairs within the training and the validation split whose members both have energies of a level.

    Args:
        dataset: data set with the labels available for training, left unchanged.
        splits: numbers of the conformations of each split.
        fidelities: fidelities to train on.

    Returns:
        Data set with the columns ``pair`` and ``pair_length``, and a line for the user.

    Raises:
        MFPyGError: if there is no such pair in the training split.
    """
    names = [f.name for f in fidelities if ENERGY in f.properties]
    mask = dataset._data.energy_mask.numpy()[:, [dataset.fidelities.index(name) for name in names]]
    pair, length, told = np.zeros(len(mask), np.int64), np.ones(len(mask)), []
    for split in ("train", "val"):
        near = pairs_of(dataset, splits[split])
        both = np.array([mask[one.first] & mask[one.second] for one in near]).reshape(-1, len(names))
        if split == "train" and not both.any():
            raise MFPyGError(
                f"no two of {len(splits[split]):,} conformations in train with energies of {' or '.join(names)} are "
                f"near ({SAME:g} to {NEAR:g} Å RMS); make pairs with mfpyg-sample --pairs, or leave pair_weight out"
            )
        kept = [one for one, labelled in zip(near, both, strict=True) if labelled.any()]
        for number, one in enumerate(kept, pair.max() + 1):
            pair[one.first], pair[one.second] = number, -number
            length[[one.first, one.second]] = one.length
        counts = (f"{n:,} of {name}" for name, n in zip(names, both.sum(axis=0).tolist(), strict=True))
        told.append(f"{', '.join(counts)} in {split}")
    marked, one_each = copy.copy(dataset), dataset.slices["energy"]
    marked._data, marked._data_list = copy.copy(dataset._data), None
    marked._data["pair"], marked._data["pair_length"] = torch.from_numpy(pair), torch.from_numpy(length)
    marked.slices = {**dataset.slices, "pair": one_each, "pair_length": one_each}
    return marked, f"pairs of near geometries: {'; '.join(told)}"


def pair_numbers(dataset: ConformationDataset, rows: np.ndarray) -> np.ndarray | None:
    """Column ``pair`` of some conformations, (n,) int64; ``None`` without pairs."""
    return dataset._data.pair.numpy()[rows] if "pair" in dataset.slices else None


class Units:
    """Single conformations and pairs, of which batches are drawn.

    Args:
        n: number of conformations.
        pair: their values of the column ``pair``, (n,) int64; ``None`` without pairs.

    Attributes:
        first: index of each unit's conformation, or of the first member of the pair, (n_units,) int64.
        second: index of the second member, −1 for a single conformation, (n_units,) int64.
    """

    def __init__(self, n: int, pair: np.ndarray | None) -> None:
        self.first, self.second = np.arange(n), np.full(n, -1)
        if pair is not None:
            first, second = (members.numpy() for members in pair_members(torch.from_numpy(pair)))
            self.second[first] = second
            self.first, self.second = (np.delete(members, second) for members in (self.first, self.second))

    def __len__(self) -> int:
        return len(self.first)

    def members(self, units: np.ndarray) -> np.ndarray:
        """Indices of the conformations of some units."""
        second = self.second[units]
        return np.concatenate([self.first[units], second[second >= 0]])

    def any_of(self, mask: np.ndarray) -> np.ndarray:
        """Whether any member is marked, (n, T) -> (n_units, T) bool."""
        return mask[self.first] | (mask[self.second] & (self.second >= 0)[:, None])

    def split(self, units: np.ndarray, n: int) -> list[np.ndarray]:
        """Split at least n units into n parts, none of them empty, with nearly equal numbers of conformations."""
        sizes = 1 + (self.second[units] >= 0)
        if (sizes == 1).all():
            return np.array_split(units, n)
        middle, number = sizes.cumsum() - sizes / 2, np.arange(1, n)
        ends = np.searchsorted(middle, number * (sizes.sum() / n))
        ends = np.maximum.accumulate(ends - number) + number
        return np.split(units, np.clip(ends, number, len(units) - n + number))
