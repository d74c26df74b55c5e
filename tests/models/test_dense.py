"""Products by the package's own loops are those of torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from mfpyg.models import dense

SIZES = [(1, 1, 1), (5, 3, 4), (32, 12, 9), (33, 2, 9), (64, 12, 9), (120, 20, 9)]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch is as fast, and of a single row."""
    monkeypatch.setattr(dense, "mkl_is_narrow", lambda: True)
    monkeypatch.setattr(dense, "_FEWEST", 0)


def drawn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor, depth: int) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=torch.finfo(found.dtype).eps * 8 * depth)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("n_rows", [0, 1, 3, 64, 67, 150])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_those_of_torch(
    sizes: tuple[int, int, int], n_rows: int, threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    width, n, _ = sizes
    for depth in (0, 1, 4, width, 127, 128, 129, 300):
        x, bias = drawn(n_rows, depth, dtype=dtype), drawn(n * width, dtype=dtype)
        weight, other = drawn(n * width, depth, dtype=dtype), drawn(depth, width, dtype=dtype)
        assert_same(dense.linear(x, weight, bias, sizes), functional.linear(x, weight, bias), depth)
        assert_same(dense.linear(x, weight[:width], None, sizes), functional.linear(x, weight[:width]), depth)
        assert_same(dense.product(x, other, sizes), x @ other, depth)
        total = drawn(n_rows, width, dtype=dtype)
        expected = total + x @ other
        dense.add_product(total, x, other, sizes)
        assert_same(total, expected, depth)


def test_layout_of_the_inputs_does_not_matter(dtype: torch.dtype) -> None:
    x, weight = drawn(7, 20, dtype=dtype), drawn(20, 5, dtype=dtype)
    expected = dense.product(x, weight, (5, 1, 1))
    assert torch.equal(dense.product(x.T.contiguous().T, weight.T.contiguous().T, (5, 1, 1)), expected)
    assert torch.equal(dense.product(torch.cat([x, x], dim=1)[:, :20], weight, (5, 1, 1)), expected)


def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, weight = drawn(131, 300, dtype=dtype), drawn(40, 300, dtype=dtype)
    together = dense.linear(x, weight, None, (8, 5, 9))
    for number in (0, 1, 63, 64, 130):
        assert torch.equal(dense.linear(x[number : number + 1], weight, None, (8, 5, 9))[0], together[number])


def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype) -> None:
    x, weight = drawn(70, 9, dtype=dtype), drawn(9, 33, dtype=dtype)
    x[5, 3], x[66, 0] = float("nan"), float("inf")
    found = dense.product(x, weight, (33, 1, 1))
    lost = ~found.isfinite().all(dim=1)
    assert lost.nonzero().squeeze(1).tolist() == [5, 66]
    assert_same(found[~lost], (x @ weight)[~lost], 9)


def test_arrays_that_do_not_fit_are_refused() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(TypeError, match="different types"):
        dense.product(x, torch.ones(4, 5, dtype=torch.float64), (5, 1, 1))
    with pytest.raises(ValueError, match=r"weights are \(1, 4, 6\), expected \(1, 4, 5\)"):
        dense.product(x, torch.ones(4, 6), (5, 1, 1))
    with pytest.raises(ValueError, match=r"result is \(3, 6\), expected \(3, 5\)"):
        dense.add_product(torch.ones(3, 6), x, torch.ones(4, 5), (5, 1, 1))
    with pytest.raises(ValueError, match=r"weights are \(1, 2, 5\), expected \(1, 4, 5\)"):
        dense.product(x, torch.ones(2, 5), (5, 1, 1))
    with pytest.raises(ValueError, match=r"weights are \(1, 2, 5\), expected \(1, 4, 5\)"):
        dense.linear(x, torch.ones(5, 2), None, (5, 1, 1))
    with pytest.raises(ValueError, match="contiguous"):
        dense.add_product(torch.ones(5, 3).T, x, torch.ones(4, 5), (5, 1, 1))


@pytest.mark.parametrize(
    ("info", "narrow"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx2 avx512f", True),
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx2", False),
        ("vendor_id\t: GenuineIntel\nflags\t: fpu avx2 avx512f", False),
    ],
)
def test_where_the_loops_are_used(info: str, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: info)
    assert dense.mkl_is_narrow.__wrapped__() == narrow
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not dense.mkl_is_narrow.__wrapped__()
