"""Labels of a training: which conformations have them, and checks that those trained on exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.datasets.references import compositions, species_of
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity, parse_fidelities
from mfpyg.settings import TrainSettings
from mfpyg.training.check import label_fractions


def labelled_rows(dataset: ConformationDataset, rows: np.ndarray, fidelities: Sequence[Fidelity]) -> np.ndarray:
    """True where a row has a label of a fidelity to train on, (n, T) bool."""
    columns = []
    for fidelity in fidelities:
        column = dataset.fidelities.index(fidelity.name)
        having = np.zeros(len(rows), bool)
        for property in fidelity.properties:
            having |= dataset._data[property.mask][:, column].numpy()[rows]
        columns.append(having)
    return np.stack(columns, axis=1)


def with_labels_kept(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
) -> ConformationDataset:
    """Data set with the fraction of labels that the settings keep, see :mod:`mfpyg.datasets.label_fraction`."""
    return thin_labels(dataset, splits, label_fractions(settings, fidelities), settings.split_seed)


def label_notes(
    settings: TrainSettings,
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
    fidelities: tuple[Fidelity, ...],
) -> list[str]:
    """Notes on the labels and conformations that are trained on.

    Raises:
        MFPyGError: as :func:`check_labels`.
    """
    lines = []
    for name in label_fractions(settings, fidelities):
        any_label = (Fidelity(name, dataset.letters),)
        train, val = (int(labelled_rows(dataset, splits[split], any_label).sum()) for split in ("train", "val"))
        lines.append(f"labels of {name} are kept for {train:,} conformations in train and {val:,} in val")
    lines += check_labels(settings, dataset, splits, fidelities)
    left_out = len(dataset) - sum(len(rows) for rows in splits.values())
    if left_out:
        lines.append(f"note: {left_out:,} of {len(dataset):,} conformations are in no split")
    return lines


def _needed(settings: TrainSettings) -> tuple[str, ...]:
    """Fidelities that need labels in the validation split to choose the best epoch of each stage."""
    if settings.strategy != "mfl":
        return tuple(f.name for f in parse_fidelities(settings.fidelities))
    return () if settings.monitor == "sum" else (settings.monitor,)


def check_labels(
    settings: TrainSettings,
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
    fidelities: tuple[Fidelity, ...],
) -> list[str]:
    """Check that every kind of label to train on occurs in the training split.

    Returns:
        Notes on labels missing in the validation split, which do not affect the choice of the best epoch, and on
        conformations without labels to train on.

    Raises:
        MFPyGError: naming the first kind that does not, or if there are no labels to choose the best epoch by.
    """
    rows, notes, seen = splits["train"], [], []
    labelled = int(labelled_rows(dataset, rows, fidelities).any(axis=1).sum())
    if labelled < len(rows):
        trained = " ".join(map(str, fidelities))
        notes.append(f"note: {len(rows) - labelled:,} of train carry no label of {trained}; they are left out")
    for fidelity in fidelities:
        column = dataset.fidelities.index(fidelity.name)
        for property in fidelity.properties:
            mask, name = dataset._data[property.mask][:, column], property.plural
            if not mask[rows].any():
                raise MFPyGError(
                    f"fidelity '{fidelity}': none of the {len(rows)} conformations of the training split has {name} "
                    f"of '{fidelity.name}'; leave them out, or give other data"
                )
            if mask[splits["val"]].any():
                seen.append(fidelity.name)
            else:
                notes.append(f"note: no {fidelity.name} {name} in validation; the best epoch is chosen without them")
    for name in _needed(settings) or (() if seen else ("sum",)):
        if name not in seen:
            raise MFPyGError(f"monitor {name} has no labels in the validation split; give split.val a larger share")
    return notes


def labelled_species(
    dataset: ConformationDataset, rows: np.ndarray, fidelities: Sequence[Fidelity]
) -> dict[str, tuple[int, ...]]:
    """Atomic numbers in the labels of each fidelity, over the conformations ``rows``, (n,) int64."""
    species = species_of(dataset)
    there = compositions(dataset, species)[rows] > 0  # (n, n_species)
    labelled = labelled_rows(dataset, rows, fidelities)  # (n, n_fidelities)
    return {
        fidelity.name: tuple(np.array(species)[there[labelled[:, number]].any(axis=0)].tolist())
        for number, fidelity in enumerate(fidelities)
    }
