"""Source files that PyG generates."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path

from torch import nn
from torch_geometric.nn import MessagePassing


def remove_generated_files(network: nn.Module) -> None:
    """Remove the files that PyG has written for the layers of a network.

    The first layer of each class writes its ``propagate`` into the temporary folder, imports it from there, and leaves
    the file. Its lines are kept for tracebacks and compilers.
    """
    for kind in {type(layer) for layer in network.modules() if isinstance(layer, MessagePassing)}:
        for function in ("propagate", "edge_updater"):
            module = sys.modules.get(f"{kind.__module__}_{kind.__name__}_{function}")
            file = Path(getattr(module, "__file__", None) or "")
            if file.is_file():
                source = file.read_text(encoding="utf-8")
                linecache.cache[str(file)] = len(source), None, source.splitlines(keepends=True), str(file)
                file.unlink()
