"""A calculator of a user's own, and frames, for tests of everything around the programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest

from mfpyg.cli import label

SPRINGS = '''
"""Springs to the origin: E = ½ k Σ x². What it computes, it writes to a file; some molecules it does not like."""
import os, signal, time
from pathlib import Path
import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Springs(Calculator):
    implemented_properties = ["energy", "forces", "dipole"]

    def __init__(self, k=1.0, pause=0.0, charge=0, spin=1):
        super().__init__()
        self.k, self.pause, self.charge = k, pause, charge

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        formula = self.atoms.get_chemical_formula()
        with Path("computed").open("a") as file:
            file.write(f"{formula} {os.environ['OMP_NUM_THREADS']}\\n")
        time.sleep(self.pause)
        if formula == "He":
            os.kill(os.getpid(), signal.SIGKILL)
        if formula == "Xe" and not Path("xenon").exists():
            Path("xenon").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        if formula == "Ne":
            raise RuntimeError("no neon\\nat all")
        if formula == "Ar" and not Path("argon").exists():
            raise ValueError("no argon yet")
        print("printed by the program")
        x = self.atoms.positions
        energy = np.nan if formula == "Kr" else 0.5 * self.k * float((x**2).sum()) + self.charge
        self.results = {"energy": energy, "forces": -self.k * x, "dipole": x.sum(axis=0)}
'''


class Labelling:
    """``mfpyg-label`` in a folder with the calculator ``springs:Springs``."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.output = self.errors = ""

    def write(self, symbols: Sequence[str], **info: Any) -> list[ase.Atoms]:
        """Write ``in.xyz`` with these molecules at random positions."""
        random = np.random.default_rng(0)
        frames = [ase.Atoms(s, random.normal(size=(len(ase.Atoms(s)), 3)).round(8), info=dict(info)) for s in symbols]
        ase.io.write("in.xyz", frames, format="extxyz")
        return frames

    def __call__(self, *arguments: str, source: str = "in.xyz", out: str = "out.xyz") -> int:
        """Run, and return the status."""
        status = 0
        try:
            label.main([source, "-o", out, *arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        self.output, self.errors = self.capsys.readouterr()
        return status

    @property
    def computed(self) -> list[str]:
        """Formula and number of threads of each computation."""
        return Path("computed").read_text().splitlines() if Path("computed").exists() else []


@pytest.fixture
def labelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Labelling:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "springs.py").write_text(SPRINGS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("COLUMNS", "200")
    return Labelling(capsys)


@pytest.fixture
def shaken() -> Callable[..., ase.Atoms]:
    """``shaken("H2O")``: a molecule of ASE's G2 set, slightly distorted."""
    from ase.build import molecule

    def make(name: str, seed: int = 0) -> ase.Atoms:
        atoms = molecule(name)
        atoms.positions += 0.05 * np.random.default_rng(seed).normal(size=atoms.positions.shape)
        return atoms

    return make
