"""Processed files of data sets, written atomically and memory-mapped when opened."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.cache import cache_dir
from mfpyg.errors import MFPyGError, UnreadableError
from mfpyg.fidelity import LabelKeys, LevelOfTheory
from mfpyg.files import check_archive, make_folder, raise_if_unreadable, save_torch
from mfpyg.properties import PROPERTIES

FORMAT = 5
"""Version of the processed files; data in files of another version are processed again."""

CHECKED = 1 << 26
"""Size in bytes up to which a processed file is checked completely whenever it is opened."""

ABOUT = {"levels", "molecules", "sources", "source_levels", "fingerprint", "incomplete"}
"""Keys of a processed file besides its format, data and slices."""


_NO_DATA = (
    *(RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError),
    *(AssertionError, pickle.UnpicklingError),
)
"""Exceptions that torch and the checks raise for files with other content."""


def fingerprint(data: Data, slices: Mapping[str, Tensor]) -> str:
    """SHA-256 of geometries, labels and split; not of edges.

    Lattice vectors are included only if a conformation is periodic, so that molecules have the same fingerprint with
    and without them; total charges only if one is not 0.
    """
    charge = (data.charge,) if "charge" in slices and data.charge.any() else ()
    lattice = (data.cell, data.pbc) if "pbc" in slices and data.pbc.any() else ()
    labels = [data[p.name] for p in PROPERTIES.values() if p.mask in slices]
    masks = [data[p.mask] for p in PROPERTIES.values() if p.mask in slices and p.per == "pair"]
    return _sha256(slices["z"], data.z, data.pos, *labels, *masks, data.split, *lattice, *charge)


def geometries_fingerprint(data: Data, slices: Mapping[str, Tensor]) -> str:
    """SHA-256 of the geometries alone, the same whatever levels of theory are read."""
    lattice = (data.cell, data.pbc) if "pbc" in slices and data.pbc.any() else ()
    return _sha256(slices["z"], data.z, data.pos, *lattice)


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def processed_name(stem: str, settings: Mapping[str, Any]) -> str:
    """Name of a processed file, with a hash of all settings that it depends on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return f"{stem}-{digest}.pt"


def settings_of(transform: Callable[..., Any] | None, role: str) -> str | None:
    """Representation of a ``pre_transform`` or ``pre_filter``, which is part of the processed file's name.

    Raises:
        MFPyGError: if it contains only the address in memory.
    """
    if transform is None:
        return None
    text = repr(transform)
    if " at 0x" in text:
        raise MFPyGError(
            f"the repr of {role} {text} does not show its settings; give it a __repr__ that does, so that a change "
            "of settings is noticed"
        )
    return text


def make_processed_folder(path: Path) -> None:
    """Make the folder of processed files.

    Raises:
        MFPyGError: if that is not possible, with an alternative.
    """
    try:
        make_folder(path)
    except MFPyGError as error:
        place = (
            "set MFPYG_CACHE" if cache_dir() in path.parents else "give the data set another root, or name its raw file"
        )
        raise MFPyGError(f"{error}; {place}") from error


def write_processed(path: Path, data: Data, slices: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a data set atomically.

    Args:
        path: processed file.
        data, slices: PyG's collated form.
        about: all other entries, as plain values.

    Raises:
        MFPyGError: if the file cannot be written, or the disk is full.
    """
    stored = {**about, "format": FORMAT, "data": data.to_dict(), "slices": dict(slices)}
    save_torch(path, stored)


def read_processed(path: Path) -> dict[str, Any]:
    """Open a file of :func:`write_processed` with memory-mapped tensors.

    Files of up to :data:`CHECKED` bytes are checked completely; larger ones are not read.

    Raises:
        MFPyGError: if the file is damaged, or cannot be read.
    """
    try:
        small = path.stat().st_size <= CHECKED
        if small:
            check_archive(path, "a processed data set")
            torch.load(path, weights_only=True)  # checks the size of each array, which mapping does not
        stored = torch.load(path, weights_only=True, mmap=True)
        if stored["format"] != FORMAT or not stored.keys() >= ABOUT:
            raise KeyError("format")
        if not stored["fingerprint"].isalnum():  # part of file names
            raise ValueError("fingerprint")
        for level in [*stored["levels"], *(level for levels in stored["source_levels"] for level in levels)]:
            level_from(level)
        _check_columns(stored["data"], stored["slices"])
        if small and stored["fingerprint"] != fingerprint(Data.from_dict(stored["data"]), stored["slices"]):
            raise ValueError("fingerprint")
    except UnreadableError:
        raise
    except _NO_DATA as error:
        raise_if_unreadable(path, error)
        raise MFPyGError(f"{path}: damaged; remove it to process the raw file again") from error
    return stored


def _check_columns(data: Mapping[str, Any], slices: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` where slices do not fit their columns."""
    if data.keys() != slices.keys():
        raise ValueError("columns")
    for name, value in data.items():
        rows = value.shape[Data().__cat_dim__(name, value)] if isinstance(value, Tensor) else len(value)
        if slices[name].shape != slices["energy"].shape or int(slices[name][-1]) != rows:
            raise ValueError(name)


def label_counts(data: Data, slices: Mapping[str, Tensor], levels: Sequence[LevelOfTheory]) -> list[dict[str, Any]]:
    """Name, method, and numbers of labelled conformations and of components of each property, for each level."""
    n_atoms = slices["z"].diff().unsqueeze(1)  # (n, 1)
    rows: list[dict[str, Any]] = [{"name": level.name, "method": level.method} for level in levels]
    for property in PROPERTIES.values():
        if property.mask not in slices:
            continue
        mask = data[property.mask]  # (n, T)
        for row, count in zip(rows, mask.sum(dim=0).tolist(), strict=True):
            row[property.plural] = count
        if property.per != "graph":
            each = 3 ** len(property.shape) * n_atoms ** (2 if property.per == "pair" else 1)
            for row, count in zip(rows, (each * mask).sum(dim=0).tolist(), strict=True):
                row[f"{property.singular}_components"] = count
    return rows


def count_columns(counts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Headers of the columns of :func:`label_counts`, by their keys."""
    columns: dict[str, str] = {}
    for property in PROPERTIES.values():
        if any(property.plural in row for row in counts):
            of_graphs = property.per == "graph"
            columns[property.plural] = property.plural if of_graphs else f"conformations with {property.plural}"
            if not of_graphs:
                columns[f"{property.singular}_components"] = f"{property.singular} components"
    return columns


def level_from(values: dict[str, Any]) -> LevelOfTheory:
    """Level of theory from its plain values in a processed file."""
    labels = {key: LabelKeys(**{**label, "keys": tuple(label["keys"])}) for key, label in values["labels"].items()}
    return LevelOfTheory(**{**values, "labels": labels, "optional": tuple(values["optional"])})
