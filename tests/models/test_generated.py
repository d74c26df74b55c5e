"""PyG's generated files do not stay in the temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
import inspect, sys
from mfpyg.models.build import build_potential
from mfpyg.settings import defaults, from_dict
potential = build_potential(from_dict(defaults("small", sys.argv[1])), [1, 8], ["dz"])
layer = next(m for m in potential.modules() if hasattr(m, "propagate"))
print(len(inspect.getsource(layer.propagate)))
"""


@pytest.mark.parametrize("backbone", ["hipnn", "visnet"])
def test_networks_leave_no_files(tmp_path: Path, backbone: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, backbone], env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) > 100
    assert list(tmp_path.iterdir()) == []
