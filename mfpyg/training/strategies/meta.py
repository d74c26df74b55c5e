r"""Meta-learning by Reptile over the levels, then adaptation to the target.

Each level in turn is a task: from the shared weights φ, k steps of an optimiser on batches of that level lead to φ̃,
and then

.. math:: \varphi \leftarrow \varphi + \epsilon\, (\tilde\varphi - \varphi),

(algorithm 1 of Nichol et al., "On first-order meta-learning algorithms", arXiv 1803.02999; ε and k are settings).
Shared are the weights of the backbone. What a level has of its own, its head and private blocks, belongs to the task
and keeps what it has learnt. The moments of Adam (with β₁ = 0, as there) go on from one run to the next. Every
epoch begins with a new run, so that the validation always sees φ. Adaptation is ordinary training on the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.models import MultiFidelityPotential, Potential
from mfpyg.training.optimizer import adam, groups
from mfpyg.training.restoring import checked_when_loaded
from mfpyg.training.sampling import Interleaved
from mfpyg.training.strategies.module import StagedModule
from mfpyg.training.strategies.plan import StagePlan
from mfpyg.training.strategies.stage import Materials, Stage


@torch.no_grad()
def outer_step(weights: Sequence[Tensor], before: Sequence[Tensor], rate: float) -> None:
    """φ + ε (φ̃ − φ) in place of φ̃.

    Args:
        weights: φ̃, what the inner steps have led to; changed.
        before: φ, what they began with.
        rate: ε; 1 leaves φ̃.
    """
    for weight, old in zip(weights, before, strict=True):
        old = old.to(weight)  # that of a checkpoint lies on the CPU
        weight.copy_(old + rate * (weight - old))


class MetaStage(Stage):
    """Reptile over all levels; the stage ends with its last φ, as a low loss before adaptation is not its aim."""

    train: Interleaved
    keep_best = False

    def __init__(self, plan: StagePlan, materials: Materials) -> None:
        meta = materials.settings.meta
        super().__init__(plan, materials, meta.inner_lr)
        self.meta = meta
        seeds = [materials.settings.seed + number for number in range(len(plan.fidelities))]
        samplings = [
            materials.sampling(materials.rows("train", (f,)), seed)
            for f, seed in zip(plan.fidelities, seeds, strict=True)
        ]
        self.train = Interleaved(samplings, meta.inner_steps)
        self.of_level = [materials.loss((f,)) for f in plan.fidelities]
        self.references = materials.references([f.name for f in plan.fidelities])
        self.before: list[Tensor] | None = None
        """φ, within a run of inner steps."""

    def losses(self) -> list[nn.Module]:
        return [*super().losses(), *self.of_level]

    def begin(self, potential: Potential) -> None:
        for name, reference in self.references.items():
            potential.reference(name).copy_(reference)

    def optimizer(self, potential: Potential) -> torch.optim.Optimizer:
        trained, decay = self.trained(potential), self.materials.settings.optim.weight_decay
        if self.meta.optimiser == "sgd":  # whose weight decay is a decoupled one, as it has no moments
            return checked_when_loaded(torch.optim.SGD(groups(potential, trained, decay), lr=self.lr, fused=True))
        return adam(potential, trained, self.lr, decay, betas=(0.0, 0.999))

    def compare(self, module: StagedModule, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        if self.before is None:
            self.before = [weight.detach().clone() for weight in _shared(module.potential)]
        loss = self.of_level[self.train.which(module.current_epoch, step, module.steps)]
        value, of_level = module.compare(module.potential, loss, batch)
        sums = torch.zeros(len(self.loss.weights), 3, dtype=of_level.dtype, device=of_level.device)
        places = list(self.loss.weights)
        sums[[places.index(key) for key in loss.weights]] = of_level
        return value, sums

    def after_step(self, module: StagedModule, step: int) -> None:
        if self.train.ends(step, module.steps):
            assert self.before is not None
            outer_step(_shared(module.potential), self.before, self.meta.rate)
            self.before = None

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["before"]


def _shared(potential: Potential) -> list[nn.Parameter]:
    assert isinstance(potential, MultiFidelityPotential)
    return list(potential.backbone.parameters())


class AdaptationStage(Stage):
    """Trains on the target; the other levels' heads, which the weights no longer belong to, are dropped."""

    def enter(self, potential: Potential) -> Potential:
        assert isinstance(potential, MultiFidelityPotential)
        potential.keep_only(self.materials.plan.target.name)
        return potential


def stages(materials: Materials) -> tuple[Potential, list[Stage]]:
    """The potential of all levels, and the two stages."""
    before, after = materials.plan.stages
    potential = materials.potential([f.name for f in before.fidelities])
    return potential, [MetaStage(before, materials), AdaptationStage(after, materials)]
