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
    chosen = None if set(fidelities) <= set(DEFAULT_LEVELS) else tuple(fidelities)
    dataset = _construct(spec, root, chosen, kwargs)
    if not set(fidelities) <= set(dataset.fidelities):
        # Raises, and says what the file has.
        dataset = _construct(spec, root, tuple(fidelities), kwargs)
    return dataset


def available_fidelities(spec: DatasetSpec) -> tuple[str, ...]:
    """Names of the levels whose keys the raw file has.

    Raises:
        MFPyGError: if the file is missing or wrong.
    """
    root, file = _places(spec)
    if file is None:
        file = bundled_file() if root is None else root / "raw" / ANI1x.raw_name
    return tuple(level.name for level in levels_in(file, spec.levels))


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
