"""Growths on shaken molecules, with labels and trainings in this process, and processor times that are made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.build import molecule

TINY = {"n_features": 6, "n_atom_layers": 1, "n_sensitivities": 5}


class Growing:
    """``mfpyg-grow`` in a folder with ``geometries.xyz``.

    Attributes:
        config: settings as in a file.
        computed: level and formula of each label that was computed.
        seconds: processor time of labels by level.
        failing: formulas without labels.
        stop_after: number of labels after which Ctrl-C is pressed; ``None``: never.
        lines: what was printed by the last call.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] = {
            "out": "grown",
            "pool": "geometries.xyz",
            "levels": {"gfn1": "tblite:GFN1-xTB:EF", "gfn2": "tblite:GFN2-xTB:E"},
            "everywhere": ["gfn1"],
            "budget": 20,
            "rounds": 2,
            "train": {"preset": "small", "epochs": 2, "model": TINY},
            "select": {"method": "random"},
        }
        self.computed: list[tuple[str, str]] = []
        self.seconds = {"gfn1": 0.01, "gfn2": 1.0}
        self.failing: set[str] = set()
        self.stop_after: int | None = None
        self.lines: list[str] = []

    def write(self, names: Sequence[str] = ("CH4", "H2O", "CH3OH"), n: int = 40) -> None:
        """Write ``geometries.xyz`` with these molecules in turn."""
        random = np.random.default_rng(0)
        frames = [molecule(names[number % len(names)]) for number in range(n)]
        for frame in frames:
            frame.positions = (frame.positions + 0.05 * random.normal(size=frame.positions.shape)).round(8)
        ase.io.write("geometries.xyz", frames, format="extxyz")

    def compute(self, jobs: Sequence[Any], store: Any) -> dict[str, str]:
        for job in jobs:
            if self.stop_after is not None and len(self.computed) >= self.stop_after:
                raise KeyboardInterrupt
            self.computed.append((job.level.name, job.formula))
            if job.formula in self.failing:
                store.fail(job, "no convergence", self.seconds[job.level.name])
                continue
            program = job.level.open()
            labels = program.compute(job.atoms(), job.charge, job.multiplicity, job.letters)
            store.write(job, labels, program.version, self.seconds[job.level.name])
        return {}

    def train(self, job: Any) -> None:
        from mfpyg.cli import train

        train.main(job.command()[3:])
        job.state = "done"

    def __call__(self, retry: bool = False) -> None:
        from mfpyg.growth.run import grow
        from mfpyg.growth.settings import GrowSettings
        from mfpyg.options import build

        self.lines = []
        settings = build(GrowSettings, self.config)
        grow(settings, Path(settings.out), self.compute, self.train, note=self.lines.append, retry=retry)

    @property
    def labels(self) -> list[ase.Atoms]:
        """Labelled frames."""
        found = ase.io.read("grown/labelled.xyz", ":")
        assert isinstance(found, list)
        return found

    def summary(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(f"grown/round-{number}/summary.json").read_text())
        return found


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    pytest.importorskip("tblite", reason="tblite is not installed: pip install 'mfpyg[label]'")
    monkeypatch.chdir(tmp_path)
    made = Growing()
    made.write()
    return made
