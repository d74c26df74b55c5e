"""Training on a random fraction of the labels of a fidelity."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.processing import starts
from mfpyg.properties import PROPERTIES, Property

THINNED = ("train", "val")
"""Splits that lose labels; also validation, as scarce labels are scarce there too."""

_STREAM = 0x7416
"""Separates the random numbers from those of splits and batches, which have the same seed."""


def thin_labels(
    dataset: ConformationDataset, splits: Mapping[str, np.ndarray], fractions: Mapping[str, float], seed: int
) -> ConformationDataset:
    """Mask the labels of fidelities in a part of the training and validation conformations.

    All labels of a conformation at a level are kept or masked together. Of the n labelled conformations of a split,
    max(1, round(fraction · n)) keep their labels: the first in an order of all conformations that depends on the seed
    alone. The selections are therefore nested, across fractions and across fidelities on the same conformations, as
    expensive labels are usually computed for some of the conformations with cheap ones. Isolated atoms, which define
    reference energies, keep their labels and are not counted.

    Args:
        dataset: data set, left unchanged; only the masks are copied.
        splits: numbers of the conformations of each split; only ``train`` and ``val`` lose labels.
        fractions: ``{fidelity: fraction to keep}``, each above 0 and at most 1.
        seed: seed of the order.

    Returns:
        Data set with the new masks; ``dataset`` itself if there are no fractions.
    """
    if not fractions:
        return dataset
    rank = np.random.default_rng((seed, _STREAM)).permutation(len(dataset.slices["energy"]) - 1)
    properties = [PROPERTIES[letter] for letter in dataset.letters]
    masks = {p.mask: dataset._data[p.mask].clone() for p in properties}
    isolated = dataset.isolated_atoms
    for fidelity, fraction in fractions.items():
        column = dataset.fidelities.index(fidelity)
        labelled = torch.stack([mask[:, column] for mask in masks.values()]).any(dim=0).numpy()
        for name in THINNED:
            rows = splits[name][labelled[splits[name]] & ~isolated[splits[name]]]
            kept = max(1, round(fraction * len(rows)))
            lost = torch.from_numpy(rows[np.argsort(rank[rows])[kept:]])
            for mask in masks.values():
                mask[lost, column] = False
    thinned = copy.copy(dataset)
    thinned._data, thinned._data_list = copy.copy(dataset._data), None
    for property in properties:
        if property.per == "pair":
            values, thinned.slices = without_pairs(dataset, property, masks[property.mask])
            thinned._data[property.name] = values
        thinned._data[property.mask] = masks[property.mask]
    return thinned


def without_pairs(dataset: ConformationDataset, property: Property, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels of pairs of atoms that a mask (n, T) keeps, and slices of the data set with them."""
    data, before = dataset._data, dataset._data[property.mask]
    sizes = dataset.slices["z"].diff().square().unsqueeze(1)  # (n, 1)
    kept = torch.repeat_interleave(mask[before], sizes.expand_as(before)[before])
    return data[property.name][kept], {**dataset.slices, property.name: starts((sizes * mask).sum(dim=1))}
