"""Modules that are not imported to load a potential, to predict, and to answer --help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfpyg.checkpoint import describe
from mfpyg.models.build import build_potential
from mfpyg.settings import defaults, from_dict

HEAVY = ("lightning", "e3nn", "matplotlib", "ase.io", "h5py", "jsonargparse", "rich")

SCRIPT = f"""
import sys, torch, mfpyg
potential = mfpyg.load(sys.argv[1])
from torch_geometric.data import Data
data = Data(z=torch.tensor([8, 1, 1]), pos=torch.tensor([[0., 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
prediction = potential(data, fidelity="dz")
assert prediction.forces.isfinite().all()
print([name for name in {HEAVY!r} if name in sys.modules])
"""


@pytest.mark.slow
def test_loading_and_predicting_imports_nothing_heavy(tmp_path: Path) -> None:
    settings = from_dict({**defaults("small", "hipnn"), "fidelities": ["dz:E"]})
    potential = build_potential(settings, [1, 8], ["dz"])
    weights = {f"potential.{name}": value for name, value in potential.state_dict().items()}
    described = describe(potential, settings, {"name": "x", "fingerprint": "", "methods": {}}, {})
    torch.save({"state_dict": weights, "mfpyg": described}, tmp_path / "x.ckpt")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "x.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


HELP = """
import importlib, sys
names = "train evaluate inspection predict preprocess doctor study sample label selection grow convert"
for name in names.split():
    for option, status in (("--help", 0), ("--wrong", 2)):
        try:
            importlib.import_module(f"mfpyg.cli.{name}").main(["CC/E", option] if name == "study" else [option])
        except SystemExit as end:
            assert end.code == status, (name, option, end.code)
assert "torch" not in sys.modules
"""


def test_help_and_wrong_options_do_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--wrong") == 12
