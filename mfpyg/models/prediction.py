"""Predictions of a potential."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mfpyg.properties import ENERGY, PROPERTIES, Property


@dataclass
class Products:
    """Products of Hessians with vectors.

    Attributes:
        atoms: numbers of the atoms of the graphs that have them, (N,) int64.
        directions: k vectors v, (k, N, 3).
        values: H v in kcal/mol/Å² times the unit of v, (k, N, 3).
    """

    atoms: Tensor
    directions: Tensor
    values: Tensor


def predicted_properties(prediction: Prediction) -> list[Property]:
    """Properties that a prediction has, in the order of :data:`mfpyg.properties.PROPERTIES`."""
    return [p for p in PROPERTIES.values() if getattr(prediction, p.name, None) is not None]


@dataclass
class Prediction:
    """Energies of a batch of molecules at one fidelity, their derivatives, atomic charges and dipole moments.

    Attributes:
        energy: total energies in kcal/mol, (n_graphs,) float64.
        forces: −dE/dx in kcal/mol/Å, (n_atoms, 3); ``None`` if not requested.
        atomic_energies: contribution of each atom to the energy in kcal/mol, (n_atoms,) float64; ``None`` for standard
            deviations in the place of predictions.
        hierarchicality: regularization term of HIP-NN, (n_graphs,).
        stress: (1/V) dE/dε in kcal/mol/Å³ at the strain ε = 0 of positions and cell, x → x (I + ε) with ε symmetric;
            (n_graphs, 3, 3), symmetric; ``None`` if not requested. Positive under tension, as in ASE. NaN for graphs
            that are not periodic in three directions.
        dipole: Σ q (x − centre of mass) in e·Å, (n_graphs, 3); ``None`` if not requested. NaN for
            periodic graphs.
        charges: atomic charges in e, (n_atoms,), which add up to the total charge of the graph; ``None`` if not
            requested.
        hessian: d²E/dx_i dx_j in kcal/mol/Å², (Σ n², 3, 3): the pairs (i, j) of each graph row by row, one graph after
            the other; in training :class:`Products`; ``None`` if not requested.
        energy_std: standard deviations of the energies in kcal/mol, (n_graphs,), see :mod:`mfpyg.models.last_layer`;
            ``None`` if not requested.
        forces_std: standard deviations of the components of the forces in kcal/mol/Å, (n_atoms, 3); ``None`` if not
            requested.
    """

    energy: Tensor
    forces: Tensor | None
    atomic_energies: Tensor
    hierarchicality: Tensor
    stress: Tensor | None = None
    dipole: Tensor | None = None
    charges: Tensor | None = None
    hessian: Tensor | Products | None = None
    energy_std: Tensor | None = None
    forces_std: Tensor | None = None

    def detached(self) -> Prediction:
        """Copy with all tensors detached."""
        return self._of_all(Tensor.detach)

    def only(self, letters: str) -> Prediction:
        """Copy without the optional properties that are not among these letters."""
        left_out = [p.name for p in PROPERTIES.values() if p is not ENERGY and p.letter not in letters]
        changes: dict[str, Any] = {name: None for name in left_out if hasattr(self, name)}
        return dataclasses.replace(self, **changes)

    def without_last(self, n: int) -> Prediction:
        """Copy without the last n graphs, which must have one atom each."""
        return self._of_all(lambda value: value[: len(value) - n])

    def first(self, n_graphs: int, n_atoms: int) -> Prediction:
        """Copy of the first graphs and their atoms."""
        return self._parts(slice(n_graphs), slice(n_atoms))

    def without_first(self, n_graphs: int, n_atoms: int) -> Prediction:
        """Copy without the first graphs and their atoms."""
        return self._parts(slice(n_graphs, None), slice(n_atoms, None))

    def _parts(self, graphs: slice, atoms: slice) -> Prediction:
        of = {"graph": graphs, "atom": atoms}
        slices = {p.name: of[p.per] for p in predicted_properties(self)}
        slices.update(atomic_energies=atoms, hierarchicality=graphs)
        if self.energy_std is not None:
            slices.update(energy_std=graphs, forces_std=atoms)
        values: dict[str, Any] = {name: getattr(self, name)[part] for name, part in slices.items()}
        return dataclasses.replace(self, **values)

    def of_atoms(self, numbers: Tensor) -> Prediction:
        """Copy with the atoms ``numbers`` (n_atoms,) int64, in this order; without a Hessian."""
        names = ["atomic_energies", *(p.name for p in predicted_properties(self) if p.per == "atom")]
        values: dict[str, Any] = {name: getattr(self, name)[numbers] for name in names}
        return dataclasses.replace(self, **values)

    def of_edges(self, edges: Tensor, n_edges: int) -> Prediction:
        """Copy whose ``forces``, −dE/dr of ``edges`` (n,) int64, are extended by zeros to ``n_edges`` edges."""
        assert self.forces is not None
        return dataclasses.replace(self, forces=self.forces.new_zeros(n_edges, 3).index_copy_(0, edges, self.forces))

    def _of_all(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return Prediction(**changed)
