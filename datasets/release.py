"""What all data sets in the ANI-1x release layout share: files, processing, storage, and their counts."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.data.collate import collate
from torch_geometric.data.separate import separate

from mfpyg.datasets.levels import DEFAULT_LEVELS, levels_named
from mfpyg.datasets.reader import Columns, Track, levels_in, missing_keys, read_release
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import LevelOfTheory
from mfpyg.files import make_folder, replace_file

FORMAT = 1
"""Version of the processed files; a change makes old ones be processed anew."""

KEEP_ITEMS_UP_TO = 100_000
"""Conformations of a data set whose items are kept as objects once they have been made."""


def cache_dir() -> Path:
    """Where data sets without a root of their own are processed: ``$MFPYG_CACHE``, else the user's cache."""
    given = os.environ.get("MFPYG_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mfpyg"


class ReleaseDataset(InMemoryDataset):
    """Conformations with labels of several levels of theory, from a file in the ANI-1x release layout.

    Each item is a ``Data`` with, T being the number of ``fidelities``:

    ================ ================= ===============================================================
    ``z``            (n,) int64        atomic numbers
    ``pos``          (n, 3) float32    positions in Å
    ``energy``       (1, T) float64    total energies in kcal/mol, NaN where missing
    ``energy_mask``  (1, T) bool       where there is one
    ``forces``       (n, T, 3) float32 true forces −dE/dx in kcal/mol/Å, NaN where missing
    ``forces_mask``  (1, T) bool       where there are some
    ``molecule``     (1,) int64        number in ``dataset.molecules``
    ``conformation`` (1,) int64        number within the group of the file
    ``split``        (1,) int64        0 pool, 1 test, 2 out of sample, -1 where the file does not say
    ================ ================= ===============================================================

    The name of a processed file carries a hash of the raw file's size and date, the fidelities, the
    subset and the ``pre_transform``, so that no change of any of them ever uses an old one. It is
    written under a temporary name and moved into place.

    Args:
        root: folder with ``raw/`` and ``processed/``.
        fidelities: names of levels in ``levels``; the usual four (dz, tz, mp2, cc), as far as the file
            has them, if not given.
        file: raw file, where it is not ``root/raw/`` and the official name.
        required: keep only conformations with an energy of each of these fidelities.
        transform, pre_transform, pre_filter, force_reload: as in PyTorch Geometric.
        track: wraps the list of the file's groups to show the progress of processing.

    Raises:
        MFPyGError: if the raw file is missing or wrong, or lacks a fidelity asked for.
    """

    levels: ClassVar[tuple[LevelOfTheory, ...]]
    raw_name: ClassVar[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        fidelities: Sequence[str] | None = None,
        *,
        file: str | os.PathLike[str] | None = None,
        required: Sequence[str] = (),
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
        force_reload: bool = False,
        track: Track = iter,
    ) -> None:
        self._file = Path(file) if file is not None else Path(root) / "raw" / self.raw_name
        self._track = track
        self._required = levels_named(tuple(required), self.levels, self._file.name)
        if not self._file.is_file():
            self.download()
        self._levels = self._choose_levels(fidelities)
        self._processed_name = self._name_of_processed(pre_transform, pre_filter)
        super().__init__(str(root), transform, pre_transform, pre_filter, log=False, force_reload=force_reload)
        stored = _read_processed(self.processed_paths[0])
        self.fidelities: tuple[str, ...] = tuple(stored["fidelities"])
        self.molecules: list[str] = stored["molecules"]
        self.fingerprint: str = stored["fingerprint"]
        self._data, self.slices = Data.from_dict(stored["data"]), stored["slices"]

    def _choose_levels(self, fidelities: Sequence[str] | None) -> tuple[LevelOfTheory, ...]:
        present = levels_in(self._file, self.levels)
        if fidelities is not None:
            by_name = {level.name: level for level in present}
            chosen = levels_named(tuple(fidelities), self.levels, self._file.name)
            for level in chosen:
                if level.name not in by_name:
                    missing = ", ".join(f"'{key}'" for key in missing_keys(self._file, level))
                    raise MFPyGError(
                        f"{self._file}: no level '{level.name}', its key {missing} is missing "
                        f"(levels in the file: {', '.join(p.name for p in present) or 'none'})"
                    )
            return tuple(by_name[level.name] for level in chosen)
        usual = tuple(level for level in present if level.name in DEFAULT_LEVELS)
        if not usual:
            keys = ", ".join(level.energy[0] for level in self.levels[:4])
            raise MFPyGError(f"{self._file}: none of the keys {keys} of the usual levels of theory")
        return usual

    def download(self) -> None:
        """Nothing is downloaded unasked; says where the raw file is to be had.

        Raises:
            MFPyGError: always.
        """
        raise MFPyGError(f"{self._file}: no such file; expected an HDF5 file in the ANI-1x release layout")

    @property
    def raw_paths(self) -> list[str]:
        return [str(self._file)]

    @property
    def raw_file_names(self) -> list[str]:
        return [self._file.name]

    @property
    def processed_file_names(self) -> list[str]:
        return [self._processed_name]

    def _name_of_processed(
        self, pre_transform: Callable[..., Any] | None, pre_filter: Callable[..., Any] | None
    ) -> str:
        raw = self._file.stat()
        settings = {
            "format": FORMAT,
            "raw": [self._file.name, raw.st_size, raw.st_mtime_ns],
            "levels": [[level.name, level.energy, level.forces] for level in self._levels],
            "required": [level.name for level in self._required],
            "pre_transform": _settings_of(pre_transform, "pre_transform"),
            "pre_filter": _settings_of(pre_filter, "pre_filter"),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self._file.stem}-{digest}.pt"

    def _process(self) -> None:
        # PyG's own compares the pre_transform with the last one used and warns; here the name of the
        # processed file carries it, so that several can stand side by side.
        if self.force_reload or not Path(self.processed_paths[0]).is_file():
            try:
                make_folder(Path(self.processed_dir))
            except MFPyGError as error:
                raise MFPyGError(f"{error}; give the data set another root, or set MFPYG_CACHE") from error
            self.process()

    def process(self) -> None:
        """Read the raw file and write the processed one."""
        columns = read_release(self._file, self._levels, self._required, self._track)
        data, slices = _collated(columns)
        if self.pre_filter is not None or self.pre_transform is not None:
            data, slices = self._transformed(data, slices)
        stored = {
            "fidelities": [level.name for level in self._levels],
            "molecules": columns.molecules,
            "fingerprint": _fingerprint(data, slices),
            "data": data.to_dict(),
            "slices": slices,
        }
        replace_file(Path(self.processed_paths[0]), lambda name: torch.save(stored, name))

    def _transformed(self, data: Data, slices: dict[str, Tensor]) -> tuple[Data, dict[str, Tensor]]:
        self._data, self.slices, self._data_list = data, slices, None
        items = [self.get(i) for i in range(len(slices["energy"]) - 1)]
        if self.pre_filter is not None:
            items = [item for item in items if self.pre_filter(item)]
            if not items:
                raise MFPyGError(f"{self._file}: pre_filter left no conformation")
        if self.pre_transform is not None:
            items = [self.pre_transform(item) for item in items]
        data, slices, _ = collate(Data, items, increment=False, add_batch=False)
        return data, slices

    def given_split(self) -> np.ndarray | None:
        """The file's own division, (n,) int64: 0 pool, 1 test, 2 out of sample; ``None`` where it has none."""
        split = self._data.split.numpy()
        return split if (split >= 0).all() else None

    def get(self, idx: int) -> Data:
        """One conformation; kept for the next time only where there are few, as each takes some kilobytes."""
        if len(self.slices["energy"]) <= KEEP_ITEMS_UP_TO:
            return super().get(idx)
        return separate(Data, batch=self._data, idx=idx, slice_dict=self.slices, decrement=False)

    def label_counts(self) -> list[dict[str, Any]]:
        """Name, method, and number of labelled conformations (and force components) of each fidelity."""
        energy = self._data.energy_mask.sum(dim=0).tolist()
        forces = self._data.forces_mask.sum(dim=0).tolist()
        components = 3 * (self.slices["z"].diff().unsqueeze(1) * self._data.forces_mask).sum(dim=0)
        return [
            {
                "name": level.name,
                "method": level.method,
                "energies": energy[t],
                "forces": forces[t],
                "force_components": int(components[t]),
            }
            for t, level in enumerate(self._levels)
        ]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)}, fidelities=[{', '.join(self.fidelities)}])"


def _read_processed(path: str) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise MFPyGError(f"{path}: damaged; remove it, and it is made again from the raw file") from error


def _settings_of(transform: Callable[..., Any] | None, role: str) -> str | None:
    if transform is None:
        return None
    text = repr(transform)
    if " at 0x" in text:
        raise MFPyGError(
            f"{role} {text} does not say its settings; give it a __repr__ that names them, "
            f"so that a change of them can't use an old processed file"
        )
    return text


def _fingerprint(data: Data, slices: dict[str, Tensor]) -> str:
    """SHA-256 over geometries, labels and split, which tells one content from another; not over edges."""
    digest = hashlib.sha256()
    for tensor in (slices["z"], data.z, data.pos, data.energy, data.forces, data.split):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _collated(columns: Columns) -> tuple[Data, dict[str, Tensor]]:
    """PyG's collated form: one ``Data`` of everything, and where each conformation starts and ends."""
    n = len(columns.n_atoms)
    by_row = torch.arange(n + 1)
    by_atom = torch.zeros(n + 1, dtype=torch.int64)
    by_atom[1:] = torch.from_numpy(columns.n_atoms).cumsum(0)
    atomic = ("z", "pos", "forces")
    data = Data()
    for name in ("z", "pos", "energy", "energy_mask", "forces", "forces_mask", "molecule", "conformation", "split"):
        data[name] = torch.from_numpy(getattr(columns, name))
    slices = {name: by_atom if name in atomic else by_row for name in data.keys()}  # noqa: SIM118
    return data, slices
