"""The bundled file with a defect planted in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import pytest

from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.minichno import bundled_file
from mfpyg.doctor import Finding, diagnose

Edit = Callable[[h5py.File], None]
"""Changes an open raw file."""


class Planted:
    """Copies the bundled file, edits the copy, and diagnoses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "edited.h5"

    def file(self, edit: Edit) -> Path:
        shutil.copy(bundled_file(), self.path)
        self.path.chmod(0o644)
        with h5py.File(self.path, "r+") as file:
            edit(file)
        return self.path

    def __call__(
        self, edit: Edit, fidelities: Sequence[str] | None = None, properties: str | None = None
    ) -> list[Finding]:
        return diagnose(MiniCHNO(self.folder, file=self.file(edit), properties=properties), fidelities)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def only(findings: Sequence[Finding], check: str, severity: str, fidelity: str | None = None) -> Finding:
    """The one finding of this check, severity and fidelity."""
    found = [f for f in findings if (f.check, f.severity, f.fidelity) == (check, severity, fidelity)]
    assert len(found) == 1, f"{len(found)} of {check}, {severity}, {fidelity} in {findings}"
    return found[0]
