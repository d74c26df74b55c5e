"""Blocks of a backbone that every fidelity has of its own."""

from __future__ import annotations

import copy

from torch import nn

from mfpyg.errors import MFPyGError
from mfpyg.models.backbone import Backbone, reset


def private_copies(backbone: nn.Module, n_blocks: int, n_fidelities: int) -> nn.ModuleList:
    """Take the last blocks out of a backbone, and give each fidelity its own of the kind, with weights of its own.

    Args:
        backbone: which keeps the blocks that are shared, and its ``feature_sizes``.
        n_blocks: how many blocks; 0 leaves everything as it is.
        n_fidelities: how many copies.

    Returns:
        A list of blocks for each fidelity; empty for no blocks.

    Raises:
        MFPyGError: if the backbone has not as many blocks, or none that can be told apart.
    """
    if not n_blocks:
        return nn.ModuleList()
    if not isinstance(backbone, Backbone):
        raise MFPyGError(
            f"backbone {type(backbone).__name__} is no mfpyg.models.Backbone, whose blocks can be told apart; "
            "private_blocks has to be 0"
        )
    if type(backbone).forward is not Backbone.forward:
        raise MFPyGError(
            f"backbone {type(backbone).__name__} has a forward of its own, which private blocks would go past; "
            "private_blocks has to be 0"
        )
    if not 0 < n_blocks <= len(backbone.blocks):
        raise MFPyGError(f"private_blocks is {n_blocks}, expected at most the backbone's {len(backbone.blocks)}")
    own = backbone.blocks[len(backbone.blocks) - n_blocks :]
    backbone.blocks = backbone.blocks[: len(backbone.blocks) - n_blocks]
    copies = nn.ModuleList(copy.deepcopy(own) for _ in range(n_fidelities))
    reset(copies)
    return copies
