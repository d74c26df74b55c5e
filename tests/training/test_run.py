"""A training in a program that has set something of torch's is the training without, and leaves things as they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from mfpyg.checkpoint import read_checkpoint
from mfpyg.cli import train

TINY = (
    "--fidelities", "dz:EF", "--epochs=1", "--model.n-features=6", "--model.n-atom-layers=1",
    "--model.n-sensitivities=5", "--batch-size=128", "--compile=off", "--threads=1",
)  # fmt: skip

WITHIN: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("run") / "plain"
    train.main([*TINY, "--out", str(out)])
    return read_checkpoint(out)


@pytest.mark.slow
@pytest.mark.parametrize("setting", WITHIN)
def test_weights_are_those_of_a_training_without(plain: dict[str, Any], tmp_path: Path, setting: str) -> None:
    dtype = torch.float64 if setting == "float64" else torch.float32
    torch.set_default_dtype(dtype)
    try:
        with WITHIN[setting]():
            train.main([*TINY, "--out", str(tmp_path / "run")])
            assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    found = read_checkpoint(tmp_path / "run")["state_dict"]
    for name, value in plain["state_dict"].items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_number_of_threads_is_the_programs_own_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = torch.get_num_threads()
    train.main([*TINY, f"--threads={before + 1}", "--out", str(tmp_path / "run")])
    assert torch.get_num_threads() == before
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_error_that_an_interrupt_led_to_is_an_interrupt() -> None:
    from mfpyg.training.run import _is_interrupt

    def stumble(first: type[BaseException]) -> BaseException:
        try:
            try:
                raise first
            except first:
                raise RuntimeError("while going down")  # noqa: B904
        except RuntimeError as error:
            return error

    assert _is_interrupt(stumble(KeyboardInterrupt))
    assert _is_interrupt(SystemExit())
    assert not _is_interrupt(stumble(ValueError))
