"""What can be trained on: one module a data set, all PyTorch Geometric ``InMemoryDataset``s."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfpyg.datasets.ani1x import ANI1x
    from mfpyg.datasets.minichno import MiniCHNO
    from mfpyg.datasets.release import ReleaseDataset

__all__ = ["ANI1x", "MiniCHNO", "ReleaseDataset"]

_MODULES = {"ANI1x": "ani1x", "MiniCHNO": "minichno", "ReleaseDataset": "release"}


def __getattr__(name: str) -> Any:
    # The levels of each data set are plain data that commands read before torch is imported.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
