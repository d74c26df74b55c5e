"""Output layers of a fidelity: from features to atomic energies."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mfpyg.errors import unknown_name
from mfpyg.models.backbone import reset
from mfpyg.models.system import System
from mfpyg.properties import HEADS


class Head(nn.Module):
    """Atomic energy terms of one fidelity: a table of reference energies, and an output layer for each level.

    Level 0 is the table of atomic reference energies, which are fitted and then fixed. It stays in float64 if the model
    is cast, as float32 would round total energies of -10⁵ kcal/mol by 0.01 kcal/mol. Level l ≥ 1 is a layer with bias,
    whose initial (last) weights are scaled by 1e-2, 1e-4, 1e-8, each the square of the previous factor, so that the
    reference energies dominate at the start; levels beyond the third also by 1e-8, as further squares would be zero.

    Args:
        feature_sizes: width of each level; that of level 0 is the number of species.
    """

    reference: Tensor

    def __init__(self, feature_sizes: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("reference", torch.zeros(feature_sizes[0], dtype=torch.float64))
        self.levels = nn.ModuleList(self.output(width) for width in feature_sizes[1:])
        self.reset_parameters()

    def output(self, width: int) -> nn.Module:
        """Create the output layer of a level, (n_atoms, width) -> (n_atoms, 1)."""
        raise NotImplementedError

    def last(self, level: nn.Module) -> nn.Module:
        """The part of an output layer whose initial weights are scaled."""
        raise NotImplementedError

    def last_features(self, features: Sequence[Tensor]) -> Tensor:
        """Features that the energy is linear in, of all levels side by side, (n_atoms, d)."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw new weights; the reference energies are kept."""
        reset(self)
        scale_down(self.last(level) for level in self.levels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of every level -> atomic energy term of every level ≥ 1, (n_atoms,) each, in kcal/mol."""
        return [level(x).squeeze(1) for level, x in zip(self.levels, features[1:], strict=True)]

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        reference = self.reference
        super()._apply(fn, recurse)
        # ``model.float()`` or ``.half()`` must not round the reference energies, but they follow the device.
        self.reference = reference.to(device=self.reference.device)
        return self


class LinearHead(Head):
    """Linear output layers (eqs. 8-9 of the MFL paper)."""

    def output(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def last(self, level: nn.Module) -> nn.Module:
        return level

    def last_features(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(features), dim=1)


class NonlinearHead(Head):
    """Output layers with a hidden layer, w · silu(W x + b) + c, as suggested in section 4 of the MFL paper.

    Args:
        feature_sizes: see :class:`Head`.
        width: width of the hidden layers; default: half the width of the level.
    """

    def __init__(self, feature_sizes: Sequence[int], width: int | None = None) -> None:
        self._width = width
        super().__init__(feature_sizes)

    def output(self, width: int) -> nn.Module:
        hidden = self._width or max(width // 2, 1)
        return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def last(self, level: nn.Module) -> nn.Module:
        return level[-1]  # type: ignore[index]

    def last_features(self, features: Sequence[Tensor]) -> Tensor:
        hidden = [level[:-1](x) for level, x in zip(self.levels, features[1:], strict=True)]  # type: ignore[index]
        return torch.cat([features[0], *hidden], dim=1)


def make_head(kind: str, feature_sizes: Sequence[int], width: int | None = None) -> Head:
    """Create the output layers of a fidelity.

    Args:
        kind: ``linear`` or ``nonlinear``.
        feature_sizes: width of each level; that of level 0 is the number of species.
        width: width of the hidden layers of ``nonlinear``.

    Raises:
        MFPyGError: for an unknown kind.
    """
    if kind == "linear":
        return LinearHead(feature_sizes)
    if kind == "nonlinear":
        return NonlinearHead(feature_sizes, width)
    raise unknown_name("head", kind, ("linear", "nonlinear"))


class FurtherHead(nn.Module):
    """Output layers of one fidelity for other properties than the energy and its derivatives.

    Args:
        feature_sizes: width of each level; that of level 0 is the number of species.
    """

    def __init__(self, feature_sizes: Sequence[int]) -> None:
        super().__init__()

    def predict(self, features: Sequence[Tensor], letters: str, system: System, pos: Tensor) -> dict[str, Tensor]:
        """Predict properties by their letters, those among ``letters`` at least.

        Args:
            features: features of every level, (n_atoms, width) each.
            letters: letters of properties, see :mod:`mfpyg.properties`.
            system: atoms, with charges and masses.
            pos: positions in Å as a function of which the properties are differentiated, (n_atoms, 3).
        """
        raise NotImplementedError


def make_further_head(kind: str, feature_sizes: Sequence[int]) -> FurtherHead:
    """Create a head of :data:`mfpyg.properties.HEADS`."""
    module, _, name = HEADS[kind].partition(":")
    head: FurtherHead = getattr(importlib.import_module(module), name)(feature_sizes)
    return head


def scale_down(layers: Iterable[nn.Module]) -> None:
    """Scale the weights of the output layers of level 1, 2, 3, … by 1e-2, 1e-4, 1e-8, 1e-8, …, see :class:`Head`."""
    decay = 1e-2
    for layer in layers:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(decay)
        decay = max(decay * decay, 1e-8)


def hierarchicality(terms: Sequence[Tensor]) -> Tensor:
    """Σ_l E_l² / (E_l² + E_{l−1}²) of every atom, with 0/0 = 0; small if each level is a correction to the previous.

    Args:
        terms: atomic energies of level 0, 1, …, (n_atoms,) each.

    Returns:
        (n_atoms,).
    """
    total = torch.zeros_like(terms[-1])
    for lower, upper in itertools.pairwise(terms):
        numerator = upper.square()
        denominator = numerator + lower.square()
        empty = denominator < torch.finfo(denominator.dtype).tiny  # zero or denormal
        total = total + numerator / torch.where(empty, torch.ones_like(denominator), denominator)
    return total
