"""Which conformations are for training, validation and test; the same for every model with one seed."""

from __future__ import annotations

import numpy as np

from mfpyg.datasets import ReleaseDataset
from mfpyg.errors import MFPyGError
from mfpyg.settings import SplitSettings


def make_splits(dataset: ReleaseDataset, settings: SplitSettings, seed: int) -> dict[str, np.ndarray]:
    """Sorted numbers of the conformations of ``train``, ``val``, ``test`` and ``ood`` (out of distribution).

    By ``file``, the file's test and out-of-sample conformations stay what they are, and the rest is
    divided into training and validation; by ``random``, all are divided into three.

    Args:
        dataset: the data set.
        settings: method and fractions.
        seed: the same seed gives the same splits, whatever the fidelities and the model.

    Raises:
        MFPyGError: if the file gives no split but is asked to, or a split would be empty.
    """
    given = dataset.given_split()
    if settings.method == "file" and given is None:
        raise MFPyGError(
            f"{dataset.raw_file_names[0]} does not say which conformations are for the test; use split.method random"
        )
    by_file = given is not None and settings.method != "random"
    pool = np.flatnonzero(given == 0) if by_file else np.arange(len(dataset))
    shuffled = np.random.default_rng(seed).permutation(pool)
    n_val = round(settings.val * len(pool))
    n_test = 0 if by_file else round(settings.test * len(pool))
    splits = {"train": shuffled[n_val + n_test :], "val": shuffled[:n_val], "test": shuffled[n_val : n_val + n_test]}
    if by_file:
        splits["test"], splits["ood"] = np.flatnonzero(given == 1), np.flatnonzero(given == 2)
    for name in ("train", "val"):
        if not len(splits[name]):
            raise MFPyGError(
                f"split '{name}' of {len(pool)} conformations is empty; give split.val and split.test other shares"
            )
    return {name: np.sort(rows) for name, rows in splits.items() if len(rows)}
