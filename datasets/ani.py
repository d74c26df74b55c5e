"""The data sets ANI-1x, ANI-1ccx and ANI-2x."""

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
from mfpyg.datasets.levels import ANI1X_LEVELS, ANI2X_LEVELS
from mfpyg.datasets.pyanitools import check_keys, chunks_of_file
from mfpyg.datasets.release import ReleaseDataset
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import LevelOfTheory

ANI1X_URL = "https://springernature.figshare.com/ndownloader/files/18112775"
"""Official file (5.2 GB, doi:10.6084/m9.figshare.c.4712477)."""

ANI2X_URL = "https://zenodo.org/records/10108942/files/ANI-2x-wB97X-631Gd.tar.gz"
"""Official archive (3.7 GB, doi:10.5281/zenodo.10108942)."""

ANI2X_RAW_NAME = "ANI-2x-wB97X-631Gd.h5"
"""Name of the file in the archive's folder ``final_h5``."""


class ANI1x(ReleaseDataset):
    """ANI-1x: 4,956,005 conformations of 3,114 formulas of C, H, N, O; ANI-1ccx is its coupled-cluster subset.

    ======== ====================== ======== ========
    name     level of theory        energies forces
    ======== ====================== ======== ========
    dz       ωB97X/6-31G(d)         all      all
    tz       ωB97X/def2-TZVPP       many     many
    mp2      MP2/cc-pVTZ            500 k    none
    cc       CCSD(T)*/CBS           500 k    none
    ======== ====================== ======== ========

    and ``hf_dz``, ``hf_tz``, ``hf_qz``, ``mp2_dz``, ``mp2_qz``, ``npno_dz``, ``npno_tz``, ``tpno_dz``
    (energies). Smith et al., Sci. Data 7, 134 (2020).

    Args:
        root: folder that holds the official file as ``raw/ani1x-release.h5``.
        fidelities: as in :class:`mfpyg.datasets.ConformationDataset`.
        subset: ``"ani1ccx"`` keeps only the conformations with a ``cc`` energy.
        file: raw file, if it is not in ``root``.
        kwargs: as in :class:`mfpyg.datasets.ConformationDataset`.

    Raises:
        MFPyGError: if the file is missing, saying where to download it.
    """

    levels = ANI1X_LEVELS
    raw_name = "ani1x-release.h5"

    def __init__(
        self,
        root: str | os.PathLike[str],
        fidelities: Sequence[str] | None = None,
        *,
        subset: str | None = None,
        file: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if subset not in (None, "ani1ccx"):
            raise unknown_name("subset of ANI-1x", str(subset), ["ani1ccx"])
        raw = Path(file) if file is not None else Path(root) / "raw" / self.raw_name
        super().__init__(root, fidelities, files=[raw], required=("cc",) if subset else (), **kwargs)

    def download(self) -> None:
        """Raise with the command that downloads the file.

        Raises:
            MFPyGError: always.
        """
        command = f"curl -L --create-dirs -o {shlex.quote(str(self.files[0]))} {ANI1X_URL}"
        raise MFPyGError(f"{self.files[0]}: no such file; download it (5.2 GB): {command}")


class ANI1ccx(ANI1x):
    """ANI-1ccx: the roughly 500,000 conformations of ANI-1x with a ``cc`` energy; same file and levels.

    Args:
        root, fidelities, kwargs: as in :class:`ANI1x`.

    Raises:
        MFPyGError: if the file is missing, saying where to download it.
    """

    def __init__(self, root: str | os.PathLike[str], fidelities: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, fidelities, subset="ani1ccx", **kwargs)


class ANI2x(ConformationDataset):
    """ANI-2x: 9,651,712 conformations of H, C, N, O, F, S, Cl; see :class:`mfpyg.datasets.ConformationDataset`.

    ======== ================= ======== ======== =========================================
    name     level of theory   energies forces   in the file
    ======== ================= ======== ======== =========================================
    dz       ωB97X/6-31G(d)    all      all      Hartree; ``forces`` are true, Hartree/Å
    ======== ================= ======== ======== =========================================

    The file has one group per number of atoms, with ``species`` (n, n_atoms), ``coordinates``, ``energies`` and
    ``forces``; a molecule's name is its formula. The release's files at other levels of theory are read by
    :class:`mfpyg.datasets.Pyanitools`. Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020).

    Args:
        root: folder that holds the official file in ``raw/`` or ``raw/final_h5/``, or the file itself, which is then
            processed in the cache.
        fidelities, kwargs: as in :class:`mfpyg.datasets.ConformationDataset`.

    Raises:
        MFPyGError: if the file is missing, saying where to download it, or invalid, or if its forces have the wrong
            sign.
    """

    levels = ANI2X_LEVELS

    def __init__(self, root: str | os.PathLike[str], fidelities: Sequence[str] | None = None, **kwargs: Any) -> None:
        path = Path(root)
        if path.is_file() or path.suffix.lower() in (".h5", ".hdf5"):
            super().__init__(cached_root("files", [path]), fidelities, files=[path], **kwargs)
            return
        places = [path / "raw" / ANI2X_RAW_NAME, path / "raw" / "final_h5" / ANI2X_RAW_NAME]
        found = next((place for place in places if place.is_file()), places[0])
        super().__init__(path, fidelities, files=[found], **kwargs)

    def find_levels(self, asked: Sequence[LevelOfTheory] | None) -> tuple[LevelOfTheory, ...]:
        levels = super().find_levels(asked)
        check_keys(self.files, levels)
        return levels

    def chunks(self, levels: Sequence[LevelOfTheory]) -> Iterator[Chunk]:
        return chunks_of_file(self.files[0], levels, self._track)

    def check_content(self, data: Data, slices: Mapping[str, Tensor], levels: Sequence[LevelOfTheory]) -> None:
        """Check by finite differences that ``forces`` are forces, not gradients.

        Raises:
            MFPyGError: if they are gradients.
        """
        slope = negated_forces(data, slices["z"].numpy(), np.arange(len(data.source)))
        if slope is not None:
            raise MFPyGError(
                f"{self.files[0]}: the forces are gradients, not true forces as in the official file "
                f"(slope of dE against work {slope.value:.3f} over {slope.n_pairs} pairs); "
                f"read it as pyanitools:FILE:dz=energies,-forces@Hartree"
            )

    def download(self) -> None:
        """Raise with the command that downloads the file.

        Raises:
            MFPyGError: always.
        """
        folder = shlex.quote(str(self.files[0].parent))
        command = f"mkdir -p {folder} && curl -L {ANI2X_URL} | tar -xz -C {folder}"
        raise MFPyGError(f"{self.files[0]}: no such file; download it (3.7 GB): {command}")
