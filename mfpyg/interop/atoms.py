"""From ASE's ``Atoms`` to what potentials read; units change here and nowhere else in ``interop``."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError
from mfpyg.units import EV_TO_KCAL_MOL

KCAL_MOL_TO_EV = 1 / EV_TO_KCAL_MOL
"""One kcal/mol in eV. Forces and stresses change by the same factor, as lengths are in Å on both sides."""


def data_of(atoms: Atoms) -> Data:
    """The atoms as a graph without edges.

    Args:
        atoms: a molecule or a periodic system; constraints and calculators are not looked at.

    Returns:
        ``Data`` with ``z`` (n,) int64 and ``pos`` (n, 3) float64 in Å, and ``cell`` (1, 3, 3) float64 in Å and
        ``pbc`` (1, 3) bool, all False for a molecule.

    Raises:
        MFPyGError: for no atoms, or positions that are not finite.
    """
    if not len(atoms):
        raise MFPyGError("no atoms; expected at least one")
    if not np.isfinite(atoms.positions).all():
        number = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        raise MFPyGError(f"position of atom {number} is NaN or infinite; expected finite ones in Å")
    return Data(
        z=torch.from_numpy(atoms.numbers.astype(np.int64)),
        pos=torch.from_numpy(np.array(atoms.positions, dtype=np.float64)),
        cell=torch.from_numpy(np.array(atoms.cell.array, dtype=np.float64)).unsqueeze(0),
        pbc=torch.from_numpy(np.array(atoms.pbc, dtype=bool)).unsqueeze(0),
    )
