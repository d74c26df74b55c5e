"""Heads, blocks that fidelities do not share, and energies relative to isolated atoms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch

from mfpyg.errors import MFPyGError
from mfpyg.graph import Graph, build_graph
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.backbone import check_backbone, reset
from mfpyg.models.heads import NonlinearHead, make_head

Batches = Callable[..., Batch]


def _potential(**options: object) -> MultiFidelityPotential:
    torch.manual_seed(0)
    backbone = HIPNN([1, 6, 7, 8], 3, 1, 8, 6, cutoff=5.0)
    potential = MultiFidelityPotential(backbone, ["dz", "cc"], **options).double().eval()  # type: ignore[arg-type]
    for head in potential.heads:
        head.reference.copy_(torch.randn(4))
    return potential


def test_a_nonlinear_head_is_a_hidden_layer_for_each_level() -> None:
    head = NonlinearHead([4, 6, 1])
    features = [torch.randn(3, width) for width in (4, 6, 1)]
    for level, (layers, x) in enumerate(zip(head.levels, features[1:], strict=True)):
        first, _, last = layers
        hidden = x @ first.weight.T + first.bias
        expected = (hidden * torch.sigmoid(hidden)) @ last.weight[0] + last.bias[0]
        torch.testing.assert_close(head(features)[level], expected)
    assert [layers[0].out_features for layers in head.levels] == [3, 1]
    assert [layers[0].out_features for layers in make_head("nonlinear", [4, 6, 1], 7).levels] == [7, 7]


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_references_dominate_at_the_start(kind: str) -> None:
    torch.manual_seed(0)
    head = make_head(kind, [4, 64, 64, 64])
    first, second, third = (term.abs().max().item() for term in head([torch.ones(2, w) for w in (4, 64, 64, 64)]))
    assert 1e-1 > first > 10 * second > 100 * third > 0


def test_references_stay_in_float64_and_through_a_reset() -> None:
    head = make_head("nonlinear", [2, 3])
    head.reference.copy_(torch.tensor([-1e5 + 1e-7, 3.0], dtype=torch.float64))
    before = head.reference.clone()
    head.half().float().reset_parameters()
    assert torch.equal(head.reference, before)
    assert head.reference.dtype == torch.float64


def test_unknown_heads_and_energies_are_refused() -> None:
    with pytest.raises(MFPyGError, match="unknown head 'mlp'"):
        make_head("mlp", [1, 2])
    with pytest.raises(MFPyGError, match="isolated atoms"):
        _potential(isolated="zero")


# Private blocks


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_private_blocks_are_taken_out_of_the_backbone(make_batch: Batches, n_blocks: int) -> None:
    potential, batch = _potential(private_blocks=n_blocks), make_batch([4, 7])
    assert len(potential.backbone.blocks) == 3 - n_blocks
    features = potential.features(build_graph(batch, 5.0), ["cc", "dz"])
    for level in range(4):
        same = torch.equal(features["dz"][level], features["cc"][level])
        assert same == (level <= 3 - n_blocks)
    assert list(features) == ["cc", "dz"]


def test_blocks_of_one_fidelity_are_of_no_importance_to_another(make_batch: Batches) -> None:
    potential, batch = _potential(private_blocks=1), make_batch([4, 7])
    before = potential(batch, ["dz", "cc"])
    with torch.no_grad():
        for parameter in potential.private[1].parameters():
            parameter.mul_(1.1)
    after = potential(batch, ["dz", "cc"])
    assert torch.equal(before["dz"].energy, after["dz"].energy)
    assert not torch.equal(before["cc"].energy, after["cc"].energy)


def test_with_the_same_weights_private_blocks_are_shared_ones(make_batch: Batches) -> None:
    shared, private, batch = _potential(), _potential(private_blocks=2), make_batch([4, 7])
    weights = shared.state_dict()
    for key, value in shared.state_dict().items():
        if key.startswith(("backbone.blocks.1.", "backbone.blocks.2.")):
            _, _, number, rest = key.split(".", 3)
            for fidelity in (0, 1):
                weights[f"private.{fidelity}.{int(number) - 1}.{rest}"] = value
            del weights[key]
    private.load_state_dict(weights)
    for name, prediction in private(batch, ["dz", "cc"]).items():  # in evaluation shared blocks go another way
        torch.testing.assert_close(prediction.forces, shared(batch, name).forces, rtol=1e-10, atol=1e-12)
    shared.train()
    for name, prediction in private.train()(batch, ["dz", "cc"]).items():
        assert torch.equal(prediction.forces, shared(batch, name).forces)


def test_private_blocks_differ_from_each_other_and_are_reset(make_batch: Batches) -> None:
    potential = _potential(private_blocks=1)
    own, other = (next(blocks.parameters()).detach().clone() for blocks in potential.private)
    assert not torch.equal(own, other)
    potential.reset_parameters()
    assert not torch.equal(own, next(potential.private[0].parameters()))


class _Plain(nn.Module):
    """A backbone that is no subclass of Backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.cutoff, self.feature_sizes = 3.0, (1, 1)
        self.register_buffer("species", torch.tensor([1]))

    def reset_parameters(self) -> None: ...


def test_private_blocks_that_there_are_not_are_refused() -> None:
    with pytest.raises(MFPyGError, match="private_blocks is 4, expected at most the backbone's 3"):
        _potential(private_blocks=4)
    with pytest.raises(MFPyGError, match="private_blocks is -1"):
        _potential(private_blocks=-1)
    with pytest.raises(MFPyGError, match=r"_Plain is not a mfpyg.models.Backbone"):
        MultiFidelityPotential(_Plain(), ["dz"], private_blocks=1)
    MultiFidelityPotential(_Plain(), ["dz"])


def test_modules_that_are_no_backbones_are_refused_by_what_they_lack() -> None:
    with pytest.raises(MFPyGError, match="backbone Linear has no 'cutoff'"):
        MultiFidelityPotential(nn.Linear(1, 1), ["dz"])
    for sizes in ((1,), (3, 8)):
        plain = _Plain()
        plain.feature_sizes = sizes  # type: ignore[assignment]
        with pytest.raises(MFPyGError, match="feature_sizes"):
            check_backbone(plain)
    plain = _Plain()
    plain.species, plain.feature_sizes = torch.tensor([8, 1]), (2, 8)
    with pytest.raises(MFPyGError, match="ascending order"):
        check_backbone(plain)


def test_weights_without_a_way_to_draw_them_are_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(MFPyGError, match="Own has weights and no reset_parameters"):
        reset(nn.Sequential(nn.Linear(1, 1), Own()))
    backbone = HIPNN([1], 1, 0, 2, 2)
    backbone.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(MFPyGError, match="HIPNN has weights and no reset_parameters of its own"):
        backbone.reset_parameters()


def test_a_forward_of_its_own_is_not_gone_past() -> None:
    class Doubled(HIPNN):
        def forward(self, graph: Graph) -> list[torch.Tensor]:
            return [2 * level for level in super().forward(graph)]

    with pytest.raises(MFPyGError, match="Doubled overrides forward"):
        MultiFidelityPotential(Doubled([1, 6], 2, 0, 2, 2), ["dz"], private_blocks=1)


def test_many_levels_all_have_a_share() -> None:
    head = make_head("linear", [4, *[64] * 8])
    assert all(term.abs().max() > 0 for term in head([torch.ones(2, 4), *[torch.ones(2, 64)] * 8]))


# Energies relative to isolated atoms


@pytest.mark.parametrize("private_blocks", [0, 1])
def test_energies_relative_to_isolated_atoms_are_differences(make_batch: Batches, private_blocks: int) -> None:
    potential, batch = _potential(private_blocks=private_blocks), make_batch([4, 1, 7])
    absolute = potential(batch, "cc")
    alone = make_batch([1] * 4)
    alone.z = torch.tensor([1, 6, 7, 8])
    share = potential(alone, "cc").energy - potential.head("cc").reference  # of the network, by element
    potential.isolated = "reference"
    relative = potential(batch, "cc")
    expected = absolute.atomic_energies - share[torch.searchsorted(potential.backbone.species, batch.z)]
    torch.testing.assert_close(relative.atomic_energies, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(relative.forces, absolute.forces, rtol=0, atol=1e-12)
    assert relative.energy.shape == (3,)
    assert relative.hierarchicality.shape == (3,)
    reference = potential.reference_energy(batch, "cc")
    torch.testing.assert_close(relative.energy[1], reference[1], rtol=0, atol=1e-12)


def test_the_share_of_isolated_atoms_is_trained(make_batch: Batches) -> None:
    potential, batch = _potential(isolated="reference").train(), make_batch([1, 1])
    potential(batch, "dz").energy.square().sum().backward()
    gradients = [p.grad for p in potential.parameters() if p.grad is not None]
    assert gradients
    assert all(g.abs().max() < 1e-12 for g in gradients)  # whatever the weights, the energy is the reference


def test_crystals_among_isolated_atoms(make_batch: Batches) -> None:
    batch = make_batch([4, 5])
    batch.cell, batch.pbc = 6 * torch.eye(3).double().repeat(2, 1, 1), torch.ones(2, 3, dtype=torch.bool)
    potential = _potential()
    expected = potential(batch, "dz", stress=True)
    potential.isolated = "reference"
    found = potential(batch, "dz", stress=True)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.stress, expected.stress, rtol=0, atol=1e-13)
