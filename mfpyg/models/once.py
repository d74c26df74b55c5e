"""HIP-NN-TS with its derivative by positions written out, for what is differentiated once, and not by weights.

The network is that of :mod:`mfpyg.models.hipnn`, layer by layer. Autograd, whose records of small operations take as
long as the arithmetic of a small molecule, sees it as one function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mfpyg.models import pointwise
from mfpyg.models.dense import add_product, linear, product
from mfpyg.models.interaction import TENSOR_COMPONENTS, Interaction
from mfpyg.models.native import NativePlan, call_kernel

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
    """What the derivative of a block needs: arrays of its interaction, what each softplus was applied to, and weights.

    Before the first block an atom is its species. Its transformed features are those of all atoms of the species, and
    stand in ``transformed`` once, (n_species, n, F), with the species of each atom in ``kind``; (n_atoms, n, F) else.
    """

    sensitivity: Tensor
    transformed: Tensor
    kind: Tensor | None
    moments: Tensor
    before: list[Tensor]
    shells: tuple[Tensor, Tensor, float]
    scales: list[Tensor | None]


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edge_vec: Tensor, dist: Tensor, one_hot: Tensor, blocks: list[Block], plan: NativePlan
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        sizes = _sizes(blocks[0][0].base)  # type: ignore[arg-type, union-attr]
        y = pointwise.harmonics(edge_vec, dist, sizes)
        x, levels, saved = one_hot, [], list[_Saved]()
        for interaction, *atom_layers in blocks:
            kind = None if saved else one_hot.argmax(dim=1)
            saved.append(_interaction(interaction.base, x, kind, dist, y, plan))  # type: ignore[arg-type]
            befores = saved[-1].before
            x = _mixed(interaction, befores[0], sizes).add_(x if interaction.adjust is None else interaction.adjust(x))  # type: ignore[operator]
            for layer in atom_layers:
                befores.append(linear(x, layer.base.weight, layer.base.bias, sizes))  # type: ignore[arg-type, union-attr]
                x = _mixed(layer, befores[-1], sizes).add_(x)
            levels.append(x)
        ctx.edges, ctx.blocks, ctx.plan, ctx.saved = (edge_vec, dist, y), blocks, plan, saved
        return tuple(levels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a prediction in evaluation mode is differentiated once; for more use training mode")
        edge_vec, dist, y = ctx.edges
        sizes = _sizes(ctx.blocks[0][0].base)
        by_x, by_y, by_dist = torch.zeros_like(ctx.saved[0].before[0]), torch.zeros_like(y), torch.zeros_like(dist)
        for number in reversed(range(len(gradients))):
            gradient, saved = gradients[number], ctx.saved[number]
            interaction, *atom_layers = ctx.blocks[number]
            if gradient is not None:
                by_x += gradient
            for layer, before in zip(reversed(atom_layers), reversed(saved.before[1:]), strict=True):
                add_product(by_x, _unmixed(layer, before, by_x, sizes), layer.base.weight, sizes)
            base, by_before = interaction.base, _unmixed(interaction, saved.before[0], by_x, sizes)
            by_s, dy, by_q = _interaction_gradient(base, saved, by_before, y, ctx.plan)
            by_y += dy
            mu, sigma, cutoff = saved.shells
            by_dist += pointwise.sensitivity_gradient(dist, mu, sigma, cutoff, saved.sensitivity, by_s, sizes)
            if number > 0:  # what is before the first block does not depend on positions
                by_x = by_x if interaction.adjust is None else by_x @ interaction.adjust.weight
                assert by_q is not None
                add_product(by_x, by_before, base.self_interaction.weight, sizes)
                add_product(by_x, by_q.flatten(1), base.weight.reshape(-1, base.in_features), sizes)
        by_vec = pointwise.harmonics_gradient(edge_vec, dist, by_y, sizes)
        return by_vec.addcmul_(edge_vec, (by_dist / dist).unsqueeze(1)), None, None, None, None


def _sizes(base: Interaction) -> pointwise.Sizes:
    return base.out_features, base.weight.shape[0], TENSOR_COMPONENTS[base.order]


def _shells(base: Interaction) -> tuple[Tensor, Tensor, float]:
    return base.sensitivity.mu, base.sensitivity.sigma, base.sensitivity.cutoff


def _mixed(residual: nn.Module, before: Tensor, sizes: pointwise.Sizes) -> Tensor:
    """W₂·softplus(before) + b₂."""
    return linear(pointwise.softplus(before, sizes), residual.mix.weight, residual.mix.bias, sizes)  # type: ignore[arg-type, union-attr]


def _unmixed(residual: nn.Module, before: Tensor, gradient: Tensor, sizes: pointwise.Sizes) -> Tensor:
    """Of <gradient, W₂·softplus(before) + b₂> by before."""
    return pointwise.softplus_gradient(before, product(gradient, residual.mix.weight, sizes), sizes)  # type: ignore[arg-type, union-attr]


def _interaction(
    base: Interaction, x: Tensor, kind: Tensor | None, dist: Tensor, y: Tensor, plan: NativePlan
) -> _Saved:
    """The interaction's arrays, and its result, (n_atoms, F), before the first softplus."""
    n_features, n, n_components = sizes = _sizes(base)
    shells, scales = _shells(base), _scales(base)
    s = pointwise.sensitivity(dist, *shells, sizes)
    weight = base.weight.reshape(-1, base.in_features)  # (n·F, in_features)
    q = (linear(x, weight, None, sizes) if kind is None else weight.T).reshape(-1, n, n_features)
    moments, result = x.new_empty(len(x), n_components, n_features), x.new_empty(len(x), n_features)
    inputs = [s, y, q, *scales]
    call_kernel("interaction", plan.parts, plan.closed, inputs, [moments, result], kind, [base.cusp])
    own = base.self_interaction
    return _Saved(s, q, kind, moments, [result.add_(linear(x, own.weight, own.bias, sizes))], shells, scales)


def _interaction_gradient(
    base: Interaction, saved: _Saved, gradient: Tensor, y: Tensor, plan: NativePlan
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of <gradient, result> by sensitivities, harmonics and transformed features, those of species left out."""
    s, q, kind, moments, _, _, scales = saved
    by_s, by_y, by_q = torch.empty_like(s), torch.empty_like(y), torch.empty_like(q) if kind is None else None
    inputs = [s, y, q, *scales, moments, gradient]
    call_kernel("interaction_gradient", plan.parts, plan.closed, inputs, [by_s, by_y, by_q], kind, [base.cusp])
    return by_s, by_y, by_q


def _scales(base: Interaction) -> list[Tensor | None]:
    """Those of orders 1 and 2, where there are such."""
    return [*base.tensor_scales, None, None][:2]
