"""Calculators with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


class Springs(Calculator):
    """Springs ½ k (r − r₀)² between all atoms, with the lengths of a reference."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (as in ASE)

    def __init__(self, reference: Atoms, stiffness: float = 30.0) -> None:
        super().__init__()
        self.pairs = np.triu_indices(len(reference), 1)
        self.lengths = np.linalg.norm(reference.positions[self.pairs[0]] - reference.positions[self.pairs[1]], axis=1)
        self.stiffness = stiffness

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        i, j = self.pairs
        vectors = atoms.positions[i] - atoms.positions[j]
        lengths = np.linalg.norm(vectors, axis=1)
        forces = np.zeros_like(atoms.positions)
        each = -self.stiffness * (lengths - self.lengths)[:, None] * vectors / lengths[:, None]
        np.add.at(forces, i, each)
        np.add.at(forces, j, -each)
        self.results = {"energy": float(self.stiffness / 2 * ((lengths - self.lengths) ** 2).sum()), "forces": forces}


class Quadratic(Calculator):
    """½ (x − x₀)ᵀ H (x − x₀): harmonic however far it is displaced."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (as in ASE)

    def __init__(self, reference: Atoms, hessian: np.ndarray) -> None:
        super().__init__()
        self.reference, self.hessian = reference.positions.copy(), hessian

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        x = (atoms.positions - self.reference).ravel()
        forces = -self.hessian @ x
        self.results = {"energy": float(-x @ forces / 2), "forces": forces.reshape(-1, 3)}
