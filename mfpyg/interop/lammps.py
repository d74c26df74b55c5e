"""Trained potentials in LAMMPS, through the unified interface of its ML-IAP package.

LAMMPS finds the neighbours, and this module turns their vectors into energies, forces and virials, so that
``pair_style mliap`` works as any pair style does: thermostats, barostats, minimisation, hybrid styles, energies and
stresses of atoms. It needs a LAMMPS with the packages ML-IAP and PYTHON, built as a shared library with Cython
(``-D PKG_ML-IAP=yes -D PKG_PYTHON=yes -D BUILD_SHARED_LIBS=yes``, ``make install-python``). The wheel on PyPI has no
PYTHON package, and is refused.

The other way would be metatomic's export. It wants a TorchScript module, which potentials of this package cannot be:
compiled kernels, layers of PyTorch Geometric, and derivatives inside. It wants a LAMMPS of its own, too.

One process only. A network of several layers sees farther than one cutoff, and what LAMMPS tells a pair style of the
atoms of other processes ends there. On one process every atom beyond the box is the image of one inside, so that the
network is evaluated on the periodic graph itself, exactly. The potential may sit on a GPU; threads are torch's.

LAMMPS can also load a pickled model by itself, and a pickle runs code when it is opened. Here a checkpoint goes
through :func:`mfpyg.load`, which runs none.
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
"""One kcal/mol in LAMMPS's unit styles whose length is Å."""

_COUPLING = "mliap_unified_couple"
"""The Python module inside LAMMPS's library."""


def load_potential(
    lmp: Any, models: Model | Sequence[Model], fidelity: str | None = None, *, device: torch.device | str | None = None
) -> UnifiedPotential:
    """Hand a potential over to LAMMPS, whose next ``pair_style mliap unified EXISTS`` is this one.

    Args:
        lmp: a ``lammps.lammps`` of one process; in a function of an input script's ``python`` command,
            ``lammps(ptr=...)`` of its argument ``SELF``.
        models: a potential, run folder or checkpoint, or several, whose mean is taken.
        fidelity: a name; may be left out where there is a single one.
        device: where to compute; where the potential is (the CPU for files), if not given.

    Raises:
        MFPyGError: for a LAMMPS without ML-IAP and Python, a file that cannot be read, or an unknown fidelity.

    Example:
        >>> lmp = lammps()                                           # doctest: +SKIP
        >>> lmp.file("in.box")                     # units metal, or real; atoms with their masses
        >>> load_potential(lmp, "runs/example", "cc")                # doctest: +SKIP
        >>> lmp.commands_list(["pair_style mliap unified EXISTS", "pair_coeff * * H C N O"])  # doctest: +SKIP
    """
    potential = UnifiedPotential(lmp, models, fidelity, device=device)
    try:
        from lammps import mliap

        if _COUPLING not in sys.modules:  # a second time would be an error of Cython's
            mliap.activate_mliappy(lmp)
        mliap.load_unified(potential)
    except (ImportError, OSError, AttributeError) as error:
        raise MFPyGError(
            f"this LAMMPS cannot call Python from pair_style mliap ({error}); build it as a shared library with "
            "-D PKG_ML-IAP=yes -D PKG_PYTHON=yes, and Python and Cython at hand (the wheel on PyPI lacks PYTHON)"
        ) from error
    return potential


class UnifiedPotential:
    """Model that ML-IAP calls in every step; made by :func:`load_potential`.

    Args:
        lmp, models, fidelity, device: see there.

    Attributes:
        element_types: symbols of the elements that ``pair_coeff`` may name.
        rcutfac: half the cutoff in Å, as ML-IAP adds up two elements' radii of 1.
        ndescriptors, nparams: of which LAMMPS makes arrays that are not used here.
        interface: set by LAMMPS.
    """

    ndescriptors, nparams = 1, 1
    interface: Any = None

    def __init__(
        self, lmp: Any, models: Model | Sequence[Model], fidelity: str | None, *, device: torch.device | str | None
    ) -> None:
        self.lmp = lmp
        self.ensemble = Ensemble(models, device)
        self.fidelity = self.ensemble.fidelity(fidelity)
        species = self.ensemble.members[0].species
        if any(member.species != species for member in self.ensemble.members):
            raise MFPyGError("the models know different elements; expected members of one ensemble")
        self._numbers = np.array(species)
        self.element_types = [chemical_symbols[number] for number in species]
        self.rcutfac = max(member.cutoff for member in self.ensemble.members) / 2

    def compute_descriptors(self, data: Any) -> None:
        """Nothing: all is done in :meth:`compute_forces`."""

    def compute_gradients(self, data: Any) -> None:
        """Nothing: all is done in :meth:`compute_forces`."""

    @with_default_torch_settings
    def compute_forces(self, data: Any) -> None:
        """Energies of the atoms, and what each neighbour's vector adds to forces and virial.

        Args:
            data: ML-IAP's ``MLIAPDataPy``.

        Raises:
            MFPyGError: for units other than metal and real, several processes, bonded atoms that are not each
                other's neighbours, or atoms of an element without a network.
        """
        unit = self._checked_unit(data)
        if not data.nlistatoms:
            data.energy = 0.0
            return
        atoms = np.array(data.iatoms[: data.nlistatoms])
        z = torch.from_numpy(self._numbers[data.elems[atoms]]).long()
        energies, gradients = self._predicted(z, *periodic_edges(self.lmp, data, atoms))
        data.eatoms = unit * energies
        data.energy = unit * energies.sum()
        if len(gradients):
            data.update_pair_forces(unit * gradients)

    def _predicted(
        self, z: torch.Tensor, edge_index: torch.Tensor, edge_vec: torch.Tensor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies (n_atoms,) in kcal/mol and their sum's derivatives by the vectors (n_edges, 3), means of members."""
        device = self.ensemble.device
        z, edge_index, edge_vec = z.to(device), edge_index.to(device), edge_vec.to(device)
        each = [member.predict_edges(z, edge_index, edge_vec, self.fidelity) for member in self.ensemble.members]
        energies = torch.stack([one.atomic_energies for one in each]).mean(dim=0)
        gradients = -torch.stack([one.forces for one in each if one.forces is not None]).mean(dim=0)
        return energies.double().cpu().numpy(), gradients.double().cpu().numpy()

    def _checked_unit(self, data: Any) -> float:
        """One kcal/mol in LAMMPS's unit of energy, once nothing speaks against a step."""
        units, processes = self.lmp.extract_global("units"), self.lmp.extract_setting("world_size")
        if units not in _ENERGY:
            raise MFPyGError(f"units are {units}, expected 'units metal' (eV, Å) or 'units real' (kcal/mol, Å)")
        if processes != 1:
            raise MFPyGError(
                f"LAMMPS runs on {processes} processes, expected one: a network sees farther than the atoms that "
                "processes exchange; give torch more threads, or a GPU"
            )
        if data.natomneigh != data.nlistatoms:
            raise MFPyGError("neighbours of ghost atoms came along; expected 'unified EXISTS' without ghostneigh")
        if self.lmp.extract_setting("molecule_flag"):
            special = [self.lmp.extract_global("special_lj")[order] for order in (1, 2, 3)]
            if 0 in special:
                raise MFPyGError(
                    f"special_bonds lj is {special}, by which bonded atoms are no neighbours of each other; expected "
                    "'special_bonds lj/coul 1 1 1', or an atom_style without bonds"
                )
        return _ENERGY[units]


def periodic_edges(lmp: Any, data: Any, atoms: NDArray[np.int32]) -> tuple[torch.Tensor, torch.Tensor]:
    """LAMMPS's pairs as edges between the atoms in its box; atoms beyond it are images of these.

    The vectors are made anew of positions and whole lattice vectors: those that LAMMPS gives for the two directions
    of a pair may differ in the last bit, by which DimeNet++ tells the way back.

    Args:
        lmp: the ``lammps.lammps``.
        data: ML-IAP's ``MLIAPDataPy``.
        atoms: numbers of the atoms in LAMMPS's arrays, (n_atoms,).

    Returns:
        edge_index (2, n_edges) int64, into ``atoms``, and edge_vec (n_edges, 3) float64 in Å, in LAMMPS's order.

    Raises:
        MFPyGError: for a neighbour that is no image of one of the atoms.
    """
    if not data.npairs:
        return torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64)
    tags = lmp.numpy.extract_atom("id", nelem=data.ntotal)
    pos = lmp.numpy.extract_atom("x", nelem=data.ntotal, dim=3)[atoms]
    order = np.argsort(tags[atoms])
    place = np.searchsorted(tags[atoms], tags, sorter=order).clip(max=len(atoms) - 1)
    number = order[place]  # of the atom that each is an image of, (ntotal,)
    source, target = number[data.pair_j], number[data.pair_i]
    between, cell = pos[source] - pos[target], _cell(lmp)
    a, b, c = np.rint((data.rij - between) @ np.linalg.inv(cell)).T[:, :, None]  # (n_edges, 1) each
    edge_vec = between + (a * cell[0] + b * cell[1] + c * cell[2])  # in this order: see Lattice.translations
    same = tags[atoms][source] == tags[data.pair_j]
    if not (same & (np.abs(edge_vec - data.rij).max(axis=1) < 1e-6)).all():
        raise MFPyGError(
            "a neighbour is no periodic image of an atom in the box; expected atoms of one style, with ids"
        )
    return torch.from_numpy(np.stack([source, target])).long(), torch.from_numpy(edge_vec)


def _cell(lmp: Any) -> NDArray[np.float64]:
    """Lattice vectors of LAMMPS's box in Å, (3, 3), a vector a row."""
    low, high, xy, yz, xz, *_ = lmp.extract_box()
    cell: NDArray[np.float64] = np.diag(np.subtract(high, low))
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell
