"""What a resumed run carries: everything, the random generators included."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfpyg.cli import train
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.rng_state import generator_states, seed_generators, set_generators

OPTIONS = (
    "--fidelities", "dz:EF", "cc:E", "--epochs=4", "--batch-size=64", "--model.n-features=6", "--model.n-atom-layers=1",
    "--model.n-sensitivities=5", "--compile=off", "--optim.lr=0.02",
)  # fmt: skip
"""Four epochs of ten steps."""

KINDS: dict[str, tuple[str, ...]] = {
    **{name: (*OPTIONS, f"--strategy={name}") for name in ("mfl", "tl", "delta", "meta")},
    "plateau": (*OPTIONS, "--optim.schedule=plateau", "--optim.patience=0", "--optim.max-batch-size=90",
                "--optim.stop-after=9", "--optim.lr=0.5", "--sampling.strategy=balanced", "--sampling.window=3"),
    "init": (*OPTIONS[3:], "--fidelities", "dz:EF", "--init", "start"),
}  # fmt: skip


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """Steps whose weights depend on every generator, as with a backbone that draws; says when to press Ctrl-C."""
    monkeypatch.chdir(tmp_path)
    compare, stop = MultiFidelityModule.compare, []

    def noisy_compare(self: Any, *arguments: Any) -> Any:
        noise = float(torch.rand(())) + np.random.random() + np.random.standard_normal() + random.gauss(0, 1)
        for parameter in self.potential.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(1 + 1e-4 * noise)
        if self.step + 1 in stop:
            stop.clear()  # once, where several batches make a step
            os.kill(os.getpid(), signal.SIGINT)
        return compare(self, *arguments)

    monkeypatch.setattr(MultiFidelityModule, "compare", noisy_compare)

    def stop_at(number: int) -> None:
        stop[:] = [number]

    return stop_at


def stopped(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 130


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whole_state_after_resume_is_that_of_an_uninterrupted_run(
    noisy: Callable[[int], None], kind: str, assert_same_run: Any, checkpoint_of: Any
) -> None:
    options = KINDS[kind]
    if kind == "init":
        train.main([*OPTIONS, "--epochs=1", "--out", "start"])
    train.main([*options, "--out", "whole"])
    noisy(14)  # within an epoch
    stopped(*options, "--out", "cut")
    state = checkpoint_of(Path("cut/last.ckpt"))
    assert state["global_step"] == 14
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"epoch": 1, "batch": 4}]
    for number in (20, 27):  # at the end of an epoch, and within the next stage
        noisy(number)
        torch.rand(7), np.random.random(7), random.random()
        stopped("--resume", "cut")
    noisy(0)
    random.seed(5)
    train.main(["--resume", "cut"])
    assert_same_run(Path("whole"), Path("cut"))


TUNED = ("--optim.accumulate=3", "--optim.ema=0.8", "--optim.weight-decay=0.3", "--optim.warmup=1.4")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["delta", "plateau", "init"])
def test_state_of_a_tuned_optimiser_is_that_of_an_uninterrupted_run(
    noisy: Callable[[int], None], kind: str, assert_same_run: Any, checkpoint_of: Any
) -> None:
    """Ten batches make four steps, the last of one batch; Ctrl-C comes with the first batch of a step."""
    options = (*KINDS[kind], *TUNED)
    if kind == "init":
        train.main([*OPTIONS, "--epochs=1", "--out", "start"])
    train.main([*options, "--out", "whole"])
    assert "raw_weights" in checkpoint_of(Path("whole/best.ckpt"))
    noisy(6)
    stopped(*options, "--out", "cut")
    state = checkpoint_of(Path("cut/last.ckpt"))
    assert state["global_step"] == 6
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"epoch": 1, "batch": 6}]
    for number in (8, 11):
        noisy(number)
        stopped("--resume", "cut")
        assert checkpoint_of(Path("cut/last.ckpt"))["global_step"] == number
    noisy(0)
    train.main(["--resume", "cut"])
    assert_same_run(Path("whole"), Path("cut"))
    differ = {name for name, raw in state["raw_weights"].items() if not torch.equal(raw, state["state_dict"][name])}
    assert differ == set(state["raw_weights"])


@pytest.mark.slow
def test_checkpoint_holds_all_that_a_training_has(noisy: Callable[[int], None]) -> None:
    """The list in docs/reliability.md; whatever is added to the training has to be added here."""
    noisy(33)
    stopped(*KINDS["plateau"], "--out", "cut")
    state = torch.load("cut/last.ckpt", weights_only=True)
    assert {name for name in state if not name.startswith("pytorch-lightning")} == {
        "epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers", "state_dict", "mfpyg",
        "progress", "stage", "ConformationData",
    }  # fmt: skip
    (adam,) = state["optimizer_states"]
    assert set(adam["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert float(adam["state"][0]["step"]) == 33
    assert state["ConformationData"]["batch_size"] > 64, "the schedule never acted"
    callbacks = {name.split("{")[0]: value for name, value in state["callbacks"].items()}
    assert set(callbacks) == {"GeneratorState", "Schedule", "RunCheckpoint", "EarlyStopping"}
    assert set(callbacks["Schedule"]) == {"best", "waited"}
    assert set(callbacks["RunCheckpoint"]) == {"best", "best_epoch"}
    assert {"wait_count", "best_score", "patience"} <= set(callbacks["EarlyStopping"])
    (process,) = callbacks["GeneratorState"]["processes"]
    assert set(process) == {"torch", "cuda", "numpy", "python"}
    assert state["progress"]["sums"]["train"].shape[-1] == 3


def test_generators_go_on_where_they_were() -> None:
    seed_generators(2**63 - 1)
    random.gauss(0, 1), np.random.standard_normal()  # of which a second one is kept
    states = generator_states()
    drawn = [(torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1)) for _ in range(2)]
    set_generators(states)
    again = [(torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1)) for _ in range(2)]
    assert drawn == again
    assert drawn[0] != drawn[1]


@pytest.mark.slow
def test_damaged_checkpoint_says_what_else_there_is(
    noisy: Callable[[int], None], capsys: pytest.CaptureFixture[str], assert_same_run: Any
) -> None:
    train.main([*OPTIONS, "--out", "whole"])
    noisy(25)
    stopped(*OPTIONS, "--out", "cut")
    last, best = Path("cut/last.ckpt"), Path("cut/best.ckpt")
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    capsys.readouterr()

    def refused() -> str:
        with pytest.raises(SystemExit) as stop:
            train.main(["--resume", "cut"])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    error = refused()
    assert "cut/last.ckpt: damaged" in error
    assert "cut/best.ckpt is intact: copy it over cut/last.ckpt to continue after" in error
    best.rename("best")
    assert "cut/best.ckpt is missing or damaged, too; start a new run" in refused()
    shutil.move("best", best)
    shutil.copy(best, last)
    noisy(0)
    train.main(["--resume", "cut"])
    assert_same_run(Path("whole"), Path("cut"))
