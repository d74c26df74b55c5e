"""Hessians and their products with vectors, beside the laws of Hessians in mfpyg.testing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.models import DeltaPotential, MultiFidelityPotential, hessian
from mfpyg.models.hessian import MAX_ATOMS, displaced_copies, predict_with_products
from mfpyg.models.prediction import Products

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


def test_hessian_of_a_crystal(make_molecule: Molecules) -> None:
    potential, data = potential_of("hipnn"), make_molecule(4)
    data.cell, data.pbc = (3.3 * torch.eye(3) + 0.2)[None].double(), torch.tensor([[True, True, True]])
    found = hessian.hessian(potential, data, "dz")
    assert found.shape == (4, 4, 3, 3)
    assert not found.requires_grad
    assert relative(found, by_differences(potential, data)) < 1e-6
    assert found.sum(dim=0).abs().max() < 1e-9 * found.abs().max()
    data.batch = torch.zeros(4, dtype=torch.int64)
    v = torch.randn(1, 4, 3, dtype=torch.float64)
    assert relative(products(potential, data, v)[0], torch.einsum("ijab,jb->ia", found, v[0])) < 1e-5


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


def products(potential: MultiFidelityPotential, batch: Data, v: Tensor) -> Tensor:
    """H v of all graphs, without the first-order error of a one-sided difference."""
    graphs = torch.ones(int(batch.batch.max()) + 1, dtype=torch.bool)
    copies = [displaced_copies(batch, graphs, w, potential.dtype) for w in (v, -v)]
    both = [predict_with_products(potential, displaced, {"dz": "EH"})["dz"].hessian for displaced in copies]
    assert all(isinstance(one, Products) for one in both)
    return (both[0].values - both[1].values) / 2  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_matrix(make_batch: Batches, name: str) -> None:
    potential, batch = potential_of(name), make_batch([5, 1, 6], seed=3)
    v = torch.randn(3, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = torch.block_diag(*matrices(hessian.hessian(potential, batch, "dz"), batch))
    expected = (v.flatten(1) @ blocks).view_as(v)
    for training in (False, True):
        found = products(potential.train(training), batch, v)
        assert relative(found, expected) < 1e-6
        assert found.requires_grad == training


@pytest.mark.parametrize("name", ["hipnn", "painn"])
def test_products_are_differentiable_by_weights(make_batch: Batches, name: str) -> None:
    """Against differences of a loss of whole Hessians."""
    potential, batch = potential_of(name).train(), make_batch([4, 5], seed=2)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, 9, 3, dtype=torch.float64, generator=generator)
    weights = [p for p in potential.parameters() if p.requires_grad]
    ways = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in weights]
    gradients = torch.autograd.grad(products(potential, batch, v).square().sum(), weights, materialize_grads=True)
    slope = sum(float((g * w).sum()) for g, w in zip(gradients, ways, strict=True))

    def moved(by: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(weights, ways, alpha=by)
            blocks = torch.block_diag(*matrices(hessian.hessian(potential, batch, "dz"), batch))
            torch._foreach_sub_(weights, ways, alpha=by)
        return float((blocks @ v.flatten()).square().sum())

    h = 1e-5
    expected = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert slope == pytest.approx(expected, rel=1e-5)


def test_products_of_some_graphs_leave_the_rest_as_it_is(make_batch: Batches) -> None:
    """Everything else is predicted as without, and only what is wanted."""
    potential, batch = potential_of("hipnn"), make_batch([4, 5, 3], seed=2)
    v, graphs = torch.ones(2, 12, 3), torch.tensor([False, True, False])
    for letters in ("EFH", "EH"):
        (found,) = predict_with_products(
            potential, displaced_copies(batch, graphs, v, v.dtype), {"dz": letters}
        ).values()
        expected = potential.predict(batch, {"dz": letters.replace("H", "")})["dz"]
        for field in ("energy", "forces", "atomic_energies", "hierarchicality"):
            one, other = getattr(found, field), getattr(expected, field)
            assert (one is None) == (other is None)
            assert one is None or relative(one, other) < 1e-12
        assert isinstance(found.hessian, Products)
        assert found.hessian.atoms.tolist() == [4, 5, 6, 7, 8]
        assert found.hessian.values.shape == found.hessian.directions.shape == (2, 5, 3)


def test_products_of_crystals_and_molecules(make_batch: Batches) -> None:
    potential, batch = potential_of("hipnn"), make_batch([4, 3], seed=2)
    batch.cell = torch.stack([3.3 * torch.eye(3), torch.zeros(3, 3)]).double()
    batch.pbc = torch.tensor([[True] * 3, [False] * 3])
    blocks = torch.block_diag(*matrices(hessian.hessian(potential, batch, "dz"), batch))
    v = torch.randn(1, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert relative(products(potential, batch, v).flatten(), blocks @ v.flatten()) < 1e-6


def test_products_in_single_precision(make_batch: Batches) -> None:
    """Directions are those between positions as they are rounded, so that these roundings are no errors."""
    potential, batch = potential_of("schnet"), make_batch([6, 9])
    v = torch.randn(2, 15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blocks = torch.block_diag(*matrices(hessian.hessian(potential, batch, "dz"), batch))
    batch.pos = batch.pos.float()
    graphs = torch.ones(2, dtype=torch.bool)
    displaced = displaced_copies(batch, graphs, v, torch.float32)
    found = predict_with_products(potential.float(), displaced, {"dz": "EH"})["dz"].hessian
    assert isinstance(found, Products)
    assert found.values.dtype == found.directions.dtype == torch.float32
    assert relative(found.directions.double(), v) < 1e-3
    expected = (found.directions.double().flatten(1) @ blocks).view_as(v)
    assert relative(found.values.double(), expected) < 1e-2


@pytest.mark.usefixtures("compile_soon")
def test_products_can_be_compiled(make_batch: Batches) -> None:
    potential, batch = potential_of("hipnn", n_interactions=1).train(), make_batch([4, 5])
    v, gradients = torch.randn(1, 9, 3, dtype=torch.float64), []
    for compiled in (False, True):
        potential.compiled = compiled
        loss = products(potential, batch, v).square().sum()
        found = torch.autograd.grad(loss, list(potential.parameters()), materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert relative(gradients[1], gradients[0]) < 1e-7


def test_bad_directions_are_named(make_batch: Batches) -> None:
    batch, graphs = make_batch([4, 5]), torch.ones(2, dtype=torch.bool)
    with pytest.raises(MFPyGError, match=r"shape \(9, 3\), expected \(k, 9, 3\)"):
        displaced_copies(batch, graphs, torch.ones(9, 3), torch.float64)


def test_potentials_predict_hessians_when_called(make_batch: Batches) -> None:
    potential, batch = potential_of("hipnn"), make_batch([4, 5])
    found = potential(batch, properties="EFH")
    assert torch.equal(found.hessian, hessian.hessian(potential, batch, "dz"))
    alone = batch.get_example(0)
    assert potential(alone, ["dz"], properties="H")["dz"].hessian.shape == (16, 3, 3)
    with pytest.raises(MFPyGError, match="Hessians of 'dz' are not predicted with the rest"):
        potential.predict(batch, {"dz": "EH"})
