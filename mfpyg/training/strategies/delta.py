"""Δ-learning: a model of the lower levels, then one of E_target − E_base on the conformations that have both labels.

The second stage is validated by the errors of the sum against the target's labels, by which the best epoch is chosen.
(Ramakrishnan et al., J. Chem. Theory Comput. 11, 2087 (2015).)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.datasets.references import complete_difference, fit, labelled_energies
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.metrics import hessian_rows
from mfpyg.fidelity import Fidelity
from mfpyg.models import DeltaPotential, MultiFidelityPotential, Potential
from mfpyg.models.build import build_difference
from mfpyg.models.delta import difference_name, with_difference, without_charge
from mfpyg.properties import ENERGY, HESSIAN
from mfpyg.training.inputs import Inputs, reference_notes
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.stage import Stage, Step
from mfpyg.training.strategies.outline import StageOutline, outline_of


@dataclass(kw_only=True)
class BaseStage(Stage):
    """Trains the base model on all lower levels at once.

    Attributes:
        references: reference energies of each level, (n_species,) float64.
    """

    references: dict[str, Tensor]

    def start(self, potential: Potential) -> Potential:
        for name, reference in self.references.items():
            potential.reference(name).copy_(reference)
        return potential


@dataclass(kw_only=True)
class DifferenceStage(Stage):
    """Trains a second model on the difference of two levels, with the base model frozen.

    Attributes:
        inputs: inputs of the training.
        base: level that the difference is added to.
        difference_loss: loss of the difference, whose column follows the T levels of the data set.
        reference: reference energies of the difference, (n_species,) float64.
    """

    inputs: Inputs
    base: str
    difference_loss: MultiFidelityLoss
    reference: Tensor

    @property
    def target(self) -> str:
        """Name of the target level."""
        return self.fidelities[0].name

    @property
    def train_loss(self) -> MultiFidelityLoss:
        return self.difference_loss

    def start(self, potential: Potential) -> Potential:
        assert isinstance(potential, MultiFidelityPotential)
        name = difference_name(self.target, self.base)
        with torch.random.fork_rng():  # weights independent of earlier draws, for resumed runs
            torch.manual_seed(self.inputs.settings.seed + 1)
            settings, species = self.inputs.settings, self.inputs.elements.species
            difference = build_difference(settings, species, name, self.fidelities[0].labels)
        difference.reference(name).copy_(self.reference)
        return DeltaPotential(potential, difference, self.base, self.target)

    def trained(self, potential: Potential) -> list[nn.Parameter]:
        assert isinstance(potential, DeltaPotential)
        return list(potential.difference.parameters())

    def network(self, potential: Potential) -> MultiFidelityPotential:
        assert isinstance(potential, DeltaPotential)
        return potential.difference

    def with_labels(self, batch: Batch) -> Batch:
        target, base = self.inputs.column(self.target), self.inputs.column(self.base)
        batch = without_charge(batch)
        graphs = torch.arange(batch.num_graphs, device=batch.batch.device)
        for property in dict.fromkeys((ENERGY, *self.fidelities[0].properties)):  # all batches have energies
            values, mask = batch[property.name], batch[property.mask]
            if property.per == "pair":
                batch[property.name], batch[property.mask] = with_pair_difference(batch, target, base)
                continue
            owner = graphs if property.per == "graph" else batch.batch
            batch[property.name], batch[property.mask] = with_difference(values, mask, target, base, owner)
        return batch

    def compared(
        self, potential: Potential, batch: Batch, step: Step
    ) -> tuple[MultiFidelityPotential, MultiFidelityLoss, Batch]:
        return self.network(potential), self.difference_loss, batch


def with_pair_difference(batch: Batch, target: int, base: int) -> tuple[Tensor, Tensor]:
    """As :func:`mfpyg.models.delta.with_difference`, for Hessians: after the labels of each graph their difference.

    Returns:
        Labels (Σ k n², 3, 3) of the k labelled levels of each graph in turn, and the mask (n_graphs, T + 1).
    """
    mask = batch[HESSIAN.mask]
    both = mask[:, target] & mask[:, base]
    of_target, of_base = (
        rows[both[batch.batch[atom]]] for rows, atom, _ in (hessian_rows(batch, target), hessian_rows(batch, base))
    )
    sizes = torch.bincount(batch.batch, minlength=batch.num_graphs).square()
    graphs = torch.arange(batch.num_graphs, device=mask.device)
    before = torch.repeat_interleave(graphs, sizes * mask.sum(dim=1))
    order = torch.cat([before, torch.repeat_interleave(graphs[both], sizes[both])]).argsort(stable=True)
    values = torch.cat([batch.hessian, batch.hessian[of_target] - batch.hessian[of_base]])[order]
    return values, torch.cat([mask, both[:, None]], dim=1)


def stages(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """Potential of the base model, and the stages of the base and of the difference.

    Raises:
        MFPyGError: if no conformation has both labels.
    """
    outline = outline_of(inputs.settings, inputs.fidelities)
    before, after = outline.stages
    names = [f.name for f in before.fidelities]
    potential, references = inputs.potential(names), inputs.references(names)
    first = inputs.stage(BaseStage, before.name, before.fidelities, before.epochs, references=references)
    assert outline.base is not None
    return potential, [first, _difference(inputs, after, outline.base, references[outline.base.name])]


def _difference(inputs: Inputs, outline: StageOutline, base: Fidelity, base_reference: Tensor) -> Stage:
    (target,) = outline.fidelities
    difference = Fidelity(difference_name(target.name, base.name), target.labels)
    weights = {(difference.name, prop): weight for (_, prop), weight in inputs.loss([target]).weights.items()}
    columns = {difference.name: len(inputs.dataset.fidelities)}
    others: dict[str, Any] = {
        "train": inputs.sampling(paired_rows(inputs, target, base)),
        "inputs": inputs,
        "base": base.name,
        "difference_loss": inputs.loss_of((difference,), columns, weights),
        "reference": _fitted(inputs, target.name, base.name, base_reference),
    }
    return inputs.stage(DifferenceStage, outline.name, outline.fidelities, outline.epochs, **others)


def _fitted(inputs: Inputs, target: str, base: str, base_reference: Tensor) -> Tensor:
    """Reference energies of the difference, fitted to conformations with both energies."""
    dataset, elements, rows = inputs.dataset, inputs.elements, inputs.splits["train"]
    mask = dataset._data.energy_mask.numpy()[rows]
    rows = rows[mask[:, inputs.column(target)] & mask[:, inputs.column(base)]]
    of_target, of_base = (labelled_energies(dataset, name, rows) for name in (target, base))
    known = dict(zip(elements.species, base_reference.tolist(), strict=True))
    given = {z: energy - known[z] for z, energy in inputs.given.get(target, {}).items() if z in known}
    fitted = fit(elements.counts[rows], of_target - of_base, elements.species, given, dataset.isolated_atoms[rows])
    fitted = complete_difference(fitted, base, elements.species)
    inputs.notes.extend(reference_notes({target: fitted}))
    return torch.from_numpy(fitted.energies)


def paired_rows(inputs: Inputs, target: Fidelity, base: Fidelity) -> np.ndarray:
    """Training conformations with labels of both levels for a property of the target, (n,) int64.

    Raises:
        MFPyGError: if there are none for one of the properties.
    """
    rows, data = inputs.splits["train"], inputs.dataset._data
    having = np.zeros(len(rows), bool)
    for property in target.properties:
        mask, what = data[property.mask].numpy()[rows], property.plural
        both = mask[:, inputs.column(target.name)] & mask[:, inputs.column(base.name)]
        if not both.any():
            raise MFPyGError(
                f"strategy delta: no conformation of the training split has {what} of both '{target.name}' and "
                f"'{base.name}'; choose another delta.base, or another strategy"
            )
        having |= both
    return rows[having]
