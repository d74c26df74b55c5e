"""Systems with ghosts against the systems themselves: predictions, sizes, and what the tables of kernels need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase.build import bulk, molecule
from torch_geometric.data import Batch, Data

from mfpyg import backbones
from mfpyg.graph import EdgeTopology
from mfpyg.interop.ase import data_of
from mfpyg.models import MultiFidelityPotential, buckets
from mfpyg.models.buckets import bucket, padded
from mfpyg.models.derivatives import evaluate
from mfpyg.models.prepare import prepare_data
from mfpyg.models.system import System, with_isolated_atoms
from tests.models.test_backbones import NAMES, SMALL
from tests.waits import Waits

pytestmark = pytest.mark.usefixtures("without_torchscript")
FIELDS = ("energy", "forces", "atomic_energies", "hierarchicality", "stress", "dipole", "charges")


def potential(name: str = "hipnn", **options: Any) -> MultiFidelityPotential:
    torch.manual_seed(0)
    backbone = backbones.find(name).make([1, 6, 7, 8], SMALL[name])
    found = MultiFidelityPotential(backbone, ["cc"], further={"cc": "DQ"}, **options).double().eval()
    for parameter in (*found.heads.parameters(), *found.further_heads.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    return found


def molecules() -> Data:
    batch = Batch.from_data_list([data_of(molecule(name)) for name in ("CH3CH2OH", "CH4", "H2O")])
    batch.charge = torch.tensor([1.0, 0.0, -1.0])
    return batch


def crystal() -> Data:
    atoms = bulk("C", cubic=True)
    atoms.rattle(0.1, seed=0)
    return data_of(atoms)


@pytest.mark.parametrize("isolated", ["network", "reference"])
@pytest.mark.parametrize("make", [molecules, crystal])
@pytest.mark.parametrize("name", NAMES)
def test_ghosts_change_nothing(name: str, make: Callable[[], Data], isolated: str) -> None:
    one, data = potential(name, isolated=isolated), make()
    wanted = {"cc": "EFDQ" if make is molecules else "EFS"}
    system = prepare_data(one, data, wanted).system
    with_ghosts, ghosts = padded(system, one.backbone.species, one.cutoff)
    plain, found = (evaluate(one, which, wanted, False)["cc"] for which in (system, with_ghosts))
    for field in FIELDS:
        expected, without = getattr(plain, field), getattr(ghosts.removed_from(found), field)
        torch.testing.assert_close(without, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    ours = found.forces[: ghosts.n_atoms]  # type: ignore[index]
    assert ours.isfinite().all()
    if name != "schnet":  # PyG's cutoff function is a cosine that goes on beyond the cutoff
        assert not ours.any()
        assert torch.equal(found.atomic_energies[: ghosts.n_atoms].unique(), found.atomic_energies[:1])


def test_ghosts_of_edge_vectors() -> None:
    one, data = potential(), crystal()
    system = prepare_data(one, data, {"cc": "E"}).system
    graph, topology = system.topology.at(system.pos, system.lattice), system.topology
    edges = EdgeTopology(topology.z, topology.edge_index, topology.batch, 1)
    by_edge = with_isolated_atoms(System(graph.edge_vec, system.species, edges, None), one.backbone.species)
    with_ghosts, ghosts = padded(by_edge, one.backbone.species, one.cutoff)
    assert type(with_ghosts.topology) is EdgeTopology
    plain, found = (evaluate(one, which, {"cc": "EF"}, False)["cc"] for which in (by_edge, with_ghosts))
    found = ghosts.removed_from(found)
    assert found.forces.shape == graph.edge_vec.shape  # type: ignore[union-attr]
    torch.testing.assert_close(found.forces, plain.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.energy, plain.energy, rtol=0, atol=1e-12)


def test_buckets() -> None:
    assert [bucket(n) for n in (1, 2, 16, 17, 32, 33, 64, 65, 1000, 1025)] == [1, 2, 16, 18, 32, 36, 64, 72, 1024, 1152]
    for n in range(1, 5000):
        assert n <= bucket(n) < 1.125 * n + 1
        assert bucket(bucket(n)) == bucket(n)


def chain(n_atoms: int, n_edges: int) -> System:
    """As many edges as wanted, within the cutoff, of atoms on a line."""
    one = potential()
    data = Data(z=torch.full((n_atoms,), 6), pos=torch.zeros(n_atoms, 3, dtype=torch.float64))
    data.pos[:, 1] = 1.2 * torch.arange(n_atoms)
    system = prepare_data(one, data, {"cc": "E"}).system
    assert system.topology.edge_index.shape[1] >= n_edges
    system.topology.edge_index = system.topology.edge_index[:, :n_edges]
    return system


def test_sizes_are_those_of_the_bucket_of_the_edges() -> None:
    """One bucket of edges, whatever their number, has one number of atoms."""
    sizes = set()
    for n_edges in range(1025, 1153):
        topology = padded(chain(200, n_edges), torch.tensor([1, 6]), 4.0)[0].topology
        sizes.add((topology.z.shape[0], topology.edge_index.shape[1], topology.n_graphs))
    assert sizes == {(224, 1152, 2)}


@pytest.mark.parametrize(("n_atoms", "n_edges"), [(2, 2), (4, 12), (10, 33), (30, 64), (200, 1025), (200, 1152)])
def test_tables_of_ghosts(n_atoms: int, n_edges: int) -> None:
    system = chain(n_atoms, min(n_edges, n_atoms * (n_atoms - 1)))
    found, ghosts = padded(system, torch.tensor([6, 7]), 4.0)
    topology, n = found.topology, ghosts.n_atoms
    graph = topology.at(found.pos, found.lattice)
    m = topology.edge_index.shape[1] - system.topology.edge_index.shape[1]
    source, target = topology.edge_index
    assert topology.z.shape[0] >= 32
    assert topology.edge_index.shape[1] >= 64
    assert (target.diff() >= 0).all()
    assert (topology.batch.diff() >= 0).all()
    assert topology.edge_index[:, :m].unique(dim=1).shape[1] == m  # no pair twice
    assert (source != target).all()
    assert (topology.edge_index[:, :m] < n).all()
    assert (topology.edge_index[:, m:] >= n).all()
    assert (graph.edge_dist[:m] > 4.0).all()
    assert (topology.z[:n] == 6).all()
    assert torch.equal(graph.edge_vec[m:], system.topology.at(system.pos, None).edge_vec)


def test_nothing_is_read_from_the_device() -> None:
    one = potential()
    systems = [prepare_data(one, data, {"cc": "E"}).system for data in (molecules(), crystal())]
    with Waits() as scan:
        scan.watching = True
        for system in systems:
            padded(system, one.backbone.species, one.cutoff)
    assert scan.n_watched > 20
    assert scan.found == []


@pytest.mark.parametrize("make", [molecules, crystal])
@pytest.mark.parametrize("name", [name for name in NAMES if backbones.find(name).compiles])
def test_what_a_graph_captures_does_not_wait(name: str, make: Callable[[], Data]) -> None:
    """Forces, stresses, charges and dipoles of a padded system whose tables are there; a graph cannot hold a wait."""
    one = potential(name, isolated="reference")
    wanted = {"cc": "EFDQ" if make is molecules else "EFS"}
    one.backbone.kernel = "padded"  # type: ignore[assignment]  # native is for a CPU only
    system, _ = padded(prepare_data(one, make(), wanted).system, one.backbone.species, one.cutoff)  # type: ignore[arg-type]
    system.prepared = one.backbone.prepare(system.topology.at(system.pos, system.lattice))  # type: ignore[operator]
    with Waits() as scan:
        scan.watching = True
        evaluate(one, system, wanted, False)
    assert scan.n_watched > 100
    assert scan.found == []


def test_streams_do_not_share_ghosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of another one may not have been written yet."""
    buckets._ghosts.cache_clear()
    for stream in (1, 2, 1):
        monkeypatch.setattr(buckets, "stream_number", lambda device, stream=stream: stream)
        padded(chain(10, 30), torch.tensor([6, 7]), 4.0)
    assert buckets._ghosts.cache_info()[:2] == (1, 2)  # hits and misses
