"""Frames of a pool that lack labels, told from those that have them by their geometries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.frames import Frame
from mfpyg.errors import MFPyGError
from mfpyg.properties import PROPERTIES
from mfpyg.selection.geometries import Geometries, of_frame, of_rows


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

    Args:
        frames: frames of the pool.
        datasets: labelled data.
        levels: names of the levels.
        source: name of the pool, for errors.

    Raises:
        MFPyGError: for an invalid frame, or if no frame is left.
    """
    described = [of_frame(frame, f"{source}: frame {frame.number}") for frame in frames]
    pool = Geometries(described)
    having: list[set[str]] = [set() for _ in frames]
    for dataset in datasets:
        masks: np.ndarray = np.any(
            [dataset._data[PROPERTIES[letter].mask].numpy() for letter in dataset.letters], axis=0
        )
        for row, geometry in of_rows(dataset, np.flatnonzero(masks.any(axis=1)).tolist(), pool.elements()):
            for number in pool.same(geometry):
                having[number] |= {dataset.fidelities[t] for t in np.flatnonzero(masks[row])}
    repeated = {number for number, one in enumerate(described) if min(pool.same(one)) < number}
    missing = [tuple(name for name in levels if name not in of_frame) for of_frame in having]
    kept = [n for n in range(len(frames)) if missing[n] and n not in repeated]
    n_labelled = sum(not missing[n] for n in range(len(frames)) if n not in repeated)
    if not kept:
        known = f"all {len(frames)} frames" if len(frames) > 1 else "its only frame"
        raise MFPyGError(f"{source}: {known} have labels of {', '.join(levels)} already; give frames without")
    left = ([frames[n] for n in kept], [missing[n] for n in kept], [having[n] for n in kept])
    return Candidates(*left, n_labelled, len(repeated))
