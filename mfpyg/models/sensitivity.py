"""Radial sensitivity functions of HIP-NN and the cutoff they end at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfpyg.models.parts import by_parts


def cosine_cutoff(dist: Tensor, cutoff: float) -> Tensor:
    """cos²(πr / 2R_c) up to the cutoff R_c, zero beyond. dist (n_edges,) in Å -> (n_edges,)."""
    inside = (dist <= cutoff).to(dist.dtype)
    return torch.cos(0.5 * math.pi / cutoff * dist).square() * inside


class Sensitivity(nn.Module):
    r"""How strongly an atom feels a neighbour at distance r, in n overlapping shells.

    .. math:: s_\nu(r) = \exp\left(-\tfrac12 \sigma_\nu^2 (1/r - 1/\mu_\nu)^2\right)\,\cos^2(\pi r / 2R_c)

    with trainable shell positions μ (Å) and widths σ (Å; larger is narrower). The shells start evenly
    spaced in 1/r between ``r_soft_max`` and ``r_soft_min``.

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
        return by_parts(self.of_part, dist, self.mu, self.sigma)

    def of_part(self, dist: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        deviation = sigma * (1 / dist.unsqueeze(1) - 1 / mu)  # (n_edges, n)
        # Below e⁻⁸⁰ = 2e-35 nothing is felt; exp is ten times slower where its result underflows.
        shells = torch.exp((-0.5 * deviation.square()).clamp(min=-80.0))  # (n_edges, n)
        return shells * cosine_cutoff(dist, self.cutoff).unsqueeze(1)
