"""Replays of CUDA graphs: on a CPU imitated, through all else that a compiled prediction passes on a GPU."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.errors import MFPyGWarning
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.models import MultiFidelityPotential, cuda_graphs, prepare
from mfpyg.models.cuda_graphs import Replayed

Batches = Callable[..., Batch]
Potential = Callable[..., MultiFidelityPotential]
TINY = {"n_interactions": 1, "n_features": 4, "n_sensitivities": 3, "cutoff": 4.0}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """A failure to compile or capture would be a warning, and the test one of plain predictions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=MFPyGWarning)
        yield


class Counted:
    """w x, and the number of calls from Python."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, weights: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
        self.calls += 1
        return [weights["w"] * tensors[0]]


def ones(n: int) -> list[Tensor]:
    return [torch.ones(n)]


def test_sizes_are_captured_when_they_come_again(replayed_here: list[int]) -> None:
    function, weights = Replayed(Counted()), {"w": torch.tensor(2.0)}
    for n in (3, 4, 3, 3, 4, 3):
        assert torch.equal(function(weights, ones(n))[0], torch.full((n,), 2.0))
    assert replayed_here == [3, 1]


def test_results_are_not_overwritten(replayed_here: list[int]) -> None:
    function, weights = Replayed(Counted()), {"w": torch.tensor(2.0)}
    given = [torch.full((3,), float(number)) for number in range(4)]
    results = [function(weights, [one])[0] for one in given]
    assert [float(result[0]) for result in results] == [0, 2, 4, 6]
    assert [float(one[0]) for one in given] == [0, 1, 2, 3]  # nor are the inputs


@pytest.mark.parametrize("inference", [False, True])
def test_inputs_that_change_in_place_are_copied(replayed_here: list[int], inference: bool) -> None:
    with torch.inference_mode(inference):
        function, weights, given = Replayed(Counted()), {"w": torch.tensor(2.0)}, ones(3)
        for number in range(5):
            given[0].fill_(number)
            assert torch.equal(function(weights, given)[0], torch.full((3,), 2.0 * number))
            assert torch.equal(function(weights, given)[0], torch.full((3,), 2.0 * number))
    assert replayed_here == [9]


def test_weights_are_read_where_they_are(replayed_here: list[int]) -> None:
    function, weight = Replayed(Counted()), torch.tensor(2.0)
    for _ in range(3):
        function({"w": weight}, ones(3))
    weight.fill_(5.0)  # a new value at the same place
    assert function({"w": weight}, ones(3))[0][0] == 5
    assert replayed_here == [3]
    moved = torch.tensor(7.0)
    for _ in range(3):
        assert function({"w": moved}, ones(3))[0][0] == 7
    assert replayed_here == [3, 2]


def test_sizes_that_were_not_used_for_long_are_forgotten(
    replayed_here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST_GRAPHS", 2)
    function, weights = Replayed(Counted()), {"w": torch.tensor(2.0)}
    for n in (3, 3, 4, 3, 5, 3, 4):  # 4 was used before 3, so that 5 takes its place
        assert torch.equal(function(weights, ones(n))[0], torch.full((n,), 2.0))
    assert replayed_here == [3]
    assert len(function._graphs) == 2
    for n in (5, 6, 7) * 3:  # more sizes than graphs: nothing is captured in vain
        function(weights, ones(n))
    assert replayed_here == [3]


def test_what_cannot_be_captured_is_said_and_called(replayed_here: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda_graphs, "_capture", broken)
    function, weights = Replayed(Counted()), {"w": torch.tensor(2.0)}
    function(weights, ones(3))
    with pytest.warns(MFPyGWarning, match="could not be captured, continuing without .operation not permitted when"):
        assert function(weights, ones(3))[0][0] == 2
    assert function(weights, ones(3))[0][0] == 2  # said once


@pytest.mark.parametrize("kernel", ["native", "padded", "triton"])
def test_dynamics_of_benzene_replay_one_graph_or_two(
    make_potential: Potential, replayed_here: list[int], kernel: str
) -> None:
    if kernel == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    potential = make_potential(0, kernel=kernel, **{**TINY, "cutoff": 4.25})  # a distance of H and H
    for parameter in potential.heads.parameters():
        parameter.detach().mul_(0.01)  # benzene does not explode
    n_steps = 40 if kernel != "triton" else 6
    atoms = molecule("C6H6")
    atoms.calc = MFPyGCalculator(potential, compiled=True)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2000, rng=np.random.default_rng(0))
    frames: list[tuple[Atoms, float, np.ndarray]] = []
    dynamics = VelocityVerlet(atoms, 0.3 * units.fs)
    dynamics.attach(lambda: frames.append((atoms.copy(), atoms.get_potential_energy(), atoms.get_forces())))
    dynamics.run(n_steps)
    plain, n_edges = MFPyGCalculator(potential), set[int]()
    for frame, energy, forces in frames:
        np.testing.assert_allclose(energy, plain.get_property("energy", frame), rtol=1e-12)
        np.testing.assert_allclose(forces, plain.get_property("forces", frame), atol=1e-10)
        n_edges.add(int((frame.get_all_distances() < 4.25).sum()) - len(frame))
    if kernel != "triton":
        assert len(n_edges) > 3
    assert 1 <= len(replayed_here) <= 2
    assert sum(replayed_here) >= n_steps - 4
    records = atoms.calc.ensemble.members[0]._compiler._records
    assert [len(found) for found in records.values()] == [1] * len(records)
    assert len(records) <= 2  # of energies alone, and with forces


def test_batches_and_ensembles(make_batch: Batches, make_potential: Potential, replayed_here: list[int]) -> None:
    """Each network replays its own graphs, and batches of other sizes others."""
    plain = [make_potential(1, ["dz", "cc"], seed=seed, **TINY) for seed in range(2)]
    potentials = [copy.deepcopy(potential) for potential in plain]
    for potential in potentials:
        potential.compiled = True
    for seed in range(3):
        for sizes in ([9, 5, 1], [12, 2]):
            batch = make_batch(sizes, seed)
            for ours, theirs in zip(potentials, plain, strict=True):
                found, expected = (one.predict(batch, {"dz": "EF", "cc": "E"}) for one in (ours, theirs))
                torch.testing.assert_close(found["dz"].forces, expected["dz"].forces, rtol=0, atol=1e-9)
                for name in ("dz", "cc"):
                    torch.testing.assert_close(found[name].energy, expected[name].energy, rtol=1e-12, atol=1e-9)
                    assert found[name].atomic_energies.shape == (sum(sizes),)
    assert replayed_here == [2] * len(replayed_here)
    assert len(replayed_here) == 4


def test_neither_large_systems_nor_trainings_are_replayed(
    make_batch: Batches, make_potential: Potential, replayed_here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    potential, batch = make_potential(0, **TINY), make_batch([9, 5])
    potential.compiled = True
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "MOST_EDGES", 10)
        for _ in range(3):
            potential(batch)
    potential.train()
    for _ in range(2):
        assert potential(batch).energy.requires_grad
    assert replayed_here == []


def test_prepared_data_are_replayed(make_batch: Batches, make_potential: Potential, replayed_here: list[int]) -> None:
    plain, batch = make_potential(0, **TINY), make_batch([9, 5])
    potential = copy.deepcopy(plain)
    potential.compiled = True
    prepared, expected = potential.prepare(batch, {"dz": "EF"}), plain.predict(batch, {"dz": "EF"})["dz"]
    for _ in range(3):
        found = potential.predict(prepared, {"dz": "EF"})["dz"]
        torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.energy, expected.energy, rtol=1e-12, atol=1e-9)
    assert replayed_here == [2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("kernel", ["padded", "auto"])
def test_replays_on_a_gpu(make_batch: Batches, make_potential: Potential, kernel: str) -> None:
    plain = make_potential(2, ["dz", "cc"], kernel=kernel, **TINY).cuda()
    potential = copy.deepcopy(plain)
    potential.compiled = True
    for seed in range(4):
        batch = make_batch([12, 9, 2], seed).to("cuda")
        found, expected = (one.predict(batch, {"dz": "EF", "cc": "E"}) for one in (potential, plain))
        torch.testing.assert_close(found["dz"].forces, expected["dz"].forces, rtol=0, atol=1e-9)
        torch.testing.assert_close(found["cc"].energy, expected["cc"].energy, rtol=1e-12, atol=1e-9)
    graphs = [record.replayed._graphs for found in potential._compiler._records.values() for record in found]
    assert any(graph is not None for found in graphs for graph in found.values())
