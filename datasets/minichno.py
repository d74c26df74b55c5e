"""The data set bundled with the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfpyg.cache import cache_dir
from mfpyg.datasets.levels import BUNDLED, MINICHNO_LEVELS
from mfpyg.datasets.release import ReleaseDataset


class MiniCHNO(ReleaseDataset):
    """788 conformations of 21 small C, H, N, O molecules at several levels of theory.

    ===== ==================== ================================= ==================
    name  level of theory      energies                          forces
    ===== ==================== ================================= ==================
    dz    ωB97X/6-31G(d)       all                               all
    tz    ωB97X/def2-TZVPP     a quarter of the pool             as the energies
    mp2   MP2/cc-pVTZ          all                               none
    cc    CCSD(T)/cc-pVDZ      all                               80, none in the pool
    ===== ==================== ================================= ==================

    and ``mp2_dz``, ``hf_dz``, ``hf_tz`` (energies). The file defines a pool for training and
    validation (671 conformations, up to two heavy atoms besides ring and CO2), an in-sample test (72) and larger
    molecules out of sample (45). ``minichno.md`` beside it describes how it was made. CC0.

    Args:
        root: folder for ``processed/``; in the user's cache if not given.
        fidelities: as in :class:`mfpyg.datasets.ConformationDataset`.
        file: another raw file with the same levels.
        kwargs: as in :class:`mfpyg.datasets.ConformationDataset`.

    Example:
        >>> MiniCHNO()                                               # doctest: +SKIP
        MiniCHNO(788, fidelities=[dz, tz, mp2, cc])
    """

    levels = MINICHNO_LEVELS
    raw_name = "minichno.h5"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        fidelities: Sequence[str] | None = None,
        *,
        file: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if root is None:
            root = cache_dir() / "minichno"
        super().__init__(root, fidelities, files=[bundled_file() if file is None else Path(file)], **kwargs)


def bundled_file() -> Path:
    """Raw file that ships with the package."""
    return BUNDLED
