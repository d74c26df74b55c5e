"""HF, density functionals, MP2, CCSD and CCSD(T) by PySCF, for molecules.

Singlets are computed with a restricted reference, others with an unrestricted one. Forces are the analytic derivative
of the energy; for functionals, with the response of the integration grid. Those of restricted CCSD(T) need the (T)
response in the lambda equations, which PySCF's ``nuc_grad_method`` leaves out. Those of unrestricted CCSD(T) are
refused: PySCF 2.14's gradient deviates by up to 6e-4 Hartree/bohr from differences of its energies.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from mfpyg.errors import MFPyGError, did_you_mean
from mfpyg.labeling.program import LabelError, Program, about_centre_of_mass, hessian_from_forces, settings_from
from mfpyg.units import BOHR_TO_ANGSTROM, HARTREE_TO_KCAL_MOL, KCAL_MOL_TO_EV

_HARTREE = HARTREE_TO_KCAL_MOL * KCAL_MOL_TO_EV
_SEVERAL = ("H", "C", "Si", "Au")
"""Elements of which every basis set has one."""


@dataclass(frozen=True)
class _SCFSettings:
    """Thresholds of PySCF in Hartree; ``conv_tol_grad`` is that of the orbital gradient."""

    conv_tol: float = 1e-10
    conv_tol_grad: float = 1e-6
    max_cycle: int = 100


@dataclass(frozen=True)
class _DFTSettings(_SCFSettings):
    """With the level of the grid, from 0 to 9."""

    grid: int = 3


@dataclass(frozen=True)
class _MP2Settings(_SCFSettings):
    frozen_core: bool = True


@dataclass(frozen=True)
class _CCSettings(_MP2Settings):
    """With the thresholds of the energy, and of the amplitudes."""

    cc_conv_tol: float = 1e-9
    cc_conv_tol_normt: float = 1e-7
    cc_max_cycle: int = 100


_SETTINGS = {"HF": _SCFSettings, "MP2": _MP2Settings, "CCSD": _CCSettings, "CCSD(T)": _CCSettings}
"""Methods that are not functionals, and their settings."""


class PySCF(Program):
    """Method and basis set of PySCF, as ``CCSD(T)/cc-pVDZ`` or ``wB97X/6-31G*``, with its effective core potentials."""

    def __init__(self, method: str, settings: Mapping[str, Any]) -> None:
        super().__init__(method, settings)
        self.theory, _, self.basis = method.rpartition("/")
        self.is_functional = self.theory not in _SETTINGS
        self.letters = "EFHD" if self.theory == "HF" or self.is_functional else "EFH"
        try:
            import pyscf
            from pyscf import cc, dft, grad, gto, hessian, mp, scf  # noqa: F401  (not in the time of the first label)
        except ImportError as error:
            raise MFPyGError("pyscf is not installed; pip install 'mfpyg[label]'") from error
        self.version = pyscf.__version__
        if self.is_functional:
            _check_functional(self.theory)
        self._check_basis()

    @classmethod
    def parse(cls, method: str, given: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        theory, slash, basis = method.rpartition("/")
        if not slash or not theory or not basis:
            raise MFPyGError(
                f"method of pyscf is '{method}', expected METHOD/BASIS, as wB97X/6-31G* or CCSD(T)/cc-pVDZ"
            )
        theory = theory.upper() if theory.upper() in _SETTINGS else theory
        return f"{theory}/{basis}", settings_from(_SETTINGS.get(theory, _DFTSettings), given, method)

    def _check_basis(self) -> None:
        if not any(self._has_basis(symbol) for symbol in _SEVERAL):
            from pyscf.gto.basis import ALIAS

            raise MFPyGError(f"PySCF does not know the basis '{self.basis}'{did_you_mean(self.basis.lower(), ALIAS)}")

    def _has_basis(self, symbol: str) -> bool:
        from pyscf.gto.basis import load

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about another package with more sets
                return bool(load(self.basis, symbol))
        except (RuntimeError, KeyError, ValueError, OSError):
            return False

    def _has_ecp(self, symbol: str) -> bool:
        from pyscf.gto.basis import load_ecp

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return bool(load_ecp(self.basis, symbol))
        except (RuntimeError, KeyError, ValueError, OSError):  # a family without any
            return False

    def compute(self, atoms: Atoms, charge: int, multiplicity: int, letters: str) -> dict[str, Any]:
        if atoms.pbc.any():
            raise LabelError("periodic, but PySCF's levels are for molecules; set pbc to False for a molecule in a box")
        if self.theory == "CCSD(T)" and multiplicity > 1 and set(letters) & set("FH") and len(atoms) > 1:
            raise LabelError(
                "forces of CCSD(T) for open shells: PySCF's gradient is not the derivative of its energy; "
                "label such frames with E alone"
            )
        for symbol in dict.fromkeys(atoms.symbols):
            if not self._has_basis(symbol):
                raise LabelError(f"basis {self.basis} lacks the element {symbol}")
        solved = self._solve(atoms, atoms.positions, charge, multiplicity)
        found: dict[str, Any] = {"E": solved.energy * _HARTREE}
        if "F" in letters:
            found["F"] = self._forces(solved)
        if "H" in letters:
            found["H"] = self._hessian(solved, atoms, charge, multiplicity)
        if "D" in letters:
            dipole = solved.mf.dip_moment(unit="AU", verbose=0) * BOHR_TO_ANGSTROM
            found["D"] = about_centre_of_mass(dipole, atoms, charge)
        return found

    def _solve(
        self, atoms: Atoms, pos: np.ndarray, charge: int, multiplicity: int, guess: np.ndarray | None = None
    ) -> _Solved:
        """Converged calculation at positions in Å, from a guess of the density matrix."""
        from pyscf import cc, gto, mp
        from pyscf.data.elements import chemcore

        mol = gto.Mole(verbose=0, charge=charge, spin=multiplicity - 1, unit="Bohr", basis=self.basis)
        mol.atom = [(chemical_symbols[z], x) for z, x in zip(atoms.numbers, pos / BOHR_TO_ANGSTROM, strict=True)]
        mol.ecp = {symbol: self.basis for symbol in dict.fromkeys(atoms.symbols) if self._has_ecp(symbol)}
        mol.build(dump_input=False, parse_arg=False)
        mf = self._scf(mol, guess)
        if self.theory == "HF" or self.is_functional:
            return _Solved(mf, None, float(mf.e_tot))
        frozen = chemcore(mol) if self.settings["frozen_core"] else 0
        if self.theory == "MP2":
            post = mp.MP2(mf, frozen=frozen)
            post.kernel()
            return _Solved(mf, post, float(post.e_tot))
        post = cc.CCSD(mf, frozen=frozen)
        post.conv_tol, post.conv_tol_normt = self.settings["cc_conv_tol"], self.settings["cc_conv_tol_normt"]
        post.max_cycle = self.settings["cc_max_cycle"]
        post.kernel()
        if not post.converged:
            raise LabelError(f"CCSD did not converge in {post.max_cycle} cycles")
        triples = post.ccsd_t() if self.theory == "CCSD(T)" else 0.0
        return _Solved(mf, post, float(post.e_tot + triples))

    def _scf(self, mol: Any, guess: np.ndarray | None) -> Any:
        from pyscf import dft, scf

        if self.is_functional:
            mf = dft.RKS(mol) if mol.spin == 0 else dft.UKS(mol)
            mf.xc = self.theory
            mf.grids.level = self.settings["grid"]
        else:
            mf = scf.RHF(mol) if mol.spin == 0 else scf.UHF(mol)
        mf.conv_tol, mf.conv_tol_grad = self.settings["conv_tol"], self.settings["conv_tol_grad"]
        mf.max_cycle = self.settings["max_cycle"]
        mf.kernel(guess)
        if not mf.converged:  # second-order steps from the last orbitals of DIIS
            mf = mf.newton()
            mf.kernel(mf.mo_coeff, mf.mo_occ)
            mf = mf.undo_soscf()
        if not mf.converged:
            raise LabelError(f"SCF did not converge in {mf.max_cycle} cycles, nor with second-order steps")
        return mf

    def _forces(self, solved: _Solved) -> np.ndarray:
        """Forces (n, 3) in eV/Å."""
        if solved.mf.mol.natm == 1:  # some of PySCF's gradients need two atoms
            return np.zeros((1, 3))
        if solved.post is None:
            gradient = solved.mf.nuc_grad_method()
            if self.is_functional:
                gradient.grid_response = True
            return self._as_forces(gradient.kernel())
        if self.theory == "CCSD(T)":
            return self._as_forces(self._triples_gradient(solved.post))
        if self.theory == "CCSD":
            solved.post.solve_lambda()
            self._check_lambda(solved.post.converged_lambda)
        return self._as_forces(solved.post.nuc_grad_method().kernel())

    @staticmethod
    def _as_forces(gradient: np.ndarray) -> np.ndarray:
        return -np.asarray(gradient) * _HARTREE / BOHR_TO_ANGSTROM

    def _triples_gradient(self, post: Any) -> np.ndarray:
        from pyscf.cc import ccsd_t_lambda
        from pyscf.grad import ccsd_t

        integrals = post.ao2mo()
        converged, l1, l2 = ccsd_t_lambda.kernel(
            post, integrals, post.t1, post.t2, max_cycle=post.max_cycle, tol=post.conv_tol_normt, verbose=0
        )
        self._check_lambda(converged)
        return ccsd_t.Gradients(post).kernel(post.t1, post.t2, l1, l2, eris=integrals)

    @staticmethod
    def _check_lambda(converged: bool) -> None:
        if not converged:
            raise LabelError("the lambda equations, which forces need, did not converge")

    def _hessian(self, solved: _Solved, atoms: Atoms, charge: int, multiplicity: int) -> np.ndarray:
        """Analytic for HF; otherwise by differences of forces, as PySCF has none, or without the grid's response."""
        if len(atoms) == 1:
            return np.zeros((1, 3, 1, 3))
        if self.theory == "HF":
            return solved.mf.Hessian().kernel().transpose(0, 2, 1, 3) * _HARTREE / BOHR_TO_ANGSTROM**2
        guess = solved.mf.make_rdm1()
        return hessian_from_forces(
            lambda pos: self._forces(self._solve(atoms, pos, charge, multiplicity, guess)), atoms.positions
        )


@dataclass(frozen=True)
class _Solved:
    """A mean field, the correlated calculation on it if any, and the total energy in Hartree."""

    mf: Any
    post: Any
    energy: float


def _check_functional(name: str) -> None:
    """Check that PySCF knows a functional, and has the dispersion correction in its name.

    Raises:
        MFPyGError: naming it.
    """
    from pyscf.dft import libxc
    from pyscf.scf import dispersion

    try:
        functional, _, correction = dispersion.parse_dft(name)
        libxc.parse_xc(functional)
    except NotImplementedError as error:
        raise MFPyGError(f"PySCF does not support the functional '{name}' ({error})") from error
    except (KeyError, ValueError) as error:
        known = [key.lower() for key in (*_SETTINGS, *libxc.XC_ALIAS, *libxc.XC_CODES)]
        raise MFPyGError(f"PySCF knows no method or functional '{name}'{did_you_mean(name.lower(), known)}") from error
    if correction and dispersion.dispersion is None:
        raise MFPyGError(f"{name} needs pyscf-dispersion, which is not installed; pip install pyscf-dispersion")
