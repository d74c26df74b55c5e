"""Δ-learning: a potential of a cheap level, and a second one of what an expensive level adds to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError
from mfpyg.models.interface import Potential
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.models.prediction import Prediction


def difference_name(target: str, base: str) -> str:
    """Name of the difference of two levels: ``"cc-dz"`` for E_cc − E_dz."""
    return f"{target}-{base}"


class DeltaPotential(Potential):
    """E_target = E_base + ΔE, and the same of forces and stresses, each term from a network of its own.

    (Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015).)

    Args:
        base: potential of the lower levels.
        difference: potential of one fidelity, ΔE = E_target − E_base.
        base_level: the level of ``base`` that the difference is added to.
        target: what the sum is called.

    Raises:
        MFPyGError: if ``base`` lacks the level, has one that is called like the target, or the two potentials know
            different elements.

    Attributes:
        fidelities: those of ``base``, and then the target.
    """

    def __init__(
        self, base: MultiFidelityPotential, difference: MultiFidelityPotential, base_level: str, target: str
    ) -> None:
        super().__init__()
        base.check_fidelity(base_level)
        if target in base.fidelities:
            raise MFPyGError(f"the base has a fidelity '{target}' already; the sum needs a name of its own")
        if len(difference.fidelities) != 1 or difference.species != base.species:
            raise MFPyGError(
                f"the difference has fidelities {', '.join(difference.fidelities)} and elements {difference.species}, "
                f"expected one fidelity and the base's elements {base.species}"
            )
        self.base, self.difference = base, difference
        self.base_level, self.target = base_level, target
        self.fidelities = (*base.fidelities, target)

    @property
    def cutoff(self) -> float:
        return max(self.base.cutoff, self.difference.cutoff)

    @property
    def species(self) -> tuple[int, ...]:
        return self.base.species

    @property
    def engine(self) -> str:  # type: ignore[override]
        """Of the base."""
        return self.base.engine

    @property
    def compiled(self) -> bool:  # type: ignore[override]
        """True if both networks go through ``torch.compile``."""
        return self.base.compiled and self.difference.compiled

    @compiled.setter
    def compiled(self, value: bool) -> None:
        self.base.compiled = self.difference.compiled = value

    def species_number(self, z: Tensor) -> Tensor:
        return self.base.species_number(z)

    def reference(self, fidelity: str) -> Tensor:
        self.check_fidelity(fidelity)
        if fidelity != self.target:
            return self.base.reference(fidelity)
        return self.base.reference(self.base_level) + self.difference.reference(self.difference.fidelities[0])

    def predict(self, data: Data, wanted: Mapping[str, bool], stress: bool = False) -> dict[str, Prediction]:
        """See :meth:`MultiFidelityPotential.predict`; the target takes a pass through both networks."""
        for name in wanted:
            self.check_fidelity(name)
        self.warn_untrained(data.z, wanted)
        below = {name: forces for name, forces in wanted.items() if name != self.target}
        if self.target in wanted:
            below[self.base_level] = below.get(self.base_level, False) or wanted[self.target]
        low = self.base.predict(data, below, stress)
        result = {}
        for name, forces in wanted.items():
            if name == self.target:
                (change,) = self.difference.predict(data, {self.difference.fidelities[0]: forces}, stress).values()
                result[name] = _total(low[self.base_level], change)
            else:  # its forces may have been needed for the target's alone
                result[name] = low[name] if forces else dataclasses.replace(low[name], forces=None)
        return result

    def predict_edges(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor, fidelity: str) -> Prediction:
        self.check_fidelity(fidelity)
        self.warn_untrained(z, (fidelity,))
        if fidelity != self.target:
            return self.base.predict_edges(z, edge_index, edge_vec, fidelity)
        low = self.base.predict_edges(z, edge_index, edge_vec, self.base_level)
        return _total(low, self.difference.predict_edges(z, edge_index, edge_vec, self.difference.fidelities[0]))


def _total(one: Prediction, two: Prediction) -> Prediction:
    """The sum of two predictions; forces where the second has them."""

    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else a + b

    return Prediction(
        one.energy + two.energy,
        both(one.forces, two.forces),
        one.atomic_energies + two.atomic_energies,
        one.hierarchicality + two.hierarchicality,
        both(one.stress, two.stress),
    )


def with_difference(values: Tensor, mask: Tensor, target: int, base: int, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and their mask with one more column, target − base, where both have one.

    Nothing is computed of a label that is missing.

    Args:
        values: labels, (n_rows, T) or (n_rows, T, 3).
        mask: where there are some, (n_graphs, T) bool.
        target, base: numbers of the levels among the T.
        owner: which graph each row is of, (n_rows,) int64.

    Returns:
        (n_rows, T + 1, …) in the type of ``values``, NaN where there is no difference; and (n_graphs, T + 1) bool.
    """
    both = mask[:, target] & mask[:, base]
    rows = both[owner]
    difference = torch.full_like(values[:, :1], float("nan"))
    difference[rows, 0] = values[rows, target] - values[rows, base]
    return torch.cat([values, difference], dim=1), torch.cat([mask, both[:, None]], dim=1)
