"""Runs of mfpyg-train that are hit by something, and whether they end as others do."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forks_in: Callable[[Path], Any]
) -> Path:
    """A run with the module's ``OPTIONS`` that nothing happened to; kernels are compiled after it."""
    forks = forks_in(tmp_path_factory.mktemp("whole"))
    forks.whole(*request.module.OPTIONS, "--out", "whole")
    return forks.folder / "whole"


def differences(one: Any, two: Any, name: str = "") -> list[str]:
    """Where two nested values are not the same, to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape and one.numpy().tobytes() == two.numpy().tobytes()
        return [] if same else [name]
    if isinstance(one, dict) and isinstance(two, dict):
        names = dict.fromkeys([*one, *two])
        return [d for n in names for d in differences(one.get(n, "nothing"), two.get(n, "nothing"), f"{name}/{n}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [d for n, pair in enumerate(zip(one, two, strict=True)) for d in differences(*pair, f"{name}/{n}")]
    same = type(one) is type(two) and (one == two or (one != one and two != two))
    return [] if same else [f"{name}: {str(one)[:60]} and {str(two)[:60]}"]


def checkpoint_of(path: Path) -> dict[str, Any]:
    """All of a checkpoint but where its run lies."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["mfpyg"]["config"]["out"]
    return checkpoint


def log_of(run: Path) -> list[dict[str, str]]:
    """``metrics.csv`` but for the times."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(one: Path, two: Path) -> None:
    """Two runs have ended with the same files, the whole state of the training included."""
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    for name in ("last.ckpt", "best.ckpt"):
        assert not differences(checkpoint_of(one / name), checkpoint_of(two / name)), name
    assert log_of(one) == log_of(two)
    for name in ("metrics.json", "metrics.txt", "splits.npz", "versions.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.fixture(name="assert_same_run", scope="session")
def _assert_same_run() -> Callable[[Path, Path], None]:
    return assert_same_run


@pytest.fixture(name="differences", scope="session")
def _differences() -> Callable[..., list[str]]:
    return differences


@pytest.fixture(name="checkpoint_of", scope="session")
def _checkpoint_of() -> Callable[[Path], dict[str, Any]]:
    return checkpoint_of
