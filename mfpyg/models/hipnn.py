"""HIP-NN-TS backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from mfpyg.graph import Graph
from mfpyg.kernels.inference import BlockWeights, InteractionWeights, LayerWeights, features
from mfpyg.kernels.neighbor_sum import NeighborSum, prepare
from mfpyg.models.backbone import Backbone
from mfpyg.models.interaction import TENSOR_COMPONENTS, Interaction, Sensitivity, harmonics


class Residual(nn.Module):
    """y = W₂·softplus(base(x)) + b₂ + A x, where A is the identity if the widths are equal."""

    def __init__(self, base: nn.Module, in_features: int, out_features: int) -> None:
        super().__init__()
        self.base = base
        self.mix = nn.Linear(out_features, out_features)
        self.adjust = nn.Linear(in_features, out_features, bias=False) if in_features != out_features else None

    def reset_parameters(self) -> None:
        self.base.reset_parameters()  # type: ignore[operator]
        self.mix.reset_parameters()
        if self.adjust is not None:
            self.adjust.reset_parameters()

    def forward(self, x: Tensor, *args: Graph | Tensor | NeighborSum | None) -> Tensor:
        """x (n_atoms, in_features) -> (n_atoms, out_features)."""
        change = self.mix(functional.softplus(self.base(x, *args)))
        return change + (x if self.adjust is None else self.adjust(x))


class AtomLayer(nn.Linear):
    """Linear layer on the features of single atoms, with Xavier-normal initial weights."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.xavier_normal_(self.weight)


class State(NamedTuple):
    """State passed from block to block.

    Attributes:
        features: features of the atoms, (n_atoms, width).
        graph: atoms and edges.
        directions: harmonics of the edges, (n_edges, n_components).
        neighbor_sum: sum over neighbours by a kernel; ``None`` for the definition.
    """

    features: Tensor
    graph: Graph
    directions: Tensor
    neighbor_sum: NeighborSum | None


class Block(nn.ModuleList):
    """An interaction followed by atomic layers."""

    def forward(self, state: State) -> State:
        interaction, *atom_layers = self.children()
        x = interaction(state.features, state.graph, state.directions, state.neighbor_sum)
        for layer in atom_layers:
            x = layer(x)
        return state._replace(features=x)

    def weights(self) -> BlockWeights:
        """All weights, as :mod:`mfpyg.kernels.inference` needs them."""
        interaction, *atom_layers = self.children()
        base: Interaction = interaction.base  # type: ignore[assignment]
        own, shells = base.self_interaction, base.sensitivity
        layers = [
            LayerWeights(layer.base.weight, layer.base.bias, layer.mix.weight, layer.mix.bias)  # type: ignore[arg-type, union-attr]
            for layer in atom_layers
        ]
        return BlockWeights(
            InteractionWeights(
                base.weight,
                own.weight,
                own.bias,
                list(base.tensor_scales),
                shells.mu,
                shells.sigma,
                shells.cutoff,
                base.cusp,
            ),
            interaction.mix.weight,  # type: ignore[arg-type, union-attr]
            interaction.mix.bias,  # type: ignore[arg-type, union-attr]
            None if interaction.adjust is None else interaction.adjust.weight,  # type: ignore[arg-type, union-attr]
            layers,
        )


class HIPNN(Backbone):
    """HIP-NN-TS: the hierarchically interacting particle neural network with tensor sensitivities.

    Each block is an interaction between atoms followed by atomic layers, all residual; the features after each block
    are a level of the hierarchy, level 0 being the one-hot species.
    (Lubbers et al., J. Chem. Phys. 148, 241715 (2018); Chigaev et al., J. Chem. Phys. 158, 184108 (2023).)

    Args:
        species: atomic numbers.
        n_interactions: number of blocks.
        n_atom_layers: atomic layers in each block.
        n_features: width F.
        n_sensitivities: number n of radial functions.
        tensor_order: 0 (HIP-NN), 1 or 2.
        cutoff: R_c in Å.
        r_soft_min, r_soft_max: initial positions of the first and last sensitivity in Å.
        cusp: c of :class:`~mfpyg.models.interaction.Interaction`.
        kernel: kernel for the sum over neighbours, see :mod:`mfpyg.kernels`.
    """

    vanishes_beyond_cutoff: ClassVar[bool] = True

    def __init__(
        self,
        species: Sequence[int],
        n_interactions: int = 2,
        n_atom_layers: int = 4,
        n_features: int = 120,
        n_sensitivities: int = 20,
        tensor_order: int = 2,
        cutoff: float = 6.5,
        r_soft_min: float = 0.75,
        r_soft_max: float = 5.5,
        cusp: float = 1e-6,
        kernel: str = "auto",
    ) -> None:
        super().__init__(species, cutoff)
        if tensor_order not in (0, 1, 2):
            raise ValueError(f"tensor_order is {tensor_order}, expected 0, 1 or 2")
        self.tensor_order, self.cusp, self.kernel = tensor_order, cusp, kernel
        self.n_sensitivities, self.n_components = n_sensitivities, TENSOR_COMPONENTS[tensor_order]
        self.feature_sizes = (len(self.species), *[n_features] * n_interactions)
        for width in self.feature_sizes[:-1]:
            sensitivity = Sensitivity(n_sensitivities, r_soft_min, r_soft_max, self.cutoff)
            interaction = Interaction(width, n_features, sensitivity, tensor_order, cusp)
            atom_layers = [AtomLayer(n_features, n_features) for _ in range(n_atom_layers)]
            block = Block([Residual(interaction, width, n_features)])
            block.extend(Residual(layer, n_features, n_features) for layer in atom_layers)
            self.blocks.append(block)

    def prepare(self, graph: Graph) -> NeighborSum | None:
        """The sum over neighbours, once for all layers; see :mod:`mfpyg.kernels`."""
        return prepare(self.kernel, graph, self.feature_sizes[-1], self.n_sensitivities, self.n_components)

    def _neighbor_sum(self, graph: Graph) -> NeighborSum | None:
        if graph.prepared is None:
            graph.prepared = self.prepare(graph)
        return graph.prepared  # type: ignore[return-value]

    def after_blocks(self, graph: Graph) -> list[Tensor]:
        """See :class:`Backbone`; by :mod:`mfpyg.kernels.inference` where the first derivative is enough."""
        neighbor_sum = self._neighbor_sum(graph)
        if neighbor_sum is not None and neighbor_sum.whole_network:
            weights = [block.weights() for block in self.blocks]  # type: ignore[operator]
            return list(features(graph.edge_vec, graph.edge_dist, self.one_hot(graph), weights, neighbor_sum))
        return super().after_blocks(graph)

    def embed(self, graph: Graph) -> State:
        """The state before the first block; its features are the one-hot species."""
        directions = harmonics(graph.edge_vec / graph.edge_dist.unsqueeze(1), self.tensor_order)
        return State(self.one_hot(graph), graph, directions, self._neighbor_sum(graph))
