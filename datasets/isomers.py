"""Telling isomers apart by their bonds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mfpyg.datasets.batches import rows_of
from mfpyg.datasets.conformations import ConformationDataset

STRETCHES = (1.15, 1.25, 1.4)
"""Largest lengths of a bond over the sum of the covalent radii; the bonds of a conformation are certain if all three
agree."""

_PAIRS_AT_ONCE = 1 << 22
_ROUNDS = 4


def same_molecule(dataset: ConformationDataset) -> np.ndarray:
    """Number of each conformation's molecule, (n,) int64.

    Conformations belong to one molecule if they have the same atoms and the same bonds, up to the order of the atoms
    (Weisfeiler-Lehman colours of the bond graph). In distorted geometries bonds are uncertain: the graphs with shorter
    and with longer bonds then count as one molecule, and so does everything linked in that way. When in doubt, isomers
    are merged, so that no molecule is in both training and test; isomers with the same bonds, such as mirror images,
    are merged too.

    Periodic conformations are told apart by name alone (the formula if the file gives none), and molecules with the
    name of a periodic conformation are merged with it.
    """
    colours = np.empty((len(dataset.slices["z"]) - 1, len(STRETCHES)), np.uint64)
    names = dataset._data.molecule.numpy().astype(np.uint64)
    periodic = dataset.periodic
    colours[periodic] = _of_name(names[periodic])[:, None]
    for rows, z, pos in _by_size(dataset, ~periodic):
        distance = np.linalg.norm(pos[:, :, None] - pos[:, None, :], axis=3)  # (m, n, n)
        radius = covalent_radii[z]
        reach = radius[:, :, None] + radius[:, None, :]
        for column, stretch in enumerate(STRETCHES):
            bonded = (distance < stretch * reach) & ~np.eye(z.shape[1], dtype=bool)
            colours[rows, column] = _colour(z, bonded)
    graphs, number = np.unique(colours, return_inverse=True)
    number = number.reshape(colours.shape)
    first, second = np.repeat(number[:, 0], 2), number[:, 1:].ravel()
    if periodic.any():
        named = np.isin(names, names[periodic])
        # Link periodic conformations, and molecules with the same name, to the hash of the name.
        first = np.append(first, number[named, 0])
        second = np.append(second, np.searchsorted(graphs, _of_name(names[named])))
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(len(graphs), len(graphs)))
    _, molecule = connected_components(links, directed=False)
    return np.unique(molecule[number[:, 0]], return_inverse=True)[1].astype(np.int64)


def _by_size(dataset: ConformationDataset, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Wanted conformations by number of atoms, in parts of bounded size: rows (m,), z (m, n), pos (m, n, 3)."""
    import torch

    slices = dataset.slices["z"]
    sizes = slices.diff().numpy()
    for size in np.unique(sizes[wanted]):
        rows = np.flatnonzero(wanted & (sizes == size))
        step = max(1, _PAIRS_AT_ONCE // int(size) ** 2)
        for part in np.split(rows, range(step, len(rows), step)):
            atoms, _, _ = rows_of(slices, torch.from_numpy(part))
            z = dataset._data.z[atoms].numpy().reshape(-1, size)
            yield part, z, dataset._data.pos[atoms].numpy().reshape(-1, size, 3)


def _colour(z: np.ndarray, bonded: np.ndarray) -> np.ndarray:
    """Hash of each bond graph: z (m, n), bonded (m, n, n) -> (m,) uint64."""
    colour = _mix(z.astype(np.uint64))
    for _ in range(_ROUNDS):
        neighbours = np.where(bonded, _mix(colour)[:, None, :], np.uint64(0)).sum(axis=2, dtype=np.uint64)
        colour = _mix(colour * np.uint64(3) + neighbours)
    return _mix(colour.sum(axis=1, dtype=np.uint64))


def _of_name(names: np.ndarray) -> np.ndarray:
    """Hash of the number of a name, used in place of a bond graph."""
    return _mix(~names)


def _mix(x: np.ndarray) -> np.ndarray:
    """Hash of each number (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
