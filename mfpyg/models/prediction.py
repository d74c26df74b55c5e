"""Predictions of a potential."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Prediction:
    """Energies of a batch of molecules at one fidelity, and their derivatives.

    Attributes:
        energy: total energies in kcal/mol, (n_graphs,) float64.
        forces: −dE/dx in kcal/mol/Å, (n_atoms, 3), or ``None`` where not asked for.
        atomic_energies: their share of each atom in kcal/mol, (n_atoms,) float64.
        hierarchicality: the regulariser of HIP-NN, (n_graphs,).
        stress: (1/V) dE/dε in kcal/mol/Å³ at the strain ε = 0 of positions and cell, x → x (I + ε) with ε symmetric;
            (n_graphs, 3, 3), symmetric; ``None`` where not asked for. Positive where the crystal pulls itself
            together (tension), as in ASE.
    """

    energy: Tensor
    forces: Tensor | None
    atomic_energies: Tensor
    hierarchicality: Tensor
    stress: Tensor | None = None

    def detached(self) -> Prediction:
        """A copy without a graph of gradients."""
        return self._of_all(Tensor.detach)

    def without_last(self, n: int) -> Prediction:
        """A copy without the last n graphs, of one atom each."""
        return self._of_all(lambda value: value[: len(value) - n])

    def of_edges(self, edges: Tensor, n_edges: int) -> Prediction:
        """A copy with −dE/dr of these edges, (n,) int64, of so many, in ``forces``; the others' are zero."""
        assert self.forces is not None
        return dataclasses.replace(self, forces=self.forces.new_zeros(n_edges, 3).index_copy_(0, edges, self.forces))

    def _of_all(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return Prediction(**changed)
