"""Δ-learning: a potential of a cheap level, and another of the difference to an expensive level."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError
from mfpyg.models.interface import Potential
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.models.prediction import Prediction
from mfpyg.models.prepare import PreparedData
from mfpyg.properties import in_order, listed


def difference_name(target: str, base: str) -> str:
    """Name of the difference of two levels: ``"cc-dz"`` for E_cc − E_dz."""
    return f"{target}-{base}"


@dataclasses.dataclass
class PreparedSum:
    """Graphs prepared for both networks, see :meth:`MultiFidelityPotential.prepare`."""

    base: PreparedData
    difference: PreparedData

    def tensors(self) -> list[Tensor]:
        """All tensors that a prediction uses."""
        return self.base.tensors() + self.difference.tensors()

    def moved(self, data: Data) -> PreparedSum | None:
        """See :meth:`mfpyg.models.prepare.PreparedData.moved`."""
        base, difference = self.base.moved(data), self.difference.moved(data)
        return None if base is None or difference is None else PreparedSum(base, difference)


class DeltaPotential(Potential):
    """Sum of two networks, E_target = E_base + ΔE, and likewise for all other properties.

    (Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015).)

    Args:
        base: potential of the lower levels.
        difference: potential with one fidelity, ΔE = E_target − E_base. Its charges add up to 0, as those of the base
            add up to the total charge.
        base_level: fidelity of ``base`` that the difference is added to.
        target: name of the sum.

    Raises:
        MFPyGError: if ``base`` lacks ``base_level`` or has a fidelity named ``target``, ``difference`` has several
            fidelities, the potentials have different elements, or only the difference has a head.

    Attributes:
        fidelities: those of ``base``, followed by the target.
        std_scale: factors of the standard deviations of energies and forces of the target, (2,).
    """

    std_scale: Tensor

    def __init__(
        self, base: MultiFidelityPotential, difference: MultiFidelityPotential, base_level: str, target: str
    ) -> None:
        super().__init__()
        base.check_fidelity(base_level)
        if target in base.fidelities:
            raise MFPyGError(f"the base has a fidelity '{target}' already; choose another name for the sum")
        if len(difference.fidelities) != 1 or difference.species != base.species:
            raise MFPyGError(
                f"the difference has fidelities {', '.join(difference.fidelities)} and elements {difference.species}, "
                f"expected one fidelity and the base's elements {base.species}"
            )
        (change,) = difference.fidelities
        if missing := set(difference.letters(change)) - set(base.letters(base_level)):
            raise MFPyGError(
                f"the difference has {listed(in_order(missing))}, but '{base_level}' of the base has none; expected "
                "them in both"
            )
        self.base, self.difference = base, difference
        self.base_level, self.target = base_level, target
        self.fidelities = (*base.fidelities, target)
        scale = next(base.parameters()).new_ones(2)
        self.register_buffer("std_scale", scale, persistent=False)  # not a weight; see mfpyg.checkpoint

    @property
    def cutoff(self) -> float:
        return max(self.base.cutoff, self.difference.cutoff)

    @property
    def vanishes_beyond_cutoff(self) -> bool:
        return self.base.vanishes_beyond_cutoff and self.difference.vanishes_beyond_cutoff

    @property
    def species(self) -> tuple[int, ...]:
        return self.base.species

    @property
    def further(self) -> dict[str, str]:  # type: ignore[override]
        """Properties with heads of their own: those of the base, and for the target those of the difference."""
        of_target = "".join(self.difference.further.values())
        return {**self.base.further, **({self.target: of_target} if of_target else {})}

    @property
    def engine(self) -> str:  # type: ignore[override]
        """Neighbour-list engine of the base."""
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

    def shift_references(self, fidelity: str, shifts: Tensor) -> None:
        (change,) = self.difference.fidelities
        if fidelity != self.target:
            self.base.shift_references(fidelity, shifts)
        if fidelity in (self.target, self.base_level):  # the target is the sum, which stays if the base is shifted
            self.difference.shift_references(change, shifts if fidelity == self.target else -shifts)

    def has_std(self, fidelity: str) -> bool:
        if fidelity != self.target:
            return self.base.has_std(fidelity)
        return self.base.has_std(self.base_level) and self.difference.has_std(self.difference.fidelities[0])

    def prepare(self, data: Data, wanted: Mapping[str, str]) -> PreparedSum:
        """See :meth:`MultiFidelityPotential.prepare`."""
        self.check_wanted(wanted)
        self.check_preparable(wanted)
        self.warn_untrained(data.z, wanted)
        below, above = self._divided(wanted)
        return PreparedSum(self.base.prepare(data, below), self.difference.prepare(without_charge(data), above))

    def predict(self, data: Data | PreparedSum, wanted: Mapping[str, str], std: bool = False) -> dict[str, Prediction]:
        """See :meth:`MultiFidelityPotential.predict`; the target needs both networks.

        Its variances are the sums of theirs, times the squares of ``std_scale``.
        """
        self.check_wanted(wanted)
        if std:
            self.check_std(wanted)
        if isinstance(data, PreparedSum):
            of_base, of_difference = data.base, data.difference
        else:
            self.warn_untrained(data.z, wanted)
            of_base, of_difference = data, without_charge(data)
        below, above = self._divided(wanted)
        low = self.base.predict(of_base, below, std)
        result = {}
        for name, letters in wanted.items():
            if name == self.target:
                (change,) = self.difference.predict(of_difference, above, std).values()
                result[name] = _total(low[self.base_level], change)
                if std:
                    self._scale(result[name])
            else:  # some may have been computed for the target only
                result[name] = low[name].only(letters)
        return result if isinstance(data, PreparedSum) else self.with_baselines(result, data)

    def _divided(self, wanted: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Properties to predict by the base and by the difference."""
        below = {name: letters for name, letters in wanted.items() if name != self.target}
        if self.target not in wanted:
            return below, {}
        below[self.base_level] = in_order(below.get(self.base_level, "") + wanted[self.target])
        return below, {self.difference.fidelities[0]: wanted[self.target]}

    def _scale(self, prediction: Prediction) -> None:
        assert prediction.energy_std is not None
        assert prediction.forces_std is not None
        prediction.energy_std *= self.std_scale[0]
        prediction.forces_std *= self.std_scale[1]

    def predict_edges(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor, fidelity: str) -> Prediction:
        self.check_edges_suffice(fidelity)
        self.warn_untrained(z, (fidelity,))
        if fidelity != self.target:
            return self.base.predict_edges(z, edge_index, edge_vec, fidelity)
        low = self.base.predict_edges(z, edge_index, edge_vec, self.base_level)
        return _total(low, self.difference.predict_edges(z, edge_index, edge_vec, self.difference.fidelities[0]))


def _total(one: Prediction, two: Prediction) -> Prediction:
    """Sum of two predictions; optional properties if both have them."""

    def both(name: str) -> Tensor | None:
        a, b = getattr(one, name), getattr(two, name)
        return None if a is None or b is None else a + b

    values: dict[str, Any] = {field.name: both(field.name) for field in dataclasses.fields(Prediction)}
    for name in ("energy_std", "forces_std"):
        a, b = getattr(one, name), getattr(two, name)
        values[name] = None if a is None or b is None else torch.hypot(a, b)
    return Prediction(**values)


def without_charge(data: Data) -> Data:
    """Shallow copy of graphs without their total charges, as the difference of two levels is neutral."""
    result = copy.copy(data)
    result.charge = None
    return result


def with_difference(values: Tensor, mask: Tensor, target: int, base: int, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Append a column target − base to labels and their mask, for graphs with both labels.

    What is computed of missing labels is replaced by NaN.

    Args:
        values: labels, (n_rows, T, …), such as (n_rows, T, 3) of forces.
        mask: existing labels, (n_graphs, T) bool.
        target, base: columns of the two levels.
        owner: graph of each row, (n_rows,) int64.

    Returns:
        Labels (n_rows, T + 1, …) in the dtype of ``values``, NaN without a difference; and the mask (n_graphs, T + 1).
    """
    both = mask[:, target] & mask[:, base]
    rows = both[owner].view(-1, *[1] * (values.dim() - 2))
    difference = torch.where(rows, values[:, target] - values[:, base], torch.nan)
    return torch.cat([values, difference[:, None]], dim=1), torch.cat([mask, both[:, None]], dim=1)
