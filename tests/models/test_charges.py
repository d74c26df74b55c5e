"""Atomic charges and dipole moments, beside the laws of mfpyg.testing: gradients, compilation, files, refusals."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from torch import Tensor
from torch_geometric.data import Batch, Data

import mfpyg
from mfpyg import settings as s
from mfpyg.checkpoint import describe, read_checkpoint
from mfpyg.errors import MFPyGError
from mfpyg.files import save_torch
from mfpyg.graph import build_graph
from mfpyg.inference.ensemble import Ensemble
from mfpyg.models import HIPNN, DeltaPotential, MultiFidelityPotential
from mfpyg.models.build import build_delta, build_potential
from mfpyg.models.charges import ChargeHead
from mfpyg.models.prediction import Prediction

Batches = Callable[..., Batch]
NAMES = ("dz", "cc")
SIZES = {"n_interactions": 2, "n_atom_layers": 1, "n_features": 8, "n_sensitivities": 6, "cutoff": 5.0}


def _randomized(potential: Any, seed: int = 0) -> Any:
    """Float64, in evaluation mode, with charges of some tenths of e."""
    generator = torch.Generator().manual_seed(seed)
    potential = potential.double().eval()
    networks = (potential.base, potential.difference) if isinstance(potential, DeltaPotential) else (potential,)
    with torch.no_grad():
        for network in networks:
            for parameter in network.further_heads.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            for head in network.heads:
                head.reference.copy_(torch.randn(4, generator=generator))
                for level in head.levels:
                    level.reset_parameters()
    return potential


def _potential(
    fidelities: tuple[str, ...] = NAMES, charges: tuple[str, ...] = NAMES, sizes: dict[str, Any] = SIZES, **options: Any
) -> Any:
    torch.manual_seed(0)
    return _randomized(
        MultiFidelityPotential(
            HIPNN([1, 6, 7, 8], **sizes), fidelities, further=dict.fromkeys(charges, "DQ"), **options
        )
    )


@pytest.fixture
def ions(make_batch: Batches) -> Batch:
    """A neutral molecule, a cation, a single anion, and a dication."""
    batch = make_batch([7, 5, 1, 9])
    batch.charge = torch.tensor([0, 1, -1, 2])
    return batch


def _sums(values: Tensor, batch: Batch) -> Tensor:
    return torch.stack([part.sum(dim=0) for part in values.split(batch.ptr.diff().tolist())])


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def _results(potential: Any, batch: Batch, wanted: dict[str, str]) -> dict[str, Tensor]:
    """All that is predicted, and in training mode gradients by the weights of the sum of squares of it all."""
    predictions = potential.predict(batch, wanted)
    found = {f"{key} of {name}": v for name, p in predictions.items() for key, v in vars(p).items() if v is not None}
    if not potential.training:
        return found
    potential.zero_grad()
    torch.stack([value.square().sum() for value in found.values()]).sum().backward()
    return found | {key: p.grad for key, p in potential.named_parameters() if p.grad is not None}


# Heads


def test_charges_are_linear_in_every_level(ions: Batch) -> None:
    potential = _potential()
    features = potential.features(build_graph(ions, 5.0), ["cc"])["cc"]
    elements, *layers = potential.further_head("cc", "charges").levels
    raw = elements.weight[0, torch.searchsorted(torch.tensor([1, 6, 7, 8]), ions.z)]
    for layer, x in zip(layers, features[1:], strict=True):
        raw = raw + x @ layer.weight[0]
    excess = (ions.charge - _sums(raw, ions)) / ions.ptr.diff()
    _assert_close(potential(ions, "cc", properties="Q").charges, (raw + excess[ions.batch]).detach())


def test_dipole_is_the_sum_from_the_charges(ions: Batch) -> None:
    found = _potential()(ions, "dz", properties="DQ")
    for number, charge in enumerate(ions.charge.tolist()):
        inside = ions.batch == number
        pos, charges = ions.pos[inside], found.charges[inside]
        centre = torch.from_numpy(Atoms(ions.z[inside].numpy(), pos.numpy()).get_center_of_mass())
        _assert_close(found.dipole[number], charges @ (pos - centre))
        if charge == 0:
            _assert_close(found.dipole[number], charges @ pos)


def test_heads_start_at_charges_that_vanish() -> None:
    torch.manual_seed(0)
    head = ChargeHead([4, 64, 64])
    for _ in range(2):
        assert not head.levels[0].weight.any()
        first, second = (layer.weight.abs().max().item() for layer in head.levels[1:])
        assert 1e-2 > first > 10 * second > 0
        head.levels[0].weight.data.fill_(1.0)
        head.reset_parameters()


# Predictions


@pytest.mark.parametrize("training", [False, True])
def test_energies_and_forces_do_not_depend_on_charges(ions: Batch, training: bool) -> None:
    torch.manual_seed(0)
    plain = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **SIZES), NAMES, private_blocks=1)
    torch.manual_seed(0)
    other = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **SIZES), NAMES, private_blocks=1, further={"cc": "Q"})
    weights = plain.state_dict()
    assert {key for key in other.state_dict() if key not in weights} == {
        f"further_heads.1.charges.levels.{key}" for key in ("0.weight", "1.weight", "2.weight")
    }
    assert all(torch.equal(value, weights[key]) for key, value in other.state_dict().items() if key in weights)
    plain.train(training), other.train(training)
    expected, found = plain(ions, NAMES), other.predict(ions, {"dz": "EF", "cc": "EFDQ"})
    for name in NAMES:
        assert torch.equal(found[name].energy, expected[name].energy)
        assert torch.equal(found[name].forces, expected[name].forces)
    assert found["dz"].charges is None
    assert found["dz"].dipole is None


def test_only_what_is_asked_for_is_there(ions: Batch) -> None:
    potential = _potential()
    found = potential(ions, list(NAMES), properties="D")
    assert all(p.charges is None and p.forces is None and p.dipole is not None for p in found.values())
    assert potential(ions, "cc", properties="EQ").dipole is None
    assert potential(ions, "cc").charges is None
    every = potential(ions, "cc", properties="QFDE")
    assert torch.equal(every.dipole, found["cc"].dipole)
    assert not every.dipole.requires_grad
    assert every.only("EQ").dipole is None
    assert every.only("EQ").charges is every.charges
    assert [len(value) for value in (every.without_last(1).dipole, every.without_last(1).charges)] == [3, 21]


def test_gradients_reach_the_weights_and_positions(ions: Batch) -> None:
    potential = _potential().train()
    found = potential.predict(ions, {"dz": "F", "cc": "FDQ"})
    parameters = dict(potential.named_parameters())
    gradients = torch.autograd.grad(
        found["cc"].dipole.square().sum(), list(parameters.values()), allow_unused=True, retain_graph=True
    )
    reached = {key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    assert {key for key in parameters if key.startswith(("backbone.", "further_heads.2."))} <= reached
    assert not any(key.startswith(("heads.", "further_heads.0.")) for key in reached)
    sum(p.forces.square().sum() for p in found.values()).backward()
    layer = potential.further_head("cc", "charges").levels[1]
    (slope,) = torch.autograd.grad(potential(ions, "cc", properties="D").dipole.square().sum(), layer.weight)
    values = []
    for step in (1e-5, -1e-5):
        moved = copy.deepcopy(potential)
        moved.further_head("cc", "charges").levels[1].weight.data[0, 3] += step
        values.append(moved(ions, "cc", properties="D").dipole.square().sum().item())
    assert slope[0, 3].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_slope_of_the_dipole(make_batch: Batches) -> None:
    """With respect to positions, in evaluation mode, as intensities of infrared spectra need it."""
    potential, batch = _potential(), make_batch([5])
    batch.charge = torch.tensor([1.0])
    batch.pos.requires_grad_()
    (slope,) = torch.autograd.grad(potential(batch, "cc", properties="D").dipole[0, 1], batch.pos)
    values = []
    for step in (1e-5, -1e-5):
        moved = batch.clone()
        moved.pos = batch.pos.detach().clone()
        moved.pos[3, 2] += step
        values.append(potential(moved, "cc", properties="D").dipole[0, 1].item())
    assert slope[3, 2].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.usefixtures("compile_soon")
@pytest.mark.parametrize(
    ("options", "wanted", "training"),
    [({"isolated": "reference"}, {"dz": "FDQ", "cc": "Q"}, False), ({}, {"dz": "FD", "cc": "DQ"}, True)],
    ids=["evaluation", "training"],
)
def test_compiled_predictions_are_the_same(
    make_batch: Batches, options: dict[str, Any], wanted: dict[str, str], training: bool
) -> None:
    ions = make_batch([7, 5, 1, 1, 2, 1])  # not as many as elements or coordinates, which torch would take for the same
    ions.charge = torch.tensor([0, 1, -1, 2, 0, 0])
    tiny = {"n_interactions": 1, "n_features": 4, "n_sensitivities": 3}  # compiles faster
    potential = _potential(sizes=tiny, **options).train(training)
    compiled = copy.deepcopy(potential)
    compiled.compiled = True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        for batch in (ions, make_batch([4, 11, 2, 1, 1], seed=5)):  # of other sizes, and neutral
            found, expected = (_results(one, batch, wanted) for one in (compiled, potential))
            assert found.keys() == expected.keys()
            assert {"energy of cc", "charges of cc"} <= found.keys()
            for key, value in expected.items():
                tolerance = 1e-10 * max(1.0, value.abs().max().item())
                torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance)
    assert len(compiled._compiler._records) == 1


def test_a_periodic_graph_has_charges(make_batch: Batches) -> None:
    batch = make_batch([4])
    batch.cell, batch.pbc = 7 * torch.eye(3, dtype=torch.float64)[None], torch.tensor([[True, True, True]])
    found = _potential()(batch, "cc", properties="SQ")
    assert found.stress is not None
    _assert_close(found.charges.sum(), torch.zeros((), dtype=torch.float64))


def test_predictions_of_an_ensemble(ions: Batch) -> None:
    one, two = _potential(), _randomized(_potential(), seed=1)
    means, deviations = Ensemble([one, two]).predict(ions, {"cc": "DQ"})
    first, second = (p(ions, "cc", properties="DQ") for p in (one, two))
    _assert_close(means["cc"].dipole, (first.dipole + second.dipole) / 2)
    assert deviations is not None
    _assert_close(deviations["cc"].charges, (first.charges - second.charges).abs() / 2**0.5)
    _assert_close(_sums(means["cc"].charges, ions), ions.charge.double())


# Fidelities


def _parts(potential: Any, *names: str) -> set[int]:
    return {id(parameter) for parameter in potential.parts_of(names).parameters()}


def test_parts_of_fidelities(ions: Batch) -> None:
    potential = _potential(("dz", "tz", "cc"), ("cc", "dz"), private_blocks=1)
    assert tuple(potential.further) == ("dz", "cc")
    of_cc = {id(p) for p in potential.further_head("cc", "charges").parameters()}
    assert of_cc <= _parts(potential, "cc")
    assert not of_cc & _parts(potential, "dz", "tz")
    expected = potential(ions, "cc", properties="DQ")
    single = copy.deepcopy(potential)
    single.keep_only("cc")
    single.rename("ccsd")
    assert tuple(single.further) == ("ccsd",)
    assert torch.equal(single(ions, properties="DQ").dipole, expected.dipole)
    without = copy.deepcopy(potential)
    without.keep_only("tz")
    without.rename("mp2")
    assert tuple(without.further) == ()
    assert not any("charge" in key for key in without.state_dict())


def test_new_fidelities_have_the_charges_of_another(ions: Batch) -> None:
    potential = _potential(("dz", "tz"), ("dz",))
    potential.add_fidelity("copy", "dz")
    potential.add_fidelity("bare", "tz", fresh=True)
    potential.add_fidelity("fresh", "dz", fresh=True)
    assert tuple(potential.further) == ("dz", "copy", "fresh")
    found = potential(ions, list(potential.further), properties="Q")
    assert torch.equal(found["copy"].charges, found["dz"].charges)
    assert not potential.further_head("fresh", "charges").levels[0].weight.any()
    before = potential.further_head("dz", "charges").levels[1].weight.detach().clone()
    potential.reset_parameters()
    assert not torch.equal(potential.further_head("dz", "charges").levels[1].weight, before)
    assert not potential.further_head("copy", "charges").levels[0].weight.any()


def test_difference_of_two_levels(ions: Batch) -> None:
    torch.manual_seed(0)
    base = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **SIZES), ("dz", "tz"), further={"tz": "Q"})
    difference = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **SIZES), ("cc-tz",), further={"cc-tz": "Q"})
    delta = _randomized(DeltaPotential(base, difference, "tz", "cc"))
    assert tuple(delta.further) == ("tz", "cc")
    found = delta.predict(ions, {"cc": "DQ", "tz": "EF"})
    assert found["tz"].dipole is None
    _assert_close(_sums(found["cc"].charges, ions), ions.charge.double())
    low, neutral = delta.base(ions, "tz", properties="DQ"), ions.clone()
    del neutral.charge
    change = delta.difference(neutral, properties="DQ")
    assert torch.equal(found["cc"].dipole, low.dipole + change.dipole)
    assert torch.equal(found["cc"].charges, low.charges + change.charges)
    with pytest.raises(MFPyGError, match=r"'tz' of the base has none"):
        DeltaPotential(MultiFidelityPotential(base.backbone, ("tz",)), difference, "tz", "cc")
    bare = DeltaPotential(base, MultiFidelityPotential(HIPNN([1, 6, 7, 8], **SIZES), ("cc-tz",)), "tz", "cc")
    with pytest.raises(MFPyGError, match=r"'cc' has no head for dipoles; fidelities with one: tz;"):
        bare.predict(ions, {"cc": "D"})


# Files


def _settings(*fidelities: str) -> s.TrainSettings:
    values = s.defaults("small", "hipnn")
    values.update(fidelities=list(fidelities), precision=64)
    values["model"].update(n_features=6, n_atom_layers=1, n_sensitivities=5)
    return s.from_dict(values)


@pytest.mark.parametrize("delta", [False, True])
def test_saved_and_loaded(tmp_path: Path, ions: Batch, delta: bool) -> None:
    settings, species, names = _settings("dz:E", "tz:E", "cc:E"), [1, 6, 7, 8], ["dz", "tz", "cc"]
    if delta:
        potential: Any = _randomized(build_delta(settings, species, names, "tz", further={"tz": "D", "cc": "Q"}))
    else:
        potential = _randomized(build_potential(settings, species, names, further={"tz": "D", "cc": "Q"}))
    mfpyg.save(potential, tmp_path / "model.ckpt")
    checkpoint = read_checkpoint(tmp_path / "model.ckpt")
    assert checkpoint["mfpyg"]["further"] == {"tz": "DQ", "cc": "DQ"}
    loaded = mfpyg.load(tmp_path / "model.ckpt")
    assert tuple(loaded.further) == ("tz", "cc")
    for name, expected in potential(ions, ["tz", "cc"], properties="EFDQ").items():
        found: Any = loaded(ions, name, properties="EFDQ")
        assert torch.equal(found.dipole, expected.dipole)
        assert torch.equal(found.charges, expected.charges)
        assert torch.equal(found.forces, expected.forces)
    checkpoint["mfpyg"]["further"] = {"nz": "Q"}
    save_torch(tmp_path / "changed.ckpt", checkpoint)
    with pytest.raises(MFPyGError, match="unknown fidelity 'nz'"):
        mfpyg.load(tmp_path / "changed.ckpt")
    checkpoint["mfpyg"]["further"] = {"tz": "X"}
    save_torch(tmp_path / "changed.ckpt", checkpoint)
    with pytest.raises(MFPyGError, match="damaged, its further is"):
        mfpyg.load(tmp_path / "changed.ckpt")


def test_no_charges_in_older_checkpoints(tmp_path: Path) -> None:
    potential = build_potential(_settings("dz:E"), [1, 6], ["dz"])
    potential.double()
    assert describe(potential, _settings("dz:E"), {}, {})["further"] == {}
    mfpyg.save(potential, tmp_path / "model.ckpt")
    checkpoint = read_checkpoint(tmp_path / "model.ckpt")
    del checkpoint["mfpyg"]["further"]
    save_torch(tmp_path / "old.ckpt", checkpoint)
    assert mfpyg.load(tmp_path / "old.ckpt").further == {}


# Refusals


def test_what_has_no_charges_is_refused(ions: Batch, make_batch: Batches) -> None:
    potential = _potential(("dz", "tz", "cc"), ("dz", "cc"))
    with pytest.raises(MFPyGError, match=r"'tz' has no head for dipoles and charges; fidelities with one: dz, cc;"):
        potential(ions, "tz", properties="DQ")
    with pytest.raises(MFPyGError, match=r"no head for charges; fidelities with one: none"):
        _potential(charges=()).predict(ions, {"cc": "Q"})
    with pytest.raises(MFPyGError, match="unknown fidelity 'nz'"):
        _potential(charges=("nz",))
    with pytest.raises(MFPyGError, match="malformed properties 'DX': expected letters"):
        potential(ions, "dz", properties="DX")
    batch = make_batch([3, 4])
    batch.cell = 9 * torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    batch.pbc = torch.tensor([[False, False, False], [False, True, False]])
    mixed = potential(batch, "dz", properties="DQ")
    assert mixed.dipole.isnan().all(dim=1).tolist() == [False, True]
    assert mixed.charges.isfinite().all()
    batch.pbc[0, 0] = True
    with pytest.raises(MFPyGError, match=r"dipole of graph 0 is not defined: its pbc is \[True, False, False\]"):
        potential(batch, "dz", properties="D")
    assert isinstance(potential(batch, "dz", properties="Q"), Prediction)


@pytest.mark.parametrize(
    ("charge", "message"),
    [
        (torch.zeros(3), r"charge has shape \(3,\), expected a tensor \(1,\)"),
        (1, r"charge has type int, expected a tensor \(1,\)"),
        (torch.tensor([float("nan")]), "charge of graph 0 is nan, expected a number in e"),
    ],
)
def test_malformed_charges_are_refused(make_molecule: Callable[..., Data], charge: Any, message: str) -> None:
    data = make_molecule(4)
    data.charge = charge
    potential = _potential()
    with pytest.raises(MFPyGError, match=message):
        potential(data, "cc", properties="Q")
    assert potential(data, "cc").energy.isfinite().all()  # which do not depend on it
