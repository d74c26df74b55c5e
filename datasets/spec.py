"""From what ``--dataset`` says to the data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfpyg.datasets.ani1x import ANI1x
from mfpyg.datasets.levels import DEFAULT_LEVELS, DatasetSpec
from mfpyg.datasets.minichno import MiniCHNO, bundled_file
from mfpyg.datasets.reader import levels_in
from mfpyg.datasets.release import ReleaseDataset, cache_dir


def open_dataset(spec: DatasetSpec, fidelities: Sequence[str] = (), **kwargs: Any) -> ReleaseDataset:
    """The data set that a specification names, with at least these fidelities.

    The usual four levels (dz, tz, mp2, cc), as far as the file has them, where they are enough; so that
    trainings on different ones share one processed file.

    Args:
        spec: name, and path of a raw file or of a root folder.
        fidelities: names of levels that must be there.
        kwargs: as in :class:`ReleaseDataset`.

    Raises:
        MFPyGError: if the file is missing or wrong, or has not all of these fidelities.
    """
    root, file = _places(spec)
    if file is not None:
        kwargs["file"] = file
    raw = _raw_file(spec)
    if not raw.is_file():
        return _construct(spec, root, None, kwargs)  # raises, and says where to get it
    whole = {level.name for level in levels_in(raw, spec.levels, in_every_group=True)}
    usual = tuple(name for name in DEFAULT_LEVELS if name in whole or name in fidelities)
    chosen = usual if set(fidelities) <= set(usual) else tuple(fidelities)
    return _construct(spec, root, chosen or None, kwargs)


def available_fidelities(spec: DatasetSpec) -> tuple[str, ...]:
    """Names of the levels whose keys the raw file has.

    Raises:
        MFPyGError: if the file is missing or wrong.
    """
    if not _raw_file(spec).is_file():
        open_dataset(spec)  # raises, and says where to get it
    return tuple(level.name for level in levels_in(_raw_file(spec), spec.levels))


def _raw_file(spec: DatasetSpec) -> Path:
    root, file = _places(spec)
    if file is not None:
        return file
    return bundled_file() if root is None else root / "raw" / ANI1x.raw_name


def _construct(
    spec: DatasetSpec, root: Path | None, fidelities: tuple[str, ...] | None, kwargs: dict[str, Any]
) -> ReleaseDataset:
    if spec.name == "minichno":
        return MiniCHNO(root, fidelities, **kwargs)
    assert root is not None
    return ANI1x(root, fidelities, subset="ani1ccx" if spec.name == "ani1ccx" else None, **kwargs)


def _places(spec: DatasetSpec) -> tuple[Path | None, Path | None]:
    """Root folder and raw file; ``None`` for the data set's own."""
    if spec.path is None:
        return None, None
    if spec.path.is_file():
        digest = hashlib.sha256(str(spec.path.resolve()).encode()).hexdigest()[:12]
        return cache_dir() / "files" / digest, spec.path
    if spec.name == "minichno":
        return spec.path, spec.path / "raw" / MiniCHNO.raw_name
    return spec.path, None
