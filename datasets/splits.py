"""Splits into training, validation and test, reproducible by seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.isomers import same_molecule
from mfpyg.datasets.union import UnionDataset
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.files import read_npz
from mfpyg.settings import SplitSettings

SPLITS = ("train", "val", "test", "ood")


def make_splits(
    dataset: ConformationDataset, settings: SplitSettings, seed: int, together: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Divide a data set into ``train``, ``val``, ``test`` and ``ood`` (out of distribution): sorted row numbers.

    With ``settings.files``, each split, of any name, consists of the sources given for it, regardless of the splits in
    the files; if none is given for validation, a fraction of each training source is used.

    Otherwise each source of a union is divided on its own. Method ``file`` keeps the test and out-of-sample
    conformations given by the file, and divides the rest into training and validation; ``random`` divides all
    conformations into three; so does ``molecule``, but all conformations of a molecule (see
    :mod:`mfpyg.datasets.isomers`) stay together, also across sources, and periodic ones are told apart by name or
    formula alone; ``index`` reads the numbers from a file. Isolated atoms, which define reference energies, are never
    drawn for validation or test.

    Args:
        dataset: data set to divide.
        settings: method and fractions.
        seed: seed, which gives the same splits for all fidelities and models.
        together: group of each conformation, (n,) int64; random draws do not divide the conformations of a group.

    Raises:
        MFPyGError: if the file's split is requested but missing, or a split would be empty.
    """
    if settings.files:
        splits = _by_files(dataset, settings, seed, together)
    elif settings.method == "index":
        assert settings.file is not None
        splits = read_splits(Path(os.path.expanduser(settings.file)), len(dataset))
    elif settings.method == "molecule":
        splits = _by_molecule(dataset, settings, seed)
    else:
        splits = _by_source(dataset, settings, seed, together)
    for name in ("train", "val"):
        if not len(splits.get(name, ())):
            shares = "split.val another share" if settings.files else "split.val and split.test other shares"
            raise MFPyGError(f"split '{name}' of {len(dataset)} conformations is empty; give {shares}")
    names = dict.fromkeys([*SPLITS, *splits])
    return {name: np.sort(splits[name]) for name in names if len(splits.get(name, ()))}


def _by_files(
    dataset: ConformationDataset, settings: SplitSettings, seed: int, together: np.ndarray | None
) -> dict[str, np.ndarray]:
    source = dataset._data.source.numpy()
    members = dataset.members if isinstance(dataset, UnionDataset) else [dataset]
    split_of = np.repeat([name for name, _ in settings.sources], [len(member.sources) for member in members])
    splits = {str(name): np.flatnonzero(split_of[source] == name) for name in dict.fromkeys(split_of)}
    if "val" not in splits:
        isolated = dataset.isolated_atoms
        parts = [np.flatnonzero((source == number) & ~isolated) for number in np.flatnonzero(split_of == "train")]
        splits["val"] = np.concatenate([_drawn(rows, [settings.val], seed, together)[0] for rows in parts])
        splits["train"] = np.setdiff1d(splits["train"], splits["val"])
    return splits


def _by_source(
    dataset: ConformationDataset, settings: SplitSettings, seed: int, together: np.ndarray | None
) -> dict[str, np.ndarray]:
    given, source = dataset.given_split(), dataset._data.source.numpy()
    isolated = dataset.isolated_atoms
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for number, where in enumerate(dataset.sources):
        rows = np.flatnonzero(source == number)
        has_split = bool((given[rows] >= 0).any())
        if settings.method == "file" and not has_split:
            raise MFPyGError(f"{where} does not say which conformations are for the test; use split.method random")
        by_file = has_split and settings.method != "random"
        pool = rows[given[rows] == 0] if by_file else rows
        atoms, pool = pool[isolated[pool]], pool[~isolated[pool]]
        val, test, train = _drawn(pool, [settings.val, 0.0 if by_file else settings.test], seed, together)
        parts["train"] += [train, atoms]
        parts["val"].append(val)
        parts["test"].append(test)
        if by_file:
            parts["test"].append(rows[given[rows] == 1])
            parts["ood"].append(rows[given[rows] == 2])
    return {name: np.concatenate(rows) for name, rows in parts.items() if rows}


def _drawn(rows: np.ndarray, shares: Sequence[float], seed: int, together: np.ndarray | None) -> list[np.ndarray]:
    """Random parts of these shares of the rows, rounded, and the rest."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    ends = np.cumsum([round(share * len(rows)) for share in shares])
    if together is not None and len(rows):
        _, first, group = np.unique(together[shuffled], return_index=True, return_inverse=True)
        order = np.argsort(first[group], kind="stable")  # the members of a group after the first of them
        shuffled, place = shuffled[order], first[group][order]
        ends = np.searchsorted(place, place[ends - 1], side="right") * (ends > 0)
    return np.split(shuffled, ends)


def _by_molecule(dataset: ConformationDataset, settings: SplitSettings, seed: int) -> dict[str, np.ndarray]:
    """Molecules in random order; validation and test take the first that fit into their shares."""
    molecule = same_molecule(dataset)
    sizes = np.bincount(molecule)
    if len(sizes) < 3:
        told = "bonds or names" if dataset.periodic.any() else "bonds"
        raise MFPyGError(
            f"{dataset.what} has only {len(sizes)} molecules of different {told}; a split by molecule needs three"
        )
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[~np.isin(order, molecule[dataset.isolated_atoms])]
    room = {"val": settings.val * len(dataset), "test": settings.test * len(dataset)}
    part = np.full(len(sizes), "train", dtype="<U5")
    for name, share in room.items():
        taken = 0
        for number in order:
            if part[number] == "train" and taken + sizes[number] <= share:
                part[number] = name
                taken += sizes[number]
        if share > 0 and not taken:  # no molecule fits: take the smallest
            rest = order[part[order] == "train"]
            part[rest[np.argmin(sizes[rest])]] = name
    of_row = part[molecule]
    return {name: np.flatnonzero(of_row == name) for name in ("train", "val", "test")}


def read_splits(path: Path, n: int) -> dict[str, np.ndarray]:
    """Splits from an npz file with arrays ``train``, ``val`` and, if wanted, ``test`` and ``ood``.

    Args:
        path: file to read, such as a run's ``splits.npz``.
        n: number of conformations of the data set.

    Raises:
        MFPyGError: if the file cannot be read, an array has another name or holds anything but numbers
            of conformations, or a conformation is in two splits.
    """
    splits = read_npz(path)
    for name, rows in splits.items():
        if name not in SPLITS:
            raise unknown_name(f"split in {path}", name, SPLITS)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise MFPyGError(f"{path}: {name} is {rows.dtype} of shape {rows.shape}, expected (n,) integers")
        if len(rows) and not 0 <= rows.min() <= rows.max() < n:
            raise MFPyGError(f"{path}: {name} is from {rows.min()} to {rows.max()}, expected 0 to {n - 1}")
    every = np.concatenate([rows.astype(np.int64) for rows in splits.values()] or [np.empty(0, np.int64)])
    twice = np.flatnonzero(np.bincount(every, minlength=n) > 1)
    if len(twice):
        raise MFPyGError(f"{path}: conformation {twice[0]} occurs twice; expected each in one split, once")
    return {name: rows.astype(np.int64) for name, rows in splits.items()}
