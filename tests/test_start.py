"""What is not imported to load a potential and to predict, and that it works where it is needed afterwards."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from mfpyg import quick_pyg
from mfpyg.checkpoint import describe
from mfpyg.models.build import build_potential
from mfpyg.settings import defaults, from_dict

HEAVY = ("torch._dynamo", "sympy", "scipy", "lightning", "e3nn", "matplotlib", "ase.io", "h5py", "jsonargparse", "rich")

SCRIPT = f"""
import sys, torch, mfpyg
potential = mfpyg.load(sys.argv[1])
from torch_geometric.data import Data
data = Data(z=torch.tensor([8, 1, 1]), pos=torch.tensor([[0., 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]))
prediction = potential(data, fidelity="dz")
assert prediction.forces.isfinite().all()
print([name for name in {HEAVY!r} if name in sys.modules])
import torch_geometric  # which looks for torch's compiler here
assert torch_geometric.is_torch_instance(torch.nn.ReLU(), torch.nn.ReLU)
assert torch_geometric.is_torch_instance(torch._dynamo.OptimizedModule(torch.nn.ReLU(), lambda f: f), torch.nn.ReLU)
assert sys.modules["torch._dynamo"] is torch._dynamo and type(torch._dynamo).__name__ == "module"
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


def test_placeholder_gives_way_to_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.ModuleType("somewhere")
    real.name = 3  # type: ignore[attr-defined]
    placeholder = quick_pyg._Placeholder(quick_pyg._COMPILER)
    monkeypatch.setitem(sys.modules, quick_pyg._COMPILER, placeholder)
    assert not hasattr(placeholder, "__file__")
    assert sys.modules[quick_pyg._COMPILER] is placeholder
    monkeypatch.setattr("importlib.import_module", lambda name: real)
    assert placeholder.name == 3
    assert quick_pyg._COMPILER not in sys.modules
