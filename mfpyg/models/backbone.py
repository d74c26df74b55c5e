"""Base class of backbones: a sequence of blocks, each of which returns a level of atomic features."""

from __future__ import annotations

import copy
import linecache
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph, Prepared


class State(Protocol):
    """State passed from block to block: features of the atoms, and whatever else the blocks need."""

    @property
    def features(self) -> Tensor:
        """Invariant features of the atoms, (n_atoms, width)."""


class Backbone(nn.Module):
    r"""Message-passing network without output layers, shared by the fidelities of a potential.

    A subclass fills ``blocks`` and implements :meth:`embed`, which returns the input of the first block. Each block
    takes a :class:`State` and returns the next one, whose features are a level. Other modules with ``cutoff``,
    ``species``, ``feature_sizes``, ``reset_parameters`` and the same ``forward`` can also be used as backbones, but
    without private blocks.

    Args:
        species: atomic numbers.
        cutoff: interaction range in Å; interactions must vanish there.

    Attributes:
        species: sorted atomic numbers, (n_species,) int64.
        cutoff: interaction range in Å.
        blocks: modules that map a state to the next.
        feature_sizes: width of each level: the number of species, then one for each block.
        vanishes_beyond_cutoff: whether edges longer than the cutoff have no effect. In simulations on a GPU, more edges
            than necessary are then kept, so that steps do not wait for a new comparison with the cutoff.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = False
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
        """Compute tables of a graph that all layers use, which are then in ``graph.prepared``; ``None`` if not needed.

        For predictions to be compiled, tensors whose sizes depend on more than the numbers of atoms and edges must be
        created here; and for steps on a GPU not to wait, numbers that are read from the device.
        """
        return None

    def one_hot(self, graph: Graph) -> Tensor:
        """Level 0: one-hot species of each atom, (n_atoms, n_species)."""
        return torch.eq(graph.z.unsqueeze(1), self.species).to(graph.edge_vec.dtype)

    def forward(self, graph: Graph) -> list[Tensor]:
        """Features of every level: (n_atoms, n_species), then (n_atoms, width) for each block."""
        return [self.one_hot(graph), *self.after_blocks(graph)]

    def after_blocks(self, graph: Graph) -> list[Tensor]:
        """Features after each block, (n_atoms, width); a subclass may override it with a faster equivalent."""
        return through(self.blocks, self.embed(graph))[0]

    def reset_parameters(self) -> None:
        """Draw new weights.

        Raises:
            MFPyGError: if the network itself has weights, and not only its submodules; it must then override this.
        """
        check_drawn_by_parts(self)
        reset(self)


def through(blocks: Iterable[nn.Module], state: Any) -> tuple[list[Tensor], Any]:
    """Apply blocks; return the features after each and the state after the last."""
    levels = []
    for block in blocks:
        state = block(state)
        levels.append(state.features)
    return levels, state


def reset(module: nn.Module) -> None:
    """Draw new weights with the ``reset_parameters`` of all submodules.

    Raises:
        MFPyGError: for a submodule that has weights and no such method.
    """
    for part in module.children():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
            continue
        check_drawn_by_parts(part)
        reset(part)


def private_copies(backbone: nn.Module, n_blocks: int, n_fidelities: int) -> nn.ModuleList:
    """Remove the last blocks from a backbone, and return a copy with new weights for each fidelity.

    Args:
        backbone: backbone, which keeps the shared blocks and its ``feature_sizes``.
        n_blocks: number of blocks to remove; may be 0.
        n_fidelities: number of copies.

    Returns:
        A list of blocks for each fidelity; empty if ``n_blocks`` is 0.

    Raises:
        MFPyGError: if the backbone has too few blocks, or is not a :class:`Backbone`.
    """
    if not n_blocks:
        return nn.ModuleList()
    if not isinstance(backbone, Backbone):
        raise MFPyGError(
            f"backbone {type(backbone).__name__} is not a mfpyg.models.Backbone, so it has no separable blocks; "
            "private_blocks must be 0"
        )
    if type(backbone).forward is not Backbone.forward:
        raise MFPyGError(
            f"backbone {type(backbone).__name__} overrides forward, which private blocks would bypass; "
            "private_blocks must be 0"
        )
    if not 0 < n_blocks <= len(backbone.blocks):
        raise MFPyGError(f"private_blocks is {n_blocks}, expected at most the backbone's {len(backbone.blocks)}")
    own = backbone.blocks[len(backbone.blocks) - n_blocks :]
    backbone.blocks = backbone.blocks[: len(backbone.blocks) - n_blocks]
    copies = nn.ModuleList(copy.deepcopy(own) for _ in range(n_fidelities))
    reset(copies)
    return copies


def check_drawn_by_parts(module: nn.Module) -> None:
    """Check that a module without ``reset_parameters`` has no weights outside its submodules.

    Raises:
        MFPyGError: if it has.
    """
    if next(module.parameters(recurse=False), None) is not None:
        raise MFPyGError(f"{type(module).__name__} has weights and no reset_parameters of its own; add one")


def remove_template_files(network: nn.Module) -> None:
    """Delete the files that PyG's ``MessagePassing`` wrote for the layers of a network.

    Once per process and class, it writes the code of ``propagate`` to the temporary folder, imports it, and leaves the
    file there. The lines are kept in ``linecache`` for tracebacks and compilers.
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
    """Check that a network supports the elements.

    Raises:
        MFPyGError: for an atomic number beyond ``most``.
    """
    if max(species) > most:
        raise MFPyGError(f"{name} supports elements up to number {most}, not {max(species)}; use another backbone")


def check_backbone(backbone: nn.Module) -> None:
    """Check that a module has the attributes that a potential needs.

    Raises:
        MFPyGError: naming a missing or invalid attribute.
    """
    kind = type(backbone).__name__
    for name in ("cutoff", "species", "feature_sizes", "reset_parameters"):
        if not hasattr(backbone, name):
            raise MFPyGError(f"backbone {kind} has no '{name}'; see mfpyg.models.Backbone for what it needs")
    sizes, species = tuple(backbone.feature_sizes), backbone.species  # type: ignore[arg-type]
    if len(sizes) < 2 or sizes[0] != len(species):  # type: ignore[arg-type]
        raise MFPyGError(
            f"backbone {kind} has feature_sizes {sizes}, expected the number of species, {len(species)}, and then the "  # type: ignore[arg-type]
            "width of each level"
        )
    if (species.diff() <= 0).any():  # type: ignore[operator, union-attr]
        raise MFPyGError(f"backbone {kind} has species {species.tolist()}, expected different ones in ascending order")  # type: ignore[operator, union-attr]
