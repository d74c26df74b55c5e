"""Geometries of a growth: the pool, its part for validation, and the levels that each geometry is labelled at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.datasets.frames import Frame, frames_of_text
from mfpyg.errors import MFPyGError
from mfpyg.files import make_folder, replace_file
from mfpyg.inference.extxyz import frame_as_text, kept_values, pair
from mfpyg.labeling.run import LEVELS
from mfpyg.models.calibration import FEWEST

NUMBER, PART = "frame", "part"
"""Keys of frames in a growth: number in the pool, and ``train`` or ``val``."""

_OWN = {NUMBER, LEVELS, PART, "split"}
"""Keys that frames of a pool may have from elsewhere, with another meaning."""


@dataclass
class Assignment:
    """Geometries of the pool, and the levels that each is labelled at.

    Attributes:
        levels: names of the levels by number in the pool, in the order in which they were assigned.
    """

    levels: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def add(self, numbers: Iterable[int], levels: Sequence[str]) -> None:
        """Add levels to geometries."""
        for number in numbers:
            self.levels[number] = tuple(dict.fromkeys([*self.levels.get(number, ()), *levels]))

    def update(self, other: Assignment) -> None:
        """Add all of another assignment."""
        for number, levels in other.levels.items():
            self.add([number], levels)

    def numbers_at(self, level: str) -> list[int]:
        """Numbers of the geometries that are labelled at a level."""
        return [number for number, levels in self.levels.items() if level in levels]


def n_validation(n: int, share: float) -> int:
    """Number of geometries, of n, to validate on: a share, but enough to calibrate standard deviations if n allows."""
    return math.ceil(max(share * n, min(FEWEST, n // 4)) - 1e-9)


class Pool:
    """Geometries to choose from.

    Args:
        frames: geometries.
        validation: share of them that is kept for validation.
        seed: seed of the random order.

    Attributes:
        frames: geometries, numbered from 0.
        first: numbers of some geometries that have all elements together, as potentials learn no others later.
        train, val: numbers of the geometries to train on, with these first, and to validate on, in random order.
    """

    def __init__(self, frames: Sequence[Frame], validation: float, seed: int) -> None:
        self.frames = list(frames)
        order = np.random.default_rng(seed).permutation(len(self.frames)).tolist()
        first = self._with_all_elements(order)
        rest = [number for number in order if number not in first]
        n_val = max(n_validation(len(self.frames), validation), 1)
        self.first = first
        self.val, self.train = rest[:n_val], [*first, *rest[n_val:]]
        self.of_val = frozenset(self.val)

    @classmethod
    def read(cls, path: Path, validation: float, seed: int) -> Pool:
        """Read the pool of a growth.

        Raises:
            MFPyGError: for a file that cannot be read, or too few geometries.
        """
        pool = cls(list(frames_of_text(path)), validation, seed)
        if not pool.val:
            raise MFPyGError(
                f"{path}: {len(pool.frames)} geometries are too few to train on, and to validate on others"
            )
        return pool

    def _with_all_elements(self, order: Sequence[int]) -> list[int]:
        """Numbers of geometries that have all elements together."""
        seen: set[int] = set()
        found = []
        for number in order:
            elements = set(self.frames[number].z.tolist())
            if not elements <= seen:
                seen |= elements
                found.append(number)
        return found

    def part(self, number: int) -> str:
        """``val`` or ``train``."""
        return "val" if number in self.of_val else "train"

    def write(self, path: Path, assignment: Assignment) -> None:
        """Write the geometries of an assignment, in its order, with their number, levels and part."""
        texts = [
            frame_text(self.frames[number], {NUMBER: number, LEVELS: " ".join(levels), PART: self.part(number)})
            for number, levels in assignment.levels.items()
        ]
        write_frames(path, texts)


def read_assignment(path: Path) -> Assignment:
    """Read what :meth:`Pool.write` has written."""
    assignment = Assignment()
    for frame in frames_of_text(path):
        assignment.add([int(frame.values[NUMBER])], str(frame.values[LEVELS]).split())
    return assignment


def frame_text(frame: Frame, values: Mapping[str, Any] | None = None) -> str:
    """Extended XYZ of a frame, with all values that it came with and others."""
    kept = {key: value for key, value in frame.values.items() if key not in _OWN}
    columns, pairs = kept_values(frame._replace(values=kept, columns=frame.columns - _OWN), set(), {})
    return frame_as_text(frame, columns, [*pairs, *(pair(key, value) or "" for key, value in (values or {}).items())])


def write_frames(path: Path, texts: Iterable[str]) -> None:
    """Write frames in one step; creates the folder."""
    make_folder(path.parent)
    replace_file(path, lambda name: Path(name).write_text("".join(texts), encoding="utf-8"))
