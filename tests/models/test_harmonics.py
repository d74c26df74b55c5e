"""The Cartesian harmonics of the interaction layer against their definition and against e3nn."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from torch import Tensor

from mfpyg.models.interaction import TENSOR_COMPONENTS, harmonics

ORDER_1, ORDER_2 = slice(1, 4), slice(4, 9)


@pytest.fixture
def unit() -> Tensor:
    """Unit vectors, among them the axes, (40, 3) float64."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(34, 3, generator=generator, dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64)
    return torch.cat([vectors / vectors.norm(dim=1, keepdim=True), axes, -axes])


def _traceless(unit: Tensor) -> Tensor:
    """e eᵀ − I/3, (n, 3, 3)."""
    return unit[:, :, None] * unit[:, None, :] - torch.eye(3, dtype=unit.dtype) / 3


@pytest.mark.parametrize("order", [0, 1, 2])
def test_number_of_components(unit: Tensor, order: int) -> None:
    assert harmonics(unit, order).shape == (len(unit), TENSOR_COMPONENTS[order])


@pytest.mark.parametrize("order", [0, 1])
def test_lower_orders_are_the_leading_components(unit: Tensor, order: int) -> None:
    assert torch.equal(harmonics(unit, order), harmonics(unit, 2)[:, : TENSOR_COMPONENTS[order]])


def test_orders_zero_and_one_are_one_and_the_vector(unit: Tensor) -> None:
    values = harmonics(unit, 1)
    assert torch.equal(values[:, 0], torch.ones(len(unit), dtype=unit.dtype))
    assert torch.equal(values[:, ORDER_1], unit)


def test_squares_of_order_two_sum_to_the_frobenius_norm(unit: Tensor) -> None:
    squares = harmonics(unit, 2)[:, ORDER_2].square().sum(dim=1)
    torch.testing.assert_close(squares, _traceless(unit).square().sum(dim=(1, 2)), rtol=0, atol=1e-14)
    torch.testing.assert_close(squares, torch.full_like(squares, 2 / 3), rtol=0, atol=1e-14)


def test_contraction_of_two_directions(unit: Tensor) -> None:
    cosine = unit @ unit.T
    values = harmonics(unit, 2)
    torch.testing.assert_close(values[:, ORDER_1] @ values[:, ORDER_1].T, cosine, rtol=0, atol=1e-14)
    second = values[:, ORDER_2] @ values[:, ORDER_2].T
    torch.testing.assert_close(second, cosine.square() - 1 / 3, rtol=0, atol=1e-14)
    tensors = _traceless(unit)
    torch.testing.assert_close(second, torch.einsum("aij,bij->ab", tensors, tensors), rtol=0, atol=1e-14)


def test_norm_of_a_sum_is_that_of_the_summed_tensors(unit: Tensor) -> None:
    """What the interaction layer uses: components may be summed over neighbours before the norm is taken."""
    amounts = torch.linspace(-1, 2, len(unit), dtype=unit.dtype)
    summed = (amounts[:, None] * harmonics(unit, 2)[:, ORDER_2]).sum(dim=0)
    tensor = (amounts[:, None, None] * _traceless(unit)).sum(dim=0)
    torch.testing.assert_close(summed.square().sum(), tensor.square().sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("components", "degree", "scale"), [(ORDER_1, 1, 1.0), (ORDER_2, 2, (2 / 3) ** 0.5)])
def test_agreement_with_e3nn_up_to_a_rotation_of_components(
    unit: Tensor, components: slice, degree: int, scale: float
) -> None:
    ours = harmonics(unit, 2)[:, components]
    theirs = scale * o3.spherical_harmonics(degree, unit, normalize=True, normalization="norm")
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=1e-12)
    change = torch.linalg.lstsq(theirs, ours).solution
    torch.testing.assert_close(theirs @ change, ours, rtol=0, atol=1e-12)
    torch.testing.assert_close(change @ change.T, torch.eye(2 * degree + 1, dtype=unit.dtype), rtol=0, atol=1e-12)


def test_parity(unit: Tensor) -> None:
    sign = torch.tensor([1.0] + [-1.0] * 3 + [1.0] * 5, dtype=unit.dtype)
    assert torch.equal(harmonics(-unit, 2), sign * harmonics(unit, 2))
