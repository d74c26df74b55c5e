"""Hessians and their products with vectors: against differences of forces, symmetries, and each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.graph import build_graph
from mfpyg.kernels.neighbor_sum import prepare, with_any_derivative
from mfpyg.models import DeltaPotential, MultiFidelityPotential, hessian
from mfpyg.models.hessian import MAX_ATOMS, WAYS, hessian_products

from .test_backbones import NAMES, make

Molecules = Callable[..., Data]
Batches = Callable[..., Batch]
KERNELS = [("hipnn", {"kernel": kernel}) for kernel in ("native", "padded", "definition")]
CASES: list[tuple[str, dict[str, Any]]] = [*((name, {}) for name in NAMES), *KERNELS]


pytestmark = pytest.mark.usefixtures("without_torchscript")


def potential_of(name: str, **options: Any) -> MultiFidelityPotential:
    """A small potential in float64, whose output layers are not scaled down."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = MultiFidelityPotential(make(name, **options), ["dz"]).double().eval()
        for level in potential.heads[0].levels:
            level.reset_parameters()
    return potential


def by_differences(potential: MultiFidelityPotential, data: Data, step: float = 1e-4) -> Tensor:
    """Hessian of a single graph from fourth-order central differences of forces, not symmetrized; (n, n, 3, 3)."""
    n = len(data.z)
    units = torch.eye(3 * n, dtype=torch.float64).view(3 * n, n, 3)
    differences = torch.zeros(3 * n, n, 3, dtype=torch.float64)
    for number, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
        copies = [Data(**{**data.to_dict(), "pos": data.pos + number * step * unit}) for unit in units]
        forces = potential(Batch.from_data_list(copies)).forces.view(3 * n, n, 3)
        differences -= weight * forces / (12 * step)
    return differences.view(n, 3, n, 3).permute(0, 2, 1, 3)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def matrices(flat: Tensor, batch: Batch) -> list[Tensor]:
    """Hessians of a batch as one matrix (3n, 3n) for each graph."""
    sizes = batch.ptr.diff().tolist()
    parts = flat.split([n * n for n in sizes])
    return [h.view(n, n, 3, 3).permute(0, 2, 1, 3).reshape(3 * n, 3 * n) for h, n in zip(parts, sizes, strict=True)]


# Whole Hessians


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_hessian_is_that_of_differences_of_forces(make_molecule: Molecules, name: str, options: dict[str, Any]) -> None:
    potential, data = potential_of(name, **options), make_molecule(6, seed=1)
    found = hessian.hessian(potential, data, "dz")
    assert found.shape == (6, 6, 3, 3)
    assert not found.requires_grad
    assert relative(found, by_differences(potential, data)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_hessian_has_the_symmetries_of_space(make_molecule: Molecules, name: str) -> None:
    potential, data = potential_of(name), make_molecule(6, seed=2)
    found = hessian.hessian(potential, data, "dz")
    size = found.abs().max()
    assert torch.equal(found, found.permute(1, 0, 3, 2))
    assert found.sum(dim=0).abs().max() < 1e-9 * size
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    turned = hessian.hessian(potential, Data(z=data.z, pos=data.pos @ turn.T), "dz")
    torch.testing.assert_close(turned, turn @ found @ turn.T, rtol=0, atol=1e-9 * float(size))


def test_hessian_of_a_crystal(make_molecule: Molecules) -> None:
    potential, data = potential_of("hipnn"), make_molecule(4)
    data.cell, data.pbc = (3.3 * torch.eye(3) + 0.2)[None].double(), torch.tensor([[True, True, True]])
    found = hessian.hessian(potential, data, "dz")
    assert relative(found, by_differences(potential, data)) < 1e-6
    assert found.sum(dim=0).abs().max() < 1e-9 * found.abs().max()
    v = torch.randn(1, 4, 3, dtype=torch.float64)
    for way in WAYS:
        product = hessian_products(potential, data, "dz", v, way, 1e-5)
        assert relative(product[0], torch.einsum("ijab,jb->ia", found, v[0])) < 1e-6


def test_hessians_of_a_batch_are_those_of_its_graphs(make_batch: Batches) -> None:
    potential, batch = potential_of("hipnn"), make_batch([5, 1, 7, 2])
    together = hessian.hessian(potential, batch, "dz")
    alone = [hessian.hessian(potential, data, "dz") for data in batch.to_data_list()]
    assert together.shape == (25 + 1 + 49 + 4, 3, 3)
    torch.testing.assert_close(together, torch.cat([h.flatten(0, 1) for h in alone]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("isolated", ["network", "reference"])
def test_hessian_of_a_single_atom_is_zero(isolated: str) -> None:
    potential = MultiFidelityPotential(make("hipnn"), ["dz"], isolated=isolated).double()
    data = Data(z=torch.tensor([8]), pos=torch.zeros(1, 3, dtype=torch.float64))
    assert torch.equal(hessian.hessian(potential, data, "dz"), torch.zeros(1, 1, 3, 3, dtype=torch.float64))
    for way in WAYS:
        assert not hessian_products(potential, data, "dz", torch.ones(2, 1, 3), way).any()


def test_hessian_of_a_sum_of_networks(make_molecule: Molecules) -> None:
    data, base, difference = make_molecule(5), potential_of("hipnn"), potential_of("schnet")
    both = DeltaPotential(base, difference, "dz", "cc").eval()
    total = hessian.hessian(base, data, "dz") + hessian.hessian(difference, data, "dz")
    torch.testing.assert_close(hessian.hessian(both, data, "cc"), total, rtol=1e-10, atol=1e-10)


def test_hessian_does_not_depend_on_modes_and_positions_keep_theirs(make_molecule: Molecules) -> None:
    potential, data = potential_of("hipnn"), make_molecule(5)
    expected = hessian.hessian(potential, data, "dz")
    potential.train()
    with torch.no_grad():
        assert torch.equal(hessian.hessian(potential, data, "dz"), expected)
    with torch.inference_mode():
        assert torch.equal(hessian.hessian(potential, data, "dz"), expected)
    assert not data.pos.requires_grad
    assert all(parameter.grad is None for parameter in potential.parameters())


def test_precision_is_that_of_the_weights(make_molecule: Molecules) -> None:
    potential, data = potential_of("hipnn"), make_molecule(5)
    expected = hessian.hessian(potential, data, "dz")
    single = Data(z=data.z, pos=data.pos.float())
    rounded = hessian.hessian(potential, Data(z=data.z, pos=data.pos.float().double()), "dz")
    torch.testing.assert_close(hessian.hessian(potential, single, "dz"), rounded, rtol=1e-12, atol=1e-12)
    found = hessian.hessian(potential.float(), data, "dz")
    assert found.dtype == torch.float32
    assert relative(found.double(), expected) < 1e-4


def test_large_graphs_are_refused() -> None:
    n = MAX_ATOMS + 1
    data = Data(z=torch.ones(n, dtype=torch.int64), pos=torch.rand(n, 3))
    with pytest.raises(MFPyGError, match=f"graph 0 has {n} atoms, expected at most {MAX_ATOMS}"):
        hessian.hessian(potential_of("hipnn"), data, "dz")


# Products


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_matrix(make_batch: Batches, name: str) -> None:
    potential, batch = potential_of(name), make_batch([5, 1, 6], seed=3)
    v = torch.randn(3, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = torch.block_diag(*matrices(hessian.hessian(potential, batch, "dz"), batch))
    expected = (v.flatten(1) @ blocks).view_as(v)
    for training in (False, True):
        potential.train(training)
        exact = hessian_products(potential, batch, "dz", v, "exact")
        torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        central = hessian_products(potential, batch, "dz", v, "central", 1e-5)
        assert relative(central, expected) < 1e-6
        assert exact.requires_grad == central.requires_grad == training


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_products_are_differentiable_by_weights(make_batch: Batches, name: str, options: dict[str, Any]) -> None:
    potential, batch = potential_of(name, **options).train(), make_batch([4, 5], seed=2)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, 9, 3, dtype=torch.float64, generator=generator)
    weights = [p for p in potential.parameters() if p.requires_grad]
    ways = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in weights]

    def loss(way: str) -> Tensor:
        return hessian_products(potential, batch, "dz", v, way, 1e-5).square().sum()

    def slope(way: str) -> float:
        gradients = torch.autograd.grad(loss(way), weights, materialize_grads=True)
        return sum(float((g * w).sum()) for g, w in zip(gradients, ways, strict=True))

    def moved(by: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(weights, ways, alpha=by)
            value = float(loss("exact"))
            torch._foreach_sub_(weights, ways, alpha=by)
        return value

    h = 1e-5
    expected = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert slope("exact") == pytest.approx(expected, rel=1e-6)
    assert slope("central") == pytest.approx(expected, rel=1e-5)


def test_squared_products_are_unbiased_estimates_of_the_squared_norm(make_molecule: Molecules) -> None:
    data, one, two = make_molecule(5), potential_of("hipnn"), potential_of("painn")
    v = torch.randn(4000, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    difference = hessian.hessian(one, data, "dz") - hessian.hessian(two, data, "dz")
    of_products = torch.einsum("ijab,kjb->kia", difference, v).square().sum(dim=(1, 2))
    few = hessian_products(one, data, "dz", v[:5], "exact") - hessian_products(two, data, "dz", v[:5], "exact")
    torch.testing.assert_close(few.square().sum(dim=(1, 2)), of_products[:5], rtol=1e-9, atol=0)
    error = of_products.std() / 4000**0.5
    assert abs(of_products.mean() - difference.square().sum()) < 4 * error < 0.2 * difference.square().sum()


def test_differences_in_single_precision(make_batch: Batches) -> None:
    potential, batch = potential_of("schnet"), make_batch([6, 9])
    v = torch.randn(2, 15, 3, dtype=torch.float64)
    expected = hessian_products(potential, batch, "dz", v, "exact")
    found = hessian_products(potential.float(), batch, "dz", v)
    assert found.dtype == torch.float32
    assert relative(found.double(), expected) < 5e-3


@pytest.mark.usefixtures("compile_soon")
def test_differences_can_be_compiled(make_batch: Batches) -> None:
    potential, batch = potential_of("hipnn").train(), make_batch([4, 5])
    v, gradients = torch.randn(1, 9, 3, dtype=torch.float64), []
    for compiled in (False, True):
        potential.compiled = compiled
        loss = hessian_products(potential, batch, "dz", v, step=1e-3).square().sum()
        found = torch.autograd.grad(loss, list(potential.parameters()), materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert relative(gradients[1], gradients[0]) < 1e-7


def test_a_direction_of_zeros_has_products_of_zero(make_batch: Batches) -> None:
    potential, batch = potential_of("hipnn"), make_batch([4, 5])
    v = torch.ones(1, 9, 3, dtype=torch.float64)
    v[:, :4] = 0
    for way in WAYS:
        product = hessian_products(potential, batch, "dz", v, way)
        assert not product[:, :4].any()
        assert product.isfinite().all()
        assert hessian_products(potential, batch, "dz", v[:0], way).shape == (0, 9, 3)


def test_bad_arguments_are_named(make_batch: Batches) -> None:
    potential, batch, v = potential_of("hipnn"), make_batch([4, 5]), torch.ones(1, 9, 3)
    with pytest.raises(MFPyGError, match=r"shape \(9, 3\), expected \(k, 9, 3\)"):
        hessian_products(potential, batch, "dz", v[0])
    with pytest.raises(MFPyGError, match="did you mean 'exact'"):
        hessian_products(potential, batch, "dz", v, "exacts")
    with pytest.raises(MFPyGError, match="step is 0, expected a positive length"):
        hessian_products(potential, batch, "dz", v, step=0)
    with pytest.raises(MFPyGError, match="unknown fidelity"):
        hessian_products(potential, batch, "cc", v)


def test_the_native_kernel_is_replaced_only_meanwhile(make_batch: Batches) -> None:
    graph = build_graph(make_batch([4, 5]), 4.0)
    before = type(prepare("auto", graph, 8, 6, 9))
    with with_any_derivative():
        assert type(prepare("native", graph, 8, 6, 9)).__name__ == "PaddedSum"
        assert prepare("definition", graph, 8, 6, 9) is None
    assert type(prepare("auto", graph, 8, 6, 9)) is before


def test_layer_norm_has_third_derivatives() -> None:
    """torch's own, differentiated three times, takes mean and variance for constants."""
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    layer = torch.nn.LayerNorm((3, 4), eps=0.1, dtype=torch.float64)
    torch.nn.init.normal_(layer.weight)
    expected = layer(x)
    with hessian.third_derivatives():
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)

        def second(x: Tensor) -> Tensor:
            (first,) = torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)
            return torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)[0]

        assert torch.autograd.gradcheck(second, x)
