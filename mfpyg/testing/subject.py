"""Laws with their errors, and the potential and molecules that they are checked on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.models import MultiFidelityPotential


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
    """A potential and random molecules for the checks."""

    def __init__(self, potential: MultiFidelityPotential, fidelity: str) -> None:
        self.potential, self.cutoff, self.fidelity = potential, potential.cutoff, fidelity
        self.molecule = self.cluster(7)

    def cluster(self, n_atoms: int) -> Data:
        """Random molecule with bonds of 1 to 1.6 Å and all distances above 0.95 Å."""
        pos = torch.zeros(1, 3, dtype=torch.float64)
        while len(pos) < n_atoms:
            step = torch.randn(3, dtype=torch.float64)
            new = pos[torch.randint(len(pos), ())] + (1 + 0.6 * torch.rand(())) * step / step.norm()
            if (pos - new).norm(dim=1).min() > 0.95:
                pos = torch.cat([pos, new[None]])
        return self.of(pos)

    def of(self, pos: Tensor) -> Data:
        """Molecule of random elements at the given positions."""
        species = torch.tensor(self.potential.species)
        return Data(z=species[torch.randint(len(species), (len(pos),))], pos=pos)

    def energy(self, data: Data) -> Tensor:
        """Energies (n_graphs,) of the fidelity."""
        return self.predict(data)[0]

    def predict(self, data: Data) -> tuple[Tensor, Tensor]:
        """Energies (n_graphs,) and forces (n_atoms, 3) of the fidelity."""
        prediction = self.potential.predict(data, {self.fidelity: "EF"})[self.fidelity]
        assert prediction.forces is not None
        return prediction.energy, prediction.forces

    def moved(self, pos: Tensor) -> Data:
        return Data(z=self.molecule.z, pos=pos)


def error_of(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference relative to the largest value of ``scale``, by default ``expected``, but at least 1."""
    size = float((expected if scale is None else scale).abs().max()) if expected.numel() else 0.0
    difference = (actual - expected).abs()
    if not torch.isfinite(difference).all():
        return float("nan")
    return float(difference.max()) / max(size, 1.0) if difference.numel() else 0.0


def slope_of(function: Callable[[float], Tensor], step: float) -> Tensor:
    """Derivative at zero by central differences of fourth order."""
    one, two = (function(k * step) - function(-k * step) for k in (1, 2))
    return (8 * one - two) / (12 * step)


def least(error: Callable[[float], float], *steps: float) -> float:
    """Least error of several steps; NaN if any is NaN."""
    errors = [error(step) for step in steps]
    return max(errors) if any(e != e for e in errors) else min(errors)
