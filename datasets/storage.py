"""Processed storage: columns written chunk by chunk to disk, and opened again without reading them."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.datasets.stored_checks import check_about, check_columns
from mfpyg.errors import MFPyGError, UnreadableError
from mfpyg.files import check_archive, raise_if_unreadable, save_torch

FORMAT = 3
"""Version of the processed files; a change makes old ones be processed anew."""

CHECKED = 1 << 26
"""Bytes of a processed file up to which it is checked whole whenever it is opened."""

ABOUT = {"levels", "molecules", "sources", "source_levels", "fingerprint", "incomplete_forces"}
"""What a processed file says of itself, besides its format."""


_NO_DATA = (
    *(RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError),
    *(AssertionError, pickle.UnpicklingError),
)
"""What torch and the checks raise for files that hold something else."""


class ColumnFiles:
    """Columns that grow row by row, each in a file without a name: nothing of it survives the process.

    Args:
        folder: on the file system where the space is.

    Raises:
        MFPyGError: from :meth:`append`, if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._rows: dict[str, int] = {}
        self._kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def __enter__(self) -> ColumnFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows (n, …) to a column; their type and width are those of the first ones."""
        rows = np.ascontiguousarray(rows)
        kind = (rows.dtype, rows.shape[1:])
        if self._kinds.setdefault(name, kind) != kind:
            raise TypeError(f"column {name} is {self._kinds[name]}, rows are {kind}")
        try:
            if name not in self._files:
                self._files[name] = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
                self._rows[name] = 0
            rows.tofile(self._files[name])
        except OSError as error:
            raise MFPyGError(f"{self.folder}: can't write there ({error.strerror or error})") from error
        self._rows[name] += len(rows)

    def column(self, name: str) -> Tensor:
        """A column as it stands, backed by its file."""
        dtype, shape = self._kinds[name]
        shape = (self._rows[name], *shape)
        if 0 in shape:
            return torch.from_numpy(np.empty(shape, dtype))
        self._files[name].flush()
        return torch.from_numpy(np.memmap(self._files[name], dtype, mode="c", shape=shape))


def fingerprint(data: Data, slices: Mapping[str, Tensor]) -> str:
    """SHA-256 over geometries, labels and split, which tells one content from another; not over edges.

    Lattice vectors count only where something is periodic, so that molecules have the same with and without.
    """
    lattice = (data.cell, data.pbc) if "pbc" in slices and data.pbc.any() else ()
    return _sha256(slices["z"], data.z, data.pos, data.energy, data.forces, data.split, *lattice)


def geometries_fingerprint(data: Data, slices: Mapping[str, Tensor]) -> str:
    """SHA-256 over the geometries alone, which are the same whatever levels of theory are read of a file."""
    lattice = (data.cell, data.pbc) if "pbc" in slices and data.pbc.any() else ()
    return _sha256(slices["z"], data.z, data.pos, *lattice)


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def processed_name(stem: str, settings: Mapping[str, Any]) -> str:
    """Name of a processed file, with a hash of everything that it depends on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return f"{stem}-{digest}.pt"


def settings_of(transform: Callable[..., Any] | None, role: str) -> str | None:
    """What a ``pre_transform`` or ``pre_filter`` says of itself.

    Raises:
        MFPyGError: if that is only where it is in memory.
    """
    if transform is None:
        return None
    text = repr(transform)
    if " at 0x" in text:
        raise MFPyGError(
            f"{role} {text} does not say its settings; give it a __repr__ that names them, "
            f"so that a change of them can't use an old processed file"
        )
    return text


def starts(counts: Tensor) -> Tensor:
    """Where each conformation's rows start, and where the last one's end: (n,) -> (n + 1,) int64."""
    result = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=result[1:])
    return result


def write_processed(path: Path, data: Data, slices: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a data set in one step.

    Args:
        path: of the processed file.
        data, slices: PyG's collated form.
        about: everything else, as plain values.

    Raises:
        MFPyGError: if the place can't be written to, or the disk is full.
    """
    stored = {**about, "format": FORMAT, "data": data.to_dict(), "slices": dict(slices)}
    save_torch(path, stored)


def read_processed(path: Path) -> dict[str, Any]:
    """What :func:`write_processed` has written; tensors are mapped from the file.

    Every byte of files up to :data:`CHECKED` is checked; larger ones are not read.

    Raises:
        MFPyGError: if the file is damaged, or can't be read.
    """
    try:
        small = path.stat().st_size <= CHECKED
        if small:
            check_archive(path, "a processed data set")
            torch.load(path, weights_only=True)  # looks at the size of each array, as mapping does not
        stored = torch.load(path, weights_only=True, mmap=True)
        if stored["format"] != FORMAT or not stored.keys() >= ABOUT:
            raise KeyError("format")
        check_about(stored)
        check_columns(stored["data"], stored["slices"], len(stored["levels"]), len(stored["molecules"]))
        if small and stored["fingerprint"] != fingerprint(Data.from_dict(stored["data"]), stored["slices"]):
            raise ValueError("fingerprint")
    except UnreadableError:
        raise
    except _NO_DATA as error:
        raise_if_unreadable(path, error)
        raise MFPyGError(f"{path}: damaged; remove it, and it is made again from the raw file") from error
    return stored
