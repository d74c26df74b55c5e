"""Transfer learning: one level after the other, each starting from the weights of the one before.

The potential has one fidelity at a time. The head of a level becomes that of the next, whose reference energies are
fitted to its own labels; likewise its other heads, as of charges, if the next level has labels for them. Part of the
backbone may be frozen after the first level.
(Smith et al., Nat. Commun. 10, 2903 (2019), where the target is coupled cluster and the first level a DFT.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfpyg.errors import MFPyGError
from mfpyg.models import Backbone, MultiFidelityPotential, Potential
from mfpyg.training.inputs import Inputs
from mfpyg.training.stage import Stage
from mfpyg.training.strategies.outline import outline_of


@dataclass(kw_only=True)
class LevelStage(Stage):
    """Trains on one level.

    Attributes:
        reference: reference energies of the level, (n_species,) float64.
        frozen: part of the backbone that is not trained, see :func:`frozen_parameters`.
        seed: seed of the weights of heads that the level before does not have.
    """

    reference: Tensor
    frozen: int | str
    seed: int

    def start(self, potential: Potential) -> Potential:
        assert isinstance(potential, MultiFidelityPotential)
        labels = self.fidelities[0].labels
        potential.rename(self.name)
        potential.keep_properties(self.name, labels)
        with torch.random.fork_rng():  # weights independent of earlier draws, for resumed runs
            torch.manual_seed(self.seed)
            potential.add_properties(self.name, labels)
        potential.reference(self.name).copy_(self.reference)
        return potential

    def trained(self, potential: Potential) -> list[nn.Parameter]:
        assert isinstance(potential, MultiFidelityPotential)
        frozen = {id(p) for p in frozen_parameters(potential.backbone, self.frozen)}
        return [parameter for parameter in potential.parameters() if id(parameter) not in frozen]


def frozen_parameters(backbone: nn.Module, frozen: int | str) -> list[nn.Parameter]:
    """Parameters of a backbone that are frozen after the first level.

    Args:
        backbone: any backbone.
        frozen: ``"none"``, ``"backbone"``, or a number of first blocks, frozen with everything before them.

    Raises:
        MFPyGError: for more blocks than there are, or a backbone whose blocks are unknown.
    """
    if frozen in ("none", 0):
        return []
    if frozen == "backbone":
        return list(backbone.parameters())
    assert isinstance(frozen, int)
    if not isinstance(backbone, Backbone):
        raise MFPyGError(
            f"transfer.frozen is {frozen}, but backbone {type(backbone).__name__} is not a mfpyg.models.Backbone, so "
            "its blocks are unknown; use none or backbone"
        )
    if frozen > len(backbone.blocks):
        raise MFPyGError(f"transfer.frozen is {frozen}, expected at most the backbone's {len(backbone.blocks)} blocks")
    free = {id(p) for block in backbone.blocks[frozen:] for p in block.parameters()}
    return [parameter for parameter in backbone.parameters() if id(parameter) not in free]


def stages(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """Potential, and a stage for each level.

    Raises:
        MFPyGError: if the part to freeze does not exist.
    """
    settings, outlines = inputs.settings, outline_of(inputs.settings, inputs.fidelities).stages
    names = [outline.name for outline in outlines]
    potential = inputs.potential(names[:1])
    frozen_parameters(potential.backbone, settings.transfer.frozen)
    references, made = inputs.references(names), list[Stage]()
    for outline in outlines:
        later = {"frozen": settings.transfer.frozen, "lr": settings.transfer.lr or settings.optim.lr}
        others = later if made else {"frozen": "none"}  # the first level trains everything
        made.append(
            inputs.stage(
                LevelStage,
                outline.name,
                outline.fidelities,
                outline.epochs,
                reference=references[outline.name],
                seed=settings.seed + len(made),
                **others,
            )
        )
    return potential, made
