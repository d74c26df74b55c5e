"""The ANI-1x and ANI-1ccx data sets."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
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
        fidelities: as in :class:`ReleaseDataset`.
        subset: ``"ani1ccx"`` keeps the conformations with a ``cc`` energy; all if not given.
        kwargs: as in :class:`ReleaseDataset`.

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
        **kwargs: Any,
    ) -> None:
        if subset not in (None, "ani1ccx"):
            raise unknown_name("subset of ANI-1x", str(subset), ["ani1ccx"])
        super().__init__(root, fidelities, required=("cc",) if subset else (), **kwargs)

    def download(self) -> None:
        """Says where to get the file; five gigabytes are not downloaded unasked.

        Raises:
            MFPyGError: always.
        """
        command = f"curl -L --create-dirs -o {shlex.quote(str(self._file))} {URL}"
        raise MFPyGError(f"{self._file}: no such file; download it (5.2 GB): {command}")
