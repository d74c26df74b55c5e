"""Transfer learning: one level after the other, each beginning with the weights of the one before.

The potential has one fidelity at any time. When a level is done, its head becomes that of the next, whose reference
energies are fitted to its own labels; a part of the backbone may stay as the first level has left it.
(Smith et al., Nat. Commun. 10, 2903 (2019), where the target is coupled cluster and the first level a DFT.)
"""

from __future__ import annotations

from torch import Tensor, nn

from mfpyg.errors import MFPyGError
from mfpyg.models import Backbone, MultiFidelityPotential, Potential
from mfpyg.training.strategies.plan import StagePlan
from mfpyg.training.strategies.stage import Materials, Stage


class LevelStage(Stage):
    """Trains on one level.

    Args:
        plan, materials: of the stage.
        reference: energies of the level, (n_species,) float64.
        first: whether everything is trained, as nothing has been learnt yet.
    """

    def __init__(self, plan: StagePlan, materials: Materials, reference: Tensor, first: bool) -> None:
        super().__init__(plan, materials, None if first else materials.settings.transfer.lr)
        self.reference, self.first = reference, first

    def enter(self, potential: Potential) -> Potential:
        assert isinstance(potential, MultiFidelityPotential)
        potential.rename(self.plan.name)
        return potential

    def begin(self, potential: Potential) -> None:
        potential.reference(self.plan.name).copy_(self.reference)

    def trained(self, potential: Potential) -> list[nn.Parameter]:
        assert isinstance(potential, MultiFidelityPotential)
        every = list(potential.parameters())
        if self.first:
            return every
        frozen = {id(p) for p in frozen_parameters(potential.backbone, self.materials.settings.transfer.frozen)}
        return [parameter for parameter in every if id(parameter) not in frozen]


def frozen_parameters(backbone: nn.Module, frozen: int | str) -> list[nn.Parameter]:
    """The parameters of a backbone that later levels leave alone.

    Args:
        backbone: any.
        frozen: ``"none"``, ``"backbone"``, or a number of first blocks; what stands before them is frozen with them.

    Raises:
        MFPyGError: for more blocks than there are, or a backbone whose blocks can't be told apart.
    """
    if frozen in ("none", 0):
        return []
    if frozen == "backbone":
        return list(backbone.parameters())
    assert isinstance(frozen, int)
    if not isinstance(backbone, Backbone):
        raise MFPyGError(
            f"transfer.frozen is {frozen}, but backbone {type(backbone).__name__} is no mfpyg.models.Backbone, whose "
            "blocks can be told apart; use none or backbone"
        )
    if frozen > len(backbone.blocks):
        raise MFPyGError(f"transfer.frozen is {frozen}, expected at most the backbone's {len(backbone.blocks)} blocks")
    free = {id(p) for block in backbone.blocks[frozen:] for p in block.parameters()}
    return [parameter for parameter in backbone.parameters() if id(parameter) not in free]


def stages(materials: Materials) -> tuple[Potential, list[Stage]]:
    """The potential, and a stage for each level.

    Raises:
        MFPyGError: if what is to be frozen is not there.
    """
    names = [stage.name for stage in materials.plan.stages]
    potential = materials.potential(names[:1])
    frozen_parameters(potential.backbone, materials.settings.transfer.frozen)
    references = materials.references(names)
    return potential, [
        LevelStage(plan, materials, references[plan.name], first=number == 0)
        for number, plan in enumerate(materials.plan.stages)
    ]
