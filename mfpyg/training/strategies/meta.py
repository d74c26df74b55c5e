r"""Meta-learning by Reptile over the levels, then adaptation to the target.

Each level in turn is a task: from the shared weights φ, k steps of an optimiser on batches of that level lead to φ̃,
and then

.. math:: \varphi \leftarrow \varphi + \epsilon\, (\tilde\varphi - \varphi),

(algorithm 1 of Nichol et al., "On first-order meta-learning algorithms", arXiv 1803.02999; ε and k are settings).
The weights of the backbone are shared. The head and private blocks of a level belong to the task and are not reset.
The moments of Adam (with β₁ = 0, as in the paper) are kept from one run of inner steps to the next. Every epoch begins
with a new run, so that validation always uses φ. Adaptation is ordinary training on the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.models import MultiFidelityPotential, Potential
from mfpyg.strategy_options import MetaSettings
from mfpyg.training.inputs import Inputs
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.optimizer import adam, checked_when_loaded, groups
from mfpyg.training.sampling import Interleaved
from mfpyg.training.stage import Stage, Step
from mfpyg.training.strategies.outline import outline_of


@torch.no_grad()
def outer_step(weights: Sequence[Tensor], before: Sequence[Tensor], rate: float) -> None:
    """Replace φ̃ by φ + ε (φ̃ − φ).

    Args:
        weights: φ̃, the weights after the inner steps; changed in place.
        before: φ, the weights before the inner steps.
        rate: ε; 1 leaves φ̃.
    """
    for weight, old in zip(weights, before, strict=True):
        old = old.to(weight)  # one from a checkpoint is on the CPU
        weight.copy_(old + rate * (weight - old))


@dataclass(kw_only=True)
class MetaStage(Stage):
    """Reptile over all levels; its result is the last φ, as a low loss before the adaptation is not the aim.

    Attributes:
        settings: options of the strategy.
        train: sampling of the levels in turn.
        of_level: loss of each level, in the order of ``train``.
        references: reference energies of each level, (n_species,) float64.
    """

    settings: MetaSettings
    train: Interleaved
    of_level: list[MultiFidelityLoss]
    references: dict[str, Tensor]
    handed_on: Literal["best", "last"] = "last"

    def __post_init__(self) -> None:
        self.before: list[Tensor] | None = None
        """φ during a run of inner steps."""

    def losses(self) -> list[MultiFidelityLoss]:
        return [*super().losses(), *self.of_level]

    def start(self, potential: Potential) -> Potential:
        for name, reference in self.references.items():
            potential.reference(name).copy_(reference)
        return potential

    def optimizer(self, potential: Potential) -> torch.optim.Optimizer:
        trained = self.trained(potential)
        if self.settings.optimiser == "sgd":  # without moments its weight decay is decoupled
            of_weights = groups(potential, trained, self.weight_decay)
            return checked_when_loaded(torch.optim.SGD(of_weights, lr=self.lr, fused=True))
        return adam(potential, trained, self.lr, self.weight_decay, betas=(0.0, 0.999))

    def compared(
        self, potential: Potential, batch: Batch, step: Step
    ) -> tuple[MultiFidelityPotential, MultiFidelityLoss, Batch]:
        assert isinstance(potential, MultiFidelityPotential)
        if self.before is None:
            self.before = [weight.detach().clone() for weight in potential.backbone.parameters()]
        return potential, self.of_level[self.train.which(*step)], batch

    def after_step(self, potential: Potential, step: Step) -> None:
        assert isinstance(potential, MultiFidelityPotential)
        if self.train.ends(step.number, step.n_steps):
            assert self.before is not None
            outer_step(list(potential.backbone.parameters()), self.before, self.settings.rate)
            self.before = None

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["before"]


class AdaptationStage(Stage):
    """Trains on the target; the heads of the other levels, which no longer fit the backbone, are dropped."""

    def start(self, potential: Potential) -> Potential:
        assert isinstance(potential, MultiFidelityPotential)
        potential.keep_only(self.fidelities[0].name)
        return potential


def stages(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """Potential of all levels, and the two stages."""
    settings = inputs.settings
    before, after = outline_of(settings, inputs.fidelities).stages
    names = [f.name for f in before.fidelities]
    potential = inputs.potential(names)
    samplings = [
        inputs.sampling(inputs.rows("train", (f,)), settings.seed + number)
        for number, f in enumerate(before.fidelities)
    ]
    others: dict[str, Any] = {
        "lr": settings.meta.inner_lr or settings.optim.lr,
        "settings": settings.meta,
        "train": Interleaved(samplings, settings.meta.inner_steps),
        "of_level": [inputs.loss((f,)) for f in before.fidelities],
        "references": inputs.references(names),
    }
    return potential, [
        inputs.stage(MetaStage, before.name, before.fidelities, before.epochs, **others),
        inputs.stage(AdaptationStage, after.name, after.fidelities, after.epochs),
    ]
