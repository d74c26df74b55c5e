"""Programs of the kernel ``triton``: sizes of its tables, precision, and what GPUs' compilers say of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph, build_graph
from mfpyg.kernels import neighbor_sum
from mfpyg.kernels.neighbor_sum import prepare

triton_kernel = pytest.importorskip("mfpyg.kernels.triton", reason="triton is not installed")

Batches = Callable[..., Batch]


def _graph(batch: Batch, dtype: torch.dtype, cutoff: float) -> Graph:
    batch.pos = batch.pos.to(dtype)
    return build_graph(batch, cutoff)


def _derivatives(function: Callable[..., Tensor], arrays: list[Tensor]) -> list[Tensor]:
    value = function(*arrays)
    first = torch.autograd.grad(value.square().sum(), arrays, create_graph=True)
    return [value, *first, *torch.autograd.grad(sum(x.square().sum() for x in first), arrays)]


def _random(graph: Graph, sizes: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    n_features, n, components = sizes
    generator, n_edges = torch.Generator().manual_seed(0), graph.edge_index.shape[1]
    shapes = (n_edges, n), (n_edges, components), (graph.n_atoms, n, n_features)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("sizes", [(128, 20, 9), (37, 17, 4), (130, 33, 1)], ids=str)
def test_odd_sizes_equal_the_padded_kernel(make_batch: Batches, sizes: tuple[int, int, int]) -> None:
    graph = _graph(make_batch([20]), torch.float64, 2.5)
    arrays = _random(graph, sizes, torch.float64)
    pairs = (_derivatives(prepare(kernel, graph, *sizes), arrays) for kernel in ("triton", "padded"))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * theirs.abs().max().item())


def test_a_chain_of_two_hundred_atoms() -> None:
    pos = torch.arange(200)[:, None] * torch.tensor([1.2, 0.1, 0.0])
    graph = build_graph(Data(z=torch.full((200,), 6), pos=pos), 2.0)
    arrays = _random(graph, (16, 4, 1), torch.float32)
    pairs = (_derivatives(prepare(kernel, graph, 16, 4, 1), arrays) for kernel in ("triton", "padded"))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_tables_have_each_edge_once_and_no_size_that_depends_on_their_entries(make_batch: Batches) -> None:
    graph = _graph(make_batch([30, 1, 7, 12]), torch.float64, 4.0)
    table, source, block_ptr, by_source, source_ptr, target = prepare("triton", graph, 4, 2, 9).tensors()
    n_edges = graph.edge_index.shape[1]
    assert [len(part) for part in (table, source, by_source, target)] == [n_edges] * 4
    assert len(block_ptr) == -(-50 // 16) + 1
    assert len(source_ptr) == 51
    assert sorted(table[table >= 0].tolist()) == list(range(n_edges))
    rows, slots = (table >= 0).nonzero(as_tuple=True)
    edges, block = table[rows, slots].long(), torch.searchsorted(block_ptr, rows, right=True) - 1
    assert torch.equal(graph.edge_index[0, edges], source[rows])
    assert torch.equal(graph.edge_index[1, edges], block * 16 + slots)
    assert torch.equal(graph.edge_index[0, by_source], by_source.new_tensor(sorted(graph.edge_index[0].tolist())))


@pytest.mark.parametrize(
    ("dtype", "allowed", "used"), [(torch.float32, "high", "tf32"), (torch.float64, "high", "ieee")], ids=str
)
def test_tf32_where_torch_allows_it(make_batch: Batches, dtype: torch.dtype, allowed: str, used: str) -> None:
    graph = _graph(make_batch([3]), dtype, 5.0)
    arrays, parts = _random(graph, (8, 5, 9), dtype), prepare("triton", graph, 8, 5, 9).tensors()
    assert triton_kernel._sizes(arrays, parts)[0]["PRECISION"] == "ieee"
    torch.set_float32_matmul_precision(allowed)
    try:
        assert triton_kernel._sizes(arrays, parts)[0]["PRECISION"] == used
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_where_an_attribute_of_torch_allows_it(make_batch: Batches) -> None:
    """The function that tells the precision raises an error then."""
    graph, matmul = _graph(make_batch([3]), torch.float32, 5.0), torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this version of torch has no such attribute")
    arrays, parts = _random(graph, (8, 5, 9), torch.float32), prepare("triton", graph, 8, 5, 9).tensors()
    try:
        for precision in ("ieee", "tf32"):
            matmul.fp32_precision = precision
            assert triton_kernel._sizes(arrays, parts)[0]["PRECISION"] == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_is_not_finite_stays_in_its_molecule(make_batch: Batches) -> None:
    """Targets of several molecules are those of one program."""
    graph = _graph(make_batch([4, 4, 4]), torch.float64, 5.0)
    s, y, q = (array.detach() for array in _random(graph, (3, 2, 4), torch.float64))
    q[5] = torch.nan
    hs, hy, hq, g = torch.ones_like(s), torch.ones_like(y), q.clone(), torch.ones(12, 4, 3, dtype=torch.float64)
    parts, operators = prepare("triton", graph, 3, 2, 4).tensors(), torch.ops.mfpyg
    moments = operators.moments_triton(s, y, q, parts, False)
    *_, tangent = operators.moments_triton_second(s, y, q, g, hs, hy, hq, parts, False)
    for found in (moments, tangent):
        expected = prepare("native", graph, 3, 2, 4)(s, y, q).isfinite()
        assert torch.equal(found.isfinite(), expected)
        assert expected[:4].all()
        assert not expected.all()


def test_programs_run_on_the_device_of_their_tensors(make_batch: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes the current device, which need not be that of the tensors."""
    entered, device_of = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor.device) or device_of(tensor))
    graph = _graph(make_batch([3]), torch.float64, 5.0)
    s, y, q = (array.detach() for array in _random(graph, (3, 2, 4), torch.float64))
    parts, g, operators = prepare("triton", graph, 3, 2, 4).tensors(), q.new_ones(3, 4, 3), torch.ops.mfpyg
    operators.moments_triton(s, y, q, parts, False)
    operators.moments_triton_gradient(s, y, q, g, True, parts, False)
    operators.moments_triton_second(s, y, q, g, s, y, q, parts, False)
    assert len(entered) == 1 + 2 + 3


def test_operators_are_what_the_compiler_is_told(make_batch: Batches) -> None:
    """Schemas, shapes of fake tensors, autograd, and a compiled call with symbolic sizes."""
    graph = _graph(make_batch([4, 2]), torch.float64, 5.0)
    parts, (s, y, q) = prepare("triton", graph, 3, 2, 4).tensors(), _random(graph, (3, 2, 4), torch.float64)
    g, operators = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True), torch.ops.mfpyg
    torch.library.opcheck(operators.moments_triton, (s, y, q, parts, False))
    torch.library.opcheck(operators.moments_triton_gradient, (s, y, q, g, True, parts, False))
    along = [torch.randn_like(x) for x in (s, y, q)]
    inputs = (*(x.detach() for x in (s, y, q, g)), *along, parts, False)
    torch.library.opcheck(operators.moments_triton_second, inputs)


def test_without_an_interpreter_it_needs_a_gpu(make_batch: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(MFPyGError, match="kernel 'triton' runs on a GPU, not on cpu; use auto or padded"):
        prepare("triton", _graph(make_batch([3]), torch.float32, 5.0), 4, 2, 9)


def test_without_triton_it_names_the_extra(make_batch: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mfpyg.kernels.triton", None)
    neighbor_sum._has_triton.cache_clear()
    with pytest.raises(MFPyGError, match=r"pip install 'mfpyg\[gpu\]'"):
        prepare("triton", _graph(make_batch([3]), torch.float32, 5.0), 4, 2, 9)


COMPILE = """
import re, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mfpyg.kernels import triton_programs as programs

tables = {"table": "*i32", **dict.fromkeys(("source", "block_ptr", "by_source", "target_of", "source_ptr"), "*i64")}
tool, path = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", Path(sys.argv[1]) / "program.cubin"
for name in ("moments", "edge_gradient", "source_gradient"):
    for tangent in (False, True):
        program = getattr(programs, name)
        sizes = dict(F=120, N=20, C=9, BN=32, BF=64, T=16, TANGENT=tangent, WITH_HQ=tangent, PRECISION=sys.argv[3])
        sizes = {key: value for key, value in sizes.items() if key in program.arg_names}
        types = {**tables, **dict.fromkeys(("n_atoms", "n_edges"), "i32"), **dict.fromkeys(sizes, "constexpr")}
        source = ASTSource(program, {key: types.get(key, "*fp32") for key in program.arg_names}, sizes)
        compiled = triton.compile(source, GPUTarget("cuda", int(sys.argv[2]), 32), {"num_warps": 8})
        path.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
        print(name, tangent, *re.search(r"REG:(\\d+) STACK:(\\d+)", usage).groups(), compiled.metadata.shared)
"""


@pytest.mark.parametrize(("architecture", "precision"), [(80, "ieee"), (90, "tf32")])
def test_programs_compile_for_gpus_and_their_sums_stay_in_registers(
    tmp_path: object, architecture: int, precision: str
) -> None:
    command = [sys.executable, "-c", COMPILE, str(tmp_path), str(architecture), precision]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 6
    for *_, registers, stack, shared in rows:
        assert int(registers) * 256 <= 65536
        assert int(stack) <= 16  # bytes a thread; the sums of one component are 16
        assert int(shared) <= 100 * 1024
