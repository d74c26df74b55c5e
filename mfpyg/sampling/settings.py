"""Settings of ``mfpyg-sample``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mfpyg.errors import MFPyGError, shown
from mfpyg.options import check, fits, setting


@dataclass(frozen=True)
class SampleSettings:
    """Settings of sampling, per molecule."""

    conformers: int = setting(5, "conformers per SMILES at most, the lowest of RDKit's in energy", low=1)
    modes: int = setting(20, "geometries displaced along normal modes, per molecule", low=0)
    dynamics: int = setting(20, "geometries from molecular dynamics, per molecule", low=0)
    pairs: int = setting(0, "geometries that get a near partner, per molecule", low=0)
    temperature: tuple = (300.0, 600.0, 1000.0)  # of numbers
    calculator: str = setting(
        "tblite:GFN2-xTB",
        "energies and forces: PROGRAM:METHOD[,SETTING=VALUE...] as in mfpyg-label, with the program tblite, pyscf, ase "
        "or mfpyg",
    )
    seed: int = setting(0, "seed of all random numbers", low=0)
    no_relax: bool = setting(False, "take the conformers of RDKit, or the given structures, as they are")
    relax_steps: int = setting(500, "steps of a relaxation at most", low=1)
    quantum: bool = setting(False, "displace normal modes with zero-point motion, as in the Wigner distribution")
    reactive: bool = setting(False, "keep geometries with broken or new bonds")
    timestep: float = setting(0.5, "time step of the dynamics in fs", low=0.01, high=10)
    equilibration: float = setting(500.0, "time in fs that is left out at the start of each trajectory", low=0)
    stride: float = setting(100.0, "time in fs between two geometries of a trajectory", low=0.01)
    tolerance: float = setting(
        0.01, "smallest deviation in Å of two geometries of a molecule (RMS of sorted distances)", low=0
    )
    step: float = setting(0.01, "distance of the two geometries of a pair in Å (RMS of atoms)", low=1e-4, high=0.1)

    def check(self) -> None:
        """Check all values.

        Raises:
            MFPyGError: naming the setting, what was found and what is allowed.
        """
        for value in self.temperature if isinstance(self.temperature, tuple) else (self.temperature,):
            if not (fits(value, float) and isinstance(self.temperature, tuple) and 0 < value < math.inf):
                raise MFPyGError(f"temperature is {shown(value)}, expected numbers above 0, in K")
        if not self.temperature:
            raise MFPyGError("no temperature is given, expected numbers above 0, in K")
        check(self)
