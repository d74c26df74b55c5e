"""What the contents of a processed file must be before a data set is made of them."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.fidelity import LevelOfTheory, is_name

ATOMIC = ("z", "pos", "forces")
"""Columns with a row an atom."""


def check_about(stored: Mapping[str, Any]) -> None:
    """Check the kinds of what a processed file says of itself.

    Raises:
        ValueError: naming the first that is wrong.
    """
    for name in ("molecules", "sources"):
        if not isinstance(stored[name], list) or not all(isinstance(one, str) for one in stored[name]):
            raise ValueError(name)
    if not isinstance(stored["fingerprint"], str) or not stored["fingerprint"].isalnum():  # part of names of files
        raise ValueError("fingerprint")
    counts = stored["incomplete_forces"]
    if not isinstance(counts, dict) or not all(isinstance(n, int) for n in counts.values()):
        raise ValueError("incomplete_forces")
    if not isinstance(stored["levels"], list) or not isinstance(stored["source_levels"], list):
        raise ValueError("levels")
    for level in [*stored["levels"], *(level for levels in stored["source_levels"] for level in levels)]:
        _check_level(level)


def _check_level(level: Any) -> None:
    kinds = typing.get_type_hints(LevelOfTheory)
    if not isinstance(level, dict) or level.keys() != kinds.keys() or not is_name(level["name"]):
        raise ValueError("levels")
    for name, value in level.items():
        if typing.get_origin(kinds[name]) is tuple:
            fits = isinstance(value, list | tuple) and all(isinstance(key, str) for key in value)
        else:
            fits = isinstance(value, kinds[name])
        if not fits:
            raise ValueError(f"levels: {name}")


def check_columns(data: Mapping[str, Any], slices: Mapping[str, Tensor], n_levels: int, n_molecules: int) -> None:
    """Check that the slices fit the columns, which a wrong one would mix up, and columns their meaning.

    Raises:
        ValueError: naming the first that does not.
    """
    if data.keys() != slices.keys():
        raise ValueError("columns")
    for ends in {id(ends): ends for ends in slices.values()}.values():  # those of one kind are one tensor
        if ends.dtype != torch.int64 or ends.shape != slices["energy"].shape or ends[0] != 0 or (ends.diff() < 0).any():
            raise ValueError("slices")
    for name, value in data.items():
        rows = value.shape[Data().__cat_dim__(name, value)] if isinstance(value, Tensor) else len(value)
        if int(slices[name][-1]) != rows:
            raise ValueError(name)
    if any(not torch.equal(slices[name], slices["z"]) for name in ATOMIC):
        raise ValueError("slices")
    n_atoms, n = len(data["z"]), len(slices["energy"]) - 1
    expected = {
        "z": (torch.int64, (n_atoms,)),
        "pos": (torch.float32, (n_atoms, 3)),
        "forces": (torch.float32, (n_atoms, n_levels, 3)),
        "energy": (torch.float64, (n, n_levels)),
        **dict.fromkeys(("energy_mask", "forces_mask"), (torch.bool, (n, n_levels))),
        **dict.fromkeys(("molecule", "split"), (torch.int64, (n,))),
    }
    for name, (dtype, shape) in expected.items():
        if data[name].dtype != dtype or data[name].shape != shape:
            raise ValueError(name)
    if n and not (data["molecule"].min() >= 0 and data["molecule"].max() < n_molecules):
        raise ValueError("molecule")
