"""The base class of backbones: blocks one after another, each giving every atom another level of features."""

from __future__ import annotations

import copy
import linecache
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph, Prepared


class State(Protocol):
    """State handed from block to block: features of the atoms, and what the blocks of a network need besides."""

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

    def prepare(self, graph: Graph) -> Prepared | None:
        """Tables of a graph that all layers use, computed once; ``None`` for nothing.

        Whatever has sizes that depend on more than the numbers of atoms and edges must be made here if predictions
        are to be compiled. It comes back in ``graph.prepared``.
        """
        return None

    def one_hot(self, graph: Graph) -> Tensor:
        """Level 0: which species each atom is, (n_atoms, n_species)."""
        return torch.eq(graph.z.unsqueeze(1), self.species).to(graph.edge_vec.dtype)

    def forward(self, graph: Graph) -> list[Tensor]:
        """Features of every level: (n_atoms, n_species), then (n_atoms, width) for each block."""
        return [self.one_hot(graph), *self.after_blocks(graph)]

    def after_blocks(self, graph: Graph) -> list[Tensor]:
        """Features after each block, (n_atoms, width); a subclass may compute the same in another way."""
        return through(self.blocks, self.embed(graph))[0]

    def reset_parameters(self) -> None:
        """Draw new weights.

        Raises:
            MFPyGError: if the network itself has some, and not only its parts; it has to draw those.
        """
        check_drawn_by_parts(self)
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
        MFPyGError: for a part with weights of its own and no such method.
    """
    for part in module.children():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
            continue
        check_drawn_by_parts(part)
        reset(part)


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


def check_drawn_by_parts(module: nn.Module) -> None:
    """Check that a module without a ``reset_parameters`` of its own has no weights of its own.

    Raises:
        MFPyGError: if it has.
    """
    if next(module.parameters(recurse=False), None) is not None:
        raise MFPyGError(f"{type(module).__name__} has weights and no reset_parameters of its own; add one")


def remove_template_files(network: nn.Module) -> None:
    """Delete the files that PyG's ``MessagePassing`` has written for the layers of a network.

    It writes the code of ``propagate`` for each class, once a process, into the temporary folder, imports it, and
    leaves the file there. Its lines are kept for tracebacks and compilers.
    """
    for kind in {type(module) for module in network.modules() if isinstance(module, MessagePassing)}:
        for method in ("propagate", "edge_updater"):
            module = sys.modules.get(f"{kind.__module__}_{kind.__name__}_{method}")
            written = Path(getattr(module, "__file__", None) or "")
            if written.is_file():
                source = written.read_text(encoding="utf-8")
                linecache.cache[str(written)] = len(source), None, source.splitlines(keepends=True), str(written)
                written.unlink()


def check_elements(name: str, species: Sequence[int], most: int) -> None:
    """Check that a network has room for the elements.

    Raises:
        MFPyGError: for an atomic number beyond ``most``.
    """
    if max(species) > most:
        raise MFPyGError(f"{name} knows elements up to number {most}, not {max(species)}; use another backbone")


def check_backbone(backbone: nn.Module) -> None:
    """Check that a module has what a potential needs of a backbone.

    Raises:
        MFPyGError: naming what it lacks.
    """
    kind = type(backbone).__name__
    for name in ("cutoff", "species", "feature_sizes", "reset_parameters"):
        if not hasattr(backbone, name):
            raise MFPyGError(f"backbone {kind} has no '{name}'; see mfpyg.models.Backbone for what one needs")
    sizes, species = tuple(backbone.feature_sizes), backbone.species  # type: ignore[arg-type]
    if len(sizes) < 2 or sizes[0] != len(species):  # type: ignore[arg-type]
        raise MFPyGError(
            f"backbone {kind} has feature_sizes {sizes}, expected the number of species, {len(species)}, and then the "  # type: ignore[arg-type]
            "width of each level"
        )
    if (species.diff() <= 0).any():  # type: ignore[operator, union-attr]
        raise MFPyGError(f"backbone {kind} has species {species.tolist()}, expected different ones in ascending order")  # type: ignore[operator, union-attr]
