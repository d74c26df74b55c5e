"""Base class of data sets of one raw file with user-defined levels of theory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mfpyg.cache import cached_root
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.levels import as_levels
from mfpyg.fidelity import LevelOfTheory


class FileDataset(ConformationDataset):
    """One raw file with user-defined levels of theory.

    Args:
        file: raw file.
        levels: levels of theory, as :class:`mfpyg.fidelity.LevelOfTheory` or as text such as
            ``dz=dft_energy,dft_forces@eV``, see :meth:`mfpyg.datasets.spec.DatasetSpec.parse`.
        fidelities: names among the levels; all if not given.
        root: folder for ``processed/``; in the cache if not given.
        kwargs: as in :class:`mfpyg.datasets.ConformationDataset`.

    Raises:
        MFPyGError: if the levels are malformed, or the file is invalid.
    """

    reads_all: ClassVar[bool] = True

    def __init__(
        self,
        file: str | os.PathLike[str],
        levels: Sequence[LevelOfTheory | str],
        fidelities: Sequence[str] | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        path = Path(file)
        self.levels = as_levels(levels)
        super().__init__(root or cached_root("files", [path]), fidelities, files=self.find_files(path), **kwargs)

    def find_files(self, path: Path) -> list[Path]:
        """Raw files to read for ``path``."""
        return [path]
