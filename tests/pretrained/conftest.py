"""A tiny model in a folder of its own in the place of the shipped ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mfpyg
from mfpyg import pretrained

CARD = """\
title: Tiny potential
licence: CC0-1.0
elements: [H, C, N, O]
use: Tests.
not_for: [molecules, crystals]
levels:
  dz:
    {method: ωB97X/6-31G(d), labels: EF, conformations: 1234, molecules: 14, source: bundled data}
  cc:
    {method: CCSD(T)/cc-pVDZ, labels: E, conformations: 604, molecules: 12, source: mfpyg-label}
tested_on: Five molecules; bootstrap over molecules.
errors:
  - {level: dz, quantity: forces, unit: kcal/mol/Å, rmse: 6.25, interval: [5.5, 7], n: 1500}
  - {level: cc, quantity: energy, unit: kcal/mol, rmse: 1.5, interval: [1.2, 1.75], n: 150}
recipe: mfpyg-train --fidelities dz:EF cc:E
"""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained: Callable[..., Path]) -> Path:
    """Checkpoint of the only shipped model, ``tiny-1``; the current folder is another one, and empty."""
    folder = tmp_path / "shipped"
    for path in (folder, tmp_path / "here"):
        path.mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    path = folder / "tiny-1.ckpt"
    mfpyg.save(mfpyg.load(untrained("dz:EF", "cc:E")), path)
    path.with_suffix(".yaml").write_text(CARD, encoding="utf-8")
    return path
