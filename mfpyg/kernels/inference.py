"""HIP-NN-TS with a hand-written derivative with respect to positions, for inference.

The result can be differentiated once, and not with respect to weights. The layers are those of
:mod:`mfpyg.models.hipnn`. Autograd sees one function: recording the small operations would take as long as the
arithmetic of a small molecule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mfpyg.kernels import pointwise
from mfpyg.kernels.dense import add_product, linear, product
from mfpyg.kernels.native import NativeSum, call_kernel
from mfpyg.kernels.neighbor_sum import NeighborSum


class InteractionWeights(NamedTuple):
    """Weights of :class:`mfpyg.models.interaction.Interaction`.

    Attributes:
        weight: V, (n, F, F_in).
        self_weight, self_bias: self-interaction, (F, F_in) and (F,).
        tensor_scales: t₁ and t₂, (F,) each, up to the tensor order.
        mu, sigma: positions and widths of the sensitivities, (n,).
        cutoff, cusp: R_c in Å, and c.
    """

    weight: Tensor
    self_weight: Tensor
    self_bias: Tensor
    tensor_scales: list[Tensor]
    mu: Tensor
    sigma: Tensor
    cutoff: float
    cusp: float

    @property
    def sizes(self) -> pointwise.Sizes:
        n_sensitivities, n_features, _ = self.weight.shape
        return n_features, n_sensitivities, (len(self.tensor_scales) + 1) ** 2


class LayerWeights(NamedTuple):
    """Weights of an atomic layer, y = W₂·softplus(W₁ x + b₁) + b₂ + x; (F, F) and (F,)."""

    weight: Tensor
    bias: Tensor
    mix_weight: Tensor
    mix_bias: Tensor


class BlockWeights(NamedTuple):
    """Weights of a block: y = W₂·softplus(interaction(x)) + b₂ + A x, followed by atomic layers.

    Attributes:
        interaction: weights of the interaction.
        mix_weight, mix_bias: W₂ and b₂, (F, F) and (F,).
        adjust: A, (F, F_in), or ``None`` for the identity.
        layers: weights of the atomic layers.
    """

    interaction: InteractionWeights
    mix_weight: Tensor
    mix_bias: Tensor
    adjust: Tensor | None
    layers: list[LayerWeights]


def features(
    edge_vec: Tensor, dist: Tensor, one_hot: Tensor, blocks: list[BlockWeights], neighbor_sum: NeighborSum
) -> tuple[Tensor, ...]:
    """Features after each block, (n_atoms, F) each; can be differentiated once, with respect to edge_vec.

    Args:
        edge_vec, dist: vectors of the edges, (n_edges, 3), and their lengths, (n_edges,).
        one_hot: species of the atoms, (n_atoms, n_species).
        blocks: weights of the network.
        neighbor_sum: kernel of the graph, whose ``whole_network`` is True.
    """
    assert isinstance(neighbor_sum, NativeSum)
    return _Features.apply(edge_vec, dist.detach(), one_hot, blocks, neighbor_sum)


class _Saved(NamedTuple):
    """Intermediate results for the derivative of a block.

    In the first block the transformed features depend on the species only: ``transformed`` is (n_species, n, F), and
    ``kind`` the species of each atom. In other blocks it is (n_atoms, n, F), and ``kind`` is ``None``.
    """

    sensitivity: Tensor
    transformed: Tensor
    kind: Tensor | None
    moments: Tensor
    before: list[Tensor]  # arguments of each softplus, (n_atoms, F)


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edge_vec: Tensor, dist: Tensor, one_hot: Tensor, blocks: list[BlockWeights], kernel: NativeSum
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        sizes = blocks[0].interaction.sizes
        y = pointwise.harmonics(edge_vec, dist, sizes)
        x, levels, saved = one_hot, [], list[_Saved]()
        for block in blocks:
            kind = None if saved else one_hot.argmax(dim=1)
            saved.append(_interaction(block.interaction, x, kind, dist, y, kernel))
            before = saved[-1].before
            change = linear(functional.softplus(before[0]), block.mix_weight, block.mix_bias, sizes)
            x = change.add_(x if block.adjust is None else functional.linear(x, block.adjust))
            for layer in block.layers:
                before.append(linear(x, layer.weight, layer.bias, sizes))
                change = linear(functional.softplus(before[-1]), layer.mix_weight, layer.mix_bias, sizes)
                x = change.add_(x)
            levels.append(x)
        ctx.edges, ctx.blocks, ctx.kernel, ctx.saved = (edge_vec, dist, y), blocks, kernel, saved
        return tuple(levels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("predictions in evaluation mode can be differentiated once; for more use training mode")
        edge_vec, dist, y = ctx.edges
        sizes = ctx.blocks[0].interaction.sizes
        by_x, by_y, by_dist = torch.zeros_like(ctx.saved[0].before[0]), torch.zeros_like(y), torch.zeros_like(dist)
        for number in reversed(range(len(gradients))):
            gradient, saved, block = gradients[number], ctx.saved[number], ctx.blocks[number]
            if gradient is not None:
                by_x += gradient
            for layer, before in zip(reversed(block.layers), reversed(saved.before[1:]), strict=True):
                by_before = _softplus_gradient(product(by_x, layer.mix_weight, sizes), before)
                add_product(by_x, by_before, layer.weight, sizes)
            by_before = _softplus_gradient(product(by_x, block.mix_weight, sizes), saved.before[0])
            weights = block.interaction
            by_s, dy, by_q = _interaction_gradient(weights, saved, by_before, y, ctx.kernel)
            by_y += dy
            shells = weights.mu, weights.sigma, weights.cutoff
            by_dist += pointwise.sensitivity_gradient(dist, *shells, saved.sensitivity, by_s, sizes)
            if number > 0:  # the species before the first block do not depend on positions
                by_x = by_x if block.adjust is None else by_x @ block.adjust
                assert by_q is not None
                add_product(by_x, by_before, weights.self_weight, sizes)
                add_product(by_x, by_q.flatten(1), weights.weight.flatten(0, 1), sizes)
        by_vec = pointwise.harmonics_gradient(edge_vec, dist, by_y, sizes)
        return by_vec.addcmul_(edge_vec, (by_dist / dist).unsqueeze(1)), None, None, None, None


def _softplus_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Derivative of <gradient, softplus(x)> with respect to x, (n_atoms, F)."""
    return torch.ops.aten.softplus_backward(gradient, x, 1.0, 20.0)


def _interaction(
    weights: InteractionWeights, x: Tensor, kind: Tensor | None, dist: Tensor, y: Tensor, kernel: NativeSum
) -> _Saved:
    """Evaluate an interaction; the result, (n_atoms, F), is the first entry of ``before``."""
    n_features, n, n_components = sizes = weights.sizes
    s = pointwise.sensitivity(dist, weights.mu, weights.sigma, weights.cutoff, sizes)
    matrix = weights.weight.flatten(0, 1)  # (n·F, F_in)
    q = (linear(x, matrix, None, sizes) if kind is None else matrix.T).reshape(-1, n, n_features)
    moments, result = x.new_empty(len(x), n_components, n_features), x.new_empty(len(x), n_features)
    inputs = [s, y, q, *_padded(weights.tensor_scales)]
    call_kernel("interaction", kernel.parts, kernel.closed, inputs, [moments, result], kind, [weights.cusp])
    own = linear(x, weights.self_weight, weights.self_bias, sizes)
    return _Saved(s, q, kind, moments, [result.add_(own)])


def _interaction_gradient(
    weights: InteractionWeights, saved: _Saved, gradient: Tensor, y: Tensor, kernel: NativeSum
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Derivatives of <gradient, result> with respect to sensitivities, harmonics and transformed features.

    The last is ``None`` in the first block.
    """
    s, q, kind, moments, _ = saved
    by_s, by_y, by_q = torch.empty_like(s), torch.empty_like(y), torch.empty_like(q) if kind is None else None
    inputs = [s, y, q, *_padded(weights.tensor_scales), moments, gradient]
    outputs = [by_s, by_y, by_q]
    call_kernel("interaction_gradient", kernel.parts, kernel.closed, inputs, outputs, kind, [weights.cusp])
    return by_s, by_y, by_q


def _padded(tensor_scales: list[Tensor]) -> list[Tensor | None]:
    """Scales of orders 1 and 2; ``None`` beyond the tensor order."""
    return [*tensor_scales, None, None][:2]
