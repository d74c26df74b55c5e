"""The ANI-1x and ANI-1ccx data sets."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfpyg.datasets.levels import ANI1X_LEVELS
from mfpyg.datasets.release import ReleaseDataset
from mfpyg.errors import MFPyGError, unknown_name

URL = "https://springernature.figshare.com/ndownloader/files/18112775"
"""Where the official file is to be had (5.2 GB, doi:10.6084/m9.figshare.c.4712477)."""


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
        subset: ``"ani1ccx"`` keeps the conformations with a ``cc`` energy; all if not given.
        file: raw file, where it is not the one in ``root``.
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
        """Says where to get the file; five gigabytes are not downloaded unasked.

        Raises:
            MFPyGError: always.
        """
        command = f"curl -L --create-dirs -o {shlex.quote(str(self.files[0]))} {URL}"
        raise MFPyGError(f"{self.files[0]}: no such file; download it (5.2 GB): {command}")


class ANI1ccx(ANI1x):
    """ANI-1ccx: the about 500,000 conformations of ANI-1x that have a ``cc`` energy; same file, same levels.

    Args:
        root, fidelities, kwargs: as in :class:`ANI1x`.

    Raises:
        MFPyGError: if the file is missing, saying where to download it.
    """

    def __init__(self, root: str | os.PathLike[str], fidelities: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, fidelities, subset="ani1ccx", **kwargs)
