"""Geometries for the speed benchmark: small organic molecules, and a periodic organic liquid.

The molecules have the number of atoms of ANI-1x (14 on average) and grow at random, each new atom at bonding distance
from one that is there. The liquid is acetone with ethylamine, three to one, ten atoms each, on a jittered lattice in
a cubic cell at 0.85 g/cm³: about 107 neighbours an atom within 6.5 Å.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.build import molecule
from scipy.spatial.transform import Rotation

DENSITY = 0.85
"""Of the liquid in g/cm³."""

BENZENE = 12
"""Atoms of benzene."""

_AVOGADRO = 0.602214  # g/mol for each g/cm³ · Å³


@dataclass
class Batch:
    """Atoms of several molecules one after another, or of one periodic cell; labels are random numbers.

    Attributes:
        z: atomic numbers, (n_atoms,) int64.
        pos: in Å, (n_atoms, 3) float32.
        batch: molecule of each atom, (n_atoms,) int64.
        energy, forces: labels in kcal/mol and kcal/mol/Å, (n_graphs,) float64 and (n_atoms, 3) float32.
        cell: rows are the lattice vectors in Å, (3, 3) float32; empty where nothing is periodic.
    """

    z: np.ndarray
    pos: np.ndarray
    batch: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    cell: np.ndarray


def organic_molecules(n: int, seed: int) -> Batch:
    """A batch of n random molecules of H, C, N and O."""
    random = np.random.default_rng(seed)
    sizes = np.clip(np.round(random.normal(14, 4.5, n)), 2, 35).astype(int)
    z = random.choice([1, 6, 7, 8], size=sizes.sum(), p=[0.5, 0.3, 0.1, 0.1])
    pos = np.concatenate([_grown(size, random) for size in sizes])
    return _labelled(z, pos, np.repeat(np.arange(n), sizes), np.empty((0, 3)), random)


def _grown(n: int, random: np.random.Generator, shortest: float = 0.95) -> np.ndarray:
    """Positions of n atoms, (n, 3), none nearer than ``shortest`` to another."""
    pos = np.zeros((1, 3))
    while len(pos) < n:
        step = random.normal(size=3)
        new = pos[random.integers(len(pos))] + (1.0 + 0.6 * random.random()) * step / np.linalg.norm(step)
        if np.linalg.norm(pos - new, axis=1).min() > shortest:
            pos = np.concatenate([pos, new[None]])
    return pos


def benzene() -> Batch:
    """Benzene alone."""
    atoms, random = molecule("C6H6"), np.random.default_rng(0)
    return _labelled(atoms.numbers, atoms.positions, np.zeros(BENZENE, dtype=int), np.empty((0, 3)), random)


def organic_liquid(n_atoms: int, seed: int, snapshots: int) -> list[Batch]:
    """Moments of the same cell, between which every atom moves by some hundredths of an Å."""
    random = np.random.default_rng(seed)
    n = n_atoms // 10
    kinds = [molecule("CH3CH2NH2" if i % 4 == 3 else "CH3COCH3") for i in range(n)]
    length = (sum(kind.get_masses().sum() for kind in kinds) / (DENSITY * _AVOGADRO)) ** (1 / 3)
    centres = _sites(n, length, random)
    placed: list[np.ndarray] = []
    for number, kind in enumerate(kinds):
        distance = _image(centres[:number] - centres[number], length)
        near = [placed[i] for i in np.flatnonzero(np.square(distance).sum(axis=1) < 81.0)]
        placed.append(centres[number] + _turned(kind.positions, centres[number], near, length, random))
    z, pos = np.concatenate([kind.numbers for kind in kinds]), np.concatenate(placed)
    owner, cell = np.zeros(len(z), int), length * np.eye(3)
    return [_labelled(z, pos + random.normal(0, 0.03, pos.shape), owner, cell, random) for _ in range(snapshots)]


def _sites(n: int, length: float, random: np.random.Generator) -> np.ndarray:
    """n jittered points of a cubic lattice, (n, 3), in a random order."""
    per_side = int(np.ceil(n ** (1 / 3) - 1e-9))
    lattice = np.stack(np.meshgrid(*[np.arange(per_side)] * 3), axis=-1).reshape(-1, 3) * length / per_side
    return lattice[random.permutation(len(lattice))[:n]] + random.normal(0, 0.2, (n, 3))


def _turned(
    pos: np.ndarray, centre: np.ndarray, near: list[np.ndarray], length: float, random: np.random.Generator
) -> np.ndarray:
    """A molecule about the origin, turned at random, the farthest of thirty times from those near its centre."""
    pos = pos - pos.mean(axis=0)
    turned = [rotation.apply(pos) for rotation in Rotation.random(30, rng=random)]
    if not near:
        return turned[0]
    others = np.concatenate(near) - centre
    closest = [np.square(_image(t[:, None] - others, length)).sum(axis=-1).min() for t in turned]
    return turned[int(np.argmax(closest))]


def _image(difference: np.ndarray, length: float) -> np.ndarray:
    return difference - length * np.round(difference / length)


def _labelled(
    z: np.ndarray, pos: np.ndarray, batch: np.ndarray, cell: np.ndarray, random: np.random.Generator
) -> Batch:
    energy = random.normal(0, 10, batch.max() + 1)
    forces = random.normal(0, 10, pos.shape).astype(np.float32)
    return Batch(z.astype(np.int64), pos.astype(np.float32), batch, energy, forces, cell.astype(np.float32))
