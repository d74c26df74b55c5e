"""HIP-NN-TS with its derivative by positions written out, for what is differentiated once, and not by weights.

The network is that of :mod:`mfpyg.models.hipnn`, layer by layer. Autograd, whose records of small operations take as
long as the arithmetic of a small molecule, sees it as one function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from mfpyg.models import pointwise
from mfpyg.models.interaction import TENSOR_COMPONENTS, Interaction
from mfpyg.models.native import NativePlan, moments_gradient_of, moments_of

if TYPE_CHECKING:
    from mfpyg.models.hipnn import Block


def features(
    edge_vec: Tensor, dist: Tensor, one_hot: Tensor, blocks: list[Block], plan: NativePlan
) -> tuple[Tensor, ...]:
    """Features after each block, (n_atoms, F) each, differentiable by edge_vec once.

    Args:
        edge_vec, dist: vectors of the edges, (n_edges, 3), and their lengths, (n_edges,).
        one_hot: species of the atoms, (n_atoms, n_species).
        blocks: of the network.
        plan: of the edges.
    """
    return _Features.apply(edge_vec, dist.detach(), one_hot, blocks, plan)


class _Saved(NamedTuple):
    """What the derivative of a block needs: arrays of its interaction, and what each softplus was applied to."""

    sensitivity: Tensor
    transformed: Tensor
    moments: Tensor
    before: list[Tensor]


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edge_vec: Tensor, dist: Tensor, one_hot: Tensor, blocks: list[Block], plan: NativePlan
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        sizes = _sizes(blocks[0][0].base)  # type: ignore[arg-type, union-attr]
        y = pointwise.harmonics(edge_vec, dist, sizes)
        x, levels, saved = one_hot, [], []
        for interaction, *atom_layers in blocks:
            before, s, q, moments = _interaction(interaction.base, x, dist, y, plan)  # type: ignore[arg-type]
            befores = [before]
            x = _mixed(interaction, before).add_(x if interaction.adjust is None else interaction.adjust(x))  # type: ignore[operator]
            for layer in atom_layers:
                befores.append(linear(x, layer.base.weight, layer.base.bias))  # type: ignore[arg-type, union-attr]
                x = _mixed(layer, befores[-1]).add_(x)
            levels.append(x)
            saved.append(_Saved(s, q, moments, befores))
        ctx.edges, ctx.blocks, ctx.plan, ctx.saved = (edge_vec, dist, y), blocks, plan, saved
        return tuple(levels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a prediction in evaluation mode is differentiated once; for more use training mode")
        edge_vec, dist, y = ctx.edges
        by_x, by_y, by_dist = torch.zeros_like(ctx.saved[0].before[0]), torch.zeros_like(y), torch.zeros_like(dist)
        for number in reversed(range(len(gradients))):
            gradient, saved = gradients[number], ctx.saved[number]
            interaction, *atom_layers = ctx.blocks[number]
            by_x = by_x if gradient is None else by_x + gradient
            for layer, before in zip(reversed(atom_layers), reversed(saved.before[1:]), strict=True):
                by_x = torch.addmm(by_x, _unmixed(layer, before, by_x), layer.base.weight)
            base, by_before = interaction.base, _unmixed(interaction, saved.before[0], by_x)
            by_s, dy, by_q = _interaction_gradient(base, saved, by_before, y, ctx.plan, number > 0)
            by_y += dy
            by_dist += pointwise.sensitivity_gradient(dist, *_shells(base), saved.sensitivity, by_s, _sizes(base))
            if number > 0:  # what is before the first block does not depend on positions
                by_x = by_x if interaction.adjust is None else by_x @ interaction.adjust.weight
                by_x = torch.addmm(by_x, by_before, base.self_interaction.weight)
                by_x = torch.addmm(by_x, by_q.flatten(1), base.weight.reshape(-1, base.in_features))
        by_vec = pointwise.harmonics_gradient(edge_vec, dist, by_y, _sizes(base))
        return by_vec.addcmul_(edge_vec, (by_dist / dist).unsqueeze(1)), None, None, None, None


def _sizes(base: Interaction) -> pointwise.Sizes:
    return base.out_features, base.weight.shape[0], TENSOR_COMPONENTS[base.order]


def _shells(base: Interaction) -> tuple[Tensor, Tensor, float]:
    return base.sensitivity.mu, base.sensitivity.sigma, base.sensitivity.cutoff


def _mixed(residual: nn.Module, before: Tensor) -> Tensor:
    """W₂·softplus(before) + b₂."""
    return linear(softplus(before), residual.mix.weight, residual.mix.bias)  # type: ignore[arg-type, union-attr]


def _unmixed(residual: nn.Module, before: Tensor, gradient: Tensor) -> Tensor:
    """Of <gradient, W₂·softplus(before) + b₂> by before."""
    return torch.ops.aten.softplus_backward(gradient @ residual.mix.weight, before, 1.0, 20.0)  # type: ignore[operator, union-attr]


def _interaction(
    base: Interaction, x: Tensor, dist: Tensor, y: Tensor, plan: NativePlan
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The interaction's result, (n_atoms, F), and its sensitivities, transformed features and moments."""
    sizes = _sizes(base)
    s = pointwise.sensitivity(dist, *_shells(base), sizes)
    q = linear(x, base.weight.reshape(-1, base.in_features)).view(-1, sizes[1], sizes[0])
    moments = moments_of(s, y, q, plan.parts, plan.closed)
    invariants = pointwise.invariants(moments, list(base.tensor_scales), base.cusp, sizes)
    own = base.self_interaction
    return invariants.add_(linear(x, own.weight, own.bias)), s, q, moments


def _interaction_gradient(
    base: Interaction, saved: _Saved, gradient: Tensor, y: Tensor, plan: NativePlan, with_q: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of <gradient, invariants> by sensitivities, harmonics and transformed features."""
    by_moments = pointwise.invariants_gradient(
        saved.moments, list(base.tensor_scales), base.cusp, gradient, _sizes(base)
    )
    return moments_gradient_of(saved.sensitivity, y, saved.transformed, by_moments, with_q, plan.parts, plan.closed)
