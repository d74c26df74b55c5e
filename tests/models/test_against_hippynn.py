"""HIP-NN-TS against the reference implementation, hippynn, with its own weights: energies, forces, gradients.

Tolerances are relative to the largest magnitude of the compared tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hippynn import pretraining
from hippynn.graphs import GraphModule, Predictor, find_unique_relative, inputs, networks, physics, targets
from hippynn.graphs.nodes.tags import PairIndexer
from hippynn.layers.hiplayers import InverseSensitivityModule
from hippynn.layers.indexers import OneHotSpecies
from hippynn.layers.targets import HEnergy
from hippynn.networks.hipnn import Hipnn, HipnnQuad, HipnnVec
from scipy.stats import ks_2samp
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.utils import to_dense_batch

from mfpyg.graph import build_graph, radius_graph
from mfpyg.interop.hippynn_state import our_name
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.heads import LinearHead
from mfpyg.models.interaction import Sensitivity

PEERS = (Hipnn, HipnnVec, HipnnQuad)
PEER_NODES = (networks.Hipnn, networks.HipnnVec, networks.HipnnQuad)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SPECIES = [0, 1, 6, 7, 8]
SMALL = {"n_features": 20, "n_sensitivities": 10, "n_interactions": 2, "n_atom_layers": 2}
PUBLISHED = {"n_features": 120, "n_sensitivities": 20, "n_interactions": 2, "n_atom_layers": 4}
RADII = {"r_soft_min": 0.75, "r_soft_max": 5.5, "cutoff": 6.5}
SIZES = [1, 60, 2, 17, 1, 5]


pytestmark = pytest.mark.usefixtures("plain_hippynn")


def _peer_options(options: Mapping[str, int]) -> dict[str, Any]:
    return {
        "possible_species": SPECIES,
        "n_features": options["n_features"],
        "n_sensitivities": options["n_sensitivities"],
        "n_interaction_layers": options["n_interactions"],
        "n_atom_layers": options["n_atom_layers"],
        "dist_soft_min": RADII["r_soft_min"],
        "dist_soft_max": RADII["r_soft_max"],
        "dist_hard_max": RADII["cutoff"],
    }


def _parameter_pairs(
    net: Hipnn, energy: HEnergy, model: MultiFidelityPotential
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, hippynn's parameter, ours) of everything that both have."""

    ours = dict(model.backbone.named_parameters())
    for name, theirs in net.named_parameters():
        yield name, theirs, ours[our_name(name)]
    for level, (theirs, layer) in enumerate(zip(energy.layers[1:], model.heads[0].levels, strict=True), start=1):
        yield f"head.{level}.weight", theirs.weight, layer.weight
        yield f"head.{level}.bias", theirs.bias, layer.bias


def _perturb(net: Hipnn) -> None:
    """Other values than the initial ones also for what is initialised alike."""
    with torch.no_grad():
        for layer in net.sensitivity_layers:
            layer.mu.mul_(1 + 0.05 * torch.rand_like(layer.mu))
            layer.sigma.mul_(1 + 0.05 * torch.rand_like(layer.sigma))


def _copy_of(net: Hipnn, energy: HEnergy, order: int, options: Mapping[str, int]) -> MultiFidelityPotential:
    """Our potential with hippynn's weights, in its dtype."""
    backbone = HIPNN(SPECIES[1:], tensor_order=order, **options, **RADII)
    model = MultiFidelityPotential(backbone, ["dz"]).to(net.interaction_layers[0].int_weights.dtype)
    copied = set()
    with torch.no_grad():
        for name, theirs, ours in _parameter_pairs(net, energy, model):
            assert theirs.squeeze(0).shape == ours.shape or theirs.shape == ours.shape, name
            ours.copy_(theirs.reshape(ours.shape))
            copied.add(ours)
        model.heads[0].reference.copy_(energy.layers[0].weight[0])
    assert copied == set(model.parameters())
    assert sum(p.numel() for p in copied) + len(SPECIES[1:]) == sum(
        p.numel() for p in [*net.parameters(), *energy.parameters()]
    )
    return model


def _pair(
    order: int, options: Mapping[str, int], dtype: torch.dtype = torch.float64
) -> tuple[Hipnn, HEnergy, MultiFidelityPotential]:
    torch.manual_seed(order)
    net = PEERS[order](**_peer_options(options)).to(dtype)
    energy = HEnergy(net.feature_sizes).to(dtype)
    _perturb(net)
    return net, energy, _copy_of(net, energy, order, options)


def _peer_prediction(
    net: Hipnn, energy: HEnergy, batch: Batch, cutoff: float = RADII["cutoff"]
) -> tuple[Tensor, Tensor, Tensor]:
    """hippynn's energies (n_graphs,), forces (n_atoms, 3) and hierarchicality (n_graphs,), from our edges."""
    pos = batch.pos.detach().requires_grad_()
    source, target = radius_graph(pos, batch.batch, cutoff)
    coord = pos[source] - pos[target]
    features = (batch.z[:, None] == torch.tensor(SPECIES[1:])).to(pos.dtype)
    pairs = (target, source, coord.norm(dim=1))
    levels = net(features, *pairs) if type(net) is Hipnn else net(features, *pairs, coord)
    energies, _, _, hierarchicality, *_ = energy(levels, batch.batch, batch.num_graphs)
    (gradient,) = torch.autograd.grad(energies.sum(), pos, create_graph=True)
    return energies.squeeze(1), -gradient, hierarchicality.squeeze(1)


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> float:
    """Equal up to ``tolerance`` times the largest magnitude; returns how close they are, in that measure."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=0, atol=tolerance * scale)
    return (actual.to(expected.dtype) - expected).abs().max().item() / scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("order", "options", "sizes"),
    [(0, SMALL, SIZES), (1, SMALL, SIZES), (2, SMALL, SIZES), (2, PUBLISHED, [9, 1, 14, 3])],
    ids=["order 0", "order 1", "order 2", "order 2, published size"],
)
def test_energies_forces_and_hierarchicality(
    make_batch: Callable[..., Batch],
    order: int,
    options: Mapping[str, int],
    sizes: list[int],
    dtype: torch.dtype,
) -> None:
    net, energy, model = _pair(order, options, dtype)
    batch = make_batch(sizes)
    batch.pos = batch.pos.to(dtype)
    energies, forces, hierarchicality = _peer_prediction(net, energy, batch)
    ours = model.eval()(batch)
    for name, actual, expected in (
        ("energies", ours.energy, energies),
        ("forces", ours.forces, forces),
        ("hierarchicality", ours.hierarchicality, hierarchicality),
    ):
        deviation = _assert_close(actual, expected.detach(), TOLERANCE[dtype])
        print(f"deviation from the peer, {dtype}, order {order}, {name}: {deviation:.1e}")


def test_sensitivities_within_at_and_beyond_the_cutoff() -> None:
    ours, theirs = (
        Sensitivity(10, RADII["r_soft_min"], RADII["r_soft_max"], RADII["cutoff"]).double(),
        InverseSensitivityModule(10, RADII["r_soft_min"], RADII["r_soft_max"], RADII["cutoff"]).double(),
    )
    dist = torch.linspace(0.5, 12.5, 241, dtype=torch.float64)
    assert RADII["cutoff"] in dist.tolist()
    _assert_close(ours(dist), theirs(dist), 1e-10)
    assert not ours(dist[dist > RADII["cutoff"]]).any()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_features_of_every_level(make_batch: Callable[..., Batch], order: int) -> None:
    net, _, model = _pair(order, SMALL)
    batch = make_batch([1, 12, 4])
    graph = build_graph(batch, RADII["cutoff"])
    source, target = graph.edge_index
    features = (batch.z[:, None] == torch.tensor(SPECIES[1:])).double()
    pairs = (target, source, graph.edge_dist)
    expected = net(features, *pairs) if order == 0 else net(features, *pairs, graph.edge_vec)
    actual = model.backbone(graph)
    assert tuple(x.shape[1] for x in actual) == model.backbone.feature_sizes == net.feature_sizes
    for ours, theirs in zip(actual, expected, strict=True):
        _assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_parameter_gradients_of_a_loss_on_energies_forces_and_hierarchicality(
    make_batch: Callable[..., Batch], order: int
) -> None:
    net, energy, model = _pair(order, SMALL)
    batch = make_batch([1, 11, 6, 2])
    energies, forces, hierarchicality = _peer_prediction(net, energy, batch)
    (energies.square().sum() + forces.square().sum() + hierarchicality.sum()).backward()
    ours = model.train()(batch)
    (ours.energy.square().sum() + ours.forces.square().sum() + ours.hierarchicality.sum()).backward()
    for name, their_parameter, our_parameter in _parameter_pairs(net, energy, model):
        assert our_parameter.grad is not None, name
        _assert_close(our_parameter.grad, their_parameter.grad.reshape(our_parameter.shape), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_peers_own_graph_on_padded_arrays(make_batch: Callable[..., Batch], order: int, dtype: torch.dtype) -> None:
    """Everything of hippynn's own: encoder, padding, pair finder, energy and force nodes, predictor."""
    torch.manual_seed(order)
    species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
    network = PEER_NODES[order]("HIPNN", (species, positions), module_kwargs=_peer_options(SMALL))
    energy = targets.HEnergyNode("HEnergy", network)
    force = physics.GradientNode("forces", (energy, positions), sign=-1)
    predictor = Predictor([species, positions], [energy.mol_energy, force, energy.hierarchicality])
    predictor.graph.to(dtype)
    _perturb(network.torch_module)
    model = _copy_of(network.torch_module, energy.torch_module, order, SMALL).eval()

    batch = make_batch([1, 30, 2, 17, 5])
    batch.pos = batch.pos.to(dtype)
    z, _ = to_dense_batch(batch.z, batch.batch)  # (n_graphs, n_atoms of the largest), 0 being no atom
    pos, real = to_dense_batch(batch.pos, batch.batch)
    theirs = predictor(Z=z, R=pos)
    ours = model(batch)
    _assert_close(ours.energy, theirs["HEnergy.mol_energy"].squeeze(1), TOLERANCE[dtype])
    _assert_close(ours.forces, theirs["forces"][real], TOLERANCE[dtype])
    _assert_close(ours.hierarchicality, theirs["HEnergy.hierarchicality"].squeeze(1), TOLERANCE[dtype])

    pairs = find_unique_relative(network, PairIndexer)
    first, second = GraphModule([species, positions], [pairs.pair_first, pairs.pair_second])(z, pos)
    edge_index = radius_graph(batch.pos, batch.batch, RADII["cutoff"])
    assert torch.equal(torch.stack([second, first]), edge_index)
    assert 0 < edge_index.shape[1] < sum(n * (n - 1) for n in (1, 30, 2, 17, 5))  # the cutoff cuts


# Initial weights


def _initialised_peer() -> tuple[HipnnQuad, HEnergy]:
    """A fresh network and head, after the peer's own initialisation of the levels of its energy."""
    net = HipnnQuad(**_peer_options({**SMALL, "n_atom_layers": 1}))
    energy = HEnergy(net.feature_sizes)
    train = {"Z": torch.tensor([[1, 1], [6, 1], [7, 8], [8, 8], [6, 6]]), "T": torch.arange(5.0)[:, None]}
    pretraining.hierarchical_energy_initialization(
        energy,
        SimpleNamespace(splits={"train": train}),
        encoder=OneHotSpecies(SPECIES),
        energy_name="T",
        species_name="Z",
    )
    return net, energy


@pytest.fixture(scope="module")
def draws() -> dict[str, tuple[Tensor, Tensor]]:
    """{parameter: (hippynn's values, ours)} in a hundred fresh networks each."""
    torch.manual_seed(0)
    collected: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    options = {**SMALL, "n_atom_layers": 1}
    model = MultiFidelityPotential(HIPNN(SPECIES[1:], tensor_order=2, **options, **RADII), ["dz"])
    for i in range(100):
        net, energy = _initialised_peer()
        if i == 0:  # what the constructor draws, and afterwards what reset_parameters draws
            model = MultiFidelityPotential(HIPNN(SPECIES[1:], tensor_order=2, **options, **RADII), ["dz"])
        else:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))
            model.reset_parameters()
        for name, theirs, ours in _parameter_pairs(net, energy, model):
            for values, parameter in zip(collected.setdefault(name, ([], [])), (theirs, ours), strict=True):
                values.append(parameter.detach().flatten().clone())
    return {name: (torch.cat(theirs), torch.cat(ours)) for name, (theirs, ours) in collected.items()}


def test_initial_shells_are_exactly_the_same(draws: dict[str, tuple[Tensor, Tensor]]) -> None:
    shells = [pair for name, pair in draws.items() if ".sensitivity." in name]
    assert len(shells) == 4
    for theirs, ours in shells:
        assert torch.equal(theirs, ours)


def test_initial_weights_come_from_the_same_distributions(
    draws: dict[str, tuple[Tensor, Tensor]],
) -> None:
    random = {name: pair for name, pair in draws.items() if ".sensitivity." not in name}
    kinds = ("int_weights", "selfint", "vecscales", "quadscales", "1.base_layer.weight", "res_layer", "head.2")
    assert all(any(kind in name for name in random) for kind in kinds)
    for name, (theirs, ours) in random.items():
        n = len(ours)
        spread = theirs.std()
        # Five standard errors of the difference; that of a standard deviation is at most σ/√(2n) here.
        assert (ours.mean() - theirs.mean()).abs() < 5 * spread * (2 / n) ** 0.5, name
        assert (ours.std() / theirs.std() - 1).abs() < 5 * (1 / n) ** 0.5, name
        assert ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-4, name


def test_head_levels_start_scaled_by_the_square_of_the_one_before() -> None:
    torch.manual_seed(0)
    head = LinearHead([4, 100, 100, 100])
    for level, scale in zip(head.levels, (1e-2, 1e-4, 1e-8), strict=True):
        for parameter in level.parameters():
            assert parameter.abs().max() <= scale * 0.1  # torch's default is uniform up to 1/√100
        assert level.weight.abs().max() > scale * 0.09
