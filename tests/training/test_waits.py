"""No training step waits for the device: scanned on a CPU, run as on a GPU; and, where there is one, by CUDA itself."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch.loops.training_epoch_loop as lightning_loop
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.cli import train
from mfpyg.graph import Topology
from mfpyg.kernels.padded import PaddedSum
from mfpyg.models import HIPNN, DeltaPotential, MultiFidelityPotential
from mfpyg.models.prepare import PreparedData
from mfpyg.models.system import System
from mfpyg.training import data as training_data
from mfpyg.training import module as training_module
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.ready import Ready, make_ready
from tests.waits import Waits

from .conftest import stage_of
from .test_loss import make_loss, molecule

TINY = ["--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--model.kernel=padded"]
OPTIONS = ["--fidelities", "dz:EF", "cc:E", "--epochs=2", "--batch-size=64", "--compile=off"]
CASES = {
    "mfl": ["--optim.clip=1", "--optim.ema=0.9", "--optim.accumulate=2", "--head.isolated=reference"],
    "dipole": ["--fidelities", "dz:EFD", "cc:E"],
    "hessian": ["--fidelities", "dz:EFH", "cc:E", "--hessian-directions=2"],
    "delta": ["--strategy=delta", "--epochs=4"],
    "meta": ["--strategy=meta", "--epochs=4"],
    "meta with hessians": ["--strategy=meta", "--epochs=4", "--fidelities", "dz:EFH", "cc:E"],
    "difference": ["--difference-weight=1"],
    "stored edges": ["--edges=stored"],
    "mace": ["--backbone=mace", "--model.n-features=4", "--model.radial-width=8", "--model.l-max=2"],
}


def network(options: list[str]) -> list[str]:
    """Options of the network, unless there is another one."""
    return [] if "--backbone=mace" in options else TINY


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that do not wait, of batches that are assembled where the potential is."""
    monkeypatch.setattr(training_module, "waits", lambda device: True)
    monkeypatch.setattr(training_data, "fits", lambda device, n_bytes: n_bytes > 100_000)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: None) -> Waits:
    """Operators of training and validation steps that wait, except those that prepare them and the looks back."""
    scan = Waits()
    transfer, prepare = MultiFidelityModule.on_after_batch_transfer, MultiFidelityModule._make_ready
    look = MultiFidelityModule._look_back
    advance, validate = lightning_loop._TrainingEpochLoop.advance, MultiFidelityModule.validation_step
    monkeypatch.setattr(MultiFidelityModule, "on_after_batch_transfer", scan.watching_after(transfer))
    monkeypatch.setattr(MultiFidelityModule, "_make_ready", scan.not_watching(prepare))
    monkeypatch.setattr(MultiFidelityModule, "_look_back", scan.not_watching(look))
    monkeypatch.setattr(lightning_loop._TrainingEpochLoop, "advance", scan.watching_until(advance))
    monkeypatch.setattr(MultiFidelityModule, "validation_step", scan.watching_until(validate))
    return scan


@pytest.mark.parametrize("case", CASES)
def test_steps_do_not_wait(tmp_path: Path, scanned: Waits, case: str) -> None:
    with scanned:
        train.main([*OPTIONS, *network(CASES[case]), *CASES[case], "--out", str(tmp_path / "run")])
    assert scanned.n_watched > 10_000
    assert scanned.found == []


def test_the_scan_finds_what_waits(tmp_path: Path, scanned: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the preparation, the same steps wait for labels, positions, elements and neighbours."""
    monkeypatch.setattr(MultiFidelityModule, "_take_ready", lambda self, batch: None)
    with scanned:
        train.main([*OPTIONS, *TINY, "--epochs=1", "--out", str(tmp_path / "run")])
    for name in ("loss.py", "centering.py", "models/system.py", "neighbors.py", "kernels/padded.py"):
        assert any(name in line for line in scanned.found), name


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_weights_are_those_of_steps_that_wait(
    tmp_path: Path, options: list[str], request: pytest.FixtureRequest
) -> None:
    def run(name: str) -> dict[str, Any]:
        train.main([*OPTIONS, *network(options), *options, "--out", str(tmp_path / name)])
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True)

    waiting = run("waiting")
    request.getfixturevalue("as_on_a_gpu")
    later = run("later")
    for name, weight in waiting["state_dict"].items():
        assert torch.equal(weight, later["state_dict"][name]), name
    torch.testing.assert_close(waiting["optimizer_states"], later["optimizer_states"], rtol=0, atol=0)


# One step alone: on the device ``meta``, whose tensors have no numbers to wait for, and on a GPU


def ready_on(device: str, training: bool = True) -> tuple[MultiFidelityModule, Ready]:
    """A module on a device, and a batch that was prepared there; for ``meta``, on a CPU."""
    torch.manual_seed(0)
    backbone = HIPNN([1, 6, 7, 8], n_atom_layers=1, n_features=6, n_sensitivities=5, kernel="padded")
    module = MultiFidelityModule(MultiFidelityPotential(backbone, ["dz", "cc"]), stage_of(make_loss()))
    module.train(training)
    module.configure_optimizers()
    module._n_steps = 100
    molecules = [molecule(seed, dz=bool(seed % 2), cc=bool(seed % 3)) for seed in range(1, 9)]
    source = "cpu" if device == "meta" else device
    with torch.set_grad_enabled(training):
        batch = Batch.from_data_list(molecules).to(source)
        ready = make_ready(module.potential.to(source), module.loss.to(source), batch)
    module.to(device)
    return module, moved(ready, device)


def moved(value: Any, device: str) -> Any:
    """Copy with all tensors on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Batch):
        return value.clone().to(device)
    if isinstance(value, dict):
        return {key: moved(one, device) for key, one in value.items()}
    if isinstance(value, Ready):
        return Ready(moved(value.batch, device), value.network, *(moved(one, device) for one in value[2:]))
    if isinstance(value, PreparedData | System | Topology | PaddedSum):
        of = {field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **of)
    return value


def step(module: MultiFidelityModule, ready: Ready) -> None:
    value, _ = module.compare(module.potential, module.loss, ready.batch, 0, ready)
    value.backward()
    assert module._optimizer is not None
    module.on_before_optimizer_step(module._optimizer)


def test_a_step_without_numbers() -> None:
    module, ready = ready_on("meta")
    with Waits() as scan:
        scan.watching = True
        step(module, ready)
    assert scan.found == []
    assert scan.n_watched > 200
    flag = module._optimizer.found_inf  # type: ignore[union-attr]
    assert flag.is_meta
    assert all(p.grad is not None and p.grad.is_meta for p in module.potential.parameters())
    with pytest.raises(NotImplementedError):  # a look at it would wait
        module._look_back()


def test_a_prediction_without_numbers() -> None:
    module, ready = ready_on("meta", training=False)
    with Waits() as scan:
        scan.watching = True
        predictions = module.potential.predict(ready.prepared, {"dz": "EF", "cc": "E"})
    assert scan.found == []
    assert predictions["dz"].forces is not None
    assert predictions["dz"].forces.shape == ready.batch.pos.shape
    with pytest.raises(NotImplementedError):
        module.potential.predict(ready.batch, {"dz": "EF"})


def test_predictions_of_prepared_data_are_those_of_the_data() -> None:
    module, ready = ready_on("cpu", training=False)
    wanted = {"dz": "EF", "cc": "E"}
    one, two = (module.potential.predict(data, wanted) for data in (ready.batch, ready.prepared))
    for name in wanted:
        assert torch.equal(one[name].energy, two[name].energy)
    assert torch.equal(one["dz"].forces, two["dz"].forces)  # type: ignore[arg-type]


def test_networks_of_other_types_are_prepared_for_in_the_step() -> None:
    """Those of a strategy that says only in ``compared`` which network is trained."""
    module, ready = ready_on("cpu")
    network, loss = module.potential, module.loss
    change = MultiFidelityPotential(copy.deepcopy(network.backbone), ["mp2-cc"])
    both = DeltaPotential(network, change, "cc", "mp2")
    assert module.stage.network(both) is both
    other = make_ready(both, loss, ready.batch)
    module._window.clear()
    value, _ = module.compare(network, loss, ready.batch, 0, other)
    expected, _ = module.compare(network, loss, ready.batch, 0)
    assert torch.equal(value, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_step_on_a_gpu() -> None:
    module, ready = ready_on("cuda")
    optimizer = module._optimizer
    assert optimizer is not None
    step(module, ready)  # once, to allocate and to choose algorithms
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(module, ready)
        optimizer.step()
        module.eval()
        module.potential.predict(ready.prepared, {"dz": "EF", "cc": "E"})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    module._look_back()
