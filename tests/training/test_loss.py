"""The loss against its formula written out, and what missing labels must not do to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.errors import MFPyGError
from mfpyg.evaluation.metrics import ENERGY_DIFFERENCE
from mfpyg.fidelity import Fidelity
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule

from .conftest import stage_of

FIDELITIES = (Fidelity("dz", "EF"), Fidelity("cc"))
COLUMNS = {"dz": 1, "cc": 0}
WEIGHTS = {("dz", "energy"): 1.0, ("dz", "forces"): 0.5, ("cc", "energy"): 2.0}


def molecule(seed: int, *, dz: bool = True, dz_forces: bool = True, cc: bool = True) -> Data:
    """A random molecule of 2 to 5 atoms; missing labels are NaN, as in the data sets."""
    generator = torch.Generator().manual_seed(seed)
    n = 2 + seed % 4
    energy = torch.randn(1, 2, dtype=torch.float64, generator=generator)
    forces = torch.randn(n, 2, 3, generator=generator)
    energy_mask = torch.tensor([[cc, dz]])
    forces_mask = torch.tensor([[False, dz_forces]])
    energy[~energy_mask] = torch.nan
    forces[:, ~forces_mask[0]] = torch.nan
    return Data(
        z=torch.tensor([1, 6, 7, 8, 1][:n]),
        pos=2.0 * torch.randn(n, 3, generator=generator),
        energy=energy,
        energy_mask=energy_mask,
        forces=forces,
        forces_mask=forces_mask,
    )


def potential() -> MultiFidelityPotential:
    torch.manual_seed(0)
    backbone = HIPNN([1, 6, 7, 8], n_interactions=2, n_atom_layers=1, n_features=6, n_sensitivities=5)
    return MultiFidelityPotential(backbone, ["dz", "cc"]).double()


def make_loss(hierarchicality: float = 1.0) -> MultiFidelityLoss:
    return MultiFidelityLoss(FIDELITIES, COLUMNS, WEIGHTS, hierarchicality)


def loss_and_gradients(batch: Batch, loss: MultiFidelityLoss | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    model, loss = potential(), loss or make_loss()
    value, _ = loss(loss.predict(model, batch), batch)
    value.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None for g in gradients.values())
    return value.detach(), gradients  # type: ignore[return-value]


def written_out(model: MultiFidelityPotential, molecules: list[Data]) -> float:
    """Eqs. 1-3, one molecule and one number at a time."""
    errors: dict[tuple[str, str], list[float]] = {label: [] for label in WEIGHTS}
    regulariser: dict[str, list[float]] = {"dz": [], "cc": []}
    for data in molecules:
        for name, column in COLUMNS.items():
            prediction = model(data, fidelity=name)
            has_energy = bool(data.energy_mask[0, column])
            has_forces = name == "dz" and bool(data.forces_mask[0, column])
            if has_energy:
                errors[name, "energy"].append(float(prediction.energy[0] - data.energy[0, column]))
            if has_forces:
                errors[name, "forces"] += (prediction.forces - data.forces[:, column]).flatten().tolist()
            if has_energy or has_forces:
                regulariser[name].append(float(prediction.hierarchicality[0]))
    total = 0.0
    for label, weight in WEIGHTS.items():
        e = errors[label]
        total += weight * (math.sqrt(sum(x * x for x in e) / len(e)) + sum(map(abs, e)) / len(e)) if e else 0.0
    return total + sum(sum(r) / len(r) for r in regulariser.values() if r)


def mixed() -> list[Data]:
    return [
        molecule(0),
        molecule(1, cc=False),
        molecule(2, dz_forces=False),
        molecule(3, dz=False, dz_forces=False),
        molecule(4, dz=False),
        molecule(5, dz=False, dz_forces=False, cc=False),
    ]


def test_loss_is_the_formula_over_labelled_entries() -> None:
    molecules = mixed()
    value, _ = loss_and_gradients(Batch.from_data_list(molecules))
    assert float(value) == pytest.approx(written_out(potential().eval(), molecules), rel=1e-12)


def test_energy_differences_are_those_of_molecules_with_both_labels() -> None:
    """They are one more term; without such a molecule it is zero, with a finite gradient."""
    key, molecules = ("cc", ENERGY_DIFFERENCE), mixed()
    loss = MultiFidelityLoss(FIDELITIES, COLUMNS, {**WEIGHTS, key: 3.0}, 1.0)
    errors = []
    for one in molecules:
        if one.energy_mask.all():
            found = potential().predict(Batch.from_data_list([one]), {"dz": "E", "cc": "E"})
            change = one.energy[0, COLUMNS["cc"]] - one.energy[0, COLUMNS["dz"]]
            errors.append((found["cc"].energy - found["dz"].energy - change).item())
    assert 1 < len(errors) < len(molecules)
    mae = sum(map(abs, errors)) / len(errors)
    rmse = math.sqrt(sum(e * e for e in errors) / len(errors))
    batch = Batch.from_data_list(molecules)
    value, _ = loss_and_gradients(batch, loss)
    without, _ = loss_and_gradients(batch)
    assert value.item() - without.item() == pytest.approx(3 * (mae + rmse), rel=1e-10)
    single = Batch.from_data_list([molecule(1, cc=False), molecule(2, dz=False, dz_forces=False)])
    value, gradients = loss_and_gradients(single, loss)
    without, expected = loss_and_gradients(single)
    assert value.item() == without.item()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_unlabelled_batch_has_zero_loss_and_zero_gradient() -> None:
    molecules = [molecule(seed, dz=False, dz_forces=False, cc=False) for seed in range(3)]
    value, gradients = loss_and_gradients(Batch.from_data_list(molecules))
    assert value == 0
    assert all((g == 0).all() for g in gradients.values())


@pytest.mark.parametrize("missing", ["dz", "dz_forces", "cc"])
def test_one_kind_of_label_missing_everywhere_leaves_a_finite_gradient(missing: str) -> None:
    batch = Batch.from_data_list([molecule(seed, **{missing: False}) for seed in range(4)])
    value, gradients = loss_and_gradients(batch)
    assert torch.isfinite(value)
    assert value > 0
    assert all(torch.isfinite(g).all() for g in gradients.values())


def test_unlabelled_fidelity_gets_no_gradient() -> None:
    batch = Batch.from_data_list([molecule(seed, cc=False) for seed in range(4)])
    _, gradients = loss_and_gradients(batch)
    of_cc = {name: g for name, g in gradients.items() if name.startswith("heads.1.")}
    assert of_cc
    assert all((g == 0).all() for g in of_cc.values())
    assert any((g != 0).any() for name, g in gradients.items() if name.startswith("heads.0."))


def test_union_with_unlabelled_graphs_and_permutation_change_nothing() -> None:
    molecules = mixed()[:5]
    value, gradients = loss_and_gradients(Batch.from_data_list(molecules))
    unlabelled = [molecule(seed, dz=False, dz_forces=False, cc=False) for seed in (7, 9)]
    for other in (molecules[::-1], [unlabelled[0], *molecules, unlabelled[1]]):
        value2, gradients2 = loss_and_gradients(Batch.from_data_list(other))
        torch.testing.assert_close(value2, value, rtol=1e-12, atol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradients2[name], gradient, rtol=1e-9, atol=1e-11)


def test_zero_error_has_a_finite_gradient() -> None:
    model = potential()
    data = molecule(2)
    data.energy = torch.stack([model(data, fidelity=name).energy for name in ("cc", "dz")], dim=1).detach()
    data.forces = model(data, fidelity="dz").forces.detach().unsqueeze(1).expand(-1, 2, 3).clone()
    value, gradients = loss_and_gradients(Batch.from_data_list([data]), make_loss(hierarchicality=0.0))
    assert value == pytest.approx(0, abs=1e-12)
    assert all(torch.isfinite(g).all() for g in gradients.values())


def test_sums_of_batches_add_up_to_those_of_their_union() -> None:
    model, loss, molecules = potential(), make_loss(), mixed()

    def sums(part: list[Data]) -> Tensor:
        batch = Batch.from_data_list(part)
        return loss.sums(loss.predict(model, batch), batch)

    torch.testing.assert_close(sums(molecules[:2]) + sums(molecules[2:]), sums(molecules), rtol=1e-12, atol=1e-12)


def test_training_on_atoms_at_the_same_place_names_them() -> None:
    items = [molecule(seed) for seed in (1, 2)]
    items[1].pos[2] = items[1].pos[0]
    for number, item in enumerate(items):
        item.molecule, item.conformation = torch.tensor([number]), torch.tensor([number + 5])
    loss = make_loss()
    module = MultiFidelityModule(potential(), stage_of(loss), molecules=["water", "ammonia"])
    with pytest.raises(MFPyGError, match="atoms 0 and 2 are at the same place in ammonia, conformation 6; take it out"):
        module.compare(module.potential, loss, Batch.from_data_list(items), 0)
