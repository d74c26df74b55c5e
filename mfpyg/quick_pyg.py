"""Imports PyTorch Geometric without torch's compiler; to be imported before anything else that needs it.

``import torch_geometric`` imports ``torch._dynamo``, which takes three times as long as all the rest of it, for a
class that it compares types with later on. torch itself imports that package when it is first asked for it. So a
placeholder stands in its place meanwhile; afterwards all is as after ``import torch``. Whoever asks the placeholder for
a name gets the real one.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import torch  # noqa: F401 - all of it, before there is a placeholder

_COMPILER = "torch._dynamo"


class _Placeholder(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked of every module by those who look through them all
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(_COMPILER), name)

    def leave(self) -> None:
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]


_placeholder = _Placeholder(_COMPILER)
sys.modules.setdefault(_COMPILER, _placeholder)
try:
    import torch_geometric  # noqa: F401
finally:
    _placeholder.leave()
