"""Relaxed geometry and harmonic frequencies of methanol at the level of the bundled ``cc`` labels.

Frozen-core CCSD(T)/cc-pVDZ with analytic gradients of PySCF 2.14:

    pip install pyscf ase && python methanol_ccsdt.py
"""

import ase
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import BFGS
from ase.units import Bohr, Hartree
from ase.vibrations import Vibrations
from pyscf import cc, gto, scf
from pyscf.cc import ccsd_t_lambda_slow
from pyscf.grad import ccsd_t as gradients


class CCSDT(Calculator):
    """Frozen-core CCSD(T)/cc-pVDZ."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (as in ASE)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):  # type: ignore[no-untyped-def]
        super().calculate(atoms, properties, system_changes)
        frame = [(atom.symbol, atom.position) for atom in self.atoms]
        reference = scf.RHF(gto.M(atom=frame, basis="cc-pvdz", verbose=0)).run(conv_tol=1e-11)
        solver = cc.CCSD(reference, frozen=int((self.atoms.numbers > 1).sum()))
        solver.conv_tol, solver.conv_tol_normt = 1e-9, 1e-7
        solver.kernel()
        integrals = solver.ao2mo()
        energy = solver.e_tot + solver.ccsd_t(eris=integrals)
        _, l1, l2 = ccsd_t_lambda_slow.kernel(solver, integrals, solver.t1, solver.t2, tol=1e-8, verbose=0)
        gradient = gradients.Gradients(solver).kernel(solver.t1, solver.t2, l1, l2, eris=integrals)
        self.results = {"energy": energy * Hartree, "forces": -gradient * Hartree / Bohr}


def report(atoms: ase.Atoms) -> None:
    """Relax, and print bond lengths, the angle and frequencies."""
    BFGS(atoms).run(fmax=2e-4)
    vibrations = Vibrations(atoms, name="vibrations-ccsdt", delta=0.01)
    vibrations.clean()
    vibrations.run()
    print("C-O, O-H, C-H in Å:", [round(atoms.get_distance(*pair), 4) for pair in ((0, 1), (1, 3), (0, 2), (0, 4))])
    print("C-O-H in degrees:", round(atoms.get_angle(0, 1, 3), 2))
    print("frequencies in cm⁻¹:", vibrations.get_frequencies().real[6:].round().astype(int).tolist())


if __name__ == "__main__":
    methanol = molecule("CH3OH")
    methanol.calc = CCSDT()
    report(methanol)
