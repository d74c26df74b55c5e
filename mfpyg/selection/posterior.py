r"""Joint distribution of the errors of several levels in the last layer, and what labels tell about one of them.

The errors of the energies of level l are linear in the last features of the target level, :math:`\Phi w_l`, those of
forces in :math:`-\partial\Phi/\partial x\; w_l`. The weights of all levels have a normal distribution with the
covariance :math:`B \otimes I`, B (T, T) being that of the levels: the intrinsic coregionalization model (Bonilla, Chai
and Williams, NeurIPS 20, 2007). Labels have a noise with the covariance :math:`\eta B` between the levels of one
molecule, so that two of them tell the difference of two levels better than either level. It stands for features that
are yet to be learnt, and is not a part of the error that is predicted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve

ENERGY_NOISE, FORCE_NOISE = 1e-3, 1.0
"""η of energies in Å², and of forces, where the forces have a mean variance of B before any label.

With these, the scale of B depends least on the number of labels, from 40 to 320 conformations of the bundled data, by
errors on conformations of the training split that are not labelled: ``benchmarks/selection_noise.py``.
"""


@dataclass
class Features:
    """Last features of a molecule.

    Attributes:
        energy: Φ, (d,).
        forces: J = −∂Φ/∂x, (3n, d); ``None`` if not requested.
    """

    energy: np.ndarray
    forces: np.ndarray | None = None

    def of(self, letter: str) -> np.ndarray:
        """Features of the energy (``E``), (1, d), or of the forces (``F``), (3n, d)."""
        if letter == "E":
            return self.energy[None]
        assert self.forces is not None
        return self.forces


NOISE = {"E": ENERGY_NOISE, "F": FORCE_NOISE}
"""η by the letter of the property."""


@dataclass
class Grams:
    """Sums of products of the features of labelled molecules.

    Attributes:
        of: Σ Φᵀ Φ of energies, Σ Jᵀ J of forces, (d, d), by the letter of the property and the numbers of the levels
            that label the same molecules.
    """

    of: dict[tuple[str, tuple[int, ...]], np.ndarray] = field(default_factory=dict)

    def add(self, features: Features, labels: Iterable[tuple[int, str]], weight: float = 1.0) -> None:
        """Add a molecule.

        Args:
            features: its features.
            labels: the number of each level that labels it, and the letters of these labels.
            weight: number of molecules that it stands for.
        """
        pairs = sorted(labels)
        for letter in NOISE:
            together = tuple(level for level, letters in pairs if letter in letters)
            if together:
                rows = features.of(letter)
                self.of[letter, together] = self.of.get((letter, together), 0.0) + weight * rows.T @ rows


class Posterior:
    """Distribution of the weights of T levels with d features each.

    Args:
        levels: B, (T, T), in (kcal/mol/Å)².
        grams: features of the labels that there are.
        target: number of the level whose forces are wanted.
        metric: mean of Jᵀ J over the components of forces that are wanted, (d, d).

    Attributes:
        covariance: covariance of all weights, level by level, (T d, T d).
    """

    def __init__(self, levels: np.ndarray, grams: Grams, target: int, metric: np.ndarray) -> None:
        self.levels, self.metric = levels, metric
        self._target = slice(target * len(metric), (target + 1) * len(metric))
        precision = np.kron(np.linalg.inv(levels), np.eye(len(metric)))
        for (letter, together), gram in grams.of.items():
            among = np.zeros_like(levels)
            among[np.ix_(together, together)] = np.linalg.inv(levels[np.ix_(together, together)])
            precision += np.kron(among, gram / NOISE[letter])
        self.covariance = cho_solve(cho_factor(precision), np.eye(len(precision)))

    def mean_square_error(self) -> float:
        """Expected mean squared error of the wanted components of forces in (kcal/mol/Å)²."""
        return float(np.sum(self.metric * self.covariance[self._target, self._target]))

    def rows(self, features: Features, letter: str, level: int, known: Collection[int] = ()) -> np.ndarray:
        """Coefficients of labels in all weights, divided by the standard deviation of their noise, (m, T d).

        Args:
            features: features of the molecule.
            letter: property.
            level: number of the level.
            known: levels that label this property of the molecule already, and with whose noise that of the labels is
                correlated.
        """
        others = list(known)
        among, variance = np.zeros(len(self.levels)), self.levels[level, level]
        if others:
            among[others] = -np.linalg.solve(self.levels[np.ix_(others, others)], self.levels[others, level])
            variance = variance + self.levels[level, others] @ among[others]
        among[level] = 1.0
        return np.kron(among, features.of(letter)) / np.sqrt(NOISE[letter] * variance)

    def gain(self, rows: np.ndarray) -> float:
        """Reduction of :meth:`mean_square_error` by labels with these coefficients, (m, T d)."""
        explained = self._explained(rows)[:, self._target]
        return float(np.sum((explained @ self.metric) * explained))

    def observe(self, rows: np.ndarray) -> None:
        """Condition the distribution on labels with these coefficients, (m, T d)."""
        explained = self._explained(rows)
        self.covariance -= explained.T @ explained

    def _explained(self, rows: np.ndarray) -> np.ndarray:
        """V with Vᵀ V the reduction of the covariance, (m, T d)."""
        product = rows @ self.covariance
        factor = np.linalg.cholesky(product @ rows.T + np.eye(len(rows)))
        explained: np.ndarray = np.linalg.solve(factor, product)
        return explained
