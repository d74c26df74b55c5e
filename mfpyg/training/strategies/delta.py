"""Δ-learning: a model of the lower levels, then one of E_target − E_base on the conformations that have both labels.

The validation of the second stage is that of the sum against the target's labels, by which the best epoch is chosen.
(Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015).)
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.datasets.references import complete_difference, fit, labelled_energies
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.models.delta import difference_name, with_difference
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.prepare import reference_notes
from mfpyg.training.strategies.module import StagedModule
from mfpyg.training.strategies.plan import StagePlan
from mfpyg.training.strategies.stage import Materials, Stage


class BaseStage(Stage):
    """Trains the base model on all lower levels at once."""

    def __init__(self, plan: StagePlan, materials: Materials) -> None:
        super().__init__(plan, materials)
        self.references = materials.references([f.name for f in plan.fidelities])

    def begin(self, potential: Potential) -> None:
        for name, reference in self.references.items():
            potential.reference(name).copy_(reference)


class DifferenceStage(Stage):
    """Trains a second model on the difference of two levels, and leaves the base model as it is.

    Args:
        plan, materials: of the stage.
        base_reference: reference energies of the level that the difference is added to, (n_species,) float64.
    """

    def __init__(self, plan: StagePlan, materials: Materials, base_reference: Tensor) -> None:
        super().__init__(plan, materials)
        (target,), base = plan.fidelities, materials.plan.base
        assert base is not None
        self.target, self.base, self.name = target.name, base.name, difference_name(target.name, base.name)
        self.columns = materials.column(self.target), materials.column(self.base)
        difference = Fidelity(self.name, target.energy, target.forces)
        weights = {(self.name, prop): weight for (_, prop), weight in self.loss.weights.items()}
        n_levels = len(materials.dataset.fidelities)  # the difference comes behind them
        self._train_loss = MultiFidelityLoss(
            (difference,), {self.name: n_levels}, weights, materials.settings.hierarchicality
        )
        self.train = materials.sampling(paired_rows(materials, target, base))
        self.reference = self._fitted(base_reference)

    @property
    def train_loss(self) -> MultiFidelityLoss:
        return self._train_loss

    def _fitted(self, base_reference: Tensor) -> Tensor:
        """Reference energies of the difference, where both energies are known."""
        data, rows = self.materials.dataset._data, self.materials.splits["train"]
        target, base = self.columns
        mask = data.energy_mask.numpy()[rows]
        rows = rows[mask[:, target] & mask[:, base]]
        dataset, elements = self.materials.dataset, self.materials.elements
        of_target, of_base = (labelled_energies(dataset, name, rows) for name in (self.target, self.base))
        known = dict(zip(elements.species, base_reference.tolist(), strict=True))
        given = {z: energy - known[z] for z, energy in self.materials.given.get(self.target, {}).items() if z in known}
        fitted = fit(elements.counts[rows], of_target - of_base, elements.species, given, dataset.isolated_atoms[rows])
        fitted = complete_difference(fitted, self.base, elements.species)
        self.materials.notes += reference_notes({self.target: fitted})
        return torch.from_numpy(fitted.energies)

    def enter(self, potential: Potential) -> Potential:
        assert isinstance(potential, MultiFidelityPotential)
        with torch.random.fork_rng(devices=[]):  # the same weights whatever was drawn before, as in a resumed run
            torch.manual_seed(self.materials.settings.seed + 1)
            difference = self.materials.potential([self.name])
        return DeltaPotential(potential, difference, self.base, self.target)

    def begin(self, potential: Potential) -> None:
        assert isinstance(potential, DeltaPotential)
        potential.difference.reference(self.name).copy_(self.reference)

    def trained(self, potential: Potential) -> list[nn.Parameter]:
        assert isinstance(potential, DeltaPotential)
        return list(potential.difference.parameters())

    def compare(self, module: StagedModule, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        assert isinstance(module.potential, DeltaPotential)
        target, base = self.columns
        batch = copy.copy(batch)
        graphs = torch.arange(batch.num_graphs, device=batch.batch.device)
        batch.energy, energy_mask = with_difference(batch.energy, batch.energy_mask, target, base, graphs)
        batch.forces, forces_mask = with_difference(batch.forces, batch.forces_mask, target, base, batch.batch)
        batch.energy_mask, batch.forces_mask = energy_mask, forces_mask
        return module.compare(module.potential.difference, self.train_loss, batch)


def paired_rows(materials: Materials, target: Fidelity, base: Fidelity) -> np.ndarray:
    """Conformations of the training split that carry a label of both levels that the target asks for, (n,) int64.

    Raises:
        MFPyGError: if there are none, of energies or of forces.
    """
    rows, data = materials.splits["train"], materials.dataset._data
    having = np.zeros(len(rows), bool)
    for prop, what in (("energy", "energies"), ("forces", "forces")):
        if not getattr(target, prop):
            continue
        mask = data[f"{prop}_mask"].numpy()[rows]
        both = mask[:, materials.column(target.name)] & mask[:, materials.column(base.name)]
        if not both.any():
            raise MFPyGError(
                f"strategy delta: no conformation of the training split has {what} of both '{target.name}' and "
                f"'{base.name}'; choose another delta.base, or another strategy"
            )
        having |= both
    return rows[having]


def stages(materials: Materials) -> tuple[Potential, list[Stage]]:
    """The potential of the base, and its stage and that of the difference.

    Raises:
        MFPyGError: if no conformation has both labels.
    """
    before, after = materials.plan.stages
    potential = materials.potential([f.name for f in before.fidelities])
    first = BaseStage(before, materials)
    assert materials.plan.base is not None
    return potential, [first, DifferenceStage(after, materials, first.references[materials.plan.base.name])]
