"""LAMMPS interface for trained potentials, through the unified interface of the ML-IAP package.

LAMMPS finds the neighbours, and this module computes energies, forces and virials from their vectors, so that
``pair_style mliap`` works like any pair style: with thermostats, barostats, minimization, hybrid styles, and per-atom
energies and stresses. It requires LAMMPS with the packages ML-IAP and PYTHON, built as a shared library with Cython
(``-D PKG_ML-IAP=yes -D PKG_PYTHON=yes -D BUILD_SHARED_LIBS=yes``, ``make install-python``). The wheel on PyPI lacks the
PYTHON package, and is refused.

metatomic's export is not used: it requires TorchScript, which supports neither the compiled kernels nor the layers of
PyTorch Geometric nor derivatives within the model, and its own build of LAMMPS.

Only one process is supported. A network of several layers depends on atoms beyond one cutoff, where LAMMPS has no
ghost atoms of other processes. On one process every atom outside the box is an image of an atom inside, so that the
network is evaluated exactly, on the periodic graph. The potential may be on a GPU; torch controls the threads.

LAMMPS can also load pickled models, which run code when they are opened. This module uses :func:`mfpyg.load`, which
does not run code from a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mfpyg.errors import MFPyGError
from mfpyg.inference.ensemble import Ensemble, Model
from mfpyg.torch_defaults import with_default_torch_settings
from mfpyg.units import KCAL_MOL_TO_EV

_ENERGY = {"metal": KCAL_MOL_TO_EV, "real": 1.0}
"""1 kcal/mol in the unit styles of LAMMPS with lengths in Å."""

_COUPLING = "mliap_unified_couple"
"""Python module in the LAMMPS library."""


def load_potential(
    lmp: Any,
    models: Model | Sequence[Model],
    fidelity: str | None = None,
    *,
    device: torch.device | str | None = None,
    compiled: bool = False,
) -> UnifiedPotential:
    """Pass a potential to LAMMPS, to be used by the next ``pair_style mliap unified EXISTS``.

    Args:
        lmp: a ``lammps.lammps`` with one process; in a function of the ``python`` command of an input script,
            ``lammps(ptr=...)`` with its argument ``SELF``.
        models: a potential, run folder, checkpoint or shipped model, such as ``"chno-1"``, or several, whose mean is
            taken.
        fidelity: level of theory; optional if there is only one.
        device: device to compute on; default: that of the potential, the CPU for files.
        compiled: whether to use ``torch.compile``, and on a GPU CUDA graphs, see :mod:`mfpyg.models.compiled`; the
            first step then takes a minute or more.

    Raises:
        MFPyGError: for a LAMMPS without ML-IAP and Python, a file that cannot be read, or an unknown fidelity.

    Example:
        >>> lmp = lammps()                                           # doctest: +SKIP
        >>> lmp.file("in.box")                     # units metal, or real; atoms with their masses
        >>> load_potential(lmp, "runs/example", "cc")                # doctest: +SKIP
        >>> lmp.commands_list(["pair_style mliap unified EXISTS", "pair_coeff * * H C N O"])  # doctest: +SKIP
    """
    potential = UnifiedPotential(lmp, models, fidelity, device=device, compiled=compiled)
    try:
        from lammps import mliap

        if _COUPLING not in sys.modules:  # Cython fails if it is activated twice
            mliap.activate_mliappy(lmp)
        mliap.load_unified(potential)
    except (ImportError, OSError, AttributeError) as error:
        raise MFPyGError(
            f"this LAMMPS cannot call Python from pair_style mliap ({error}); build it as a shared library with "
            "-D PKG_ML-IAP=yes -D PKG_PYTHON=yes, with Python and Cython installed (the wheel on PyPI lacks PYTHON)"
        ) from error
    return potential


class UnifiedPotential:
    """Model that ML-IAP calls in every step; created by :func:`load_potential`.

    Args:
        lmp, models, fidelity, device, compiled: see :func:`load_potential`.

    Attributes:
        element_types: symbols of the elements that ``pair_coeff`` may name.
        rcutfac: half the cutoff in Å, as ML-IAP multiplies it by the sum of two elements' radii, which are 1.
        ndescriptors, nparams: sizes of arrays that LAMMPS allocates and that are not used here.
        interface: set by LAMMPS.
    """

    ndescriptors, nparams = 1, 1
    interface: Any = None

    def __init__(
        self,
        lmp: Any,
        models: Model | Sequence[Model],
        fidelity: str | None,
        *,
        device: torch.device | str | None,
        compiled: bool = False,
    ) -> None:
        self.lmp = lmp
        self.ensemble = Ensemble(models, device)
        if compiled:
            self.ensemble.compile()
        self.fidelity = self.ensemble.fidelity(fidelity)
        for member in self.ensemble.members:
            member.check_edges_suffice(self.fidelity)
        species = self.ensemble.members[0].species
        if any(member.species != species for member in self.ensemble.members):
            raise MFPyGError("the models know different elements; expected members of one ensemble")
        self._numbers = np.array(species)
        self.element_types = [chemical_symbols[number] for number in species]
        self.rcutfac = max(member.cutoff for member in self.ensemble.members) / 2

    def compute_descriptors(self, data: Any) -> None:
        """Do nothing; see :meth:`compute_forces`."""

    def compute_gradients(self, data: Any) -> None:
        """Do nothing; see :meth:`compute_forces`."""

    @with_default_torch_settings
    def compute_forces(self, data: Any) -> None:
        """Compute energies of the atoms, and the contribution of each pair to forces and virial.

        Args:
            data: ML-IAP's ``MLIAPDataPy``.

        Raises:
            MFPyGError: for units other than metal and real, several processes, bonded atoms excluded from the
                neighbour list, or neighbours without a potential.
        """
        unit = self._checked_unit(data)
        if not data.nlistatoms:
            data.energy = 0.0
            return
        atoms = np.array(data.iatoms[: data.nlistatoms])
        z = torch.from_numpy(self._numbers[data.elems[atoms]]).long()
        energies, gradients = self._predict(z, *periodic_edges(self.lmp, data, atoms))
        data.eatoms = unit * energies
        data.energy = unit * energies.sum()
        if len(gradients):
            data.update_pair_forces(unit * gradients)

    def _predict(
        self, z: torch.Tensor, edge_index: torch.Tensor, edge_vec: torch.Tensor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Atomic energies (n_atoms,) in kcal/mol, and derivatives of their sum by edge vectors (n_edges, 3)."""
        device = self.ensemble.device
        z, edge_index, edge_vec = z.to(device), edge_index.to(device), edge_vec.to(device)
        each = [member.predict_edges(z, edge_index, edge_vec, self.fidelity) for member in self.ensemble.members]
        energies = torch.stack([one.atomic_energies for one in each]).mean(dim=0)
        gradients = -torch.stack([one.forces for one in each if one.forces is not None]).mean(dim=0)
        return energies.double().cpu().numpy(), gradients.double().cpu().numpy()

    def _checked_unit(self, data: Any) -> float:
        """Check the settings of LAMMPS, and return 1 kcal/mol in its unit of energy."""
        units, processes = self.lmp.extract_global("units"), self.lmp.extract_setting("world_size")
        if units not in _ENERGY:
            raise MFPyGError(f"units are {units}, expected 'units metal' (eV, Å) or 'units real' (kcal/mol, Å)")
        if processes != 1:
            raise MFPyGError(
                f"LAMMPS runs on {processes} processes, expected one: a network depends on more atoms than processes "
                "exchange; use more threads in torch, or a GPU"
            )
        if data.natomneigh != data.nlistatoms:
            raise MFPyGError("the neighbour list includes ghost atoms; expected 'unified EXISTS' without ghostneigh")
        if self.lmp.extract_setting("molecule_flag"):
            special = [self.lmp.extract_global("special_lj")[order] for order in (1, 2, 3)]
            if 0 in special:
                raise MFPyGError(
                    f"special_bonds lj is {special}, which excludes bonded atoms from the neighbour list; expected "
                    "'special_bonds lj/coul 1 1 1', or an atom_style without bonds"
                )
        return _ENERGY[units]


def periodic_edges(lmp: Any, data: Any, atoms: NDArray[np.int32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert the pairs of LAMMPS to edges between atoms in the box; atoms outside are images of these.

    Edge vectors are recomputed from positions and lattice vectors, since those of LAMMPS for the two directions of a
    pair may differ in the last bit, and DimeNet++ needs exact negatives.

    Args:
        lmp: the ``lammps.lammps``.
        data: ML-IAP's ``MLIAPDataPy``.
        atoms: indices of the atoms in the arrays of LAMMPS, (n_atoms,).

    Returns:
        edge_index (2, n_edges) int64, into ``atoms``, and edge_vec (n_edges, 3) float64 in Å, in LAMMPS's order.

    Raises:
        MFPyGError: for a neighbour that is not an image of one of the atoms.
    """
    if not data.npairs:
        return torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64)
    tags = lmp.numpy.extract_atom("id", nelem=data.ntotal)
    pos = lmp.numpy.extract_atom("x", nelem=data.ntotal, dim=3)[atoms]
    order = np.argsort(tags[atoms])
    place = np.searchsorted(tags[atoms], tags, sorter=order).clip(max=len(atoms) - 1)
    number = order[place]  # atom that each is an image of, (ntotal,)
    source, target = number[data.pair_j], number[data.pair_i]
    between, cell = pos[source] - pos[target], _cell(lmp)
    a, b, c = np.rint((data.rij - between) @ np.linalg.inv(cell)).T[:, :, None]  # (n_edges, 1) each
    edge_vec = between + (a * cell[0] + b * cell[1] + c * cell[2])  # in this order: see Lattice.translations
    same = tags[atoms][source] == tags[data.pair_j]
    if not (same & (np.abs(edge_vec - data.rij).max(axis=1) < 1e-6)).all():
        raise MFPyGError(
            "a neighbour is not a periodic image of an atom in the box; expected atoms of one style, with ids"
        )
    return torch.from_numpy(np.stack([source, target])).long(), torch.from_numpy(edge_vec)


def _cell(lmp: Any) -> NDArray[np.float64]:
    """Lattice vectors of the box in Å as rows, (3, 3)."""
    low, high, xy, yz, xz, *_ = lmp.extract_box()
    cell: NDArray[np.float64] = np.diag(np.subtract(high, low))
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell
