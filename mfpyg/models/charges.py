"""Atomic charges of a fidelity, and the dipole moments of molecules that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import atomic_masses
from torch import Tensor, nn
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError
from mfpyg.models.backbone import reset
from mfpyg.models.heads import FurtherHead, scale_down
from mfpyg.models.system import System


class ChargeHead(FurtherHead):
    r"""Raw atomic charges of one fidelity, linear in the features of every level,

    .. math:: q_i = \sum_{l=0}^{L} w^l \cdot z_i^l

    Level 0 is one number per element, which starts at zero. The initial weights of level l ≥ 1 are scaled down as those
    of :class:`mfpyg.models.heads.Head`. There are no biases, which :func:`with_total` would subtract again.
    (Nebgen et al., J. Chem. Theory Comput. 14, 4687 (2018).)

    Args:
        feature_sizes: width of each level; that of level 0 is the number of species.
    """

    def __init__(self, feature_sizes: Sequence[int]) -> None:
        super().__init__(feature_sizes)
        self.levels = nn.ModuleList(nn.Linear(width, 1, bias=False) for width in feature_sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; the numbers of the elements become zero."""
        reset(self)
        elements, *layers = self.levels
        nn.init.zeros_(elements.weight)  # type: ignore[arg-type]
        scale_down(layers)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of every level, (n_atoms, width) each -> raw charges in e, (n_atoms,)."""
        terms = [layer(x) for layer, x in zip(self.levels, features, strict=True)]
        return torch.cat(terms, dim=1).sum(dim=1)

    def predict(self, features: Sequence[Tensor], letters: str, system: System, pos: Tensor) -> dict[str, Tensor]:
        """Charges Q that add up to the total charge, and dipole moments D, NaN for periodic graphs."""
        assert system.charge is not None
        assert system.mass is not None
        topology = system.topology
        charges = with_total(self(features), system.charge, topology.batch)
        if "D" not in letters:
            return {"Q": charges}
        dipole = dipoles(charges, pos, system.mass, topology.batch, topology.n_graphs)
        if system.lattice is not None:  # not defined
            dipole = torch.where(system.lattice.pbc.any(dim=1, keepdim=True), torch.nan, dipole)
        return {"Q": charges, "D": dipole}


def with_total(charges: Tensor, total: Tensor, batch: Tensor) -> Tensor:
    """Shift charges equally over the atoms of each graph: q_i → q_i + (Q − Σ_j q_j) / n.

    Args:
        charges: raw atomic charges in e, (n_atoms,).
        total: total charge Q of each graph in e, (n_graphs,).
        batch: graph of each atom, (n_atoms,) int64.

    Returns:
        Charges that add up to the total, (n_atoms,).
    """
    sums = torch.zeros_like(total).index_add_(0, batch, charges)  # (n_graphs,)
    n_atoms = torch.zeros_like(total).index_add_(0, batch, torch.ones_like(charges))
    return charges + ((total - sums) / n_atoms)[batch]


def dipoles(charges: Tensor, pos: Tensor, mass: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """Dipole moments relative to the centre of mass X, μ = Σ_i q_i (x_i − X), of which neutral molecules are
    independent.

    (Sifain et al., J. Phys. Chem. Lett. 9, 4495 (2018).)

    Args:
        charges: atomic charges in e, (n_atoms,).
        pos: positions in Å, (n_atoms, 3).
        mass: masses of the atoms, (n_atoms,).
        batch: graph of each atom, (n_atoms,) int64.
        n_graphs: number of graphs.

    Returns:
        In e·Å, (n_graphs, 3).
    """

    def by_graph(x: Tensor) -> Tensor:
        return x.new_zeros(n_graphs, x.shape[1]).index_add_(0, batch, x)

    mass = mass.unsqueeze(1)  # (n_atoms, 1)
    centre = by_graph(mass * pos) / by_graph(mass)  # (n_graphs, 3)
    return by_graph(charges.unsqueeze(1) * (pos - centre[batch]))


def total_charges(data: Data, n_graphs: int, dtype: torch.dtype) -> Tensor:
    """Total charge of each graph in e, (n_graphs,): ``data.charge``, or 0 if absent.

    Raises:
        MFPyGError: for another shape, or a charge that is not finite.
    """
    charge = getattr(data, "charge", None)
    if charge is None:
        return torch.zeros(n_graphs, dtype=dtype, device=data.pos.device)
    if not isinstance(charge, Tensor) or tuple(charge.shape) != (n_graphs,):
        found = f"shape {tuple(charge.shape)}" if isinstance(charge, Tensor) else f"type {type(charge).__name__}"
        raise MFPyGError(f"charge has {found}, expected a tensor ({n_graphs},): (1,) in the Data of each graph")
    charge = charge.to(device=data.pos.device, dtype=dtype)
    if not torch.isfinite(charge).all():
        graph = int((~torch.isfinite(charge)).nonzero()[0])
        raise MFPyGError(f"charge of graph {graph} is {float(charge[graph])}, expected a number in e; 0 if neutral")
    return charge


def masses(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Masses of atoms with these atomic numbers (n_atoms,), from :data:`ase.data.atomic_masses`."""
    return torch.from_numpy(atomic_masses).to(device=z.device, dtype=dtype)[z]
