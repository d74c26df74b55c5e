"""From what ``--dataset`` says to the data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfpyg import quick_pyg  # noqa: F401 - first
from mfpyg.cache import cache_dir, cached_root
from mfpyg.datasets.ani1x import ANI1ccx, ANI1x
from mfpyg.datasets.ani2x import ANI2x
from mfpyg.datasets.comp6 import COMP6
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.extxyz import ASEFile, ExtXYZ
from mfpyg.datasets.levels import DEFAULT_LEVELS
from mfpyg.datasets.minichno import MiniCHNO, bundled_file
from mfpyg.datasets.numpy_files import PaddedNPY, PaddedNPZ
from mfpyg.datasets.pyanitools import Pyanitools
from mfpyg.datasets.release import levels_in
from mfpyg.datasets.spec import DatasetSpec
from mfpyg.datasets.union import UnionDataset
from mfpyg.errors import MFPyGError

RELEASES = {"minichno": MiniCHNO, "ani1x": ANI1x, "ani1ccx": ANI1ccx}
NAMED = {"ani2x": ANI2x, "comp6": COMP6}
FORMATS = {"xyz": ExtXYZ, "ase": ASEFile, "npz": PaddedNPZ, "npy": PaddedNPY, "pyanitools": Pyanitools}


def open_dataset(
    spec: DatasetSpec | Sequence[DatasetSpec], fidelities: Sequence[str] = (), **kwargs: Any
) -> ConformationDataset:
    """The data set that a specification names, or the union of several, with at least these fidelities.

    The usual levels, as far as the file has them, where they are enough; so that trainings on
    different ones share one processed file.

    Args:
        spec: what and where; several become one data set.
        fidelities: names of levels that must be there.
        kwargs: as in :class:`ConformationDataset`.

    Raises:
        MFPyGError: if a file is missing or wrong, or has not all of these fidelities.
    """
    if isinstance(spec, DatasetSpec):
        return _open(spec, fidelities, kwargs)
    if len(spec) == 1:
        return _open(spec[0], fidelities, kwargs)
    for_members: dict[str, Any] = {name: kwargs[name] for name in ("track", "force_reload") if name in kwargs}
    members = []
    for member in spec:
        wanted = [name for name in available_fidelities(member) if name in fidelities]
        if fidelities and not wanted:
            raise MFPyGError(
                f"{member} has none of the fidelities {', '.join(fidelities)} "
                f"(it has {', '.join(available_fidelities(member))}); leave it out"
            )
        members.append(_open(member, wanted, for_members))
    having = {name for member in members for name in member.fidelities}
    for name in fidelities:
        if name not in having:
            raise MFPyGError(f"none of {', '.join(map(str, spec))} has the fidelity '{name}'")
    root = cached_root("unions", [file for member in members for file in member.files])
    return UnionDataset(root, members, **kwargs)


def available_fidelities(spec: DatasetSpec) -> tuple[str, ...]:
    """Names of the levels whose keys the raw file has.

    Raises:
        MFPyGError: if the file is missing or wrong.
    """
    if spec.name not in RELEASES:
        return tuple(level.name for level in spec.levels)
    raw = _raw_file(spec)
    if not raw.is_file():
        _construct(spec, None, {})  # raises, and says where to get it
    return tuple(level.name for level in levels_in(raw, spec.levels))


def _open(spec: DatasetSpec, fidelities: Sequence[str], kwargs: dict[str, Any]) -> ConformationDataset:
    if spec.name not in RELEASES:
        return _construct(spec, None, kwargs)
    if set(fidelities) <= set(DEFAULT_LEVELS):
        usual = _construct(spec, None, {**kwargs, "whole_only": True})
        if set(fidelities) <= set(usual.fidelities):
            return usual
    return _construct(spec, tuple(fidelities), kwargs)


def _construct(spec: DatasetSpec, fidelities: tuple[str, ...] | None, kwargs: dict[str, Any]) -> ConformationDataset:
    if spec.name in RELEASES:
        root = cache_dir() / "minichno" if spec.path is None else _root(spec.path)
        return RELEASES[spec.name](root, fidelities, file=_raw_file(spec), **kwargs)
    assert spec.path is not None
    if spec.name in NAMED:
        return NAMED[spec.name](spec.path, fidelities, **kwargs)
    return FORMATS[spec.name](spec.path, spec.defined, fidelities, **kwargs)


def _raw_file(spec: DatasetSpec) -> Path:
    if spec.path is None:
        return bundled_file()
    return spec.path if spec.path.is_file() else spec.path / "raw" / RELEASES[spec.name].raw_name


def _root(path: Path) -> Path:
    return cached_root("files", [path]) if path.is_file() else path
