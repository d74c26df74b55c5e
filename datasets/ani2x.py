"""The ANI-2x data set."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.cache import cached_root
from mfpyg.datasets.chunks import Chunk
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.consistency import negated_forces
from mfpyg.datasets.levels import ANI2X_LEVELS
from mfpyg.datasets.pyanitools import check_keys, chunks_of_file
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import LevelOfTheory

URL = "https://zenodo.org/records/10108942/files/ANI-2x-wB97X-631Gd.tar.gz"
"""Where the official archive is to be had (3.7 GB, doi:10.5281/zenodo.10108942)."""

RAW_NAME = "ANI-2x-wB97X-631Gd.h5"
"""The file in the archive, in its folder ``final_h5``."""


class ANI2x(ConformationDataset):
    """ANI-2x: 9,651,712 conformations of H, C, N, O, F, S, Cl; see :class:`mfpyg.datasets.ConformationDataset`.

    ======== ================= ======== ======== =========================================
    name     level of theory   energies forces   in the file
    ======== ================= ======== ======== =========================================
    dz       ωB97X/6-31G(d)    all      all      Hartree; ``forces`` are true, Hartree/Å
    ======== ================= ======== ======== =========================================

    The file has a group a number of atoms, with ``species`` (n, n_atoms), ``coordinates``, ``energies`` and
    ``forces``; a molecule is told by its formula. Files of the release with other levels of theory are read by
    :class:`mfpyg.datasets.Pyanitools`. Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020).

    Args:
        root: folder that holds the official file in ``raw/`` or ``raw/final_h5/``, or the file itself, which is then
            processed in the cache.
        fidelities, kwargs: as in :class:`mfpyg.datasets.ConformationDataset`.

    Raises:
        MFPyGError: if the file is missing, saying where to download it, or wrong; or if the energies contradict the
            sign of the forces.
    """

    levels = ANI2X_LEVELS

    def __init__(self, root: str | os.PathLike[str], fidelities: Sequence[str] | None = None, **kwargs: Any) -> None:
        path = Path(root)
        if path.is_file() or path.suffix.lower() in (".h5", ".hdf5"):
            super().__init__(cached_root("files", [path]), fidelities, files=[path], **kwargs)
            return
        places = [path / "raw" / RAW_NAME, path / "raw" / "final_h5" / RAW_NAME]
        found = next((place for place in places if place.is_file()), places[0])
        super().__init__(path, fidelities, files=[found], **kwargs)

    def find_levels(self, asked: Sequence[LevelOfTheory] | None) -> tuple[LevelOfTheory, ...]:
        levels = super().find_levels(asked)
        check_keys(self.files, levels)
        return levels

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        return chunks_of_file(self.files[0], levels, self._track)

    def check_content(self, data: Data, slices: Mapping[str, Tensor], levels: Sequence[LevelOfTheory]) -> None:
        """Check by finite differences that the file's ``forces`` are forces.

        Raises:
            MFPyGError: if the energies of near conformations say that they are gradients.
        """
        slope = negated_forces(data, slices["z"].numpy(), np.arange(len(data.source)))
        if slope is not None:
            raise MFPyGError(
                f"{self.files[0]}: the forces are gradients, not true forces as in the official file "
                f"(slope of dE against work {slope.value:.3f} over {slope.n_pairs} pairs); "
                f"read it as pyanitools:FILE:dz=energies,-forces@Hartree"
            )

    def download(self) -> None:
        """Says where to get the file; gigabytes are not downloaded unasked.

        Raises:
            MFPyGError: always.
        """
        folder = shlex.quote(str(self.files[0].parent))
        command = f"mkdir -p {folder} && curl -L {URL} | tar -xz -C {folder}"
        raise MFPyGError(f"{self.files[0]}: no such file; download it (3.7 GB): {command}")
