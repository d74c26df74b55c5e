"""Charge and multiplicity of frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mfpyg.datasets.frames import Frame, total_charge
from mfpyg.errors import MFPyGError, shown
from mfpyg.labeling.program import LabelError


def charge_and_multiplicity(frame: Frame, needs_spin: bool = True) -> tuple[int, int]:
    """Total charge in e and multiplicity of a frame that a program can compute.

    Args:
        frame: frame as read.
        needs_spin: see :func:`multiplicity_of`.

    Raises:
        LabelError: for no atoms, positions that are not finite, lattice vectors that are missing, a charge that is not
            a whole number, a multiplicity that does not fit the number of electrons, or none where it is needed.
    """
    if not len(frame.z):
        raise LabelError("no atoms")
    if not np.isfinite(frame.pos).all():
        raise LabelError("positions are not finite")
    if np.linalg.matrix_rank(frame.cell[frame.pbc]) < frame.pbc.sum():
        raise LabelError(f"periodic (pbc is {frame.pbc.tolist()}) without the lattice vectors; add its cell")
    try:
        charge = round(total_charge(frame, "frame"))
    except MFPyGError as error:
        raise LabelError(str(error).removeprefix("frame: ")) from error
    return charge, multiplicity_of(frame.values, int(frame.z.sum()) - charge, needs_spin)


def multiplicity_of(values: Mapping[str, Any], n_electrons: int, needs_spin: bool = True) -> int:
    """Multiplicity of a frame: ``multiplicity``, or one more than ``spin``, the number of unpaired electrons, or than
    the sum of ASE's initial magnetic moments; without these 1, if the number of electrons is even.

    Args:
        values: values of the frame.
        n_electrons: number of electrons.
        needs_spin: whether an odd number of electrons needs one of these; otherwise the multiplicity is 2.

    Raises:
        LabelError: if it does not fit the number of electrons, or is needed and not given.
    """
    if n_electrons < 0:
        raise LabelError(f"{n_electrons} electrons; check its charge")
    stated = _unpaired_electrons(values)
    if stated is None:
        if n_electrons % 2 and needs_spin:
            raise LabelError(f"odd number of electrons, {n_electrons}, and no multiplicity; state it as 'multiplicity'")
        return 1 + n_electrons % 2
    key, unpaired = stated
    if not 0 <= unpaired <= n_electrons or (n_electrons - unpaired) % 2:  # also for NaN, and fractions
        odd = bool(n_electrons % 2) != (key == "multiplicity")
        what = "multiplicity 2S + 1" if key == "multiplicity" else "number of unpaired electrons"
        expected = f"an {'odd' if odd else 'even'} {what}"
        raise LabelError(
            f"{key} is {shown(np.asarray(values[key]).tolist())} with {n_electrons} electrons, expected {expected}"
        )
    return int(unpaired) + 1


def _unpaired_electrons(values: Mapping[str, Any]) -> tuple[str, float] | None:
    """Key of a frame that states the number of unpaired electrons, and the number, NaN if it is none."""
    for key, of_singlet in (("multiplicity", 1), ("spin", 0)):
        if key in values:
            given = np.asarray(values[key])
            return key, float(given) - of_singlet if given.ndim == 0 and given.dtype.kind in "iuf" else float("nan")
    total = abs(float(np.sum(values.get("initial_magmoms", 0.0))))
    whole = total and total == round(total)  # fractions are those of another calculation
    return ("initial_magmoms", total) if whole else None
