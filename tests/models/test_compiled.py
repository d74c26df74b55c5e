"""Compiled predictions against plain ones: values, gradients of a loss on forces, other sizes, failures."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch, Data

from mfpyg.graph import Graph
from mfpyg.models import HIPNN, MultiFidelityPotential, Prediction, compiled

Batches = Callable[..., Batch]
Potential = Callable[..., MultiFidelityPotential]
WANTED = {"dz": "EF", "cc": "E"}
TINY = {"n_interactions": 1, "n_features": 4, "n_sensitivities": 3}  # compiles faster


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """A failure to compile would be a warning, and the test one of plain predictions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        yield


def _loss(predictions: dict[str, Prediction]) -> torch.Tensor:
    forces = predictions["dz"].forces
    assert forces is not None
    energies = sum(p.energy.square().sum() + p.hierarchicality.sum() for p in predictions.values())
    return forces.square().sum() + energies


def _values_and_gradients(potential: MultiFidelityPotential, batch: Batch) -> list[torch.Tensor]:
    potential.zero_grad()
    predictions = potential.predict(batch, {name: WANTED[name] for name in potential.fidelities})
    _loss(predictions).backward()
    gradients = [p.grad.clone() for p in potential.parameters() if p.grad is not None]
    values = [value for p in predictions.values() for value in vars(p).values() if value is not None]
    return [value.detach() for value in values] + gradients


def _assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected) > 10
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * max(theirs.abs().max().item(), 1e-300))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["native", "padded"])
def test_training_is_the_same(
    make_batch: Batches, make_potential: Potential, kernel: str, request: pytest.FixtureRequest
) -> None:
    if kernel == "padded":
        request.getfixturevalue("compile_soon")
    # Each fidelity, and each order, takes the compiler half a minute.
    names, order = (["dz", "cc"], 2) if kernel == "padded" else (["dz"], 0)
    potential = make_potential(order, names, kernel=kernel, **TINY).train()
    other = copy.deepcopy(potential)
    other.compiled = True
    # More graphs than elements or coordinates: torch would take equal numbers for the same, and compile anew.
    for sizes in ([9, 1, 12, 2, 1, 1], [5, 12, 1, 1, 3]):  # recorded at the first; the other has other sizes
        batch = make_batch(sizes)
        _assert_same(_values_and_gradients(other, batch), _values_and_gradients(potential, batch))
    with torch.no_grad():
        for p, q in zip(potential.parameters(), other.parameters(), strict=True):
            p.mul_(1.1), q.mul_(1.1)
    _assert_same(_values_and_gradients(other, batch), _values_and_gradients(potential, batch))  # no stale weights


class _Detaching(HIPNN):
    """A network that stops some gradients on purpose, after functions whose own derivative needs their result."""

    def forward(self, graph: Graph) -> list[torch.Tensor]:
        *lower, last = super().forward(graph)
        return [*lower, last * torch.exp(-lower[-1].square()).detach() + torch.sigmoid(last)]


@pytest.mark.usefixtures("compile_soon")
def test_gradients_that_a_network_stops_stay_stopped(make_batch: Batches) -> None:
    torch.manual_seed(0)
    backbone = _Detaching(
        [1, 6, 7, 8], tensor_order=0, n_interactions=2, n_atom_layers=0, n_features=3, n_sensitivities=3
    )
    potential = MultiFidelityPotential(backbone, ["dz", "cc"]).double().train()
    batch = make_batch([5, 3])
    expected = _values_and_gradients(potential, batch)
    potential.compiled = True
    _assert_same(_values_and_gradients(potential, batch), expected)


@pytest.mark.usefixtures("compile_soon")
def test_predictions_are_the_same(make_batch: Batches, make_potential: Potential) -> None:
    potential = make_potential(2, ["dz", "cc"], **TINY)
    expected = [potential(make_batch(sizes), ["cc", "dz"]) for sizes in ([9, 1, 22, 1, 2], [4])]
    potential.compiled = True
    for sizes, before in zip(([9, 1, 22, 1, 2], [4]), expected, strict=True):
        after = potential(make_batch(sizes), ["cc", "dz"])
        for name in ("cc", "dz"):
            assert not after[name].energy.requires_grad
            for field in ("energy", "forces", "atomic_energies"):
                ours, theirs = getattr(after[name], field), getattr(before[name], field)
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * theirs.abs().max().item())


@pytest.mark.usefixtures("compile_soon")
def test_stresses_of_any_number_of_crystals_are_the_same(make_potential: Potential) -> None:
    pos = torch.tensor([[0.0, 0, 0], [1.5, 1.4, 1.6], [3.0, 0.2, 2.0]], dtype=torch.float64)
    cell = torch.tensor([[[4.0, 0, 0], [0.3, 4.2, 0], [0, 0.2, 4.4]]], dtype=torch.float64)
    crystal = Data(z=torch.tensor([6, 8, 1]), pos=pos, cell=cell, pbc=torch.ones(1, 3, dtype=torch.bool))
    potential = make_potential(**TINY)
    for n in (5, 6):
        batch = Batch.from_data_list([crystal] * n)
        batch.pos = batch.pos + 0.01 * torch.arange(3 * n, dtype=torch.float64)[:, None] ** 2
        potential.compiled = False
        expected = potential(batch, stress=True)
        potential.compiled = True
        actual = potential(batch, stress=True)
        for field in ("energy", "forces", "stress"):
            torch.testing.assert_close(getattr(actual, field), getattr(expected, field), rtol=1e-10, atol=1e-10)


def test_what_cannot_be_compiled_is_said_and_done_without(
    make_batch: Batches, make_potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(compiled, "make_fx", broken)
    potential, batch = make_potential(2, ["dz", "cc"]).train(), make_batch([4, 3])
    expected = _values_and_gradients(potential, batch)
    potential.compiled = True
    with pytest.warns(RuntimeWarning, match=r"torch\.compile failed, continuing without it \(RuntimeError: no C\+\+"):
        actual = _values_and_gradients(potential, batch)
    _assert_same(actual, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        _assert_same(_values_and_gradients(potential, batch), expected)  # said once


def test_what_compilation_does_not_cover_is_evaluated_without_it(
    make_batch: Batches, make_potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions of the caller's that require a gradient, and graphs without an edge."""
    monkeypatch.setattr(compiled, "_record_prediction", None)  # would fail if it were called
    potential = make_potential()
    potential.compiled = True
    batch = make_batch([5])
    batch.pos.requires_grad_()
    assert potential(batch).energy.requires_grad
    assert torch.equal(potential(make_batch([1, 1])).forces, torch.zeros(2, 3, dtype=torch.float64))


def test_a_copy_and_a_file_carry_no_compiled_functions(make_potential: Potential) -> None:
    potential = make_potential()
    potential._compiler._records["key"] = [compiled._Record(lambda: [], {})]
    assert not copy.deepcopy(potential)._compiler._records
    stored = io.BytesIO()
    torch.save(potential, stored)
    stored.seek(0)
    assert not torch.load(stored, weights_only=False)._compiler._records


@pytest.mark.usefixtures("compile_soon")
def test_recording_leaves_the_weights_alone(make_batch: Batches, make_potential: Potential) -> None:
    """Other threads read them meanwhile."""
    potential = make_potential(2, ["dz", "cc"], kernel="native", **TINY)
    potential.compiled, kinds = True, []

    def look(*_: object) -> None:
        kinds.extend(type(tensor) for tensor in (potential.backbone.species, next(potential.parameters())))

    potential.heads[0].register_forward_pre_hook(look)
    potential.predict(make_batch([9, 5]), WANTED)
    assert kinds
    assert set(kinds) <= {torch.Tensor, torch.nn.Parameter}


@pytest.mark.usefixtures("compile_soon")
def test_threads_take_turns(make_batch: Batches, make_potential: Potential) -> None:
    """Also while it is being recorded, when other tensors are in place of the weights."""
    plain = [make_potential(2, ["dz", "cc"], seed=seed, kernel="native", **TINY) for seed in range(2)]
    potentials = [copy.deepcopy(potential) for potential in plain]
    for potential in potentials:
        potential.compiled = True
    tasks = [(number % 2, make_batch([n, 12, 4, 1, 1])) for number, n in enumerate((9, 5, 12, 3))]

    def forces(of: list[MultiFidelityPotential], task: tuple[int, Batch]) -> torch.Tensor:
        found = of[task[0]].predict(task[1], WANTED)["dz"].forces
        assert found is not None
        return found

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda task: forces(potentials, task), tasks))
    for ours, task in zip(found, tasks, strict=True):
        torch.testing.assert_close(ours, forces(plain, task), rtol=0, atol=1e-9)
