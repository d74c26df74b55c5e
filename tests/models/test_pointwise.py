"""Functions of edges and atoms in C against their definitions, and their gradients against autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mfpyg.models import pointwise
from mfpyg.models.hipnn import HIPNN
from mfpyg.models.interaction import Interaction, harmonics

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
ORDERS = (0, 1, 2)


def compare(ours: Callable[[Tensor], Tensor], definition: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Values and the gradient of a random combination of them, relative to the largest of each."""
    found, expected = [], []
    for function, into in ((ours, found), (definition, expected)):
        at = x.detach().clone().requires_grad_()
        values = function(at) + 0 * at.sum()  # of order 0 harmonics are constant
        weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.dtype)
        into += [values.detach(), torch.autograd.grad((values * weights).sum(), at, materialize_grads=True)[0]]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= TOLERANCE[x.dtype] * max(float(other.abs().max()), 1e-30)


@pytest.fixture(params=ORDERS)
def network(request: pytest.FixtureRequest) -> HIPNN:
    torch.manual_seed(0)
    return HIPNN([1, 6], n_features=10, n_sensitivities=7, n_interactions=1, tensor_order=request.param)


def interaction_of(network: HIPNN) -> Interaction:
    return next(module for module in network.modules() if isinstance(module, Interaction))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_edges", [0, 1, 53])
def test_functions_of_edges(network: HIPNN, dtype: torch.dtype, n_edges: int) -> None:
    layer = interaction_of(network.to(dtype))
    sizes = (10, 7, network.n_components)
    edge_vec = torch.randn(n_edges, 3, dtype=torch.float64).to(dtype) * 3
    dist = edge_vec.norm(dim=1)
    if not n_edges:
        assert pointwise.harmonics(edge_vec, dist, sizes).shape == (0, network.n_components)
        return
    dist[0] = 9.0  # beyond the cutoff
    compare(lambda d: layer.sensitivity(d, sizes), layer.sensitivity, dist)
    compare(
        lambda v: pointwise.harmonics(v, v.norm(dim=1), sizes),
        lambda v: harmonics(v / v.norm(dim=1, keepdim=True), network.tensor_order),
        edge_vec,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_atoms", [1, 19])
def test_invariants(network: HIPNN, dtype: torch.dtype, n_atoms: int) -> None:
    layer = interaction_of(network.to(dtype))
    sizes = (10, 7, network.n_components)
    moments = torch.randn(n_atoms, network.n_components, 10, dtype=torch.float64).to(dtype)
    moments[0, :, 0] = 0  # where the cusp alone is under the root
    scales = list(layer.tensor_scales)
    compare(lambda m: pointwise.invariants(m, scales, layer.cusp, sizes), layer.invariants, moments)
