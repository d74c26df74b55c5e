"""Jobs: one structure at one level of theory each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from ase import Atoms
from ase.symbols import Symbols

from mfpyg.datasets.frames import Frame
from mfpyg.labeling.electrons import charge_and_multiplicity
from mfpyg.labeling.level import LabelLevel
from mfpyg.labeling.program import Program
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
        LabelError: as :func:`mfpyg.labeling.electrons.charge_and_multiplicity`.
    """
    charge, multiplicity = charge_and_multiplicity(frame, program.needs_spin)
    numbers = frame.z.tolist()
    pbc = [bool(periodic) for periodic in frame.pbc]
    letters = "".join(letter for letter in level.letters if PROPERTIES[letter].is_defined(pbc))
    positions, cell = frame.pos.tolist(), frame.cell.tolist() if any(pbc) else np.zeros((3, 3)).tolist()
    about = [level.fingerprint(program.version), letters, numbers, positions, cell, pbc, charge, multiplicity]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]
    return LabelJob(key, level, letters, numbers, positions, cell, pbc, charge, multiplicity)
