"""Jobs: one structure at one level of theory each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.symbols import Symbols

from mfpyg.datasets.frames import Frame, total_charge
from mfpyg.errors import MFPyGError, shown
from mfpyg.labeling.level import LabelLevel
from mfpyg.labeling.program import LabelError, Program
from mfpyg.properties import PROPERTIES


@dataclass(frozen=True)
class LabelJob:
    """A structure to label at a level of theory.

    Attributes:
        key: hash of all that the labels depend on, under which they are stored.
        level: level of theory.
        letters: properties of the level that are defined for the structure.
        numbers: atomic numbers.
        positions: in Å.
        cell: lattice vectors in Å, as rows.
        pbc: periodicity along each.
        charge: total charge in e.
        multiplicity: 2S + 1.
    """

    key: str
    level: LabelLevel
    letters: str
    numbers: list[int]
    positions: list[list[float]]
    cell: list[list[float]]
    pbc: list[bool]
    charge: int
    multiplicity: int

    @property
    def formula(self) -> str:
        """Formula in Hill order."""
        return formula_of(self.numbers)

    def atoms(self) -> Atoms:
        """The structure."""
        return Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc)

    def as_line(self) -> str:
        """JSON in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> LabelJob:
        """Inverse of :meth:`as_line`."""
        values = json.loads(line)
        return cls(**{**values, "level": LabelLevel(**values["level"])})


def formula_of(numbers: Sequence[int]) -> str:
    """Formula in Hill order."""
    return str(Symbols(np.asarray(numbers, int)).get_chemical_formula("hill"))


def job_of(frame: Frame, level: LabelLevel, program: Program) -> LabelJob:
    """Job for a frame.

    Args:
        frame: frame as read.
        level: level of theory.
        program: its program.

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
    numbers = frame.z.tolist()
    multiplicity = multiplicity_of(frame.values, sum(numbers) - charge, program.needs_spin)
    pbc = [bool(periodic) for periodic in frame.pbc]
    letters = "".join(letter for letter in level.letters if PROPERTIES[letter].is_defined(pbc))
    positions, cell = frame.pos.tolist(), frame.cell.tolist() if any(pbc) else np.zeros((3, 3)).tolist()
    about = [level.fingerprint(program.version), letters, numbers, positions, cell, pbc, charge, multiplicity]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]
    return LabelJob(key, level, letters, numbers, positions, cell, pbc, charge, multiplicity)


def multiplicity_of(values: Mapping[str, Any], n_electrons: int, needed: bool = True) -> int:
    """Multiplicity of a frame: ``multiplicity``, or one more than ``spin``, the number of unpaired electrons, or than
    the sum of ASE's initial magnetic moments; without these 1, if the number of electrons is even.

    Args:
        values: values of the frame.
        n_electrons: number of electrons.
        needed: whether an odd number of electrons needs one of these; otherwise the multiplicity is 2.

    Raises:
        LabelError: if it does not fit the number of electrons, or is needed and not given.
    """
    if n_electrons < 0:
        raise LabelError(f"{n_electrons} electrons; check its charge")
    stated = _unpaired_electrons(values)
    if stated is None:
        if n_electrons % 2 and needed:
            raise LabelError(f"odd number of electrons, {n_electrons}, and no multiplicity; state it as 'multiplicity'")
        return 1 + n_electrons % 2
    key, unpaired = stated
    if not 0 <= unpaired <= n_electrons or (n_electrons - unpaired) % 2:  # also for NaN, and fractions
        odd = bool(n_electrons % 2) != (key == "multiplicity")
        what = "multiplicity 2S + 1" if key == "multiplicity" else "number of unpaired electrons"
        expected = f"an {'odd' if odd else 'even'} {what}"
        raise LabelError(f"{key} is {shown(values[key])} with {n_electrons} electrons, expected {expected}")
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
