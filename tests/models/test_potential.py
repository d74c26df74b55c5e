"""The potential as physics and as an interface: symmetries, forces, locality, precision, fidelities."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from e3nn import o3
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.graph import radius_graph
from mfpyg.models import HIPNN, MultiFidelityPotential, Prediction
from mfpyg.models.heads import hierarchicality

Molecule = Callable[..., Data]
Molecules = Callable[..., Batch]
Potential = Callable[..., MultiFidelityPotential]

CUTOFF = 5.0  # of make_potential
every_order = pytest.mark.parametrize("order", [0, 1, 2])


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal up to ``tolerance`` times the largest magnitude."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def _moved(data: Data, pos: Tensor) -> Data:
    moved = data.clone()
    moved.pos = pos
    return moved


def _line(*distances: float, z: Sequence[int] | None = None) -> Data:
    """Atoms on a line, one at the origin and the others at these distances from it."""
    pos = torch.zeros(1 + len(distances), 3, dtype=torch.float64)
    pos[1:, 0] = torch.tensor(distances, dtype=torch.float64)
    return Data(z=torch.tensor([6, 8, 1, 7][: len(pos)] if z is None else z), pos=pos)


# Symmetries


@every_order
@pytest.mark.parametrize("reflected", [False, True], ids=["rotation", "reflection"])
def test_energy_is_invariant_and_forces_are_equivariant(
    make_potential: Potential, make_molecule: Molecule, order: int, reflected: bool
) -> None:
    potential, molecule = make_potential(order), make_molecule(14)
    torch.manual_seed(0)
    for _ in range(3):
        matrix = o3.rand_matrix(dtype=torch.float64) * (-1 if reflected else 1)
        before, after = potential(molecule), potential(_moved(molecule, molecule.pos @ matrix.T))
        _assert_close(after.energy, before.energy)
        _assert_close(after.atomic_energies, before.atomic_energies)
        _assert_close(after.forces, before.forces @ matrix.T)
        assert before.forces.abs().max() > 1e-3


@every_order
def test_energy_and_forces_do_not_change_on_translation(
    make_potential: Potential, make_molecule: Molecule, order: int
) -> None:
    potential, molecule = make_potential(order), make_molecule(14)
    shift = torch.tensor([11.0, -3.0, 0.7], dtype=torch.float64)
    before, after = potential(molecule), potential(_moved(molecule, molecule.pos + shift))
    _assert_close(after.energy, before.energy)
    _assert_close(after.forces, before.forces)


@every_order
def test_forces_and_torques_add_to_zero(make_potential: Potential, make_molecule: Molecule, order: int) -> None:
    potential, molecule = make_potential(order), make_molecule(14)
    forces = potential(molecule).forces
    tolerance = 1e-10 * forces.abs().max().item()
    assert forces.sum(dim=0).abs().max() < tolerance
    assert torch.linalg.cross(molecule.pos, forces).sum(dim=0).abs().max() < 10 * tolerance


@every_order
def test_order_of_atoms_is_of_no_importance(make_potential: Potential, make_molecule: Molecule, order: int) -> None:
    potential, molecule = make_potential(order), make_molecule(14)
    permutation = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    before = potential(molecule)
    after = potential(Data(z=molecule.z[permutation], pos=molecule.pos[permutation]))
    _assert_close(after.energy, before.energy)
    _assert_close(after.forces, before.forces[permutation])
    _assert_close(after.atomic_energies, before.atomic_energies[permutation])


# Forces


@every_order
def test_forces_are_the_negative_numerical_gradient(
    make_potential: Potential, make_molecule: Molecule, order: int
) -> None:
    potential, molecule = make_potential(order), make_molecule(7)
    forces = potential(molecule).forces.flatten()
    step = 1e-4
    steps = step * torch.eye(21, dtype=torch.float64).view(21, 7, 3)
    both = [_moved(molecule, molecule.pos + sign * displacement) for displacement in steps for sign in (1, -1)]
    energies = potential(Batch.from_data_list(both), forces=False).energy.view(21, 2)
    numerical = -(energies[:, 0] - energies[:, 1]) / (2 * step)
    _assert_close(forces, numerical, tolerance=1e-6)


@every_order
@pytest.mark.parametrize("bystanders", [(), (1.2, 2.3)], ids=["pair", "with neighbours"])
def test_energy_and_forces_are_continuous_at_the_cutoff(
    make_potential: Potential, order: int, bystanders: tuple[float, ...]
) -> None:
    """Both sides of the cutoff approach each other as fast as a smooth function's values do."""
    potential = make_potential(order)
    jumps = []
    for delta in (1e-2, 1e-3, 1e-4, 1e-5):
        inside, outside = (potential(_line(*bystanders, CUTOFF + side * delta)) for side in (-1, 1))
        energy = (inside.energy - outside.energy).abs().item()
        jumps.append((energy, (inside.forces - outside.forces).abs().max().item()))
    for (energy, force), (next_energy, next_force) in itertools.pairwise(jumps):
        assert 0 < next_force < force / 5
        assert next_energy < energy / 5
    assert jumps[-1][0] < 1e-4
    assert jumps[-1][1] < 1e-3
    assert len(potential(_line(CUTOFF - 1)).forces.nonzero()) == 2  # there is a force within


@every_order
def test_second_derivatives_agree_with_numerical_ones(
    make_potential: Potential, make_molecule: Molecule, order: int
) -> None:
    potential = make_potential(order, n_features=3, n_sensitivities=3)
    molecule = make_molecule(4)

    def energy(pos: Tensor) -> Tensor:
        return potential(_moved(molecule, pos), forces=False).energy

    pos = molecule.pos.clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, pos)
    assert torch.autograd.gradgradcheck(energy, pos)


@every_order
def test_forces_can_be_trained_on(make_potential: Potential, make_batch: Molecules, order: int) -> None:
    """The gradient of a loss on forces is that of finite differences in the weights."""
    potential, batch = make_potential(order).train(), make_batch([5, 1, 3])

    def loss() -> Tensor:
        return potential(batch).forces.square().sum()

    loss().backward()
    interaction = potential.backbone.blocks[0][0].base
    parameters = [interaction.weight, interaction.sensitivity.mu, potential.heads[0].levels[1].weight]
    parameters += list(interaction.tensor_scales)
    for parameter in parameters:
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        step = 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
            values.append(loss().item())
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * step)
        expected = (values[0] - values[1]) / (2 * step)
        assert abs(expected) > 1e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("forces", [True, False])
def test_nothing_requires_a_gradient_in_evaluation(
    make_potential: Potential, make_molecule: Molecule, forces: bool
) -> None:
    molecule = make_molecule(5)
    prediction = make_potential().eval()(molecule, forces=forces)
    values = [prediction.energy, prediction.atomic_energies, prediction.hierarchicality]
    values += [prediction.forces] if forces else []
    assert (prediction.forces is not None) == forces
    assert not any(value.requires_grad for value in values)
    assert not molecule.pos.requires_grad


def test_forces_do_not_need_gradients_to_be_enabled(make_potential: Potential, make_molecule: Molecule) -> None:
    potential, molecule = make_potential(), make_molecule(5)
    expected = potential(molecule)
    with torch.no_grad():
        actual = potential(molecule)
    assert torch.equal(actual.forces, expected.forces)
    assert torch.equal(actual.energy, expected.energy)
    assert not actual.forces.requires_grad


def test_the_data_stay_as_they_are(make_potential: Potential, make_batch: Molecules) -> None:
    batch = make_batch([5, 1, 3])
    before = batch.clone()
    make_potential().train()(batch)
    assert batch.keys() == before.keys()
    assert torch.equal(batch.pos, before.pos)
    assert not batch.pos.requires_grad


# Locality


@every_order
def test_molecules_of_a_batch_do_not_see_each_other(
    make_potential: Potential, make_molecule: Molecule, order: int
) -> None:
    potential = make_potential(order)
    molecules = [make_molecule(n, seed) for seed, n in enumerate([9, 1, 4, 1, 12])]
    together = potential(Batch.from_data_list(molecules))
    alone = [potential(molecule) for molecule in molecules]
    _assert_close(together.energy, torch.cat([p.energy for p in alone]))
    _assert_close(together.forces, torch.cat([p.forces for p in alone]))
    _assert_close(together.atomic_energies, torch.cat([p.atomic_energies for p in alone]))
    _assert_close(together.hierarchicality, torch.cat([p.hierarchicality for p in alone]))


@every_order
def test_energies_of_fragments_far_from_each_other_add(
    make_potential: Potential, make_molecule: Molecule, order: int
) -> None:
    potential = make_potential(order)
    one, other = make_molecule(8, seed=0), make_molecule(6, seed=1)
    shift = torch.tensor([40.0, 0.0, 0.0], dtype=torch.float64)
    both = potential(Data(z=torch.cat([one.z, other.z]), pos=torch.cat([one.pos, other.pos + shift])))
    one, other = potential(one), potential(other)
    _assert_close(both.energy, one.energy + other.energy)
    _assert_close(both.forces, torch.cat([one.forces, other.forces]))


@every_order
@pytest.mark.parametrize("loss_on", ["forces", "energy and forces"])
@pytest.mark.parametrize(
    "molecules",
    [[_line()], [_line(CUTOFF + 1)], [_line(), _line(CUTOFF + 0.01, -40.0), _line()]],
    ids=["atom", "two atoms beyond the cutoff", "batch without an edge"],
)
def test_atoms_without_neighbours(make_potential: Potential, order: int, loss_on: str, molecules: list[Data]) -> None:
    batch = Batch.from_data_list(molecules)
    potential = make_potential(order).train()
    assert radius_graph(batch.pos, batch.batch, CUTOFF).shape == (2, 0)
    prediction = potential(batch)
    assert prediction.energy.isfinite().all()
    assert torch.equal(prediction.forces, torch.zeros_like(batch.pos))

    loss = (prediction.forces - 1).square().sum()
    if loss_on != "forces":
        loss = loss + prediction.energy.square().sum()
    loss.backward()
    gradients = [parameter.grad for parameter in potential.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients) == (loss_on != "forces")


@every_order
def test_an_atom_without_neighbours_beside_a_molecule_leaves_gradients_finite(
    make_potential: Potential, make_molecule: Molecule, order: int
) -> None:
    potential = make_potential(order).train()
    prediction = potential(Batch.from_data_list([_line(), make_molecule(5), _line(CUTOFF + 1)]))
    assert torch.equal(prediction.forces[[0, 6, 7]], torch.zeros(3, 3, dtype=torch.float64))
    (prediction.energy.square().sum() + prediction.forces.square().sum()).backward()
    for name, parameter in potential.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# Precision

REFERENCES = torch.tensor([-313.0 - 1 / 3, -23900.0 - 1 / 7, -34400.0 - 1 / 9, -47100.0 - 1 / 11], dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1, 1e3], ids=["fresh head", "interaction of hundreds of kcal/mol"])
def test_total_energies_keep_their_digits_in_float32(make_molecule: Molecule, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    single = MultiFidelityPotential(HIPNN([1, 6, 7, 8]), ["dz"]).eval()
    single.heads[0].reference.copy_(REFERENCES)
    for level in single.heads[0].levels:
        level.weight.data.mul_(scale)
    double = copy.deepcopy(single).double()
    molecule = make_molecule(63)
    molecule.pos = molecule.pos.float()
    energy, expected = single(molecule, forces=False).energy, double(molecule, forces=False).energy
    assert energy.dtype == torch.float64
    assert expected.abs().item() > 5e5
    interacting = expected - double.reference_energy(molecule, "dz")
    assert 0.01 * scale < interacting.abs().item() < 1e4
    assert (energy - expected).abs().item() < 1e-4


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.float(),
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.half().double(),
        lambda model: model.to(torch.float32),
        lambda model: model.to(torch.float16).to("cpu"),
    ],
    ids=["float", "half", "bfloat16", "half and double", "to float32", "to float16"],
)
def test_references_stay_as_they_are_whatever_the_model_is_cast_to(
    make_potential: Potential, cast: Callable[[MultiFidelityPotential], MultiFidelityPotential]
) -> None:
    potential = make_potential(fidelities=["dz", "cc"])
    for number, head in enumerate(potential.heads):
        head.reference.copy_(REFERENCES + number)
    cast(potential)
    for number, head in enumerate(potential.heads):
        assert head.reference.dtype == torch.float64
        assert torch.equal(head.reference, REFERENCES + number)
        assert torch.equal(head.state_dict()["reference"], REFERENCES + number)


def test_dtypes_of_a_prediction(make_potential: Potential, make_molecule: Molecule) -> None:
    prediction = make_potential().float()(make_molecule(5))
    assert prediction.energy.dtype == prediction.atomic_energies.dtype == torch.float64
    assert prediction.forces.dtype == prediction.hierarchicality.dtype == torch.float32


def test_energy_is_the_sum_of_atomic_energies_and_begins_with_the_references(
    make_potential: Potential, make_batch: Molecules
) -> None:
    potential, batch = make_potential(), make_batch([5, 1, 8])
    prediction = potential(batch)
    summed = torch.stack([prediction.atomic_energies[batch.batch == i].sum() for i in range(3)])
    _assert_close(prediction.energy, summed)
    by_hand = potential.heads[0].reference[(batch.z[:, None] == torch.tensor([1, 6, 7, 8])).long().argmax(dim=1)]
    expected = torch.stack([by_hand[batch.batch == i].sum() for i in range(3)])
    _assert_close(potential.reference_energy(batch, "dz"), expected)
    for level in potential.heads[0].levels:
        torch.nn.init.zeros_(level.weight)
        torch.nn.init.zeros_(level.bias)
    _assert_close(potential(batch).energy, expected)


def test_predictions_repeat_to_the_last_bit(make_potential: Potential, make_batch: Molecules) -> None:
    batch = make_batch([9, 1, 30])
    for training in (False, True):
        first, second = (make_potential(seed=3).float().train(training)(batch) for _ in range(2))
        for name in ("energy", "forces", "atomic_energies", "hierarchicality"):
            assert torch.equal(getattr(first, name), getattr(second, name))


def test_modes_agree_to_the_last_bit_where_the_derivative_is_autograds(
    make_potential: Potential, make_batch: Molecules
) -> None:
    batch = make_batch([9, 1, 30])
    first, second = (make_potential(seed=3, kernel="padded").float()(batch) for _ in range(2))
    again = make_potential(seed=3, kernel="padded").float().train()(batch)
    for name in ("energy", "forces", "atomic_energies", "hierarchicality"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(getattr(first, name), getattr(again, name))


# Fidelities


def test_unknown_fidelity_is_refused_with_the_known_ones(make_potential: Potential, make_molecule: Molecule) -> None:
    potential = make_potential(fidelities=["dz", "ccsdt"])
    for wrong in ("ccsd", ["dz", "ccsd"]):
        with pytest.raises(MFPyGError, match=r"unknown fidelity 'ccsd' \(known: dz, ccsdt\); did you mean 'ccsdt'\?"):
            potential(make_molecule(3), wrong)
    with pytest.raises(MFPyGError, match=r"unknown fidelity 'mp2' \(known: dz, ccsdt\)"):
        potential.reference_energy(make_molecule(3), "mp2")


def test_a_fidelity_must_be_named_among_several(make_potential: Potential, make_molecule: Molecule) -> None:
    with pytest.raises(MFPyGError, match=r"no fidelity given.*dz, cc"):
        make_potential(fidelities=["dz", "cc"])(make_molecule(3))


def test_a_single_fidelity_need_not_be_named(make_potential: Potential, make_molecule: Molecule) -> None:
    potential, molecule = make_potential(fidelities=["cc"]), make_molecule(6)
    unnamed, named = potential(molecule), potential(molecule, "cc")
    assert isinstance(unnamed, Prediction)
    assert torch.equal(unnamed.energy, named.energy)
    assert torch.equal(unnamed.forces, named.forces)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_several_fidelities_at_once_are_as_each_alone(
    make_potential: Potential, make_batch: Molecules, mode: str
) -> None:
    potential, batch = make_potential(fidelities=["dz", "tz", "cc"]).train(mode == "train"), make_batch([6, 1])
    several = potential(batch, ["cc", "dz"])
    assert list(several) == ["cc", "dz"]
    for name, prediction in several.items():
        alone = potential(batch, name)
        assert torch.equal(prediction.energy, alone.energy)
        _assert_close(prediction.forces, alone.forces)
    assert not torch.equal(several["cc"].energy, several["dz"].energy)
    assert not torch.equal(several["cc"].forces, several["dz"].forces)
    assert list(potential(batch, ["tz"])) == ["tz"]


def test_only_the_wanted_forces_are_computed(make_potential: Potential, make_batch: Molecules) -> None:
    potential, batch = make_potential(fidelities=["dz", "tz", "cc"]), make_batch([6, 1])
    predictions = potential.predict(batch, {"cc": "E", "dz": "EF", "tz": "E"})
    assert [name for name, prediction in predictions.items() if prediction.forces is not None] == ["dz"]
    assert torch.equal(predictions["cc"].energy, potential(batch, "cc").energy)
    assert torch.equal(predictions["dz"].forces, potential(batch, "dz").forces)


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_a_fidelity_trains_its_own_head_and_the_backbone_only(
    make_potential: Potential, make_batch: Molecules, label: str
) -> None:
    potential = make_potential(fidelities=["dz", "cc"]).train()
    predictions = potential(make_batch([6, 1, 4]), ["dz", "cc"])
    getattr(predictions["dz"], label).square().sum().backward()
    for parameter in potential.head("cc").parameters():
        assert parameter.grad is None or not parameter.grad.any()
    own = [level.weight for level in potential.head("dz").levels]
    for parameter in [*own, potential.backbone.blocks[0][0].base.weight]:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_changing_one_head_changes_its_fidelity_only(make_potential: Potential, make_batch: Molecules) -> None:
    potential, batch = make_potential(fidelities=["dz", "cc"]), make_batch([6, 1, 4])
    before = potential(batch, ["dz", "cc"])
    with torch.no_grad():
        for level in potential.head("cc").levels:
            level.weight.mul_(2)
        potential.head("cc").reference.add_(1)
    after = potential(batch, ["dz", "cc"])
    assert torch.equal(after["dz"].energy, before["dz"].energy)
    assert torch.equal(after["dz"].forces, before["dz"].forces)
    assert not torch.equal(after["cc"].energy, before["cc"].energy)
    assert not torch.equal(after["cc"].forces, before["cc"].forces)


# Elements


@pytest.mark.parametrize(("z", "symbols"), [([6, 17], "Cl"), ([2, 1], "He"), ([5, 6, 92, 5], "B, U"), ([0, 1], "X")])
def test_unknown_elements_are_refused_by_name(make_potential: Potential, z: list[int], symbols: str) -> None:
    molecule = _line(*[1.0 + i for i in range(len(z) - 1)], z=z)
    with pytest.raises(MFPyGError, match=rf"element {symbols} is unknown .*\(it knows H, C, N, O\)"):
        make_potential()(molecule)


def test_order_of_the_species_is_of_no_importance(make_molecule: Molecule) -> None:
    energies = []
    for species in ([1, 6, 7, 8], [8, 6, 1, 7, 6]):
        torch.manual_seed(0)
        potential = MultiFidelityPotential(HIPNN(species, n_features=4, n_sensitivities=4), ["dz"]).eval()
        assert potential.species == (1, 6, 7, 8)
        potential.heads[0].reference.copy_(REFERENCES)
        energies.append(potential(make_molecule(9), forces=False).energy)
    assert torch.equal(*energies)


# Hierarchicality


def test_hierarchicality_of_known_terms() -> None:
    terms = [torch.tensor([2.0, 0.0, 3.0]), torch.tensor([1.0, 5.0, 0.0]), torch.tensor([1.0, 0.0, 4.0])]
    expected = torch.tensor([1 / 5 + 1 / 2, 1.0 + 0.0, 0.0 + 1.0])
    torch.testing.assert_close(hierarchicality(terms), expected, rtol=1e-6, atol=0)


def test_hierarchicality_of_nothing_is_zero_with_a_finite_gradient() -> None:
    terms = [torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    value = hierarchicality(terms)
    assert torch.equal(value, torch.zeros(3, dtype=torch.float64))
    for gradient in torch.autograd.grad(value.sum(), terms):
        assert gradient.isfinite().all()


def test_hierarchicality_of_a_potential_without_energies(make_potential: Potential, make_batch: Molecules) -> None:
    potential = make_potential().train()
    potential.heads[0].reference.zero_()
    for level in potential.heads[0].levels:
        torch.nn.init.zeros_(level.weight)
        torch.nn.init.zeros_(level.bias)
    value = potential(make_batch([4, 1])).hierarchicality
    assert torch.equal(value, torch.zeros(2, dtype=torch.float64))
    value.sum().backward()
    gradients = [parameter.grad for parameter in potential.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_resetting_draws_new_weights_and_keeps_the_references(make_potential: Potential, make_batch: Molecules) -> None:
    potential, batch = make_potential(), make_batch([4, 1])
    reference, before = potential.heads[0].reference.clone(), potential(batch).energy
    potential.reset_parameters()
    assert torch.equal(potential.heads[0].reference, reference)
    assert not torch.equal(potential(batch).energy, before)


def test_plain_data_with_a_batch_vector_is_several_molecules(make_potential: Potential) -> None:
    model = make_potential()
    z, pos = torch.tensor([6, 1, 8]), torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0, 1.3, 0]], dtype=torch.float64)
    energy = model(Data(z=z, pos=pos, batch=torch.tensor([0, 1, 1])), fidelity=model.fidelities[0]).energy
    parts = [model(Data(z=z[p], pos=pos[p]), fidelity=model.fidelities[0]).energy for p in ([0], [1, 2])]
    torch.testing.assert_close(energy, torch.cat(parts), rtol=1e-12, atol=1e-10)


def test_forces_in_inference_mode_are_refused_with_the_way_out(make_potential: Potential) -> None:
    model = make_potential()
    data = Data(z=torch.tensor([6, 8]), pos=torch.tensor([[0.0, 0, 0], [1.1, 0, 0]], dtype=torch.float64))
    with torch.inference_mode(), pytest.raises(MFPyGError, match=r"torch\.no_grad"):
        model(data, fidelity=model.fidelities[0])
    with torch.inference_mode():
        assert torch.isfinite(model(data, fidelity=model.fidelities[0], forces=False).energy).all()


@pytest.mark.parametrize("kernel", ["native", "padded"])
@pytest.mark.parametrize("training", [False, True])
def test_threads_that_share_a_potential_get_what_one_would(
    make_potential: Potential, make_batch: Molecules, kernel: str, training: bool
) -> None:
    model = make_potential(fidelities=["dz", "cc"], kernel=kernel).train(training)
    batches = [make_batch([n, 4, 9 - n], seed=n) for n in range(1, 8)] * 4

    def predicted(batch: Batch) -> list[Tensor]:
        found = model.predict(batch, {"cc": "EF", "dz": "E"})
        return [found["cc"].energy.detach(), found["cc"].forces.detach(), found["dz"].energy.detach()]

    expected = [predicted(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for found, one in zip(pool.map(predicted, batches), expected, strict=True):
            for value, other in zip(found, one, strict=True):
                _assert_close(value, other)


def test_the_same_fidelity_twice_is_refused() -> None:
    with pytest.raises(MFPyGError, match="different names"):
        MultiFidelityPotential(HIPNN([1], 1, 0, 4, 4), ["dz", "dz"])


def test_hierarchicality_of_underflowing_terms_has_a_finite_gradient() -> None:
    terms = [torch.full((1,), value, requires_grad=True) for value in (0.0, 1e-22, 1e-22)]
    gradients = torch.autograd.grad(hierarchicality(terms).sum(), terms)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_positions_that_are_not_finite_are_refused(make_potential: Potential) -> None:
    pos = torch.tensor([[0.0, 0, 0], [torch.nan, 0, 0]], dtype=torch.float64)
    with pytest.raises(MFPyGError, match="NaN or infinite"):
        make_potential()(Data(z=torch.tensor([1, 1]), pos=pos), fidelity="dz")


def test_predictions_of_prepared_data_would_lack_a_baseline(make_potential: Potential, make_batch: Molecules) -> None:
    potential = make_potential(fidelities=["dz", "cc"])
    potential.baselines = {"cc": lambda z, pos, batch, n_graphs: (pos[:, 0] + 1, pos)}
    potential.prepare(make_batch([3, 2]), {"dz": "EF"})
    with pytest.raises(MFPyGError, match="fidelity 'cc' has a baseline, which is not added to predictions of prepared"):
        potential.prepare(make_batch([3, 2]), {"dz": "EF", "cc": "E"})
