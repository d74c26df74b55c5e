"""Neighbour-list engines by name; importable without torch."""

from __future__ import annotations

import importlib.util

from mfpyg.errors import MFPyGError, unknown_name

ENGINES = ("auto", "torch", "torch-cluster", "vesin", "nvalchemi")
"""See :mod:`mfpyg.neighbors`."""

_EXTRAS = {"torch-cluster": ("torch_cluster", "cluster"), "nvalchemi": ("nvalchemiops", "gpu")}
"""Module of each optional engine, and the extra that installs it."""


def is_installed(engine: str) -> bool:
    """True if the package of an engine is installed."""
    return engine not in _EXTRAS or importlib.util.find_spec(_EXTRAS[engine][0]) is not None


def check_engine(engine: str) -> None:
    """Check that a neighbour-list engine exists and is installed.

    Raises:
        MFPyGError: if not, saying how to install it.
    """
    if engine not in ENGINES:
        raise unknown_name("neighbour-list engine", engine, ENGINES)
    if not is_installed(engine):
        raise MFPyGError(
            f"engine {engine!r} is not installed: pip install 'mfpyg[{_EXTRAS[engine][1]}]', or use engine 'torch'"
        )
