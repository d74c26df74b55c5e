"""Distances in all conformations: the closest atoms, and invariants by which duplicates are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from mfpyg.doctor.findings import Finding
from mfpyg.doctor.view import View

NAME = "atoms too close"

IMPOSSIBLE, SUSPICIOUS = 0.5, 0.62
"""Distance over the sum of covalent radii (Cordero et al., Dalton Trans. 2008, 2832).

The shortest bonds at rest have 0.60 (Cr₂), 0.67 (uranyl), 0.77 (N₂), 0.79 (CO, C₂H₂), 1.19 (H₂); molecular
dynamics at 1,200 K and the normal-mode samples of ANI-1x go down to 0.72 and 0.75.
"""

_AT_ONCE = 1 << 20  # distances


@dataclass
class Distances:
    """What one pass over all distances gives.

    Attributes:
        closest: smallest distance over the sum of covalent radii, (n,) float32; infinite for one atom.
        invariants: three sums of distances with random signs, Å, (n, 3) float64; the same up to rotation,
            translation and reflection, but not for another order of the atoms.
    """

    closest: np.ndarray
    invariants: np.ndarray


def distances(view: View) -> Distances:
    """All distances of all conformations, those of one size together, a bounded number at a time."""
    closest = np.full(len(view), np.inf, np.float32)
    invariants = np.zeros((len(view), 3))
    signs: dict[int, np.ndarray] = {}
    for chunk in view.chunks():
        for size in np.unique(chunk.n_atoms).tolist():
            if size < 2:
                continue
            i, j = np.triu_indices(size, 1)
            if size not in signs:
                signs[size] = np.random.default_rng(size).choice([-1.0, 1.0], (len(i), 3)).astype(np.float32)
            every = chunk.rows.start + np.flatnonzero(chunk.n_atoms == size)
            step = max(1, _AT_ONCE // len(i))
            for start in range(0, len(every), step):
                rows = every[start : start + step]
                closest[rows], invariants[rows] = _of_size(view, rows, i, j, signs[size])
    return Distances(closest, invariants)


def _of_size(
    view: View, rows: np.ndarray, i: np.ndarray, j: np.ndarray, signs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    atoms = view.atoms_of(rows)
    square = np.zeros((len(rows), len(i)), np.float32)
    for axis in range(3):
        x = view.pos[atoms, axis]  # (m, size)
        square += (x[:, i] - x[:, j]) ** 2
    distance = np.sqrt(square)  # (m, pairs)
    radii = covalent_radii.astype(np.float32)[view.z[atoms]]
    return (distance / (radii[:, i] + radii[:, j])).min(axis=1), distance @ signs


def check_close(view: View) -> Iterator[Finding]:
    """Atoms closer than bonds allow."""
    closest = view.distances.closest
    for severity, low, high in (("certain", -1.0, IMPOSSIBLE), ("suspect", IMPOSSIBLE, SUSPICIOUS)):
        rows = np.flatnonzero((closest >= low) & (closest < high))
        if len(rows):
            rows = rows[np.argsort(closest[rows])]
            evidence = (
                f"{len(rows)} conformations have atoms closer than {high:g} times the sum of their covalent radii; "
                f"the closest, {_closest_pair(view, int(rows[0]))}"
            )
            fix = "leave these conformations out; if there are many, see whether positions are in bohr, nm or fractions"
            yield Finding(NAME, severity, None, evidence, fix, tuple(rows))


def _closest_pair(view: View, row: int) -> str:
    atoms = slice(view.starts[row], view.starts[row + 1])
    pos, z = view.pos[atoms].astype(np.float64), view.z[atoms]
    i, j = np.triu_indices(len(z), 1)
    distance = np.linalg.norm(pos[i] - pos[j], axis=1)
    k = int(np.argmin(distance / (covalent_radii[z[i]] + covalent_radii[z[j]])))
    pair = f"{chemical_symbols[z[i[k]]]} and {chemical_symbols[z[j[k]]]} (atoms {i[k]} and {j[k]})"
    return f"{pair} of {view.where(row)} at {distance[k]:.3g} Å"


def check_far(view: View) -> Iterator[Finding]:
    """Positions read in too large a unit: hardly any two atoms at the distance of a bond."""
    closest = view.distances.closest
    several = np.isfinite(closest)
    if not several.any():
        return
    middle = float(np.median(closest[several]))
    if middle > 1.6:
        row = int(np.flatnonzero(several)[np.argmin(np.abs(closest[several] - middle))])
        evidence = (
            f"no bonds: the closest atoms of a conformation are {middle:.3g} sums of covalent radii apart (median), "
            f"as {_closest_pair(view, row)}"
        )
        fix = "positions must be in Å; 1.9 says that they are in bohr (fine for atoms in a noble gas)"
        yield Finding("positions in Å", "suspect", None, evidence, fix, (row,))
