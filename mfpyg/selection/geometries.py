"""Geometries of molecules, found again whatever their place, orientation and order of atoms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.frames import Frame, total_charge
from mfpyg.errors import MFPyGError
from mfpyg.sampling.geometry import sorted_distances

SAME = 1e-3
"""Deviation in Å (RMS of sorted distances) below which two geometries are the same; files round to 1e-8 Å."""


class Geometry(NamedTuple):
    """Key that all copies of a geometry share.

    Attributes:
        elements: sorted atomic numbers, as bytes.
        charge: total charge in e.
        distances: see :func:`mfpyg.sampling.geometry.sorted_distances`.
    """

    elements: bytes
    charge: int
    distances: np.ndarray


class Geometries:
    """Geometries to be found again.

    Two are the same if they have the same elements and total charge, and their interatomic distances, sorted within
    each pair of elements, deviate by less than :data:`SAME` (RMS).

    Args:
        geometries: the geometries, numbered from 0.
    """

    def __init__(self, geometries: Iterable[Geometry]) -> None:
        self._numbers: dict[tuple[bytes, int], list[int]] = defaultdict(list)
        points = defaultdict(list)
        for number, one in enumerate(geometries):
            self._numbers[one[:2]].append(number)
            points[one[:2]].append(one.distances)
        self._trees = {key: cKDTree(np.stack(of_key)) for key, of_key in points.items()}

    def same(self, one: Geometry) -> list[int]:
        """Numbers of the geometries that are the same."""
        numbers = self._numbers.get(one[:2], [])
        if not numbers or not len(one.distances):  # single atoms
            return numbers
        found = self._trees[one[:2]].query_ball_point(one.distances, SAME * np.sqrt(len(one.distances)))
        return [numbers[n] for n in found]

    def elements(self) -> set[bytes]:
        """Elements of all geometries, as in :attr:`Geometry.elements`."""
        return {elements for elements, _ in self._numbers}


def of_frame(frame: Frame, where: str) -> Geometry:
    """Geometry of a frame.

    Args:
        frame: frame as read.
        where: its name, for errors.

    Raises:
        MFPyGError: for no atoms, positions that are not finite, or a total charge that is not a whole number.
    """
    if not len(frame.z):
        raise MFPyGError(f"{where}: no atoms; expected at least one")
    if not np.isfinite(frame.pos).all():
        raise MFPyGError(f"{where}: positions are not finite; expected numbers in Å")
    elements, distances = sorted_distances(Atoms(frame.z, frame.pos, cell=frame.cell, pbc=frame.pbc))
    return Geometry(elements, round(total_charge(frame, where)), distances)


def of_rows(
    dataset: ConformationDataset, rows: Iterable[int], elements: set[bytes] | None = None
) -> Iterator[tuple[int, Geometry]]:
    """Number and geometry of conformations of a data set, of those with these elements if given."""
    data, starts = dataset._data, dataset.slices["z"].tolist()
    z, pos, periodic, charges = data.z.numpy(), data.pos.double().numpy(), dataset.periodic, dataset.total_charges
    for row in rows:
        atoms = slice(starts[row], starts[row + 1])
        if elements is not None and np.sort(z[atoms]).astype(np.int64).tobytes() not in elements:
            continue
        molecule = Atoms(z[atoms], pos[atoms])
        if periodic[row]:
            molecule.set_cell(data.cell[row].double().numpy())
            molecule.pbc = data.pbc[row].numpy()
        of_elements, distances = sorted_distances(molecule)
        yield row, Geometry(of_elements, round(float(charges[row])), distances)
