"""Every backbone: the laws of physics, and that PyG's networks are PyG's."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from e3nn import o3
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.nn.models import DimeNetPlusPlus, SchNet, ViSNet, dimenet, dimenet_utils, visnet

from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.errors import MFPyGError
from mfpyg.graph import build_graph
from mfpyg.models import Backbone, MultiFidelityPotential
from mfpyg.models.dimenet import DimeNetBackbone, _formulas, find_triplets
from mfpyg.models.schnet import SchNetBackbone
from mfpyg.models.visnet import ViSNetBackbone
from mfpyg.testing import check_potential

SPECIES = [1, 6, 7, 8]
NAMES = ("hipnn", "schnet", "painn", "dimenet++", "visnet", "nequip", "mace")
SMALL: dict[str, dict[str, Any]] = {
    "hipnn": {"n_features": 8, "n_atom_layers": 1, "n_sensitivities": 6, "cutoff": 4.0, "r_soft_max": 3.5},
    "schnet": {"n_interactions": 2, "n_features": 8, "n_filters": 6, "n_gaussians": 12, "cutoff": 4.0},
    "painn": {"n_interactions": 2, "n_features": 8, "n_radial": 6, "cutoff": 4.0},
    "dimenet++": {
        "n_interactions": 2, "n_features": 8, "n_triplet": 6, "n_basis": 4, "n_out": 10, "n_spherical": 3,
        "n_radial": 4, "cutoff": 4.0,
    },
    "visnet": {"n_interactions": 3, "n_features": 8, "n_heads": 2, "n_radial": 6, "cutoff": 4.0},
    "nequip": {"n_interactions": 2, "n_features": 4, "radial_width": 8, "cutoff": 4.0},
    "mace": {"n_features": 4, "l_max": 2, "radial_width": 8, "radial_layers": 1, "cutoff": 4.0},
}  # fmt: skip
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("hipnn", {"tensor_order": 0}),
    ("hipnn", {"tensor_order": 1, "kernel": "padded"}),
    ("hipnn", {"kernel": "definition"}),
    ("visnet", {"l_max": 2}),
    ("visnet", {"n_interactions": 1}),
    ("visnet", {"vertex": True}),
    ("nequip", {"l_max": 3, "parity": False}),
    ("nequip", {"n_interactions": 1}),
    ("nequip", {"l_max": 0}),
    ("mace", {"l_max": 3, "l_hidden": 2, "n_interactions": 3}),
    ("mace", {"n_interactions": 1, "correlation": 2}),
    ("mace", {"l_max": 1, "l_hidden": 0, "correlation": 1}),
    ("dimenet++", {"n_interactions": 1}),
]
Batches = Callable[..., Batch]


def make(name: str, **options: Any) -> Backbone:
    """A small backbone of a kind, in float64."""
    return backbones.find(name).make(SPECIES, {**SMALL[name], **options}).double()


pytestmark = pytest.mark.usefixtures("without_torchscript")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("isolated", "head", "private_blocks"),
    [("reference", "linear", 0), ("network", "nonlinear", 1)],
)
@pytest.mark.parametrize("name", NAMES)
def test_physics(name: str, isolated: str, head: str, private_blocks: int) -> None:
    options = {"isolated": isolated, "head": head, "private_blocks": private_blocks}
    check_potential(MultiFidelityPotential(make(name), ["dz", "cc"], further={"dz": "D", "cc": "D"}, **options))


@pytest.mark.parametrize(("name", "options"), OTHERS, ids=str)
def test_physics_with_other_options(name: str, options: dict[str, Any]) -> None:
    check_potential(make(name, **options))


def test_all_backbones_of_the_package_are_tested() -> None:
    assert set(NAMES) == {kind.name for kind in backbones._BUILTIN_KINDS}


@pytest.mark.parametrize("name", NAMES)
def test_levels_have_the_sizes_they_say(make_batch: Batches, name: str) -> None:
    backbone, batch = make(name), make_batch([5, 1, 9])
    levels = backbone(build_graph(batch, backbone.cutoff))
    assert [level.shape for level in levels] == [(15, size) for size in backbone.feature_sizes]
    assert len(levels) == len(backbone.blocks) + 1
    assert levels[0].sum(dim=1).eq(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_that_is_trained_gets_a_gradient(make_batch: Batches, name: str) -> None:
    potential = MultiFidelityPotential(make(name), ["dz"]).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    prediction = potential(make_batch([6, 8, 5], seed=3))
    (prediction.energy.square().sum() + prediction.forces.square().sum()).backward()
    without = [n for n, p in potential.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_resetting_draws_other_weights(make_batch: Batches, name: str) -> None:
    backbone, batch = make(name), make_batch([5])
    graph = build_graph(batch, backbone.cutoff)
    before = backbone(graph)
    backbone.reset_parameters()
    assert not torch.allclose(backbone(graph)[-1], before[-1])


@pytest.fixture
def without_simplification(monkeypatch: pytest.MonkeyPatch) -> None:
    """DimeNet++'s formulas, equal to 1e-12, in a second instead of fifteen; not those of other tests."""
    monkeypatch.setattr(dimenet_utils.sym, "simplify", sympy.expand)
    monkeypatch.setattr("mfpyg.models.dimenet._formulas", functools.cache(_formulas.__wrapped__))


@pytest.mark.usefixtures("without_simplification")
@pytest.mark.parametrize("preset", ["published", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_features_are_of_order_one_before_training(make_batch: Batches, name: str, preset: str) -> None:
    backbone = backbones.find(name).make(SPECIES, s.defaults(preset, name)["model"]).double()
    for level in backbone(build_graph(make_batch([12, 9]), backbone.cutoff))[1:]:
        assert 1e-2 < level.square().mean().sqrt() < 20


def test_constants_of_e3nn_keep_their_digits() -> None:
    backbone = make("nequip", l_max=2, n_interactions=3).float().double()
    constants = {name: value for name, value in backbone.named_buffers() if "_w3j_" in name}
    assert constants
    for name, value in constants.items():
        l1, l2, l3 = map(int, name.rsplit("_", 3)[1:])
        assert torch.equal(value, o3.wigner_3j(l1, l2, l3, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_a_potential_can_be_pickled(make_batch: Batches, name: str) -> None:
    potential, batch = MultiFidelityPotential(make(name), ["dz"]).double().eval(), make_batch([4])
    assert torch.equal(pickle.loads(pickle.dumps(potential))(batch).energy, potential(batch).energy)


_BUILD = """
from mfpyg import backbones
from mfpyg.models import MultiFidelityPotential

for name in ("hipnn", "schnet", "painn", "visnet"):
    kind = backbones.find(name)
    MultiFidelityPotential(kind.make([1, 6], kind.small), ["dz"])
"""


def test_nothing_stays_in_the_temporary_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _BUILD], check=True, env=environment)
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("name", ["schnet", "dimenet++", "visnet"])
def test_elements_beyond_the_networks_tables_are_refused(name: str) -> None:
    with pytest.raises(MFPyGError, match="supports elements up to number"):
        backbones.find(name).make([1, 110], SMALL[name])


def test_second_derivatives_of_dimenet_hold_on_a_line() -> None:
    """The angle has no derivative there, its cosine has."""
    potential = MultiFidelityPotential(make("dimenet++"), ["dz"]).double()
    z, line = torch.tensor([8, 6, 8]), torch.tensor([[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0]], dtype=torch.float64)

    def curvature(bent: float) -> Tensor:
        pos = line.clone()
        pos[1, 1] = bent
        pos.requires_grad_()
        energy = potential.predict(Data(z=z, pos=pos), {"dz": "E"})["dz"].energy
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        return torch.autograd.grad(gradient[1, 1], pos)[0][1, 1]

    torch.testing.assert_close(curvature(0.0), curvature(1e-6), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_of_a_seed_are_the_same(name: str) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(make(name).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("z", [[8, 6, 8], [1, 6, 6, 1]], ids=["CO2", "acetylene"])
def test_linear_molecules_have_finite_derivatives(name: str, z: list[int]) -> None:
    pos = torch.zeros(len(z), 3, dtype=torch.float64)
    pos[:, 0] = 1.1 * torch.arange(len(z))
    potential = MultiFidelityPotential(make(name), ["dz"]).double()
    prediction = potential(Data(z=torch.tensor(z), pos=pos))
    assert prediction.forces.isfinite().all()
    assert prediction.forces[:, 1:].abs().max() < 1e-12
    prediction.forces.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in potential.parameters() if p.grad is not None)


@pytest.mark.usefixtures("compile_soon")
@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_compiled_training_steps_are_the_same(make_batch: Batches, recwarn: pytest.WarningsRecorder, name: str) -> None:
    potential = MultiFidelityPotential(make(name, n_interactions=1), ["dz", "cc"]).double()
    other = copy.deepcopy(potential)
    other.compiled = True
    for sizes in ([9, 1, 12, 2, 1], [5, 12, 3, 2, 1, 1]):
        batch, gradients = make_batch(sizes), []
        for p in (potential, other):
            p.zero_grad()
            predictions = p.predict(batch, {"dz": "EF", "cc": "E"})
            forces = predictions["dz"].forces
            (forces.square().sum() + sum(x.energy.square().sum() for x in predictions.values())).backward()
            gradients.append([x.grad for x in p.parameters() if x.grad is not None])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * max(1.0, theirs.abs().max().item()))
    assert not [w for w in recwarn if "torch.compile failed" in str(w.message)]


# The networks of PyG, on the same edges


def _graphless(monkeypatch: pytest.MonkeyPatch, module: Any, edge_index: Tensor) -> None:
    monkeypatch.setattr(module, "radius_graph", lambda *a, **k: edge_index)


def test_schnet_is_that_of_pyg(make_batch: Batches) -> None:
    backbone, batch = make("schnet"), make_batch([5, 9, 2])
    graph = build_graph(batch, backbone.cutoff)
    theirs = SchNet(8, 6, 2, 12, 4.0, interaction_graph=lambda *a: (graph.edge_index, graph.edge_dist)).double()
    theirs.embedding, theirs.distance_expansion = backbone.embedding, backbone.expansion
    for number, block in enumerate(backbone.blocks):
        theirs.interactions[number] = block.interaction
    seen: list[Tensor] = []
    theirs.lin1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    theirs(batch.z, batch.pos, batch.batch)
    assert isinstance(backbone, SchNetBackbone)
    assert torch.equal(backbone(graph)[-1], seen[0])


def _triplets_by_hand(graph: Any) -> set[tuple[int, int]]:
    source, target = graph.edge_index.tolist()
    edges = range(len(source))
    return {(kj, ji) for ji in edges for kj in edges if target[kj] == source[ji] and source[kj] != target[ji]}


def test_triplets_are_those_of_the_definition(make_batch: Batches) -> None:
    graph = build_graph(make_batch([4, 1, 7, 2]), 3.0)
    triplets = find_triplets(graph)
    pairs = list(zip(triplets.incoming.tolist(), triplets.outgoing.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == _triplets_by_hand(graph)


def test_dimenet_is_that_of_pyg(make_batch: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, batch = make("dimenet++"), make_batch([5, 9, 2])
    graph = build_graph(batch, backbone.cutoff)
    theirs = DimeNetPlusPlus(8, 10, 2, 6, 4, 10, 3, 4, 4.0).double()
    theirs.rbf, theirs.emb = backbone.radial, backbone.embedding
    for number, block in enumerate(backbone.blocks):
        theirs.output_blocks[number] = block.output
        if number:
            theirs.interaction_blocks[number - 1] = block.interaction
    (j, i), t = graph.edge_index, find_triplets(graph)
    found = (i, j, i[t.outgoing], j[t.outgoing], j[t.incoming], t.incoming, t.outgoing)
    _graphless(monkeypatch, dimenet, graph.edge_index)
    monkeypatch.setattr(dimenet, "triplets", lambda *a, **k: found)
    expected = theirs(batch.z, batch.pos, batch.batch)  # (n_graphs, n_out), summed over levels and atoms
    assert isinstance(backbone, DimeNetBackbone)
    total = torch.stack(backbone(graph)[1:]).sum(dim=0)
    ours = torch.zeros_like(expected).index_add(0, batch.batch, total)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"l_max": 2}, {"vertex": True}], ids=str)
def test_visnet_is_that_of_pyg(make_batch: Batches, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    backbone, batch = make("visnet", **options).float(), make_batch([5, 9, 2])
    batch.pos = batch.pos.float()  # in which PyG's module computes whatever it is given
    graph = build_graph(batch, backbone.cutoff)
    theirs = ViSNet(
        lmax=options.get("l_max", 1), vertex=options.get("vertex", False),
        num_heads=2, num_layers=3, hidden_channels=8, num_rbf=6, cutoff=4.0,
    ).representation_model  # fmt: skip
    theirs.embedding, theirs.neighbor_embedding = backbone.embedding, backbone.neighbour_embedding
    theirs.distance_expansion, theirs.edge_embedding = backbone.expansion, backbone.edge_embedding
    for number, block in enumerate(backbone.blocks):
        theirs.vis_mp_layers[number] = block.layer
    theirs.out_norm, theirs.vec_out_norm = backbone.blocks[-1].norm, backbone.blocks[-1].vector_norm
    loops = torch.arange(16).repeat(2, 1)
    _graphless(monkeypatch, visnet, torch.cat([graph.edge_index, loops], dim=1))
    scalars, vectors = theirs(batch.z, batch.pos, batch.batch)
    assert isinstance(backbone, ViSNetBackbone)
    expected = torch.cat([scalars, vectors.square().sum(dim=1)], dim=1)
    torch.testing.assert_close(backbone(graph)[-1], expected, rtol=1e-5, atol=1e-6)
