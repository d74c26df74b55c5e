r"""Standard deviations of energies and forces of one potential, from the features that its heads multiply.

The energy of a level is linear in the last features :math:`\phi_i` of its atoms, :math:`E = w\cdot\sum_i \phi_i`. With
the weights as those of a Bayesian linear regression on the training energies, its variance is

.. math:: \sigma_E^2 = a_E^2\; \Phi^T \Big(\sum_{t} \Phi_t \Phi_t^T + \varsigma\Big)^{-1} \Phi,
          \qquad \Phi = \sum_i \phi_i,

the last-layer prediction rigidity of Bigi, Chong, Ceriotti and Grasselli (Mach. Learn.: Sci. Technol. 5, 045018, 2024).
The force on an atom is as uncertain as its surroundings are unlike those of the training atoms,

.. math:: \sigma_{F,i}^2 = a_F^2\; \phi_i^T \Big(\sum_{t}\sum_{j\in t} \phi_j \phi_j^T + \varsigma\Big)^{-1} \phi_i ,

equally in all directions. It ranks errors of forces as well as the exact variance of the linear model, whose
:math:`\partial\Phi/\partial x` takes a backward pass for each feature. The factors :math:`a` are fitted to held-out
labels, see :mod:`mfpyg.evaluation.uncertainty`. No backward pass is needed: the features are those of the prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 1e-6
"""ς, in units of the mean eigenvalue of the Gram matrix."""


class LastLayer(nn.Module):
    """Standard deviations of the energies and forces of one fidelity.

    Args:
        energy, atoms: W with W Wᵀ the inverse matrices above, of molecules and of atoms, (d, d); see
            :func:`whitening`.
        scale: a_E in kcal/mol and a_F in kcal/mol/Å, (2,).
    """

    energy: Tensor
    atoms: Tensor
    scale: Tensor

    def __init__(self, energy: Tensor, atoms: Tensor, scale: Tensor) -> None:
        super().__init__()
        for name, value in {"energy": energy, "atoms": atoms, "scale": scale}.items():
            self.register_buffer(name, value, persistent=False)  # not weights; see mfpyg.checkpoint

    def forward(self, features: Tensor, batch: Tensor, n_graphs: int) -> tuple[Tensor, Tensor]:
        """Standard deviations of energies, (n_graphs,), and of force components, (n_atoms,).

        Args:
            features: last features of the atoms, (n_atoms, d).
            batch: graph of each atom, (n_atoms,) int64.
            n_graphs: number of graphs.
        """
        energy = self.scale[0] * (of_graphs(features, batch, n_graphs) @ self.energy).norm(dim=1)
        return energy, self.scale[1] * (features @ self.atoms).norm(dim=1)


class LastLayers(nn.ModuleDict):
    """Standard deviations by fidelity, whose name may be that of an attribute of modules, such as ``half``."""

    def __setitem__(self, fidelity: str, layer: nn.Module) -> None:
        self._modules[fidelity] = layer


def of_graphs(features: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """Sum of the features of the atoms of each graph, (n_atoms, d) -> (n_graphs, d)."""
    return features.new_zeros(n_graphs, features.shape[1]).index_add_(0, batch, features)


def whitening(gram: Tensor) -> Tensor:
    """W with W Wᵀ = (G + ς)⁻¹, so that φᵀ (G + ς)⁻¹ φ = |φ W|²; (d, d) -> (d, d)."""
    ridge = RIDGE * gram.diagonal().mean()
    values, vectors = torch.linalg.eigh(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return vectors / values.clamp(min=ridge).sqrt()
