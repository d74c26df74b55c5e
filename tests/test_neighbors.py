"""Edges of periodic graphs against a loop over images, the engines against each other, and cells that make no sense."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_geometric.data import Batch, Data

import mfpyg.graph
import mfpyg.neighbors
from mfpyg.engine import is_installed
from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph, RadiusGraph, build_graph, edges_of_each, radius_graph
from mfpyg.lattice import Lattice
from mfpyg.neighbors import periodic_radius_graph

CUTOFF = 3.0
NVALCHEMI = pytest.param(
    "nvalchemi",
    marks=pytest.mark.skipif(not is_installed("nvalchemi"), reason="nvalchemi-toolkit-ops is not installed"),
)
every_engine = pytest.mark.parametrize("engine", ["auto", "torch", "vesin", NVALCHEMI])

CUBIC = [[4.1, 0.0, 0.0], [0.0, 4.1, 0.0], [0.0, 0.0, 4.1]]
TRICLINIC = [[5.0, 0.0, 0.0], [-2.3, 4.0, 0.0], [1.1, 3.7, 3.5]]
LEFT_HANDED = [TRICLINIC[1], TRICLINIC[0], TRICLINIC[2]]
TINY = [[1.2, 0.1, 0.0], [0.3, 1.3, -0.2], [0.0, 0.4, 1.1]]
ALL, SLAB, WIRE, NONE = [True] * 3, [True, True, False], [False, True, False], [False] * 3


def _crystal(cell: list[list[float]], pbc: list[bool], n_atoms: int, seed: int = 0, spread: float = 1.0) -> Data:
    """Atoms at random fractional coordinates up to ``spread`` cells away; float64."""
    generator = torch.Generator().manual_seed(seed)
    lattice = torch.tensor(cell, dtype=torch.float64)
    fractional = spread * (torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64) - 0.3)
    z = torch.tensor([1, 6])[torch.arange(n_atoms) % 2]
    return Data(z=z, pos=fractional @ lattice, cell=lattice[None], pbc=torch.tensor([pbc]))


CRYSTALS = {
    "cubic": _crystal(CUBIC, ALL, 5),
    "triclinic": _crystal(TRICLINIC, ALL, 6),
    "left-handed": _crystal(LEFT_HANDED, ALL, 6),
    "tiny": _crystal(TINY, ALL, 2),
    "one atom": _crystal(CUBIC, ALL, 1).update({"cell": torch.eye(3, dtype=torch.float64)[None] * 2.0}),
    "slab": _crystal(TRICLINIC, SLAB, 6),
    "wire": _crystal(TRICLINIC, WIRE, 6),
    "outside of the cell": _crystal(TRICLINIC, ALL, 6, spread=4.0),
    "slab, outside of the cell": _crystal(TRICLINIC, [False, True, True], 6, spread=3.0),
    "large cell": _crystal((30 * torch.eye(3)).tolist(), ALL, 9, spread=0.2),
    "molecule": _crystal(TRICLINIC, NONE, 7),
}


def _brute_force(data: Data, cutoff: float) -> list[tuple[int, ...]]:
    """(target, source, shift…) of every pair, sorted; plain loops, as many images as can possibly be near."""
    cell, pos, pbc = data.cell[0], data.pos, data.pbc[0].tolist()
    stretch = torch.linalg.svdvals(cell[data.pbc[0]]).min().item() if any(pbc) else 1.0
    most = math.ceil((cutoff + torch.cdist(pos, pos).max().item()) / stretch)
    shifts = itertools.product(*[range(-most, most + 1) if repeats else (0,) for repeats in pbc])
    edges = []
    for shift in shifts:
        vectors = pos[None] - pos[:, None] + torch.tensor(shift, dtype=torch.float64) @ cell  # [target, source]
        for target, source in (vectors.norm(dim=2) <= cutoff).nonzero().tolist():
            if target != source or any(shift):
                edges.append((target, source, *shift))
    return sorted(edges)


def _edges(data: Data, cutoff: float, engine: str) -> list[tuple[int, ...]]:
    """The same as found by an engine, in the order in which they come."""
    n_graphs = data.num_graphs if isinstance(data, Batch) else 1
    batch = data.batch if isinstance(data, Batch) else torch.zeros(len(data.pos), dtype=torch.int64)
    lattice = Lattice(data.cell, data.pbc)
    edge_index, shift = periodic_radius_graph(data.pos, batch, lattice, cutoff, engine)
    assert (edge_index.dtype, shift.dtype, shift.shape) == (torch.int64, torch.int32, (edge_index.shape[1], 3))
    assert len(lattice.cell) == n_graphs
    return [tuple(row) for row in torch.cat([edge_index.flip(0).T, shift], dim=1).tolist()]


@every_engine
@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("cutoff", [CUTOFF, 6.5])
def test_same_edges_as_a_loop_over_images(name: str, cutoff: float, engine: str) -> None:
    data = CRYSTALS[name]
    expected = _brute_force(data, cutoff)
    assert _edges(data, cutoff, engine) == expected
    assert len(expected) > 6


def test_the_cases_are_as_hard_as_they_say() -> None:
    tiny = _edges(CRYSTALS["tiny"], CUTOFF, "torch")
    assert sum(target == source for target, source, *_ in tiny) > 20
    assert max(abs(n) for edge in tiny for n in edge[2:]) == 2
    assert all(edge[4] == 0 for edge in _edges(CRYSTALS["slab"], CUTOFF, "torch"))
    assert {edge[2:3] + edge[4:] for edge in _edges(CRYSTALS["wire"], CUTOFF, "torch")} == {(0, 0)}


@every_engine
def test_a_batch_may_mix_crystals_slabs_and_molecules(engine: str) -> None:
    graphs = [CRYSTALS[name] for name in ("molecule", "tiny", "slab", "one atom", "molecule", "triclinic")]
    expected, first = [], 0
    for data in graphs:
        expected += [(t + first, s + first, *shift) for t, s, *shift in _brute_force(data, CUTOFF)]
        first += len(data.pos)
    assert _edges(Batch.from_data_list(graphs), CUTOFF, engine) == expected


@pytest.mark.parametrize("engine", ["vesin", NVALCHEMI])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_libraries_find_the_edges_of_torch(dtype: torch.dtype, engine: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(80):
        n_atoms = int(torch.randint(1, 30, (), generator=generator))
        pbc = (torch.rand(3, generator=generator) < 0.7).tolist()
        cell = 4 * torch.eye(3) + 1.2 * torch.randn(3, 3, generator=generator)
        data = _crystal(cell.tolist(), pbc, n_atoms, seed, spread=1 + seed % 4)
        if seed % 3 == 0:  # on a grid, where many pairs are exactly at the cutoff
            data.cell, data.pos = data.cell.round() + torch.eye(3) / 2, data.pos.round()
        data.cell, data.pos = data.cell.to(dtype), data.pos.to(dtype)
        assert _edges(data, CUTOFF, engine) == _edges(data, CUTOFF, "torch")
        batch = torch.zeros(n_atoms, dtype=torch.int64)
        molecule = radius_graph(data.pos, batch, CUTOFF, "torch")
        assert torch.equal(radius_graph(data.pos, batch, CUTOFF, engine), molecule)


@every_engine
@pytest.mark.parametrize("beyond", [False, True])
def test_an_image_exactly_at_the_cutoff_is_an_edge_and_one_beyond_is_not(engine: str, beyond: bool) -> None:
    length = math.nextafter(CUTOFF, 9) if beyond else CUTOFF
    data = _crystal((length * torch.eye(3, dtype=torch.float64)).tolist(), ALL, 1)
    assert len(_edges(data, CUTOFF, engine)) == (0 if beyond else 6)


@every_engine
@pytest.mark.parametrize("sizes", [[150, 3], [1, 1, 200, 1], [0], [1]], ids=str)
def test_engines_agree_on_molecules(engine: str, sizes: list[int]) -> None:
    pos = 8 * torch.rand(sum(sizes), 3, generator=torch.Generator().manual_seed(0))
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    expected = radius_graph(pos, batch, CUTOFF, "torch")
    assert torch.equal(radius_graph(pos, batch, CUTOFF, engine), expected)
    edges = edges_of_each(pos, batch, len(sizes), CUTOFF, engine)
    assert all(map(torch.equal, edges, edges_of_each(pos, batch, len(sizes), CUTOFF, "torch")))


@every_engine
def test_no_atoms(engine: str) -> None:
    data = _crystal(CUBIC, ALL, 0)
    assert _edges(data, CUTOFF, engine) == []


def test_edges_do_not_depend_on_how_many_pairs_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Batch.from_data_list([CRYSTALS[name] for name in ("tiny", "molecule", "slab")])
    expected = _edges(data, CUTOFF, "torch")
    for pairs in (1, 7, 100):
        monkeypatch.setattr(mfpyg.neighbors, "_PAIRS_AT_ONCE", pairs)
        assert _edges(data, CUTOFF, "torch") == expected


def test_auto_takes_vesin_for_large_graphs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    vesin = mfpyg.neighbors._vesin
    monkeypatch.setattr(mfpyg.neighbors, "_vesin", lambda *args: used.append(len(args[0])) or vesin(*args))
    for n_atoms in (10, 400):
        cell = ((n_atoms / 0.1) ** (1 / 3) * torch.eye(3)).tolist()
        for pbc in (ALL, NONE):
            build_graph(_crystal(cell, pbc, n_atoms), 5.0)
    assert used == [400, 400]


@pytest.mark.parametrize("installed", [True, False])
def test_auto_takes_nvalchemi_on_cuda_for_large_graphs_only(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfpyg.neighbors, "is_installed", lambda engine: installed)
    with FakeTensorMode():  # which has no numbers to wait for
        for n_atoms, n_graphs, expected in [(2000, 1, "nvalchemi"), (2000, 2, "torch"), (64_000, 2, "nvalchemi")]:
            pos = torch.empty(n_atoms, 3, device="cuda")
            counts = torch.empty(n_graphs, dtype=torch.int64, device="cuda")
            assert mfpyg.neighbors._choose(pos, counts, counts) == (expected if installed else "torch")


@pytest.mark.parametrize("engine", ["torch", NVALCHEMI])
def test_atoms_far_apart_and_far_from_the_origin(engine: str) -> None:
    pos = 1e5 + torch.rand(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 9
    pos[150:] += torch.tensor([0.0, 2e4, -3e6])
    batch = torch.zeros(300, dtype=torch.int64)
    expected = (torch.cdist(pos, pos, compute_mode="donot_use_mm_for_euclid_dist") <= CUTOFF).nonzero()
    expected = expected[expected[:, 0] != expected[:, 1]]
    assert radius_graph(pos, batch, CUTOFF, engine).flip(0).T.tolist() == expected.tolist()


# Graphs


def test_edge_vectors_reach_the_images_and_are_differentiable() -> None:
    data = CRYSTALS["triclinic"].clone()
    data.pos.requires_grad_()
    data.cell.requires_grad_()
    graph = build_graph(data, CUTOFF)
    edges = torch.tensor(_brute_force(CRYSTALS["triclinic"], CUTOFF))
    target, source, shift = edges[:, 0], edges[:, 1], edges[:, 2:].double()
    expected = data.pos[source] + shift @ data.cell[0] - data.pos[target]
    torch.testing.assert_close(graph.edge_vec, expected)
    assert (graph.edge_dist <= CUTOFF).all()
    for actual, wanted in zip(
        torch.autograd.grad(graph.edge_vec.square().sum(), [data.pos, data.cell]),
        torch.autograd.grad(expected.square().sum(), [data.pos, data.cell]),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)


def _equal(one: Graph, other: Graph) -> bool:
    return torch.equal(one.edge_index, other.edge_index) and torch.equal(one.edge_vec, other.edge_vec)


def test_both_directions_of_a_pair_are_each_others_negative() -> None:
    vectors = build_graph(CRYSTALS["outside of the cell"], CUTOFF).edge_vec.tolist()
    assert sorted(vectors) == sorted([-x for x in vector] for vector in vectors)


@pytest.mark.parametrize("pbc", [NONE, None])
def test_without_pbc_it_is_the_molecule(pbc: list[bool] | None) -> None:
    data = CRYSTALS["molecule"].clone()
    molecule = Data(z=data.z, pos=data.pos)
    data.pbc = None if pbc is None else torch.tensor([pbc])
    if pbc is None:
        data.cell = None
    assert _equal(build_graph(data, CUTOFF), build_graph(molecule, CUTOFF))


@every_engine
def test_stored_edges_of_a_mixed_batch_are_used(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [CRYSTALS[name] for name in ("molecule", "tiny", "slab", "triclinic")]
    expected = build_graph(Batch.from_data_list(graphs), CUTOFF)
    stored = Batch.from_data_list([RadiusGraph(CUTOFF, engine)(data.clone()) for data in graphs])
    assert stored.edge_shift.shape == (stored.edge_index.shape[1], 3)
    elsewhere = build_graph(stored, CUTOFF / 2)
    assert _equal(elsewhere, build_graph(Batch.from_data_list(graphs), CUTOFF / 2))
    monkeypatch.setattr(mfpyg.graph, "_find_edges", None)
    assert _equal(build_graph(stored, CUTOFF), expected)


def test_edges_stored_without_shifts_are_not_used_for_a_crystal() -> None:
    data = CRYSTALS["triclinic"].clone()
    molecule = RadiusGraph(CUTOFF)(Data(z=data.z, pos=data.pos))
    data.edge_index, data.edge_cutoff = molecule.edge_index, molecule.edge_cutoff
    assert "edge_shift" not in molecule
    assert _equal(build_graph(data, CUTOFF), build_graph(CRYSTALS["triclinic"], CUTOFF))


# What makes no sense


def _changed(**changes: object) -> Data:
    return CRYSTALS["triclinic"].clone().update(changes)


def _cell(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": None}, r"pbc is set but there is no cell; expected cell \(1, 3, 3\)"),
        ({"pbc": None}, r"cell is given without pbc; expected pbc \(1, 3\)"),
        ({"cell": _cell(CUBIC)[0]}, r"cell has shape \(3, 3\), expected \(1, 3, 3\)"),
        ({"pbc": torch.tensor(ALL)}, r"pbc has shape \(3,\), expected \(1, 3\)"),
        ({"pbc": torch.ones(1, 3)}, r"pbc is of type torch.float32, expected torch.bool"),
        ({"cell": _cell([[1, 0, 0], [0, math.nan, 0], [0, 0, 1]])}, "cell is NaN or infinite"),
        ({"cell": torch.zeros(1, 3, 3)}, "cell of graph 0 is .* span no volume"),
        ({"cell": _cell([[4, 0, 0], [0, 4, 0], [4, 4, 1e-7]])}, "cell of graph 0 is .* span no volume"),
        ({"cell": _cell([[4, 0, 0], [8, 0, 0], [0, 0, 4]]), "pbc": torch.tensor([SLAB])}, "span no volume"),
        ({"cell": 1e-3 * _cell(CUBIC)}, "so small that the cutoff reaches .* images of each atom"),
    ],
)
@every_engine
def test_cells_that_make_no_sense_are_refused(changes: dict[str, object], message: str, engine: str) -> None:
    data = _changed(**changes)
    for ask in (lambda: build_graph(data, CUTOFF, engine), lambda: RadiusGraph(CUTOFF, engine)(data)):
        with pytest.raises(MFPyGError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_the_graph_of_a_batch_is_named() -> None:
    graphs = [CRYSTALS["cubic"], CRYSTALS["molecule"], _changed(cell=torch.zeros(1, 3, 3, dtype=torch.float64))]
    with pytest.raises(MFPyGError, match="cell of graph 2 "):
        build_graph(Batch.from_data_list(graphs), CUTOFF)


def test_vectors_that_do_not_repeat_may_be_zero_or_anything() -> None:
    slab = CRYSTALS["slab"].clone()
    expected = build_graph(slab, CUTOFF)
    for vector in ([0.0, 0.0, 0.0], [1e-9, 0.0, 0.0], [5.0, 0.0, 0.0], [1e9, 1.0, -3.0]):
        slab.cell[0, 2] = torch.tensor(vector)
        assert _equal(build_graph(slab, CUTOFF), expected)


def test_torch_cluster_can_not_do_it_and_says_who_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfpyg.neighbors, "check_engine", lambda engine: None)
    with pytest.raises(MFPyGError, match=r"'torch-cluster'.*periodic.*'torch'"):
        build_graph(CRYSTALS["cubic"], CUTOFF, "torch-cluster")
