"""What a backbone is: blocks one after another, each giving every atom another level of features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph


class State(Protocol):
    """What goes from block to block; whatever else of edges and atoms the blocks of a network need."""

    @property
    def features(self) -> Tensor:
        """Invariant features of the atoms so far, (n_atoms, width)."""


class Backbone(nn.Module):
    r"""A message-passing network without its output layers, for heads and fidelities to be put on.

    A subclass fills ``blocks`` and says in :meth:`embed` what goes into the first of them; each block is called with
    a :class:`State` and returns the next, whose features are a level. That suffices for everything, sharing a part of
    the blocks included. Any other module with ``cutoff``, ``species``, ``feature_sizes``, ``reset_parameters`` and the
    same ``forward`` is a backbone as well, of which all is shared.

    Args:
        species: atomic numbers that the network knows.
        cutoff: distance in Å up to which atoms see each other; what they see of each other must vanish there.

    Attributes:
        species: sorted atomic numbers, (n_species,) int64.
        cutoff: in Å.
        blocks: modules from a state to the next.
        feature_sizes: width of each level: the number of species, then one for each block.
    """

    species: Tensor
    blocks: nn.ModuleList
    feature_sizes: tuple[int, ...]

    def __init__(self, species: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.register_buffer("species", torch.tensor(sorted(set(species))), persistent=False)
        self.blocks = nn.ModuleList()

    def embed(self, graph: Graph) -> Any:
        """The state of a graph before the first block."""
        raise NotImplementedError

    def plan(self, graph: Graph) -> Any:
        """What is needed to know of a graph beforehand, once for all layers: an object with ``tensors()`` and
        ``with_tensors(tensors)``, see :class:`mfpyg.models.kernels.Plan`; ``None`` for nothing.

        Whatever has sizes that depend on more than the numbers of atoms and edges must be made here if predictions
        are to be compiled. It comes back in ``graph.plan``.
        """
        return None

    def one_hot(self, graph: Graph) -> Tensor:
        """Level 0: which species each atom is, (n_atoms, n_species)."""
        return torch.eq(graph.z.unsqueeze(1), self.species).to(graph.edge_vec.dtype)

    def forward(self, graph: Graph) -> list[Tensor]:
        """Features of every level: (n_atoms, n_species), then (n_atoms, width) for each block."""
        levels, _ = through(self.blocks, self.embed(graph))
        return [self.one_hot(graph), *levels]

    def reset_parameters(self) -> None:
        """Draw new weights."""
        reset(self)


def through(blocks: Iterable[nn.Module], state: Any) -> tuple[list[Tensor], Any]:
    """The features after each of some blocks, and the state after the last."""
    levels = []
    for block in blocks:
        state = block(state)
        levels.append(state.features)
    return levels, state


def reset(module: nn.Module) -> None:
    """Draw new weights of all that a module is made of, by the ``reset_parameters`` of its parts.

    Raises:
        TypeError: for a part with weights of its own and no such method.
    """
    for part in module.children():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
            continue
        if next(part.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(part).__name__} has weights and no reset_parameters; add one to what holds it")
        reset(part)


def check_backbone(backbone: nn.Module) -> None:
    """Check that a module has what a potential needs of a backbone.

    Raises:
        MFPyGError: naming what it lacks.
    """
    kind = type(backbone).__name__
    for name in ("cutoff", "species", "feature_sizes", "reset_parameters"):
        if not hasattr(backbone, name):
            raise MFPyGError(f"backbone {kind} has no '{name}'; see mfpyg.models.Backbone for what one needs")
    if len(backbone.feature_sizes) < 2:  # type: ignore[arg-type]
        raise MFPyGError(
            f"backbone {kind} has feature_sizes {backbone.feature_sizes}, expected the number of species and then the "
            "width of each level"
        )
