"""The derivative that is written out, and its parts in C, against autograd through the definitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.graph import build_graph
from mfpyg.kernels import dense, inference, pointwise
from mfpyg.kernels.native import call_kernel, native_sum
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.interaction import TENSOR_COMPONENTS, Interaction, Sensitivity, harmonics

SIZES = (13, 7)
"""Features and sensitivities."""

Potentials = Callable[..., MultiFidelityPotential]


def _assert_close(actual: Tensor, expected: Tensor, factor: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=factor * expected.abs().max().item())


def _of(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A definition's values, a random gradient, and its product with the derivative, by autograd."""
    x = x.detach().requires_grad_()
    values = function(x) + 0 * x.sum()  # of order 0 they are constant
    gradient = torch.randn(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(1))
    return values.detach(), gradient, torch.autograd.grad(values, x, gradient)[0]


def test_sensitivities() -> None:
    layer = Sensitivity(SIZES[1], 0.75, 4.5, 5.0).double()
    sizes, dist = (*SIZES, 9), torch.linspace(0.02, 5.3, 200, dtype=torch.float64)
    shells = layer.mu.detach(), layer.sigma.detach(), layer.cutoff
    values, gradient, expected = _of(layer, dist)
    found = pointwise.sensitivity(dist, *shells, sizes)
    _assert_close(found, values)
    assert (found[dist > 5.0] == 0).all()
    _assert_close(pointwise.sensitivity_gradient(dist, *shells, found, gradient, sizes), expected)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_harmonics(order: int) -> None:
    sizes, vec = (*SIZES, TENSOR_COMPONENTS[order]), torch.randn(50, 3, dtype=torch.float64)
    values, gradient, expected = _of(lambda x: harmonics(x / x.norm(dim=1, keepdim=True), order), vec)
    _assert_close(pointwise.harmonics(vec, vec.norm(dim=1), sizes), values)
    found = pointwise.harmonics_gradient(vec, vec.norm(dim=1), gradient, sizes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of_species", [False, True])
@pytest.mark.parametrize("one_graph", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_interaction(order: int, one_graph: bool, of_species: bool) -> None:
    """Moments and invariants together, also of atoms alone, in a molecule of many chunks and in many molecules."""
    generator = torch.Generator().manual_seed(2)
    pos = 6 * torch.rand(300, 3, generator=generator, dtype=torch.float64)
    pos[7] = 100
    batch = torch.zeros(300, dtype=torch.int64) if one_graph else torch.arange(300) // 5
    graph = build_graph(Batch(z=torch.ones(300, dtype=torch.int64), pos=pos, batch=batch), 4.0)
    summed = native_sum(graph)
    assert summed.closed != one_graph
    layer = Interaction(4, SIZES[0], Sensitivity(SIZES[1], 0.75, 4.5, 5.0), order, 1e-6).double()
    n_edges, kind = len(graph.edge_dist), torch.randint(3, (300,), generator=generator) if of_species else None
    shapes = (n_edges, SIZES[1]), (n_edges, TENSOR_COMPONENTS[order]), (3 if of_species else 300, *reversed(SIZES))
    s, y, q = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    rows = q if kind is None else q[kind]
    moments = summed(s, y, rows)
    expected = layer.invariants(moments)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    of_inputs = torch.autograd.grad(expected, [s, y, rows], gradient)
    scales = [*(scale.detach() for scale in layer.tensor_scales), None, None][:2]
    given, outputs = [s.detach(), y.detach(), q.detach(), *scales], [torch.empty_like(moments), gradient.clone()]
    call_kernel("interaction", summed.parts, summed.closed, given, outputs, kind, [layer.cusp])
    for actual, wanted in zip(outputs, (moments, expected), strict=True):
        _assert_close(actual, wanted.detach())
    derivatives = [torch.empty_like(x) if x is not q or kind is None else None for x in (s, y, q)]
    given += [outputs[0], gradient]
    call_kernel("interaction_gradient", summed.parts, summed.closed, given, derivatives, kind, [layer.cusp])
    for actual, wanted in zip(derivatives, of_inputs, strict=True):
        if actual is not None:
            _assert_close(actual, wanted)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass through the derivative that is written out."""
    calls: list[int] = []
    features = inference.features
    monkeypatch.setattr("mfpyg.models.hipnn.features", lambda *inputs: calls.append(1) or features(*inputs))
    return calls


def _crystals(batch: Batch) -> Batch:
    """The same molecules in cells that are not longer than the cutoff."""
    cells = 4.5 * torch.eye(3, dtype=torch.float64) + 0.2 * torch.randn(batch.num_graphs, 3, 3, dtype=torch.float64)
    batch.cell, batch.pbc = cells, torch.ones(batch.num_graphs, 3, dtype=torch.bool)
    return batch


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"n_interactions": 1}, {"n_interactions": 3, "n_atom_layers": 0}])
@pytest.mark.parametrize("periodic", [False, True])
def test_predictions_are_those_of_autograd(
    make_potential: Potentials,
    make_batch: Callable[..., Batch],
    passes: list[int],
    order: int,
    options: dict[str, int],
    periodic: bool,
) -> None:
    potential, batch = make_potential(order, ("dz", "cc"), **options), make_batch([5, 1, 9])
    batch = _crystals(batch) if periodic else batch
    found = potential.predict(batch, dict.fromkeys(("dz", "cc"), "EFS" if periodic else "EF"))
    assert len(passes) == 1
    potential.backbone.kernel = "definition"
    expected = potential.predict(batch, dict.fromkeys(("dz", "cc"), "EFS" if periodic else "EF"))
    assert len(passes) == 1
    for name in ("dz", "cc"):
        for field in ("energy", "atomic_energies", "forces", *(["stress"] if periodic else [])):
            _assert_close(getattr(found[name], field), getattr(expected[name], field))


def test_a_level_that_no_energy_depends_on(make_potential: Potentials, make_molecule: Callable[..., Data]) -> None:
    potential, data = make_potential(), make_molecule(8)
    with torch.no_grad():
        potential.heads[0].levels[1].weight.zero_()
    found = potential(data).forces
    potential.backbone.kernel = "definition"
    _assert_close(found, potential(data).forces)


def test_what_is_differentiated_again_goes_another_way(
    make_potential: Potentials, make_molecule: Callable[..., Data], passes: list[int]
) -> None:
    potential, data = make_potential(), make_molecule(8)
    data.pos.requires_grad_()
    assert potential(data).forces.grad_fn is not None
    potential.train()
    potential(make_molecule(8))
    assert not passes


def test_a_second_derivative_is_refused(make_potential: Potentials, make_molecule: Callable[..., Data]) -> None:
    potential = make_potential()
    graph = build_graph(make_molecule(8), potential.cutoff)
    graph.edge_vec.requires_grad_()
    graph.by_weights = False
    levels = potential.backbone(graph)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(levels[-1].sum(), graph.edge_vec, create_graph=True)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("rows", [1, 63, 130, 601])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_weights(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, own: bool) -> None:
    """In C and by torch; also of arrays that are not contiguous, and deeper than what is added up at a time."""
    monkeypatch.setattr(dense, "_is_faster", lambda x, sizes: own)
    sizes, n = (*SIZES, 9), SIZES[0]
    for depth, groups in ((5, 1), (300, 1), (n, 4)):
        x, bias = torch.randn(depth, rows, dtype=dtype).T, torch.randn(groups * n, dtype=dtype)
        weight = torch.randn(groups * n, depth, dtype=dtype)
        expected = x.double() @ weight.double().T
        for found, with_bias in ((dense.linear(x, weight, bias, sizes), 1), (dense.linear(x, weight, None, sizes), 0)):
            _assert_close(
                found.double(), expected + with_bias * bias.double(), 1e-5 if dtype == torch.float32 else 1e-13
            )
    x, weight = torch.randn(rows, 300, dtype=dtype), torch.randn(300, n, dtype=dtype)
    result = dense.product(x, weight, sizes)
    _assert_close(result.double(), x.double() @ weight.double(), 1e-5)
    dense.add_product(result, x, weight, sizes)
    _assert_close(result.double(), 2 * (x.double() @ weight.double()), 1e-5)
