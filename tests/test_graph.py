"""The radius graph against a double loop over pairs, its engines against each other, and stored edges."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

import mfpyg.graph
import mfpyg.neighbors
from mfpyg.engine import ENGINES, check_engine, is_installed
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph, build_graph, radius_graph
from mfpyg.models import HIPNN, MultiFidelityPotential

CUTOFF = 3.0
every_engine = pytest.mark.parametrize(
    "engine",
    [
        pytest.param(name, marks=pytest.mark.skipif(not is_installed(name), reason=f"{name} is not installed"))
        for name in ENGINES
    ],
)


def _random_batch(sizes: Sequence[int], seed: int, width: float = 5.0) -> tuple[Tensor, Tensor]:
    """Positions in a cube of ``width`` Å, (n_atoms, 3) float64, and the molecule of each atom."""
    generator = torch.Generator().manual_seed(seed)
    pos = width * torch.rand(sum(sizes), 3, generator=generator, dtype=torch.float64)
    return pos, torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def _brute_force(pos: Tensor, batch: Tensor, cutoff: float) -> Tensor:
    edges = [
        (source, target)
        for target in range(len(pos))
        for source in range(len(pos))
        if source != target and batch[source] == batch[target]
        if sum((a - b) ** 2 for a, b in zip(pos[source].tolist(), pos[target].tolist(), strict=True)) <= cutoff**2
    ]
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T


@pytest.mark.parametrize(
    "sizes", [[1], [2], [12], [5, 1, 9, 1, 1, 14], [1, 1, 1], [30, 2]], ids=lambda sizes: "+".join(map(str, sizes))
)
def test_same_edges_as_a_double_loop(sizes: list[int]) -> None:
    pos, batch = _random_batch(sizes, seed=len(sizes))
    expected = _brute_force(pos, batch, CUTOFF)
    assert torch.equal(radius_graph(pos, batch, CUTOFF), expected)
    assert expected.shape[1] > 0 or max(sizes) <= 2


def test_edges_are_sorted_by_target_then_source_and_run_both_ways() -> None:
    pos, batch = _random_batch([7, 3, 11], seed=1)
    source, target = radius_graph(pos, batch, CUTOFF)
    order = target * len(pos) + source
    assert len(order) > 20
    assert (order.diff() > 0).all()
    assert set(zip(source.tolist(), target.tolist(), strict=True)) == set(
        zip(target.tolist(), source.tolist(), strict=True)
    )


def test_no_edge_within_an_atom_or_between_molecules() -> None:
    pos = torch.zeros(6, 3, dtype=torch.float64)
    pos[:, 0] = torch.tensor([0.0, 1.0, 0.1, 1.1, 0.2, 1.2])  # three molecules on top of each other
    batch = torch.tensor([0, 0, 1, 1, 2, 2])
    assert radius_graph(pos, batch, CUTOFF).T.tolist() == [[1, 0], [0, 1], [3, 2], [2, 3], [5, 4], [4, 5]]


@pytest.mark.parametrize("n_atoms", [0, 1, 4])
def test_no_edges(n_atoms: int) -> None:
    pos = 10 * CUTOFF * torch.arange(3 * n_atoms, dtype=torch.float64).view(n_atoms, 3)
    edge_index = radius_graph(pos, torch.zeros(n_atoms, dtype=torch.int64), CUTOFF)
    assert edge_index.shape == (2, 0)
    assert edge_index.dtype == torch.int64


@every_engine
def test_number_of_neighbours_is_not_capped(engine: str) -> None:
    pos, batch = _random_batch([70, 50], seed=2, width=CUTOFF / 2)
    _, target = radius_graph(pos, batch, CUTOFF, engine)
    assert torch.bincount(target).tolist() == [69] * 70 + [49] * 50


@every_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cutoff", [1.5, 6.5])
def test_a_pair_exactly_at_the_cutoff_is_an_edge_and_one_beyond_is_not(
    engine: str, dtype: torch.dtype, cutoff: float
) -> None:
    at = torch.tensor(cutoff, dtype=dtype)
    beyond = torch.nextafter(at, torch.tensor(10.0, dtype=dtype))
    batch = torch.zeros(2, dtype=torch.int64)
    for distance, n_edges in ((at, 2), (beyond, 0)):
        pos = torch.zeros(2, 3, dtype=dtype)
        pos[1, 2] = distance
        assert radius_graph(pos, batch, cutoff, engine).shape == (2, n_edges)


@pytest.mark.parametrize("pairs_at_once", [1, 7, 100, 1000])
def test_edges_do_not_depend_on_how_many_pairs_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch, pairs_at_once: int
) -> None:
    pos, batch = _random_batch([9, 1, 1, 20, 4], seed=3)
    expected = radius_graph(pos, batch, CUTOFF)
    monkeypatch.setattr(mfpyg.neighbors, "_PAIRS_AT_ONCE", pairs_at_once)
    blocks = []
    within = mfpyg.neighbors._within

    def counted(*args: Any) -> Tensor:
        blocks.append(1)
        return within(*args)

    monkeypatch.setattr(mfpyg.neighbors, "_within", counted)
    assert torch.equal(radius_graph(pos, batch, CUTOFF, "torch"), expected)
    assert len(blocks) > 1 or pairs_at_once == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torch_cluster_finds_the_same_edges(dtype: torch.dtype) -> None:
    pytest.importorskip("torch_cluster")
    generator = torch.Generator().manual_seed(4)
    for seed in range(60):
        sizes = torch.randint(1, 40, (int(torch.randint(1, 8, (), generator=generator)),), generator=generator)
        pos, batch = _random_batch(sizes.tolist(), seed)
        if seed % 3 == 0:  # on a grid, where many pairs are exactly at the cutoff
            pos = pos.round()
        pos = pos.to(dtype)
        expected = radius_graph(pos, batch, CUTOFF, "torch")
        assert torch.equal(radius_graph(pos, batch, CUTOFF, "torch-cluster"), expected)


@pytest.mark.parametrize("n_atoms", [0, 1, 4])
def test_torch_cluster_with_no_edges(n_atoms: int) -> None:
    pytest.importorskip("torch_cluster")
    pos = 10 * CUTOFF * torch.arange(3 * n_atoms, dtype=torch.float64).view(n_atoms, 3)
    edge_index = radius_graph(pos, torch.zeros(n_atoms, dtype=torch.int64), CUTOFF, "torch-cluster")
    assert edge_index.shape == (2, 0)
    assert edge_index.dtype == torch.int64


def _refused(engine: str, message: str) -> None:
    """By every way to ask for an engine."""
    pos, batch = _random_batch([3], seed=0)
    with pytest.raises(MFPyGError, match=message):
        radius_graph(pos, batch, CUTOFF, engine)
    with pytest.raises(MFPyGError, match=message):
        check_engine(engine)
    with pytest.raises(MFPyGError, match=message):
        RadiusGraph(CUTOFF, engine)


def test_unknown_engine_is_refused_with_the_closest_name() -> None:
    _refused("torch-clutser", r"unknown neighbour-list engine 'torch-clutser' .*did you mean 'torch-cluster'\?")


@pytest.mark.parametrize(
    ("engine", "module", "extra"),
    [("torch-cluster", "torch_cluster", "cluster"), ("nvalchemi", "nvalchemiops", "gpu")],
)
def test_missing_engine_is_refused_with_the_way_to_install_it(
    engine: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == module else find_spec(name, *args)
    )
    _refused(engine, rf"'{engine}' is not installed: pip install 'mfpyg\[{extra}\]'")
    pos, batch = _random_batch([3], seed=0)
    check_engine("torch")
    assert radius_graph(pos, batch, CUTOFF, "torch").shape[0] == 2


def test_edge_vectors_point_from_target_to_source_and_are_differentiable() -> None:
    pos = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    graph = build_graph(Data(z=torch.tensor([1, 8]), pos=pos), cutoff=4.0)
    assert graph.edge_index.T.tolist() == [[1, 0], [0, 1]]
    assert graph.edge_vec.tolist() == [[1.0, 2.0, 2.0], [-1.0, -2.0, -2.0]]
    assert graph.edge_dist.tolist() == [3.0, 3.0]
    assert (graph.n_atoms, graph.n_graphs) == (2, 1)
    (gradient,) = torch.autograd.grad(graph.edge_dist.sum(), pos)
    torch.testing.assert_close(gradient[1], 2 * torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3)


# Edges stored in the data


@pytest.fixture
def potential() -> MultiFidelityPotential:
    torch.manual_seed(0)
    backbone = HIPNN([1, 6], n_interactions=1, n_atom_layers=1, n_features=4, n_sensitivities=4, cutoff=CUTOFF)
    return MultiFidelityPotential(backbone, ["dz"]).double().eval()


@pytest.fixture
def molecules() -> list[Data]:
    result = []
    for seed, n_atoms in enumerate([6, 1, 9, 2]):
        pos, _ = _random_batch([n_atoms], seed)
        result.append(Data(z=torch.arange(n_atoms) % 2 * 5 + 1, pos=pos))
    return result


def _refuse(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("edges were built though stored ones fit")


@every_engine
def test_stored_edges_give_the_same_energies_and_forces(
    potential: MultiFidelityPotential, molecules: list[Data], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = potential(Batch.from_data_list(molecules))
    transform = RadiusGraph(CUTOFF, engine)
    stored = Batch.from_data_list([transform(molecule.clone()) for molecule in molecules])
    assert stored.edge_cutoff.tolist() == [CUTOFF] * len(molecules)
    monkeypatch.setattr(mfpyg.graph, "radius_graph", _refuse)
    actual = potential(stored)
    assert torch.equal(actual.energy, expected.energy)
    assert torch.equal(actual.forces, expected.forces)
    assert expected.forces.abs().max() > 0


@pytest.mark.parametrize("cutoffs", [[CUTOFF / 2] * 4, [2 * CUTOFF] * 4, [CUTOFF, CUTOFF, CUTOFF / 2, CUTOFF]])
def test_edges_stored_for_another_cutoff_are_never_used(
    potential: MultiFidelityPotential, molecules: list[Data], cutoffs: list[float]
) -> None:
    fresh = Batch.from_data_list(molecules)
    stored = Batch.from_data_list(
        [RadiusGraph(cutoff)(molecule.clone()) for molecule, cutoff in zip(molecules, cutoffs, strict=True)]
    )
    expected, actual = potential(fresh), potential(stored)
    assert not torch.equal(stored.edge_index, radius_graph(fresh.pos, fresh.batch, CUTOFF))
    assert torch.equal(build_graph(stored, CUTOFF).edge_index, build_graph(fresh, CUTOFF).edge_index)
    assert torch.equal(actual.energy, expected.energy)
    assert torch.equal(actual.forces, expected.forces)


def test_edges_without_a_cutoff_are_ignored(potential: MultiFidelityPotential, molecules: list[Data]) -> None:
    expected = potential(Batch.from_data_list(molecules))
    bonds = [molecule.clone() for molecule in molecules]
    for molecule in bonds:
        molecule.edge_index = torch.empty(2, 0, dtype=torch.int64)
    actual = potential(Batch.from_data_list(bonds))
    assert torch.equal(actual.energy, expected.energy)
    assert torch.equal(actual.forces, expected.forces)


def test_transform_names_its_settings() -> None:
    assert repr(RadiusGraph(6.5)) == "RadiusGraph(cutoff=6.5, engine='auto')"
    assert repr(RadiusGraph(5)) != repr(RadiusGraph(5.2))


def test_a_batch_that_is_not_ascending_is_refused() -> None:
    data = Data(z=torch.ones(4, dtype=torch.int64), pos=torch.rand(4, 3), batch=torch.tensor([0, 1, 0, 1]))
    with pytest.raises(MFPyGError, match="batch is not ascending"):
        build_graph(data, CUTOFF)


def test_stored_edges_in_another_order_are_sorted() -> None:
    pos, _ = _random_batch([8], seed=3)
    data = RadiusGraph(CUTOFF)(Data(z=torch.ones(8, dtype=torch.int64), pos=pos))
    expected = build_graph(data, CUTOFF)
    data.edge_index = data.edge_index[:, torch.randperm(data.edge_index.shape[1])]
    found = build_graph(data, CUTOFF)
    assert torch.equal(found.edge_index[1], expected.edge_index[1])
    numbers = [(graph.edge_index[1] * 8 + graph.edge_index[0]).sort().values for graph in (found, expected)]
    assert torch.equal(*numbers)
