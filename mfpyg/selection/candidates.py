"""Frames of a pool that lack labels, told from those that have them by their geometries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.frames import Frame, total_charge
from mfpyg.errors import MFPyGError
from mfpyg.properties import PROPERTIES
from mfpyg.sampling.geometry import sorted_distances

SAME = 1e-3
"""Deviation in Å (RMS of sorted distances) below which two geometries are the same; files round to 1e-8 Å."""

Key = tuple[bytes, int]
"""Sorted atomic numbers and total charge."""


@dataclass
class Candidates:
    """Frames to choose from.

    Attributes:
        frames: frames that lack a label of some level.
        missing: levels that each of them lacks.
        known: names of all levels that it has labels of.
        n_labelled: number of frames of the pool that have labels of all levels.
        n_repeated: number of frames that are the same as an earlier one.
    """

    frames: list[Frame]
    missing: list[tuple[str, ...]]
    known: list[set[str]]
    n_labelled: int
    n_repeated: int


def find_candidates(
    frames: Sequence[Frame], datasets: Sequence[ConformationDataset], levels: Sequence[str], source: str
) -> Candidates:
    """Leave out the frames that have labels of all levels in some data set, and repeated ones.

    Two geometries are the same if they have the same elements and total charge, and their interatomic distances, sorted
    within each pair of elements, deviate by less than :data:`SAME` (RMS), whatever their place, orientation and order
    of atoms.

    Args:
        frames: frames of the pool.
        datasets: labelled data.
        levels: names of the levels.
        source: name of the pool, for errors.

    Raises:
        MFPyGError: if no frame is left.
    """
    described = [_described(frame, f"{source}: frame {frame.number}") for frame in frames]
    by_key: dict[Key, list[int]] = defaultdict(list)
    for number, (key, _) in enumerate(described):
        by_key[key].append(number)
    trees = {key: cKDTree(np.stack([described[n][1] for n in of_key])) for key, of_key in by_key.items()}

    def same(key: Key, distances: np.ndarray) -> list[int]:
        """Numbers of the frames with this geometry."""
        if not len(distances):  # single atoms
            return by_key[key]
        found = trees[key].query_ball_point(distances, SAME * np.sqrt(len(distances)))
        return [by_key[key][n] for n in found]

    having: list[set[str]] = [set() for _ in frames]
    for dataset in datasets:
        for key, distances, names in _labelled(dataset, by_key.keys()):
            for number in same(key, distances):
                having[number] |= names
    repeated = {number for number, one in enumerate(described) if min(same(*one)) < number}
    missing = [tuple(name for name in levels if name not in of_frame) for of_frame in having]
    kept = [n for n in range(len(frames)) if missing[n] and n not in repeated]
    n_labelled = sum(not missing[n] for n in range(len(frames)) if n not in repeated)
    if not kept:
        known = f"all {len(frames)} frames" if len(frames) > 1 else "its only frame"
        raise MFPyGError(f"{source}: {known} have labels of {', '.join(levels)} already; give frames without")
    left = ([frames[n] for n in kept], [missing[n] for n in kept], [having[n] for n in kept])
    return Candidates(*left, n_labelled, len(repeated))


def _described(frame: Frame, where: str) -> tuple[Key, np.ndarray]:
    if not len(frame.z):
        raise MFPyGError(f"{where}: no atoms; expected at least one")
    if not np.isfinite(frame.pos).all():
        raise MFPyGError(f"{where}: positions are not finite; expected numbers in Å")
    atoms = Atoms(frame.z, frame.pos, cell=frame.cell, pbc=frame.pbc)
    elements, distances = sorted_distances(atoms)
    return (elements, round(total_charge(frame, where))), distances


def _labelled(dataset: ConformationDataset, keys: Iterable[Key]) -> Iterator[tuple[Key, np.ndarray, set[str]]]:
    """Key, sorted distances, and levels with a label, of the conformations with one of these keys."""
    wanted, data, starts = set(keys), dataset._data, dataset.slices["z"].tolist()
    n_atoms = {len(elements) // 8 for elements, _ in wanted}
    masks: np.ndarray = np.any([data[PROPERTIES[letter].mask].numpy() for letter in dataset.letters], axis=0)  # (n, T)
    z, pos, periodic, charges = data.z.numpy(), data.pos.double().numpy(), dataset.periodic, dataset.total_charges
    for row, labelled in enumerate(masks):
        first, end = starts[row], starts[row + 1]
        key = (np.sort(z[first:end]).astype(np.int64).tobytes(), round(float(charges[row])))
        if end - first not in n_atoms or key not in wanted:
            continue
        atoms = Atoms(z[first:end], pos[first:end])
        if periodic[row]:
            atoms.set_cell(data.cell[row].double().numpy())
            atoms.pbc = data.pbc[row].numpy()
        yield key, sorted_distances(atoms)[1], {dataset.fidelities[t] for t in np.flatnonzero(labelled)}
