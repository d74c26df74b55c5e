"""i-PI driver of trained potentials (``pip install ipi``, 3.3 or later).

i-PI runs it as a custom PES, in ``i-pi-driver-py`` over sockets or within its own process (``ffdirect``); see
:class:`MFPyGDriver`. The beads of a path integral are predicted in one batch if i-PI sends batches (``batch_size``).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from ase import Atoms
from ase.io import read
from numpy.typing import NDArray

from mfpyg.errors import MFPyGError
from mfpyg.inference.ensemble import Model
from mfpyg.inference.frames import predict_frames
from mfpyg.interop.ase import MFPyGCalculator

try:
    from ipi.pes import Dummy_driver
    from ipi.utils.units import unit_to_internal, unit_to_user
except ImportError as error:
    raise ImportError(f"i-PI 3.3 or later is not installed ({error}); pip install 'mfpyg[ipi]'") from error

Array = NDArray[np.float64]
Answer = tuple[float, Array, Array, str]
"""Energy, forces (n, 3) and virial (3, 3) in atomic units, and an empty string in the place of i-PI's extras."""


class MFPyGDriver(Dummy_driver):
    """i-PI driver for one fidelity of a trained potential.

    A file of two lines, see the example, makes it known to i-PI; it is the ``pes_path`` of a ``custom`` PES. The virial
    is −V σ, and 0 for systems that are not periodic in all three directions, which have no stress.

    Args:
        template: file in any format of ASE with the atoms in i-PI's order; positions and cell come from i-PI. The
            system is periodic if the template is.
        model: a potential, run folder, checkpoint or shipped model, such as ``"chno-1"``.
        fidelity: level of theory; optional if there is only one.
        device, dtype, compiled: see :class:`mfpyg.interop.ase.MFPyGCalculator`.
        verbosity: passed by i-PI, and ignored.

    Raises:
        MFPyGError: as :class:`mfpyg.interop.ase.MFPyGCalculator`; when computing also for another number of atoms than
            in the template.

    Example:
        >>> from mfpyg.interop.ipi import MFPyGDriver                          # doctest: +SKIP
        >>> __DRIVER_CLASS__ = "MFPyGDriver"                                   # doctest: +SKIP
    """

    def __init__(
        self,
        template: str,
        model: Model,
        fidelity: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        compiled: bool = False,
        verbosity: Any = None,
    ) -> None:
        self.template = cast(Atoms, read(template))
        self.template.set_constraint()  # ASE would set forces to 0
        self.calculator = MFPyGCalculator(model, fidelity, device=device, dtype=dtype, compiled=compiled)
        super().__init__()

    def compute_structure(self, cell: Array, pos: Array) -> Answer:
        """Compute one structure.

        Args:
            cell: lattice vectors in bohr as columns, (3, 3).
            pos: positions in bohr, (n, 3).
        """
        atoms = self._atoms(cell, pos)
        atoms.calc = self.calculator
        forces = atoms.get_forces()
        stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
        return _answer(atoms, atoms.get_potential_energy(), forces, stress)

    def compute(self, cell: Any, pos: Any) -> Answer | list[Answer]:
        """Compute one structure, or a list of structures in one batch, see :meth:`compute_structure`."""
        if not isinstance(cell, list):
            return self.compute_structure(cell, pos)
        frames = [self._atoms(*one) for one in zip(cell, pos, strict=True)]
        fidelity = self.calculator.parameters["fidelity"]
        predictions = predict_frames(self.calculator.ensemble, frames, fidelity, properties="EFS")
        values = [prediction.of[fidelity] for prediction in predictions]
        return [_answer(one, v.energy, v.forces, v.stress) for one, v in zip(frames, values, strict=True)]

    def _atoms(self, cell: Array, pos: Array) -> Atoms:
        if len(pos) != len(self.template):
            raise MFPyGError(f"i-PI has {len(pos)} atoms, the template {len(self.template)}; expected the same")
        atoms = self.template.copy()
        atoms.positions = unit_to_user("length", "angstrom", pos)
        atoms.cell = unit_to_user("length", "angstrom", cell.T)
        return atoms


def _answer(atoms: Atoms, energy: float, forces: Array, stress: Array | None) -> Answer:
    """Convert from eV, eV/Å and eV/Å³."""
    virial = np.zeros((3, 3)) if stress is None else -atoms.get_volume() * stress
    return (
        float(unit_to_internal("energy", "electronvolt", energy)),
        unit_to_internal("force", "ev/ang", forces),
        unit_to_internal("energy", "electronvolt", virial),
        "",
    )
