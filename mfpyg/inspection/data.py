"""Contents of a processed data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.datasets.chunks import Track
from mfpyg.datasets.spec import DatasetSpec, open_dataset
from mfpyg.datasets.storage import FORMAT, label_counts, level_from, read_processed
from mfpyg.properties import PROPERTIES

_SPLITS = {"pool": 0, "test": 1, "ood": 2, "not said": -1}


def describe_dataset(specs: Sequence[DatasetSpec], track: Track = iter) -> dict[str, Any]:
    """Contents of a data set given to ``--dataset``, processed if necessary; see :func:`mfpyg.inspection.inspect`.

    Raises:
        MFPyGError: if a raw file is missing or invalid.
    """
    return describe_processed(Path(open_dataset(specs, track=track).processed_paths[0]))


def describe_processed(path: Path) -> dict[str, Any]:
    """Contents of a processed file.

    Raises:
        MFPyGError: if it is damaged, or of another format.
    """
    stored = read_processed(path)
    data, slices = Data.from_dict(stored["data"]), stored["slices"]
    counts = label_counts(data, slices, [level_from(values) for values in stored["levels"]])
    return {
        "kind": "dataset",
        "path": str(path),
        "format": FORMAT,
        "bytes": path.stat().st_size,
        "fingerprint": stored["fingerprint"],
        "sources": stored["sources"],
        "conformations": len(slices["energy"]) - 1,
        "molecules": len(stored["molecules"]),
        "atoms": len(data.z),
        "elements": [chemical_symbols[number] for number in torch.bincount(data.z).nonzero().flatten().tolist()],
        "splits": {name: int((data.split == number).sum()) for name, number in _SPLITS.items()},
        "fidelities": {
            row.pop("name"): {**row, **_incomplete(stored["incomplete"], level["name"])}
            for row, level in zip(counts, stored["levels"], strict=True)
        },
        "periodic": int(data.pbc.any(dim=1).sum()) if "pbc" in slices else 0,
        "charged": int((data.charge != 0).sum()) if "charge" in slices else 0,
        "edges": _edges(data, slices),
    }


def _incomplete(counts: Mapping[str, Mapping[str, int]], name: str) -> dict[str, int]:
    """Numbers of conformations that lack components of a property, by the property."""
    several = [PROPERTIES[letter] for letter in counts if PROPERTIES[letter].shape]
    return {f"incomplete_{p.name}": counts[p.letter].get(name, 0) for p in several}


def _edges(data: Data, slices: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Cutoff and number of stored edges; ``None`` if there are none."""
    if "edge_cutoff" not in slices:
        return None
    return {"cutoff": float(data.edge_cutoff[0]), "number": data.edge_index.shape[1]}
