"""Laws with their errors, and the potential and molecules that they are checked on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.models import MultiFidelityPotential
from mfpyg.models.prediction import Prediction
from mfpyg.properties import PROPERTIES, Property


class PotentialError(AssertionError):
    """A potential breaks a law of physics or of this package; the message lists the broken laws and their errors."""


@dataclass
class Law:
    """A checked law.

    Attributes:
        name: name of the law.
        error: deviation relative to the size of the compared values; 0 if it holds to the last bit.
        allowed: largest error that passes.
    """

    name: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'}  {self.name}: {self.error:.1e} (allowed {self.allowed:.0e})"


class Subject:
    """A fidelity of a potential, and random molecules and a crystal for the checks.

    Attributes:
        molecule: cation of 7 atoms.
        crystal: periodic graph of 2 atoms in a cell smaller than the cutoff, so that they interact with their own
            images.
    """

    def __init__(self, potential: MultiFidelityPotential, fidelity: str) -> None:
        self.potential, self.cutoff, self.fidelity = potential, potential.cutoff, fidelity
        self.molecule, self.crystal = self.cluster(7, charge=1), self.cluster(2)
        cell = 0.8 * self.cutoff * torch.eye(3, dtype=torch.float64) + 0.1 * torch.rand(3, 3, dtype=torch.float64)
        self.crystal.cell, self.crystal.pbc = cell[None], torch.ones(1, 3, dtype=torch.bool)

    def cluster(self, n_atoms: int, charge: int = 0) -> Data:
        """Random molecule with bonds of 1 to 1.6 Å and all distances above 0.95 Å."""
        pos = torch.zeros(1, 3, dtype=torch.float64)
        while len(pos) < n_atoms:
            step = torch.randn(3, dtype=torch.float64)
            new = pos[torch.randint(len(pos), ())] + (1 + 0.6 * torch.rand(())) * step / step.norm()
            if (pos - new).norm(dim=1).min() > 0.95:
                pos = torch.cat([pos, new[None]])
        species = torch.tensor(self.potential.species)
        z = species[torch.randint(len(species), (n_atoms,))]
        return Data(z=z, pos=pos, charge=torch.tensor([charge]))

    def predict(self, data: Data, letters: str = "EF") -> Prediction:
        """Properties of the fidelity."""
        return self.potential.predict(data, {self.fidelity: letters})[self.fidelity]

    def energy_and_forces(self, data: Data) -> tuple[Tensor, Tensor]:
        """Energies (n_graphs,) and forces (n_atoms, 3)."""
        prediction = self.predict(data)
        assert prediction.forces is not None
        return prediction.energy, prediction.forces

    def properties(self, data: Data) -> dict[Property, Tensor]:
        """All properties that the fidelity predicts for molecules, or, if the graphs have cells, for crystals.

        Hessians are not among them, see :func:`mfpyg.testing.smoothness.hessians`.
        """
        other = "crystals" if getattr(data, "cell", None) is None else "molecules"
        having = [PROPERTIES[letter] for letter in self.potential.letters(self.fidelity)]
        asked = [p for p in having if p.per != "pair" and p.systems != other]
        prediction = self.predict(data, "".join(p.letter for p in asked))
        return {p: getattr(prediction, p.name) for p in asked}


def changed(data: Data, **values: Tensor) -> Data:
    """Copy of a graph with other values."""
    return Data(**{**data.to_dict(), **values})


def copies(data: Data, **values: Tensor) -> Batch:
    """Batch of copies of a graph, each with the next of the values, (n_copies, ...) each."""
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return Batch.from_data_list([changed(data, **row) for row in rows])


def error_of(actual: Tensor, expected: Tensor, scale: Tensor | None = None, least_scale: float = 1.0) -> float:
    """Largest difference relative to the largest value of ``scale``, by default ``expected``, or to ``least_scale``."""
    size = float((expected if scale is None else scale).abs().max()) if expected.numel() else 0.0
    difference = (actual - expected).abs()
    if not torch.isfinite(difference).all():
        return float("nan")
    return float(difference.max()) / max(size, least_scale) if difference.numel() else 0.0


def slope_of(function: Callable[[float], Tensor], step: float) -> Tensor:
    """Derivative at zero by central differences of fourth order."""
    one, two = (function(k * step) - function(-k * step) for k in (1, 2))
    return (8 * one - two) / (12 * step)


def slopes_of(function: Callable[[Tensor], Tensor], directions: Tensor, step: float) -> Tensor:
    """Derivatives at zero along k directions, (k, ...), as :func:`slope_of`.

    Args:
        function: displacements (4 k, *shape) -> values (4 k, ...), all in one batch.
        directions: (k, *shape).
        step: length of the displacements, in units of the directions.
    """
    multiples = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=directions.dtype)
    weights = torch.tensor([1.0, -8.0, 8.0, -1.0], dtype=directions.dtype) / (12 * step)
    values = function(torch.tensordot(step * multiples, directions[None], dims=0).flatten(0, 2))
    return torch.tensordot(weights, values.view(4, len(directions), *values.shape[1:]), dims=1)


def least(error: Callable[[float], float], allowed: float, *steps: float) -> float:
    """First error that is allowed among those of several steps, else the least; NaN if any is NaN."""
    errors: list[float] = []
    for step in steps:
        errors.append(error(step))
        if not errors[-1] > allowed:  # or NaN
            return errors[-1]
    return min(errors)
