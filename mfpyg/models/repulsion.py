r"""Screened nuclear repulsion of Ziegler, Biersack and Littmark (ZBL), at distances shorter than bonds.

A network that was never trained on short distances may predict an attraction there, by which atoms fuse in dynamics.
The pair energy is added to the energies of all fidelities, which learn the difference of their labels to it,

.. math:: V(r) = \frac{1}{4\pi\varepsilon_0} \frac{Z_i Z_j e^2}{r}\, \phi(r/a)\, s(r), \qquad
          a = \frac{0.46850\ \mathrm{Å}}{Z_i^{0.23} + Z_j^{0.23}},

with the universal screening function φ (J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in
Matter, Pergamon, 1985; constants as in LAMMPS) and a switch s with two continuous derivatives, from 1 at the inner
radius to 0 at the outer one.
"""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from mfpyg.graph import Graph
from mfpyg.units import BOHR_TO_ANGSTROM, HARTREE_TO_KCAL_MOL

COULOMB = HARTREE_TO_KCAL_MOL * BOHR_TO_ANGSTROM
"""e²/4πε₀ in kcal/mol Å."""

SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""c and d of φ(x) = Σ c exp(−d x)."""

LENGTH, POWER = 0.46850, 0.23
"""Numerator in Å and exponent of the screening length a."""

OUTER = 0.65
"""Outer radius in units of the sum of the covalent radii; the shortest bond by this measure, N≡N, is 0.77 long.

With 0.75 there would be a force of 50 kcal/mol/Å in C≡C compressed to 1.10 Å, as in the bundled data, which the network
would have to cancel.
"""

INNER = 0.35
"""Inner radius in the same units."""


class ZBL(nn.Module):
    """ZBL repulsion of the pairs of a graph; has no parameters.

    Args:
        cutoff: in Å; outer radii are not beyond it.
    """

    radius: Tensor

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        radius = torch.from_numpy(100 * covalent_radii).round().to(torch.int64)  # in pm: stays exact if others are cast
        self.register_buffer("radius", radius, persistent=False)

    def forward(self, graph: Graph) -> Tensor:
        """Half of the energy of each pair for each of its atoms, in kcal/mol, (n_atoms,)."""
        (source, target), r = graph.edge_index, graph.edge_dist
        energy = graph.edge_vec.new_zeros(graph.z.shape[0])
        return energy.index_add(0, target, 0.5 * self.pair_energy(graph.z[source], graph.z[target], r))

    def pair_energy(self, z_i: Tensor, z_j: Tensor, r: Tensor) -> Tensor:
        """V of pairs of atoms in kcal/mol.

        Args:
            z_i, z_j: atomic numbers, (n_pairs,) int64.
            r: distances in Å, (n_pairs,).
        """
        one, two = z_i.to(r), z_j.to(r)
        x = r * (one**POWER + two**POWER) / LENGTH
        screening = torch.stack([c * torch.exp(-d * x) for c, d in SCREENING]).sum(dim=0)
        outer = (OUTER / 100 * (self.radius[z_i] + self.radius[z_j]).to(r)).clamp(max=self.cutoff)
        inner = INNER / OUTER * outer
        u = ((r - inner) / (outer - inner)).clamp(0, 1)
        switch = 1 - u**3 * (10 - 15 * u + 6 * u**2)
        return COULOMB * one * two / r * screening * switch
