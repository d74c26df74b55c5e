"""A stage of a training, and what stages are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import GivenReferences, fit_references
from mfpyg.fidelity import Fidelity, parse_weights
from mfpyg.models import MultiFidelityPotential, Potential
from mfpyg.models.build import build_potential
from mfpyg.settings import TrainSettings
from mfpyg.training.data import labelled_rows
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.optimizer import adam
from mfpyg.training.prepare import Elements, reference_notes
from mfpyg.training.sampling import Interleaved, Sampling
from mfpyg.training.strategies.plan import Plan, StagePlan

if TYPE_CHECKING:
    from mfpyg.training.strategies.module import StagedModule


@dataclass
class Materials:
    """What the stages of a training have in common.

    Attributes:
        settings, plan: of the training.
        fidelities: all that are trained on, in the order given.
        dataset: with the labels that the training may see.
        splits: ``{"train": rows, "val": rows, …}``.
        elements: of the training split.
        given: reference energies that are not fitted.
        notes: lines for the user, added to as references are fitted.
    """

    settings: TrainSettings
    plan: Plan
    fidelities: tuple[Fidelity, ...]
    dataset: ConformationDataset
    splits: Mapping[str, np.ndarray]
    elements: Elements
    given: GivenReferences = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        labelled = labelled_rows(self.dataset, self.splits["train"], self.fidelities)
        self.budget = int(labelled.any(axis=1).sum())
        """Conformations of an epoch of strategy ``mfl``, which decide the optimiser steps of an epoch of any stage."""

    def column(self, fidelity: str) -> int:
        """Number of a fidelity among the T of the data set."""
        return self.dataset.fidelities.index(fidelity)

    def potential(self, fidelities: Sequence[str]) -> MultiFidelityPotential:
        """One with fresh weights, drawn from torch's global generator."""
        return build_potential(self.settings, self.elements.species, fidelities)

    def references(self, fidelities: Sequence[str]) -> dict[str, Tensor]:
        """Reference energies of each fidelity, (n_species,) float64, fitted to its labels of the training split."""
        rows, elements = self.splits["train"], self.elements
        fitted = fit_references(self.dataset, rows, elements.species, fidelities, elements.counts, self.given)
        self.notes += reference_notes(fitted)
        return {name: torch.from_numpy(references.energies) for name, references in fitted.items()}

    def loss(self, fidelities: Sequence[Fidelity]) -> MultiFidelityLoss:
        """Of the labels of some fidelities, weighted as the settings say."""
        every = parse_weights(self.settings.weights, self.fidelities)
        columns = {f.name: self.column(f.name) for f in fidelities}
        weights = {key: weight for key, weight in every.items() if key[0] in columns}
        return MultiFidelityLoss(fidelities, columns, weights, self.settings.hierarchicality)

    def rows(self, split: str, fidelities: Sequence[Fidelity]) -> np.ndarray:
        """Conformations of a split with a label of any of these fidelities, (n,) int64."""
        rows = self.splits[split]
        return rows[labelled_rows(self.dataset, rows, fidelities).any(axis=1)]

    def sampling(self, rows: np.ndarray, seed: int | None = None) -> Sampling:
        """Batches of these conformations, (n,) int64, as many an epoch as the budget says."""
        settings = self.settings
        return Sampling(
            rows,
            np.ones((len(rows), 1), bool),
            settings.seed if seed is None else seed,
            n_atoms=self.dataset.slices["z"].diff().numpy()[rows],
            window=settings.sampling.window,
            budget=self.budget,
        )


class Stage:
    """What is trained in a part of a training, on which labels, and how; this one trains everything at once.

    Args:
        plan: name, fidelities, epochs.
        materials: of the training.
        lr: initial learning rate; that of the settings if not given.

    Attributes:
        loss: of the validation, and of the metrics.
        train, val: training batches, and conformations of the validation.
        keep_best: whether the stage ends with the weights of its best epoch instead of its last.
    """

    train: Sampling | Interleaved
    keep_best = True

    def __init__(self, plan: StagePlan, materials: Materials, lr: float | None = None) -> None:
        self.plan, self.materials = plan, materials
        self.lr = materials.settings.optim.lr if lr is None else lr
        self.loss = materials.loss(plan.fidelities)
        self.train = materials.sampling(materials.rows("train", plan.fidelities))
        self.val = materials.rows("val", plan.fidelities)

    @property
    def train_loss(self) -> MultiFidelityLoss:
        """What the metrics of the training batches are of."""
        return self.loss

    def losses(self) -> list[nn.Module]:
        """All that have tensors to be moved to a device."""
        return [self.loss, self.train_loss]

    def enter(self, potential: Potential) -> Potential:
        """The potential of this stage, made of that of the stage before; its weights may be read in afterwards.

        The same in a run that comes to the stage as in one that is resumed in it.
        """
        return potential

    def begin(self, potential: Potential) -> None:
        """What else is done to the weights when a run comes to the stage."""

    def trained(self, potential: Potential) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return list(potential.parameters())

    def optimizer(self, potential: Potential) -> torch.optim.Optimizer:
        """A fresh optimiser of the parameters that are trained."""
        return adam(potential, self.trained(potential), self.lr, self.materials.settings.optim.weight_decay)

    def compare(self, module: StagedModule, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Loss of a training batch, the given step of its epoch, and the sums that ``train_loss`` makes metrics of."""
        return module.compare(module.potential, self.loss, batch)

    def after_step(self, module: StagedModule, step: int) -> None:
        """What follows a step of the optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """What has to be remembered between two steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
