"""Total charges of conformations in raw files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mfpyg.errors import MFPyGError

KEYS = ("charge", "total_charge")
"""Keys of total charges in e, one number per conformation."""

OF_PHYSNET = "Q"
"""Key of total charges in the arrays of PhysNet; other arrays of this name are none."""

TOLERANCE = 1e-3
"""Largest distance of a total charge from a whole number, in e."""


def find_charges(arrays: Mapping[str, Any], n: int, size: int, where: str) -> str | None:
    """Key of the array with the total charges of n conformations of ``size`` atoms.

    Args:
        arrays: arrays of the file under :data:`KEYS` or :data:`OF_PHYSNET`; (n, size) are atomic charges.
        n, size: number of conformations and of atoms of each.
        where: name of the file and group, for the error message.

    Returns:
        The key of an array (n,) or (n, 1); ``None`` if there is none.

    Raises:
        MFPyGError: for another shape or type, or several such arrays.
    """
    found, colon = [], f"{where}: " if where else ""
    for key, array in arrays.items():
        if array.shape in ((n,), (n, 1)):
            if array.dtype.kind not in "iuf":
                raise MFPyGError(f"{colon}{key} has type {array.dtype}, expected total charges in e")
            found.append(key)
        elif key != OF_PHYSNET and array.shape[:2] != (n, size):
            raise MFPyGError(f"{colon}{key} has shape {array.shape}, expected ({n},) total charges in e")
    if len(found) > 1:
        raise MFPyGError(f"{colon}total charges under both {' and '.join(found)}; expected one of these keys")
    return found[0] if found else None


def whole_charges(charge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round total charges (n,) in e to whole numbers.

    Returns:
        The numbers, (n,) float32, and whether a charge is not one, or NaN or infinite, (n,) bool.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.rint(charge).astype(np.float32) + np.float32(0)  # no −0, for the fingerprint
        return whole, ~(np.abs(charge - whole) <= TOLERANCE)
