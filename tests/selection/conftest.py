"""Pools of conformations of the bundled data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from mfpyg.cli import selection


class Selecting:
    """``mfpyg-select`` in a folder of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.output = self.errors = ""

    def __call__(self, *arguments: str, out: str = "next.xyz") -> int:
        """Run, and return the status."""
        status = 0
        try:
            selection.main([*arguments, "-o", out])
        except SystemExit as stop:
            status = int(stop.code or 0)
        self.output, self.errors = self.capsys.readouterr()
        return status

    def refused(self, *arguments: str, out: str = "next.xyz") -> str:
        """Run, check that nothing was written, and return the error."""
        before = sorted(Path().rglob("*"))
        assert self(*arguments, out=out) == 2
        assert self.errors.count("\n") == 1
        assert sorted(Path().rglob("*")) == before, "something was written"
        return self.errors


@pytest.fixture
def selecting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Selecting:
    monkeypatch.chdir(tmp_path)
    return Selecting(capsys)


@pytest.fixture
def pool(tmp_path: Path, write_xyz: Callable[..., Path]) -> Callable[[Sequence[int]], None]:
    """``pool(rows)`` writes conformations of MiniCHNO without labels to ``pool.xyz``."""
    return lambda rows: write_xyz(tmp_path / "pool.xyz", rows)


@pytest.fixture
def shaken(tmp_path: Path, write_xyz: Callable[..., Path]) -> Callable[[Sequence[int]], list[Atoms]]:
    """``shaken(rows)`` writes conformations of MiniCHNO, slightly distorted, to ``pool.xyz``."""

    def write(rows: Sequence[int]) -> list[Atoms]:
        frames = ase.io.read(write_xyz(tmp_path / "pool.xyz", rows), ":")
        random = np.random.default_rng(0)
        for atoms in frames:
            atoms.positions = (atoms.positions + 0.05 * random.normal(size=atoms.positions.shape)).round(6)
        ase.io.write(tmp_path / "pool.xyz", frames, format="extxyz")
        return frames

    return write
