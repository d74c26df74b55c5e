"""Neighbour-list engines by name; importable without torch."""

from __future__ import annotations

import importlib.util

from mfpyg.errors import MFPyGError, unknown_name

ENGINES = ("auto", "torch", "torch-cluster", "vesin")
"""See :mod:`mfpyg.neighbors`."""


def check_engine(engine: str) -> None:
    """Check that a neighbour-list engine exists and is installed.

    Raises:
        MFPyGError: if not, saying how to install it.
    """
    if engine not in ENGINES:
        raise unknown_name("neighbour-list engine", engine, ENGINES)
    if engine == "torch-cluster" and importlib.util.find_spec("torch_cluster") is None:
        raise MFPyGError("engine 'torch-cluster' is not installed: pip install 'mfpyg[cluster]', or use engine 'torch'")
