"""Atoms closer than bonds allow, positions in another unit than Å, and limits of checks of periodic conformations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from mfpyg.doctor.distances import closest_images
from mfpyg.doctor.view import Finding, View

NAME = "atoms too close"

IMPOSSIBLE, SUSPICIOUS = 0.5, 0.62
"""Thresholds of a distance over the sum of covalent radii (Cordero et al., Dalton Trans. 2008, 2832).

The shortest bonds at rest have 0.60 (Cr₂), 0.67 (uranyl), 0.77 (N₂), 0.79 (CO, C₂H₂), 1.19 (H₂); molecular
dynamics at 1,200 K and the normal-mode samples of ANI-1x go down to 0.72 and 0.75.
"""


def check_close(view: View) -> Iterator[Finding]:
    """Atoms closer than bonds allow."""
    closest = view.distances.closest
    for severity, low, high in (("certain", -1.0, IMPOSSIBLE), ("suspect", IMPOSSIBLE, SUSPICIOUS)):
        rows = np.flatnonzero((closest >= low) & (closest < high))
        if len(rows):
            rows = rows[np.argsort(closest[rows])]
            evidence = (
                f"{len(rows)} conformations have atoms closer than {high:g} times the sum of their covalent radii; "
                f"the closest are {_closest_pair(view, int(rows[0]))}"
            )
            fix = "leave out these conformations; if there are many, check for positions in bohr, nm or fractions"
            yield Finding(NAME, severity, None, evidence, fix, tuple(rows))


def _closest_pair(view: View, row: int) -> str:
    atoms = slice(view.starts[row], view.starts[row + 1])
    pos, z = view.pos[atoms].astype(np.float64), view.z[atoms]
    if view.lattice is not None and view.periodic[row]:
        _, apart, a, b = closest_images(pos, z, view.lattice[row].astype(np.float64))
        images = f"(atoms {a} and {b}, or images)" if a != b else f"(images of atom {a})"
        return f"{chemical_symbols[z[a]]} and {chemical_symbols[z[b]]} {images} of {view.where(row)} at {apart:.3g} Å"
    i, j = np.triu_indices(len(z), 1)
    distance = np.linalg.norm(pos[i] - pos[j], axis=1)
    k = int(np.argmin(distance / (covalent_radii[z[i]] + covalent_radii[z[j]])))
    pair = f"{chemical_symbols[z[i[k]]]} and {chemical_symbols[z[j[k]]]} (atoms {i[k]} and {j[k]})"
    return f"{pair} of {view.where(row)} at {distance[k]:.3g} Å"


def check_far(view: View) -> Iterator[Finding]:
    """Positions read in too large a unit, with hardly any atoms at bonding distance."""
    closest = view.distances.closest
    several = np.isfinite(closest)
    if not several.any():
        return
    middle = float(np.median(closest[several]))
    if middle > 1.6:
        row = int(np.flatnonzero(several)[np.argmin(np.abs(closest[several] - middle))])
        evidence = (
            f"no bonds: the closest atoms of a conformation are {middle:.3g} sums of covalent radii apart (median), "
            f"e.g. {_closest_pair(view, row)}"
        )
        fix = "positions must be in Å; a ratio of 1.9 means bohr (fine for atoms in a noble gas)"
        yield Finding("positions in Å", "suspect", None, evidence, fix, (row,))


def check_periodic(view: View) -> Iterator[Finding]:
    """Limits of the other checks for periodic conformations."""
    rows = np.flatnonzero(view.periodic)
    if len(rows):
        evidence = (
            f"{len(rows)} of {len(view)} conformations are periodic, e.g. {view.where(int(rows[0]))}: torques "
            f"are not checked, energies and forces are compared within one cell only, and duplicates are found only if "
            f"their atoms are in the same images"
        )
        fix = "nothing to fix; a split by molecule uses their names or formulas"
        yield Finding("periodic conformations", "note", None, evidence, fix, tuple(rows))
