"""Multi-fidelity learning for interatomic potentials, in PyTorch Geometric.

``mfpyg.load`` and ``mfpyg.save`` import torch on first use, so that commands can check their options quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity

if TYPE_CHECKING:
    from mfpyg.checkpoint import load, save

__all__ = ["Fidelity", "MFPyGError", "load", "save"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("load", "save"):
        from mfpyg import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module 'mfpyg' has no attribute '{name}'")
