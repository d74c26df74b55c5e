"""Every kernel against the definition: values, first and second derivatives, whatever the sizes and the graph."""

from __future__ import annotations

import ctypes
import stat
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph, build_graph
from mfpyg.kernels import compilation, native, neighbor_sum
from mfpyg.kernels.native import NativeSum, native_sum
from mfpyg.kernels.neighbor_sum import prepare
from mfpyg.kernels.padded import PaddedSum
from mfpyg.models import HIPNN, MultiFidelityPotential

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
FAST = (
    *("padded", "native"),
    pytest.param("triton", marks=pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")),
)
Batches = Callable[..., Batch]


def _definition(graph: Graph, sensitivity: Tensor, harmonics: Tensor, transformed: Tensor) -> Tensor:
    """The double sum, edge by edge."""
    source, target = graph.edge_index
    message = torch.einsum("en,enf->ef", sensitivity, transformed[source])
    outer = harmonics[:, :, None] * message[:, None, :]
    zeros = outer.new_zeros(graph.n_atoms, harmonics.shape[1], transformed.shape[2])
    return zeros.index_add(0, target, outer)


def _arrays(graph: Graph, n_features: int, n: int, components: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    n_edges = graph.edge_index.shape[1]
    shapes = ((n_edges, n), (n_edges, components), (graph.n_atoms, n, n_features))
    return tuple(torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)


def _graph(batch: Batch, dtype: torch.dtype = torch.float64, cutoff: float = 5.0) -> Graph:
    batch.pos = batch.pos.to(dtype)
    return build_graph(batch, cutoff)


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item() if expected.numel() else 1.0
    tolerance = TOLERANCE[expected.dtype] * max(scale, 1e-300)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def _derivatives(function: Callable[..., Tensor], arrays: tuple[Tensor, ...]) -> list[Tensor]:
    """Values, first derivatives of a non-linear function of them, and second ones of all of these."""
    value = function(*arrays)
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    first = torch.autograd.grad((value.square() * weight).sum(), arrays, create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), arrays)
    return [value, *first, *second]


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize(
    ("dtype", "n_features", "n", "components"),
    [
        *[(torch.float32, *sizes) for sizes in ((120, 20, 9), (64, 12, 9), (7, 5, 9), (33, 2, 1))],
        *[(torch.float64, *sizes) for sizes in ((20, 10, 4), (7, 5, 9), (3, 3, 1), (1, 1, 4), (16, 7, 9))],
    ],
    ids=str,
)
def test_values_and_two_derivatives_equal_the_definition(
    make_batch: Batches, kernel: str, dtype: torch.dtype, n_features: int, n: int, components: int
) -> None:
    graph = _graph(make_batch([1, 12, 20, 2, 5] if kernel != "triton" else [1, 8, 2]), dtype)  # slowly interpreted
    summed = prepare(kernel, graph, n_features, n, components)
    arrays = _arrays(graph, n_features, n, components, dtype)
    expected = _derivatives(lambda *a: _definition(graph, *a), arrays)
    for ours, theirs in zip(_derivatives(summed, arrays), expected, strict=True):
        _assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("components", [1, 4, 9])
def test_gradcheck_and_gradgradcheck(make_batch: Batches, kernel: str, components: int) -> None:
    graph = _graph(make_batch([4, 1, 3] if kernel != "triton" else [3, 1]))
    summed, arrays = prepare(kernel, graph, 3, 2, components), _arrays(graph, 3, 2, components, torch.float64)
    fast = kernel == "triton"  # along one random direction, as its interpreter is slow
    assert torch.autograd.gradcheck(summed, arrays, fast_mode=fast)
    assert torch.autograd.gradgradcheck(summed, arrays, fast_mode=fast)


@pytest.mark.parametrize("chunk", [1, 30, 10**6], ids=["a target each", "some targets", "all"])
def test_targets_in_parts_give_the_same(make_batch: Batches, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """One large system is walked over in chunks of targets, whose sources are elsewhere too."""
    graph = _graph(make_batch([60, 1, 17]))
    arrays = _arrays(graph, 10, 4, 9, torch.float64)
    expected = _derivatives(lambda *a: _definition(graph, *a), arrays)
    monkeypatch.setattr(native, "_EDGES_PER_CHUNK", chunk)
    summed = native_sum(graph)
    assert summed.closed == (chunk == 10**6)
    for ours, theirs in zip(_derivatives(summed, arrays), expected, strict=True):
        _assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", FAST)
def test_edges_need_not_be_symmetric(make_batch: Batches, kernel: str) -> None:
    """Sensitivities of both directions are different numbers, and some edges run one way only."""
    graph = _graph(make_batch([9, 6]))
    kept = torch.rand(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(2)) < 0.6
    graph = Graph(graph.z, graph.edge_index[:, kept], graph.edge_vec[kept], graph.edge_dist[kept], graph.batch, 2)
    arrays = _arrays(graph, 5, 3, 9, torch.float64)
    expected = _derivatives(lambda *a: _definition(graph, *a), arrays)
    for ours, theirs in zip(_derivatives(prepare(kernel, graph, 5, 3, 9), arrays), expected, strict=True):
        _assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("sizes", [[1], [1, 1, 1]], ids=str)
def test_a_graph_without_edges(make_batch: Batches, kernel: str, sizes: list[int]) -> None:
    graph = _graph(make_batch(sizes))
    arrays = _arrays(graph, 6, 3, 9, torch.float64)
    value, *derivatives = _derivatives(prepare(kernel, graph, 6, 3, 9), arrays)
    assert torch.equal(value, torch.zeros(len(sizes), 9, 6, dtype=torch.float64))
    assert not any(x.any() for x in derivatives)


def test_the_number_of_threads_changes_nothing(make_batch: Batches) -> None:
    graph = _graph(make_batch([40, 12, 9, 3, 25]), torch.float32)
    arrays, before = _arrays(graph, 24, 6, 9, torch.float32), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([x.clone() for x in _derivatives(native_sum(graph), arrays)[:4]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize(
    ("order", "dtype"), [(0, torch.float64), (1, torch.float64), (2, torch.float64), (2, torch.float32)], ids=str
)
def test_a_potential_and_its_gradients_do_not_depend_on_the_kernel(
    make_batch: Batches,
    make_potential: Callable[..., MultiFidelityPotential],
    kernel: str,
    order: int,
    dtype: torch.dtype,
) -> None:
    batch = make_batch([9, 1, 22, 4] if kernel != "triton" else [5, 1, 3])
    batch.pos = batch.pos.to(dtype)
    results = []
    for name in ("definition", kernel):
        potential = make_potential(order, ["dz", "cc"], kernel=name).to(dtype).train()
        predictions = potential.predict(batch, {"dz": "EF", "cc": "E"})
        loss = predictions["dz"].forces.square().sum() + sum(p.energy.sum() for p in predictions.values())
        loss.backward()
        gradients = [p.grad for p in potential.parameters() if p.grad is not None]
        results.append([predictions["dz"].energy, predictions["dz"].forces, *gradients])
    for ours, theirs in zip(results[1], results[0], strict=True):
        scale = theirs.abs().max().item()
        tolerance = {torch.float64: 1e-11, torch.float32: 3e-5}[dtype]  # through two layers and their derivatives
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("kernel", FAST[1:])
def test_a_third_derivative_is_refused(make_batch: Batches, kernel: str) -> None:
    graph = _graph(make_batch([4]))
    arrays = _arrays(graph, 3, 2, 4, torch.float64)
    first = torch.autograd.grad(prepare(kernel, graph, 3, 2, 4)(*arrays).square().sum(), arrays, create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), arrays, create_graph=True)
    with pytest.raises(RuntimeError, match="kernel padded"):
        torch.autograd.grad(sum(x.square().sum() for x in second), arrays)


@pytest.mark.parametrize("kernel", ["auto", *FAST])
def test_edges_in_another_order_are_refused(make_batch: Batches, kernel: str) -> None:
    graph = _graph(make_batch([5, 4]))
    back = torch.arange(graph.edge_index.shape[1]).flip(0)
    graph = Graph(graph.z, graph.edge_index[:, back], graph.edge_vec[back], graph.edge_dist[back], graph.batch, 2)
    with pytest.raises(MFPyGError, match="not sorted by target"):
        prepare(kernel, graph, 4, 2, 9)


@pytest.mark.parametrize("kernel", FAST)
def test_edges_between_molecules_are_taken_as_they_are(make_batch: Batches, kernel: str) -> None:
    """Of a graph that somebody else has made."""
    graph = _graph(make_batch([5, 4]))
    source, target = graph.edge_index
    graph.edge_index = torch.stack([source.flip(0), target])
    arrays = _arrays(graph, 5, 3, 9, torch.float64)
    expected = _derivatives(lambda *a: _definition(graph, *a), arrays)
    for ours, theirs in zip(_derivatives(prepare(kernel, graph, 5, 3, 9), arrays), expected, strict=True):
        _assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", FAST)
def test_edges_through_several_images(kernel: str) -> None:
    """In a cell smaller than the cutoff, several edges run from an atom to another, and to itself."""
    pos, pbc = torch.tensor([[0.0, 0, 0], [1.2, 0.3, 0], [0.2, 1.4, 1]]).double(), torch.ones(1, 3, dtype=torch.bool)
    data = Data(z=torch.tensor([6, 1, 8]), pos=pos, cell=2.5 * torch.eye(3).double()[None], pbc=pbc)
    graph = build_graph(data, 3.5)
    assert graph.edge_index.unique(dim=1).shape[1] < graph.edge_index.shape[1]
    arrays = _arrays(graph, 5, 3, 9, torch.float64)
    expected = _derivatives(lambda *a: _definition(graph, *a), arrays)
    for ours, theirs in zip(_derivatives(prepare(kernel, graph, 5, 3, 9), arrays), expected, strict=True):
        _assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", FAST[1:])
def test_arrays_of_another_graph_or_type_are_refused(make_batch: Batches, kernel: str) -> None:
    graph, other = _graph(make_batch([5, 4])), _graph(make_batch([6, 4]))
    summed = prepare(kernel, graph, 4, 3, 9)
    with pytest.raises(ValueError, match="expected those of the kernel's graph"):
        summed(*_arrays(other, 4, 3, 9, torch.float64))
    s, y, q = _arrays(graph, 4, 3, 9, torch.float64)
    with pytest.raises(TypeError, match="different types"):
        summed(s.float(), y, q)


# The choice


def test_auto_takes_the_native_kernel_where_it_compiles(make_batch: Batches) -> None:
    graph = _graph(make_batch([3]))
    assert isinstance(prepare("auto", graph, 4, 2, 9), NativeSum)
    assert isinstance(prepare("padded", graph, 4, 2, 9), PaddedSum)
    assert prepare("definition", graph, 4, 2, 9) is None


def test_unknown_kernels_are_refused_with_the_known_ones(make_batch: Batches) -> None:
    with pytest.raises(MFPyGError, match=r"unknown kernel 'nativ'.*did you mean 'native'"):
        prepare("nativ", _graph(make_batch([3])), 4, 2, 9)


@pytest.fixture
def own_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of compiled kernels."""
    monkeypatch.setenv("MFPYG_CACHE", str(tmp_path))
    compilation._library_or_error.cache_clear()
    neighbor_sum._warn_once.cache_clear()
    yield tmp_path / "kernels"
    compilation._library_or_error.cache_clear()


def test_without_a_compiler_it_says_so_and_uses_the_padded_kernel(
    own_kernels: Path, make_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    graph = _graph(make_batch([3]))
    with pytest.warns(RuntimeWarning, match="no C compiler found.*'padded' is used instead, which is slower"):
        assert isinstance(prepare("auto", graph, 4, 2, 9), PaddedSum)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare("auto", graph, 4, 2, 9)  # says it once
    with pytest.raises(MFPyGError, match="CC is 'no-such-compiler'"):
        prepare("native", graph, 4, 2, 9)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    own_kernels: Path, make_batch: Batches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken-cc"
    calls = tmp_path / "calls"
    broken.write_text(f"#!/bin/sh\necho x >> {calls}\necho 'fatal: disk on fire' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(MFPyGError, match="disk on fire"):
        prepare("native", _graph(make_batch([3])), 4, 2, 9)
    assert not list(own_kernels.iterdir())
    before = calls.read_text()
    with pytest.raises(MFPyGError, match="disk on fire"):
        prepare("native", _graph(make_batch([3])), 4, 2, 9)
    assert calls.read_text() == before  # not tried again at every step


@pytest.mark.parametrize("content", [b"no program at all", b"#!/no/such/interpreter\n"])
def test_a_compiler_that_does_not_start_is_none(
    own_kernels: Path, make_batch: Batches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(content)
    garbage.chmod(0o755)
    monkeypatch.setenv("CC", str(garbage))
    with pytest.warns(RuntimeWarning, match="cannot be compiled.*'padded' is used instead"):
        assert isinstance(prepare("auto", _graph(make_batch([3])), 4, 2, 9), PaddedSum)


def test_a_compiler_may_have_a_wrapper_and_options(own_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "env cc -g")
    assert isinstance(compilation.library(torch.float64, 4, 2, 1), ctypes.CDLL)


def test_without_openmp_it_says_that_it_uses_one_thread(
    own_kernels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without = tmp_path / "cc-without-openmp"
    without.write_text('#!/bin/sh\ncase "$*" in *-fopenmp*) echo no OpenMP >&2; exit 1;; esac\nexec cc "$@"\n')
    without.chmod(0o755)
    monkeypatch.setenv("CC", str(without))
    with pytest.warns(RuntimeWarning, match="without OpenMP and uses one thread"):
        assert isinstance(compilation.library(torch.float64, 4, 2, 1), ctypes.CDLL)


def test_a_damaged_kernel_in_the_cache_is_compiled_anew(
    own_kernels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compilation.library(torch.float64, 4, 2, 1)
    (compiled,) = own_kernels.iterdir()
    damaged = tmp_path / "other" / "kernels" / compiled.name  # elsewhere, as this process has the first one loaded
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(compiled.read_bytes()[:100])
    monkeypatch.setenv("MFPYG_CACHE", str(tmp_path / "other"))
    compilation._library_or_error.cache_clear()
    assert isinstance(compilation.library(torch.float64, 4, 2, 1), ctypes.CDLL)
    assert damaged.stat().st_size == compiled.stat().st_size


def test_half_precision_uses_the_padded_kernel(make_batch: Batches) -> None:
    graph = _graph(make_batch([3]), torch.bfloat16)
    neighbor_sum._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="float32 and float64, not bfloat16"):
        assert isinstance(prepare("auto", graph, 4, 2, 9), PaddedSum)


def test_the_kernel_can_be_forced_in_the_backbone() -> None:
    backbone = HIPNN([1, 6], n_features=4, n_sensitivities=3, kernel="wrong")
    data = Data(z=torch.tensor([6, 1]), pos=torch.tensor([[0.0, 0, 0], [1.1, 0, 0]]))
    with pytest.raises(MFPyGError, match="unknown kernel 'wrong'"):
        backbone(build_graph(data, backbone.cutoff))
    backbone.kernel = "padded"
    assert len(backbone(build_graph(data, backbone.cutoff))) == 3
