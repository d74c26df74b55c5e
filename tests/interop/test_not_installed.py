"""Programs that are not installed, or too old: the error says what to install."""

from __future__ import annotations

import importlib.util
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("openmm", "openmm", "openmm"), ("ipi", "ipi", "ipi"), ("torchsim", "torch_sim", "torchsim")],
)
def test_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    spec = importlib.util.find_spec(f"mfpyg.interop.{module}")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=rf"is not installed .*pip install 'mfpyg\[{extra}\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
