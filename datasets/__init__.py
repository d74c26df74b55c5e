"""Data sets to train on, all PyTorch Geometric ``InMemoryDataset``s."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfpyg.datasets.ani import ANI1ccx, ANI1x, ANI2x
    from mfpyg.datasets.batches import BatchLoader
    from mfpyg.datasets.comp6 import COMP6
    from mfpyg.datasets.conformations import ConformationDataset
    from mfpyg.datasets.extxyz import ASEFile, ExtXYZ
    from mfpyg.datasets.minichno import MiniCHNO
    from mfpyg.datasets.padded import PaddedNPY, PaddedNPZ
    from mfpyg.datasets.pyanitools import Pyanitools
    from mfpyg.datasets.release import ReleaseDataset
    from mfpyg.datasets.union import UnionDataset

__all__ = [
    "COMP6",
    "ANI1ccx",
    "ANI1x",
    "ANI2x",
    "ASEFile",
    "BatchLoader",
    "ConformationDataset",
    "ExtXYZ",
    "MiniCHNO",
    "PaddedNPY",
    "PaddedNPZ",
    "Pyanitools",
    "ReleaseDataset",
    "UnionDataset",
]

_MODULES = {
    "ANI1ccx": "ani",
    "ANI1x": "ani",
    "ANI2x": "ani",
    "ASEFile": "extxyz",
    "BatchLoader": "batches",
    "COMP6": "comp6",
    "ConformationDataset": "conformations",
    "ExtXYZ": "extxyz",
    "MiniCHNO": "minichno",
    "PaddedNPY": "padded",
    "PaddedNPZ": "padded",
    "Pyanitools": "pyanitools",
    "ReleaseDataset": "release",
    "UnionDataset": "union",
}


def __getattr__(name: str) -> Any:
    # Imported lazily, so that commands can read levels of theory without importing torch.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
