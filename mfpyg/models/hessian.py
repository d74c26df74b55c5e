"""Hessians of a potential, and their products with vectors.

A whole Hessian takes a backward pass for each coordinate of the largest graph. To train on Hessians, products with
random vectors are enough: if the components of v are independent, with zero mean and unit variance, then

.. math:: E\\,|(H - H')\\,v|^2 = \\mathrm{tr}\\,(H - H')^T (H - H')\\,E\\,v v^T = |H - H'|_F^2,

so that a single direction per step gives unbiased estimates of the squared error of all elements and of its gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.graph import molecules_of
from mfpyg.kernels.neighbor_sum import with_any_derivative
from mfpyg.models.interface import Potential
from mfpyg.torch_defaults import with_default_torch_settings

MAX_ATOMS = 300
"""Largest graph of which a whole Hessian is computed; it takes 900 backward passes."""

WAYS = ("central", "exact")
"""Ways to compute products, see :func:`hessian_products`."""

STEPS = {torch.float32: 1e-3, torch.float64: 1e-5}
"""Default length in Å of the displacements of central differences, by the dtype of the potential.

Larger ones average over features of the potential: HIP-NN-TS's √(|Σ_j m e|² + c), c = 1e-6, bends sharply within about
1e-3 Å of linear and other symmetric surroundings of an atom.
"""


@with_default_torch_settings
def hessian(potential: Potential, data: Data, fidelity: str) -> Tensor:
    """Second derivatives of the energy with respect to positions, d²E/dx_i dx_j.

    By backward passes through the forces, one for each coordinate of the largest graph; symmetrized, so that rounding
    errors do not make it asymmetric. Cells of periodic graphs are constant.

    Args:
        potential: potential in any mode; its weights do not get gradients.
        data: ``Data`` or ``Batch``, see :meth:`mfpyg.models.Potential.forward`.
        fidelity: level of theory.

    Returns:
        Hessians in kcal/mol/Å² in the dtype of the weights. Of a single graph without ``batch``, (n, n, 3, 3), where
        [i, j, a, b] is the derivative by component a of atom i and b of atom j. Of a batch, (Σ n², 3, 3): the pairs
        (i, j) of each graph row by row, one graph after the other, as the labels of data sets.

    Raises:
        MFPyGError: for a graph of more than :data:`MAX_ATOMS` atoms, and as
            :meth:`mfpyg.models.MultiFidelityPotential.predict`.
    """
    batch, n_graphs = molecules_of(data)
    sizes = torch.bincount(batch, minlength=n_graphs)  # (n_graphs,)
    _check_sizes(sizes.tolist())
    with torch.enable_grad():
        pos, forces = _forces(potential, data, fidelity)
    firsts, largest = sizes.cumsum(0) - sizes, int(sizes.max()) if n_graphs else 0
    rows = forces.new_zeros(largest, 3, *forces.shape)  # [k, a]: derivatives of −F_a of the k-th atom of each graph
    for atom in range(largest):
        for component in range(3):
            direction = torch.zeros_like(forces)
            direction[firsts[sizes > atom] + atom, component] = 1
            rows[atom, component] = products_of(forces, pos, direction, differentiable=False)
    blocks = []
    for first, n in zip(firsts.tolist(), sizes.tolist(), strict=True):
        block = rows[:n, :, first : first + n].transpose(1, 2)  # (n, n, 3, 3)
        blocks.append((block + block.permute(1, 0, 3, 2)) / 2)
    if getattr(data, "batch", None) is None:
        return blocks[0]
    return torch.cat([rows.new_empty(0, 3, 3), *(block.flatten(0, 1) for block in blocks)])


@with_default_torch_settings
def hessian_products(
    potential: Potential,
    data: Data,
    fidelity: str,
    directions: Tensor,
    way: str = "central",
    step: float | None = None,
) -> Tensor:
    """Products H v of the Hessian of each graph with vectors, differentiable with respect to weights in training mode.

    For v with independent components of zero mean and unit variance, E |(H − H')v|² = |H − H'|²_F, the sum of the
    squared errors of all elements; see the module. Two ways:

    - ``central``: the difference of the forces at x ± h v/|v|, where |v| is the norm over all atoms of a graph; 2 k
      copies of the batch in a single prediction. Needs what training on forces needs. The error is of the order of h²,
      plus rounding errors of the forces divided by h. Goes through ``torch.compile`` if ``potential.compiled``.
    - ``exact``: a backward pass through the forces for each direction. In training mode the gradient of a loss then
      has third derivatives, for which :func:`third_derivatives` replaces kernels. Never compiled.

    Args:
        potential: potential. In evaluation mode, or without gradients enabled, the result is detached.
        data: ``Data`` or ``Batch``, see :meth:`mfpyg.models.Potential.forward`.
        fidelity: level of theory.
        directions: k vectors v for all atoms, (k, n_atoms, 3).
        way: one of :data:`WAYS`.
        step: h in Å; default: that of :data:`STEPS`.

    Returns:
        H v in kcal/mol/Å² times the unit of v, (k, n_atoms, 3), in the dtype of the weights.

    Raises:
        MFPyGError: for directions of another shape, an unknown way, a step that is not positive, and as
            :meth:`mfpyg.models.MultiFidelityPotential.predict`.
    """
    expected = (len(data.z), 3)
    if directions.dim() != 3 or directions.shape[1:] != expected:
        raise MFPyGError(f"directions have the shape {tuple(directions.shape)}, expected (k, {expected[0]}, 3)")
    if way not in WAYS:
        raise unknown_name("way to compute Hessian products", way, WAYS)
    step = STEPS.get(potential.dtype, STEPS[torch.float32]) if step is None else step
    if not 0 < step < float("inf"):
        raise MFPyGError(f"step is {step}, expected a positive length in Å, such as {STEPS[torch.float32]}")
    directions = directions.detach().to(potential.dtype)
    if way == "central":
        return _by_differences(potential, data, fidelity, directions, step)
    differentiable = potential.training and torch.is_grad_enabled()
    with torch.enable_grad(), third_derivatives() if differentiable else nullcontext():
        pos, forces = _forces(potential, data, fidelity)
        products = [products_of(forces, pos, v, differentiable) for v in directions]
    return torch.stack(products) if products else torch.zeros_like(directions)


def products_of(forces: Tensor, pos: Tensor, direction: Tensor, differentiable: bool) -> Tensor:
    """H v from forces that have been predicted at positions that require a gradient.

    Args:
        forces: −dE/dx as a function of ``pos``, (n_atoms, 3).
        pos: positions, (n_atoms, 3).
        direction: v, (n_atoms, 3).
        differentiable: whether the result can be differentiated (again); the forces must then have been predicted in
            :func:`third_derivatives`.

    Returns:
        H v, (n_atoms, 3), in the dtype of the forces.
    """
    if not forces.requires_grad:  # no atom has a neighbour
        return torch.zeros_like(forces)
    (product,) = torch.autograd.grad(
        forces, pos, -direction, create_graph=differentiable, retain_graph=True, materialize_grads=True
    )
    return product.to(forces.dtype)


@contextmanager
def third_derivatives() -> Iterator[None]:
    """Context manager for predictions whose forces are differentiated by positions and then by weights.

    In it, the kernel ``padded`` takes the place of ``native``, which has two derivatives. Layer normalization is
    composed of elementary operations: torch's own treats mean and variance as constants from the third derivative on,
    without an error (https://github.com/pytorch/pytorch/issues/175754).
    """
    with with_any_derivative(), _ComposedLayerNorm():
        yield


class _ComposedLayerNorm(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_layer_norm if func is functional.layer_norm else func)(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`torch.nn.functional.layer_norm`, with the same names of arguments and any derivative."""
    dims = tuple(range(-len(normalized_shape), 0))
    centered = input - input.mean(dims, keepdim=True)
    result = centered * (centered.square().mean(dims, keepdim=True) + eps).rsqrt()
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def _check_sizes(sizes: Sequence[int]) -> None:
    largest = max(sizes, default=0)
    if largest > MAX_ATOMS:
        raise MFPyGError(
            f"graph {sizes.index(largest)} has {largest} atoms, expected at most {MAX_ATOMS} for a whole Hessian; use "
            "mfpyg.models.hessian.hessian_products for its products with vectors"
        )


def _forces(potential: Potential, data: Data, fidelity: str) -> tuple[Tensor, Tensor]:
    """Positions that require a gradient, at least as precise as the weights, and the forces as a function of them."""
    data = copy.copy(data)
    pos = data.pos.detach()
    data.pos = pos.to(torch.promote_types(pos.dtype, potential.dtype)).clone().requires_grad_()
    forces = potential.predict(data, {fidelity: "EF"})[fidelity].forces
    assert forces is not None
    return data.pos, forces


def _by_differences(potential: Potential, data: Data, fidelity: str, directions: Tensor, step: float) -> Tensor:
    batch, n_graphs = molecules_of(data)
    squares = directions.new_zeros(len(directions), n_graphs)
    norm = squares.index_add_(1, batch, directions.square().sum(dim=2)).sqrt()[:, batch, None]  # (k, n_atoms, 1)
    shift = step * torch.where(norm > 0, directions / norm, 0.0)  # (k, n_atoms, 3)
    pos = data.pos.detach()
    pos = pos.to(torch.promote_types(pos.dtype, potential.dtype))
    copies = _copies(data, torch.cat([pos - shift, pos + shift]))
    forces = potential.predict(copies, {fidelity: "EF"})[fidelity].forces
    assert forces is not None
    before, after = forces.view(2, *directions.shape)
    return (before - after) * (norm / (2 * step))


def _copies(data: Data, pos: Tensor) -> Data:
    """Batch of copies of all graphs at positions (n_copies, n_atoms, 3); edges are found for each."""
    n_copies = len(pos)
    batch, n_graphs = molecules_of(data)
    number = torch.arange(n_copies, device=batch.device).unsqueeze(1)
    copies = Data(z=data.z.repeat(n_copies), pos=pos.flatten(0, 1), batch=(batch + n_graphs * number).flatten())
    if getattr(data, "cell", None) is not None:
        copies.cell = data.cell.detach().repeat(n_copies, 1, 1)
    if getattr(data, "pbc", None) is not None:
        copies.pbc = data.pbc.repeat(n_copies, 1)
    return copies
