"""Interaction layer of HIP-NN-TS: messages between atoms with radial and tensor sensitivities."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from mfpyg.graph import Graph
from mfpyg.kernels.neighbor_sum import NeighborSum

TENSOR_COMPONENTS = (1, 4, 9)
"""Components of all Cartesian tensors up to order 0, 1 and 2."""


def cosine_cutoff(dist: Tensor, cutoff: float) -> Tensor:
    """cos²(πr / 2R_c) up to the cutoff R_c, zero beyond. dist (n_edges,) in Å -> (n_edges,)."""
    inside = (dist <= cutoff).to(dist.dtype)
    return torch.cos(0.5 * math.pi / cutoff * dist).square() * inside


class Sensitivity(nn.Module):
    r"""Sensitivity to a neighbour at distance r in n overlapping radial shells.

    .. math:: s_\nu(r) = \exp\left(-\tfrac12 \sigma_\nu^2 (1/r - 1/\mu_\nu)^2\right)\,\cos^2(\pi r / 2R_c)

    with trainable shell positions μ (Å) and widths σ (Å; larger is narrower). Initially the shells are evenly spaced in
    1/r between ``r_soft_max`` and ``r_soft_min``.

    Args:
        n_sensitivities: number of shells n.
        r_soft_min, r_soft_max: innermost and outermost initial position in Å.
        cutoff: R_c in Å.
    """

    def __init__(self, n_sensitivities: int, r_soft_min: float, r_soft_max: float, cutoff: float) -> None:
        super().__init__()
        self.r_soft_min, self.r_soft_max, self.cutoff = r_soft_min, r_soft_max, cutoff
        self.mu = nn.Parameter(torch.empty(n_sensitivities))
        self.sigma = nn.Parameter(torch.empty(n_sensitivities))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        n = len(self.mu)
        with torch.no_grad():
            self.mu.copy_(1 / torch.linspace(1 / self.r_soft_max, 1 / self.r_soft_min, n))
            self.sigma.fill_(2 * n * self.r_soft_min)

    def forward(self, dist: Tensor) -> Tensor:
        """dist (n_edges,) in Å -> (n_edges, n)."""
        deviation = self.sigma * (1 / dist.unsqueeze(1) - 1 / self.mu)  # (n_edges, n)
        # e⁻⁸⁰ = 2e-35 is negligible; exp is ten times slower where its result underflows.
        shells = torch.exp((-0.5 * deviation.square()).clamp(min=-80.0))  # (n_edges, n)
        return shells * cosine_cutoff(dist, self.cutoff).unsqueeze(1)


def harmonics(unit: Tensor, order: int) -> Tensor:
    """Irreducible Cartesian tensors of unit vectors up to an order: 1, e, and e eᵀ − I/3.

    The five components of the traceless second-order tensor are √2 xy, √2 yz, √2 xz, (x² − y²)/√2 and
    (2z² − x² − y²)/√6, scaled so that the sum of their squares is its squared Frobenius norm.

    Args:
        unit: unit vectors, (n_edges, 3).
        order: 0, 1 or 2.

    Returns:
        (n_edges, 1), (n_edges, 4) or (n_edges, 9).
    """
    parts = [torch.ones_like(unit[:, :1])]
    if order >= 1:
        parts.append(unit)
    if order >= 2:
        x, y, z = unit.unbind(dim=1)  # (n_edges,) each
        mixed = [math.sqrt(2) * product for product in (x * y, y * z, x * z)]
        squares = [math.sqrt(1 / 2) * (x * x - y * y), math.sqrt(1 / 6) * (2 * z * z - x * x - y * y)]
        parts.append(torch.stack([*mixed, *squares], dim=1))  # (n_edges, 5)
    return torch.cat(parts, dim=1)


class Interaction(MessagePassing):
    r"""Messages from neighbours, contracted to invariants (eqs. 4-6 of the HIP-NN-TS paper).

    With a single weight V for all tensor orders, and :math:`m_{ij} = \sum_\nu s_\nu(r_{ij}) V_\nu z_j`,

    .. math::
        a_i = W z_i + b + \sum_j m_{ij}
            + t_1 \sqrt{\Big|\sum_j m_{ij}\, e_{ij}\Big|^2 + c}
            + t_2 \sqrt{\Big|\sum_j m_{ij}\, (e_{ij} e_{ij}^T - I/3)\Big|_F^2 + c}

    The features are multiplied by V once per atom, :math:`Q_j = V z_j`, so that no tensor of n_edges × 9n is formed.
    :meth:`message` is the readable definition of the sum over neighbours, against which the faster :mod:`mfpyg.kernels`
    are tested.

    Args:
        in_features, out_features: widths F_in and F_out.
        sensitivity: the n radial functions s.
        order: highest tensor order, 0 (HIP-NN), 1 or 2.
        cusp: c, which keeps the gradient of the norm finite at zero.
    """

    def __init__(self, in_features: int, out_features: int, sensitivity: Sensitivity, order: int, cusp: float) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.in_features, self.out_features = in_features, out_features
        self.order, self.cusp = order, cusp
        self.sensitivity = sensitivity
        self.weight = nn.Parameter(torch.empty(len(sensitivity.mu), out_features, in_features))
        self.self_interaction = nn.Linear(in_features, out_features)
        self.tensor_scales = nn.ParameterList(nn.Parameter(torch.empty(out_features)) for _ in range(order))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.sensitivity.reset_parameters()
        self.self_interaction.reset_parameters()
        nn.init.xavier_normal_(self.weight)
        nn.init.xavier_normal_(self.self_interaction.weight)
        for scale in self.tensor_scales:
            nn.init.normal_(scale)

    def forward(self, z: Tensor, graph: Graph, harmonics: Tensor, neighbor_sum: NeighborSum | None = None) -> Tensor:
        """z (n_atoms, F_in), harmonics (n_edges, n_components) of the edges -> (n_atoms, F_out).

        ``neighbor_sum`` replaces :meth:`message`, see :mod:`mfpyg.kernels`.
        """
        n, weight = len(self.weight), self.weight if graph.by_weights else self.weight.detach()
        transformed = (z @ weight.reshape(-1, self.in_features).T).view(-1, n, self.out_features)
        sensitivity = self.sensitivity(graph.edge_dist)  # (n_edges, n)
        if neighbor_sum is not None:
            moments = neighbor_sum(sensitivity, harmonics, transformed)
        else:
            size = (graph.n_atoms, graph.n_atoms)
            moments = self.propagate(
                graph.edge_index, transformed=transformed, sensitivity=sensitivity, harmonics=harmonics, size=size
            )
        return self.invariants(moments) + self.self_interaction(z)  # moments: (n_atoms, 1 + 3 + 5, F_out)

    def message(self, transformed_j: Tensor, sensitivity: Tensor, harmonics: Tensor) -> Tensor:
        """Harmonics times m_ij, (n_edges, n_components, F_out)."""
        message = torch.bmm(sensitivity.unsqueeze(1), transformed_j)  # (n_edges, 1, F_out)
        return harmonics.unsqueeze(2) * message

    def invariants(self, moments: Tensor) -> Tensor:
        """Rotational invariants of summed tensors: (n_atoms, n_components, F_out) -> (n_atoms, F_out)."""
        scalar, *tensors = moments.split([2 * order + 1 for order in range(self.order + 1)], dim=1)
        result = scalar.squeeze(1)
        for tensor, scale in zip(tensors, self.tensor_scales, strict=True):
            result = result + scale * (tensor.square().sum(dim=1) + self.cusp).sqrt()
        return result
