"""Fidelity-specific output layers: from features to atomic energies of one level of theory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfpyg.errors import unknown_name
from mfpyg.models.backbone import reset


class Head(nn.Module):
    """Atomic energy terms of one fidelity: a table of references, and an output layer for every level of features.

    Level 0 is a table of atomic reference energies, fitted and then fixed; it is kept in float64
    whatever the model is cast to, as total energies of -10⁵ kcal/mol would lose 0.01 kcal/mol in float32.
    Level l ≥ 1 is a layer with bias, whose initial (last) weights are scaled by 1e-2, 1e-4, 1e-8, each the
    square of the one before, so that the references dominate at the start; levels beyond the third by 1e-8, too, as
    they would be zero soon.

    Args:
        feature_sizes: width of each level, that of level 0 being the number of species.
    """

    reference: Tensor

    def __init__(self, feature_sizes: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("reference", torch.zeros(feature_sizes[0], dtype=torch.float64))
        self.levels = nn.ModuleList(self.output(width) for width in feature_sizes[1:])
        self.reset_parameters()

    def output(self, width: int) -> nn.Module:
        """The output layer of a level, (n_atoms, width) -> (n_atoms, 1)."""
        raise NotImplementedError

    def last(self, level: nn.Module) -> nn.Module:
        """The part of an output layer whose initial weights are scaled."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw new weights; the references stay."""
        reset(self)
        decay = 1e-2
        for level in self.levels:
            with torch.no_grad():
                for parameter in self.last(level).parameters():
                    parameter.mul_(decay)
            decay = max(decay * decay, 1e-8)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of every level -> atomic energy term of every level ≥ 1, (n_atoms,) each, in kcal/mol."""
        return [level(x).squeeze(1) for level, x in zip(self.levels, features[1:], strict=True)]

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        reference = self.reference
        super()._apply(fn, recurse)
        # ``model.float()`` or ``.half()`` must not round the references; a device still applies.
        self.reference = reference.to(device=self.reference.device)
        return self


class LinearHead(Head):
    """Linear in the features of every level (eqs. 8-9 of the MFL paper)."""

    def output(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def last(self, level: nn.Module) -> nn.Module:
        return level


class NonlinearHead(Head):
    """A hidden layer for every level, w · silu(W x + b) + c, as section 4 of the MFL paper proposes to try.

    Args:
        feature_sizes: see :class:`Head`.
        width: of the hidden layers; half of each level's, if not given.
    """

    def __init__(self, feature_sizes: Sequence[int], width: int | None = None) -> None:
        self._width = width
        super().__init__(feature_sizes)

    def output(self, width: int) -> nn.Module:
        hidden = self._width or max(width // 2, 1)
        return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def last(self, level: nn.Module) -> nn.Module:
        return level[-1]  # type: ignore[index]


def make_head(kind: str, feature_sizes: Sequence[int], width: int | None = None) -> Head:
    """The output layers of a fidelity.

    Args:
        kind: ``linear`` or ``nonlinear``.
        feature_sizes: width of each level, that of level 0 being the number of species.
        width: of the hidden layers of ``nonlinear``.

    Raises:
        MFPyGError: for an unknown kind.
    """
    if kind == "linear":
        return LinearHead(feature_sizes)
    if kind == "nonlinear":
        return NonlinearHead(feature_sizes, width)
    raise unknown_name("head", kind, ("linear", "nonlinear"))


def hierarchicality(terms: Sequence[Tensor]) -> Tensor:
    """Σ_l E_l² / (E_l² + E_{l−1}²) of every atom, 0/0 counting as 0; small when each level corrects the last.

    Args:
        terms: atomic energies of level 0, 1, …, (n_atoms,) each.

    Returns:
        (n_atoms,).
    """
    total = torch.zeros_like(terms[-1])
    for lower, upper in itertools.pairwise(terms):
        numerator = upper.square()
        denominator = numerator + lower.square()
        empty = denominator < torch.finfo(denominator.dtype).tiny  # 0/0, and what underflows to it
        total = total + numerator / torch.where(empty, torch.ones_like(denominator), denominator)
    return total
