"""Crystals, beside the laws of mfpyg.testing: wrapping, forces and virials, training on stresses, the interface."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.models import MultiFidelityPotential

Molecule = Callable[..., Data]
Potential = Callable[..., MultiFidelityPotential]

TRICLINIC = [[4.2, 0.0, 0.0], [-1.3, 3.9, 0.0], [0.9, 1.4, 4.4]]
every_order = pytest.mark.parametrize("order", [0, 1, 2])


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal up to ``tolerance`` times the largest magnitude."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def _crystal(n_atoms: int = 5, seed: int = 0, scale: float = 1.0) -> Data:
    """A triclinic cell, smaller than the cutoff, with atoms near a grid, none of them close to another."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.cartesian_prod(*[torch.tensor([0.0, 0.5], dtype=torch.float64)] * 3)
    chosen = torch.randperm(8, generator=generator)[:n_atoms]
    fractional = grid[chosen] + 0.12 * torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64)
    cell = scale * torch.tensor(TRICLINIC, dtype=torch.float64)
    z = torch.tensor([1, 6, 7, 8])[torch.randint(4, (n_atoms,), generator=generator)]
    return Data(z=z, pos=fractional @ cell, cell=cell[None], pbc=torch.ones(1, 3, dtype=torch.bool))


def _changed(data: Data, **changes: object) -> Data:
    return data.clone().update(changes)


@every_order
def test_wrapping_translation_and_choice_of_lattice_vectors_change_nothing(
    make_potential: Potential, order: int
) -> None:
    potential, crystal = make_potential(order), _crystal()
    before = potential(crystal, stress=True)
    cell = crystal.cell[0]
    steps = torch.randint(-3, 4, (5, 3), generator=torch.Generator().manual_seed(0)).double()
    other_vectors = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 2.0, 1.0]], dtype=torch.float64) @ cell
    for same in (
        _changed(crystal, pos=crystal.pos + steps @ cell),
        _changed(crystal, pos=crystal.pos + torch.tensor([11.0, -3.0, 0.7])),
        _changed(crystal, cell=other_vectors[None]),
        _changed(crystal, cell=cell[[1, 0, 2]][None]),
        _changed(crystal, cell=-crystal.cell),
    ):
        after = potential(same, stress=True)
        _assert_close(after.energy, before.energy)
        _assert_close(after.forces, before.forces)
        _assert_close(after.stress, before.stress)


@every_order
def test_forces_are_the_negative_numerical_gradient(make_potential: Potential, order: int) -> None:
    potential, crystal = make_potential(order), _crystal(3)
    step = 1e-4
    steps = step * torch.eye(9, dtype=torch.float64).view(9, 3, 3)
    both = [_changed(crystal, pos=crystal.pos + sign * displacement) for displacement in steps for sign in (1, -1)]
    energies = potential(Batch.from_data_list(both), forces=False).energy.view(9, 2)
    forces = potential(crystal).forces
    _assert_close(forces.flatten(), -(energies[:, 0] - energies[:, 1]) / (2 * step), tolerance=1e-6)
    assert forces.sum(dim=0).abs().max() < 1e-10 * forces.abs().max()


def test_stress_of_a_pair_potential_is_the_virial(make_potential: Potential) -> None:
    """Two atoms in a box large enough: E depends on d alone, and dE/dε = (dE/dd) d dᵀ/|d|."""
    potential = make_potential()
    pos = torch.tensor([[0.2, 0.1, 0.0], [1.0, 0.9, 0.5]], dtype=torch.float64)
    cell = 20 * torch.eye(3, dtype=torch.float64)[None]
    pair = Data(z=torch.tensor([6, 8]), pos=pos, cell=cell, pbc=torch.ones(1, 3, dtype=torch.bool))
    prediction = potential(pair, stress=True)
    virial = -torch.outer(prediction.forces[1], pos[1] - pos[0])
    _assert_close(prediction.stress[0], virial / 8000)
    # Atoms that pull at each other want the cell smaller: the energy falls with it, the stress is positive.
    attracted = (prediction.forces[1] @ (pos[0] - pos[1])).sign()
    assert prediction.stress[0].trace().sign() == attracted


@every_order
def test_second_derivatives_by_positions_and_cell_agree_with_numerical_ones(
    make_potential: Potential, order: int
) -> None:
    potential = make_potential(order, n_features=3, n_sensitivities=3, cutoff=3.5)
    crystal = _crystal(2, scale=0.8)

    def energy(pos: Tensor, cell: Tensor) -> Tensor:
        return potential(_changed(crystal, pos=pos, cell=cell), forces=False).energy

    inputs = (crystal.pos.clone().requires_grad_(), crystal.cell.clone().requires_grad_())
    assert torch.autograd.gradcheck(energy, inputs)
    assert torch.autograd.gradgradcheck(energy, inputs)


@pytest.mark.parametrize("label", ["stress", "forces and stress"])
def test_stress_can_be_trained_on(make_potential: Potential, label: str) -> None:
    """The gradient of a loss is that of finite differences in the weights."""
    potential, batch = make_potential().train(), Batch.from_data_list([_crystal(3), _crystal(5, seed=1)])

    def loss() -> Tensor:
        prediction = potential(batch, forces=label != "stress", stress=True)
        scaled = 1e4 * prediction.stress.square().sum()
        return scaled if prediction.forces is None else scaled + prediction.forces.square().sum()

    loss().backward()
    interaction = potential.backbone.blocks[0][0].base
    for parameter in (interaction.weight, interaction.sensitivity.mu, potential.heads[0].levels[1].weight):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        step, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
            values.append(loss().item())
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * step)
        expected = (values[0] - values[1]) / (2 * step)
        assert abs(expected) > 1e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=1e-5)


@every_order
def test_alone_in_a_large_box_it_is_a_molecule(make_potential: Potential, make_molecule: Molecule, order: int) -> None:
    potential, molecule = make_potential(order), make_molecule(12)
    box = _changed(molecule, cell=60 * torch.eye(3)[None], pbc=torch.ones(1, 3, dtype=torch.bool))
    alone, boxed = potential(molecule), potential(box)
    assert torch.equal(boxed.energy, alone.energy)
    _assert_close(boxed.forces, alone.forces)


def test_crystals_and_molecules_of_a_batch_do_not_see_each_other(
    make_potential: Potential, make_molecule: Molecule
) -> None:
    potential = make_potential()
    nothing = {"cell": torch.zeros(1, 3, 3, dtype=torch.float64), "pbc": torch.zeros(1, 3, dtype=torch.bool)}
    slab = _changed(_crystal(4, seed=2), pbc=torch.tensor([[True, False, True]]))
    graphs = [_changed(make_molecule(9), **nothing), _crystal(), slab, _changed(make_molecule(1), **nothing)]
    together, alone = potential(Batch.from_data_list(graphs)), [potential(graph) for graph in graphs]
    _assert_close(together.energy, torch.cat([p.energy for p in alone]))
    _assert_close(together.forces, torch.cat([p.forces for p in alone]))
    assert torch.equal(potential(make_molecule(9)).forces, alone[0].forces)


# The interface


def test_stress_comes_only_where_asked_for_and_changes_nothing_else(make_potential: Potential) -> None:
    potential = make_potential(fidelities=["dz", "cc"])
    batch = Batch.from_data_list([_crystal(3), _crystal(5, seed=1)])
    before = batch.clone()
    plain = potential(batch, ["dz", "cc"])
    with_stress = potential(batch, ["dz", "cc"], stress=True)
    for name in ("dz", "cc"):
        assert plain[name].stress is None
        assert torch.equal(with_stress[name].energy, plain[name].energy)
        assert torch.equal(with_stress[name].forces, plain[name].forces)
        assert with_stress[name].stress.shape == (2, 3, 3)
        assert not with_stress[name].stress.requires_grad
    assert not torch.equal(with_stress["dz"].stress, with_stress["cc"].stress)
    alone = potential(batch, "cc", forces=False, stress=True)
    assert alone.forces is None
    _assert_close(alone.stress, with_stress["cc"].stress)
    assert torch.equal(batch.pos, before.pos)
    assert torch.equal(batch.cell, before.cell)
    assert batch.keys() == before.keys()


def test_forces_and_stress_take_one_backward_pass(make_potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: calls.append(1) or grad(*args, **options))
    make_potential()(_crystal(), stress=True)
    assert len(calls) == 1


def test_an_isolated_atom_has_no_stress(make_potential: Potential) -> None:
    atom = _changed(_crystal(1), cell=20 * torch.eye(3, dtype=torch.float64)[None])
    for training in (False, True):
        prediction = make_potential().train(training)(atom, stress=True)
        assert torch.equal(prediction.stress, torch.zeros(1, 3, 3, dtype=torch.float64))
        assert torch.equal(prediction.forces, torch.zeros(1, 3, dtype=torch.float64))


def test_single_precision_is_that_of_the_weights(make_potential: Potential) -> None:
    double, single = make_potential(), make_potential().float()
    crystal = _crystal()
    prediction = single(crystal, stress=True)
    assert prediction.stress.dtype == torch.float32
    _assert_close(prediction.stress.double(), double(crystal, stress=True).stress, tolerance=1e-4)
    stored = _changed(crystal, pos=crystal.pos.float(), cell=crystal.cell.float())
    _assert_close(double(stored, stress=True).stress, double(crystal, stress=True).stress, tolerance=1e-4)


@pytest.mark.parametrize("pbc", [[True, True, False], [False] * 3, None], ids=["slab", "molecule", "nothing"])
def test_a_stress_without_a_volume_is_refused(make_potential: Potential, pbc: list[bool] | None) -> None:
    without = _crystal(seed=3)
    if pbc is None:
        del without.cell, without.pbc
    else:
        without.pbc = torch.tensor([pbc])
    with pytest.raises(MFPyGError, match=r"stress of graph 0 .*expected True in all three directions"):
        make_potential()(Batch.from_data_list([without]), stress=True)


@pytest.mark.parametrize("pbc", [[True, True, False], [False] * 3], ids=["slab", "molecule"])
def test_only_crystals_of_a_batch_have_a_stress(make_potential: Potential, pbc: list[bool]) -> None:
    """NaN for the others; a loss of the crystals' stresses has the gradient of the crystals alone."""
    potential, crystal, without = make_potential().train(), _crystal(), _crystal(seed=3)
    without.pbc = torch.tensor([pbc])
    losses = []
    for batch, chosen in ((Batch.from_data_list([without, crystal]), [1]), (Batch.from_data_list([crystal]), [0])):
        prediction = potential(batch, stress=True)
        losses.append(prediction.stress[chosen].square().sum())
    both = Batch.from_data_list([without, crystal])
    assert potential(both, stress=True).stress[0].isnan().all()
    assert potential(both, stress=True).forces.isfinite().all()
    weights = [p for p in potential.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(loss, weights, materialize_grads=True) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize("forces", [False, True])
def test_stress_needs_no_gradients_to_be_enabled_but_no_inference_mode(make_potential: Potential, forces: bool) -> None:
    potential, crystal = make_potential(), _crystal()
    expected = potential(crystal, forces=forces, stress=True)
    with torch.no_grad():
        actual = potential(crystal, forces=forces, stress=True)
    assert torch.equal(actual.stress, expected.stress)
    assert math.isfinite(actual.stress.sum())
    with torch.inference_mode(), pytest.raises(MFPyGError, match="inference_mode"):
        potential(crystal, forces=forces, stress=True)
