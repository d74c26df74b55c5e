"""Training on a fraction of the labels of a fidelity, drawn by the seed."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from mfpyg.datasets.conformations import ConformationDataset

THINNED = ("train", "val")
"""Splits that lose labels. Validation does as well: whoever has few expensive labels has few to validate with."""

_STREAM = 0x7416
"""Sets the generator apart from those of splits and batches, which have the same seed."""


def thin_labels(
    dataset: ConformationDataset, splits: Mapping[str, np.ndarray], fractions: Mapping[str, float], seed: int
) -> ConformationDataset:
    """Hide labels of fidelities from a part of the training and validation conformations.

    Energies and forces of a conformation are kept or lost together. Of the n conformations of a split that have some,
    max(1, round(fraction · n)) keep them: the first ones in an order of all conformations that the seed alone
    decides. So what a fraction keeps is among what a larger one keeps, also that of another fidelity on the same
    conformations, as expensive labels are computed for some of those that have cheap ones. Isolated atoms, of which
    reference energies are made, keep theirs and do not count.

    Args:
        dataset: is not changed; nothing but the masks is copied.
        splits: numbers of the conformations of each split; all but ``train`` and ``val`` keep everything.
        fractions: ``{fidelity: part that is kept}``, each above 0 and at most 1.
        seed: of the order.

    Returns:
        The data set itself where nothing is to be thinned.
    """
    if not fractions:
        return dataset
    rank = np.random.default_rng((seed, _STREAM)).permutation(len(dataset.slices["energy"]) - 1)
    masks = {name: dataset._data[name].clone() for name in ("energy_mask", "forces_mask")}
    isolated = dataset.isolated_atoms
    for fidelity, fraction in fractions.items():
        column = dataset.fidelities.index(fidelity)
        labelled = (masks["energy_mask"][:, column] | masks["forces_mask"][:, column]).numpy()
        for name in THINNED:
            rows = splits[name][labelled[splits[name]] & ~isolated[splits[name]]]
            kept = max(1, round(fraction * len(rows)))
            lost = torch.from_numpy(rows[np.argsort(rank[rows])[kept:]])
            for mask in masks.values():
                mask[lost, column] = False
    thinned = copy.copy(dataset)
    thinned._data, thinned._data_list = copy.copy(dataset._data), None
    for name, mask in masks.items():
        thinned._data[name] = mask
    return thinned
