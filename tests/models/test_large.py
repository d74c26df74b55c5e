"""Large systems: atoms in another order give the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg import locality
from mfpyg.graph import find_topology
from mfpyg.locality import is_large, reordered, spatial_order
from mfpyg.models import MultiFidelityPotential

Potential = Callable[..., MultiFidelityPotential]
Molecules = Callable[..., Batch]


def _crystals(make_molecule: Callable[..., Data]) -> Batch:
    """Two crystals and a molecule, atoms of the crystals outside of their cells too."""
    cells = [torch.tensor([[7.0, 0, 0], [1, 8, 0], [0, 2, 9]]), 6 * torch.eye(3), torch.zeros(3, 3)]
    frames = []
    for number, cell in enumerate(cells):
        data = make_molecule(20 + number, seed=number)
        data.cell, data.pbc = cell.double()[None], torch.full((1, 3), bool(cell.any()))
        data.pos = data.pos + 3 * number * cell.sum(dim=0)
        frames.append(data)
    return Batch.from_data_list(frames)


@pytest.fixture
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and twenty atoms are many from then on."""

    def change() -> None:
        monkeypatch.setattr(locality, "LARGE", 19)

    return change


@pytest.mark.parametrize(
    ("kernel", "compiled"),
    [
        *[(kernel, False) for kernel in ("definition", "padded", "native")],
        pytest.param("native", True, marks=pytest.mark.slow),
    ],
)
def test_predictions_are_the_same(
    make_potential: Potential,
    make_molecule: Callable[..., Data],
    in_small_steps: Callable[[], None],
    kernel: str,
    compiled: bool,
) -> None:
    batch = _crystals(make_molecule)
    potential = make_potential(fidelities=("dz", "cc"), kernel=kernel)
    potential.compiled = compiled
    expected = potential(batch, ["dz", "cc"])
    in_small_steps()
    for name, prediction in potential(batch, ["dz", "cc"]).items():
        for field in ("energy", "forces", "atomic_energies", "hierarchicality"):
            torch.testing.assert_close(getattr(prediction, field), getattr(expected[name], field), rtol=0, atol=1e-10)


def test_stresses_are_the_same(
    make_potential: Potential, make_molecule: Callable[..., Data], in_small_steps: Callable[[], None]
) -> None:
    batch = Batch.from_data_list(_crystals(make_molecule).to_data_list()[:2])
    potential = make_potential()
    expected = potential(batch, stress=True)
    in_small_steps()
    torch.testing.assert_close(potential(batch, stress=True).stress, expected.stress, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["definition", "native"])
def test_gradients_of_a_loss_of_energies_and_forces_are_the_same(
    make_potential: Potential, make_batch: Molecules, in_small_steps: Callable[[], None], kernel: str
) -> None:
    batch, potential = make_batch([25, 3, 30]), make_potential(kernel=kernel).train()
    batch.pos.requires_grad_()

    def gradients(forces: bool) -> list[Tensor]:
        prediction = potential(batch, forces=forces)
        loss = prediction.energy.square().sum() + (prediction.forces.square().sum() if forces else 0)
        return list(torch.autograd.grad(loss, [batch.pos, *potential.parameters()], allow_unused=True))

    expected = [gradients(True), gradients(False)]
    in_small_steps()
    for ours, theirs in zip([gradients(True), gradients(False)], expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))


def test_weights_are_trained_on_energies_without_a_gradient_by_positions(
    make_potential: Potential, make_batch: Molecules, in_small_steps: Callable[[], None]
) -> None:
    batch, potential = make_batch([25, 3, 30]), make_potential().train()
    shells = potential.backbone.blocks[0][0].base.sensitivity.mu
    (expected,) = torch.autograd.grad(potential(batch, forces=False).energy.sum(), shells)
    in_small_steps()
    (gradient,) = torch.autograd.grad(potential(batch, forces=False).energy.sum(), shells)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_the_order_follows_space_within_each_graph() -> None:
    grid = torch.cartesian_prod(*[torch.arange(8.0)] * 3).double() * 2  # a cube of the curve each
    shuffled = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    pos, batch = torch.cat([grid[shuffled], grid[shuffled] - 1000]), torch.arange(2).repeat_interleave(512)
    order = spatial_order(pos, batch, None)
    assert torch.equal(order.sort().values, torch.arange(1024))
    assert torch.equal(batch[order], batch)
    for eight in pos[order].split(8):  # a Z through two by two by two of the cubes
        assert torch.equal(eight.amax(dim=0) - eight.amin(dim=0), torch.full((3,), 2.0, dtype=torch.float64))


def test_atoms_far_from_each_other_have_an_order() -> None:
    pos = torch.tensor([[1e9, 0, 0], [0, -1e9, 0], [0, 0, 0]], dtype=torch.float64)
    assert sorted(spatial_order(pos, torch.zeros(3, dtype=torch.int64), None).tolist()) == [0, 1, 2]


def test_edges_stay_the_same_pairs(make_molecule: Callable[..., Data]) -> None:
    batch = _crystals(make_molecule)
    topology, lattice = find_topology(batch, 5.0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    order = torch.cat([order, torch.arange(20, len(batch.z))])
    moved = reordered(topology, order)
    graph, expected = moved.at(batch.pos[order], lattice), topology.at(batch.pos, lattice)
    assert (graph.edge_index[1].diff() >= 0).all()
    assert torch.equal(moved.z, batch.z[order])

    def rows(index: Tensor, vectors: Tensor) -> list[list[float]]:
        return sorted(torch.cat([index.T.double(), vectors], dim=1).tolist())

    assert rows(order[graph.edge_index], graph.edge_vec) == rows(expected.edge_index, expected.edge_vec)


def test_many_small_molecules_are_not_large(make_batch: Molecules) -> None:
    assert not is_large(find_topology(make_batch([3] * 400), 5.0)[0])
