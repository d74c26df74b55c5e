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
from mfpyg.errors import MFPyGError
from mfpyg.labeling.level import LabelLevel
from mfpyg.labeling.program import LabelError, Program
from mfpyg.properties import PROPERTIES

_OF_MULTIPLICITY = ("multiplicity", "spin", "initial_magmoms")
"""Values of a frame that give its multiplicity: 2S + 1, 2S, and ASE's magnetic moments of the atoms, in this order."""


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
        LabelError: for no atoms, positions that are not finite, a charge that is not a whole number, no multiplicity
            where it is needed, or one that does not fit the number of electrons.
    """
    if not len(frame.z):
        raise LabelError("no atoms")
    if not np.isfinite(frame.pos).all():
        raise LabelError("positions are not finite")
    try:
        charge = round(total_charge(frame, "frame"))
    except MFPyGError as error:
        raise LabelError(str(error).removeprefix("frame: ")) from error
    numbers = frame.z.tolist()
    multiplicity = multiplicity_of(frame.values, sum(numbers) - charge, program.needs_spin)
    pbc = [bool(periodic) for periodic in frame.pbc]
    letters = "".join(letter for letter in level.letters if PROPERTIES[letter].is_defined(pbc))
    structure = (numbers, frame.pos.tolist(), frame.cell.tolist() if any(pbc) else [], pbc, charge, multiplicity)
    key = hashlib.sha256(json.dumps([level.fingerprint(program.version), letters, *structure]).encode()).hexdigest()
    return LabelJob(key[:40], level, letters, *structure[:2], frame.cell.tolist(), *structure[3:])


def multiplicity_of(values: Mapping[str, Any], n_electrons: int, needed: bool = True) -> int:
    """Multiplicity of a frame: ``multiplicity``, or ``spin`` + 1, the number of unpaired electrons, or that of ASE's
    initial magnetic moments; 1 for an even number of electrons.

    Args:
        values: values of the frame.
        n_electrons: number of electrons.
        needed: whether an odd number of electrons needs one of these; otherwise it is 2.

    Raises:
        LabelError: if it does not fit the number of electrons, or is needed and not given.
    """
    if n_electrons < 0:
        raise LabelError(f"{n_electrons} electrons; check its charge")
    for key in _OF_MULTIPLICITY:
        if key not in values:
            continue
        given = np.asarray(values[key])
        number = (
            float(abs(given.sum()))
            if given.dtype.kind in "iuf" and (given.size == 1 or key == "initial_magmoms")
            else -1
        )
        multiplicity = round(number) + (key != "multiplicity")
        if key == "initial_magmoms" and (number != round(number) or not number):
            continue  # of another program's calculation, or none
        if number != round(number) or not 1 <= multiplicity <= n_electrons + 1 or (n_electrons + multiplicity) % 2 == 0:
            expected = f"{'odd' if n_electrons % 2 == 0 else 'even'} multiplicity 2S + 1"
            if key == "spin":
                expected = f"{'even' if n_electrons % 2 == 0 else 'odd'} number of unpaired electrons"
            raise LabelError(f"{key} is {values[key]!r} with {n_electrons} electrons, expected an {expected}")
        return multiplicity
    if n_electrons % 2 and needed:
        raise LabelError(f"odd number of electrons, {n_electrons}, and no multiplicity; state it as 'multiplicity'")
    return 1 + n_electrons % 2
