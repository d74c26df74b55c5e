"""Near partners of geometries, for the pairs of :mod:`mfpyg.evaluation.pairs`."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from mfpyg.rigid import internal_motions


def partner(atoms: Atoms, step: float, rng: np.random.Generator) -> np.ndarray:
    """Positions near those of the atoms, displaced in a random direction without translation and rotation.

    Args:
        atoms: a molecule of at least two atoms, or a periodic system.
        step: RMS displacement of the atoms in Å.
        rng: source of random numbers.

    Returns:
        Positions in Å, (n, 3).
    """
    motions = internal_motions(atoms.positions, np.ones(len(atoms)), rotations=not atoms.pbc.any())  # (3n, k)
    direction = motions @ rng.standard_normal(motions.shape[1])
    direction *= step * np.sqrt(len(atoms)) / np.linalg.norm(direction)
    return atoms.positions + direction.reshape(-1, 3)
