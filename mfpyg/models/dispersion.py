"""London dispersion D3 with damping of Becke and Johnson as a baseline, by the package ``tad-dftd3``.

(Grimme, Antony, Ehrlich, Krieg, J. Chem. Phys. 132, 154104 (2010); Grimme, Ehrlich, Goerigk, J. Comput. Chem. 32, 1456
(2011); Friede, Ehlert, Grimme, Mewes, J. Chem. Phys. 161, 062501 (2024), the package.) Two-body terms only, as in
most programs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.units import BOHR_TO_ANGSTROM, HARTREE_TO_KCAL_MOL

PAIRS = 100_000
"""Largest number of pairs of atoms evaluated together, padding included, which limits the memory."""


class D3BJ:
    """D3(BJ) with the damping parameters of a functional.

    Args:
        method: functional, such as ``b3lyp``, by the names of s-dftd3.

    Raises:
        MFPyGError: if ``tad-dftd3`` is not installed, or has no such parameters.
    """

    def __init__(self, method: str) -> None:
        try:
            import tad_dftd3
        except ImportError as error:
            raise MFPyGError(
                f"baseline d3bj:{method} needs the package tad-dftd3, which is not installed; pip install 'mfpyg[d3]'"
            ) from error
        try:
            found = tad_dftd3.param.get_functional_params(method, damping="bj", dtype=torch.float64)
        except (KeyError, ValueError) as error:
            raise MFPyGError(
                f"baseline d3bj has no parameters of '{method}'; expected a functional that D3(BJ) was fitted to, "
                "without the suffix of the dispersion, such as d3bj:b3lyp, d3bj:pbe0 or d3bj:hf"
            ) from error
        self.method = method
        self.parameters = {name: found[name] for name in ("s6", "s8", "a1", "a2")}
        self.reference = tad_dftd3.reference.Reference(dtype=torch.float64)
        self._evaluate: Any = tad_dftd3.dftd3
        self._n_elements: int = tad_dftd3.defaults.MAX_ELEMENT

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method!r})"

    def __call__(self, z: Tensor, pos: Tensor, batch: Tensor, n_graphs: int) -> tuple[Tensor, Tensor]:
        """See :class:`mfpyg.models.baseline.Baseline`.

        Raises:
            MFPyGError: for an element beyond lawrencium.
        """
        if len(z) and int(z.max()) >= self._n_elements:
            raise MFPyGError(f"D3 has no parameters of element {int(z.max())}, expected at most {self._n_elements - 1}")
        sizes = torch.bincount(batch, minlength=n_graphs)  # (n_graphs,)
        firsts = sizes.cumsum(0) - sizes
        energies, forces = torch.zeros_like(pos[:, 0]), torch.zeros_like(pos)
        for graphs in _parts(sizes):
            slots = torch.arange(int(sizes[graphs].max()), device=z.device)
            there = slots < sizes[graphs, None]  # (n, n_max)
            atoms = (firsts[graphs, None] + slots)[there]
            of_part = self._padded(z[atoms], pos[atoms], there)
            energies = energies.index_copy(0, atoms, of_part[0])
            forces = forces.index_copy(0, atoms, of_part[1])
        return energies, forces

    def _padded(self, z: Tensor, pos: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and forces of molecules whose atoms are where ``there`` (n, n_max) is True."""
        numbers = z.new_zeros(there.shape).masked_scatter(there, z)
        again = pos.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            pos = pos if again else pos.detach().requires_grad_()
            padded = pos.new_zeros(*there.shape, 3).masked_scatter(there[..., None], pos / BOHR_TO_ANGSTROM)
            parameters = {name: value.to(pos) for name, value in self.parameters.items()}
            reference = self.reference.to(pos.device)
            energies = HARTREE_TO_KCAL_MOL * self._evaluate(numbers, padded, parameters, ref=reference)[there]
            (gradient,) = torch.autograd.grad(energies.sum(), pos, create_graph=again)
        return (energies, -gradient) if again else (energies.detach(), -gradient)


def _parts(sizes: Tensor) -> list[Tensor]:
    """Numbers of the molecules to evaluate together, of similar sizes."""
    order, parts, start = torch.argsort(sizes, descending=True, stable=True), list[Tensor](), 0
    order = order[sizes[order] > 0]
    while start < len(order):
        n = max(1, PAIRS // int(sizes[order[start]]) ** 2)
        parts.append(order[start : start + n])
        start += n
    return parts
