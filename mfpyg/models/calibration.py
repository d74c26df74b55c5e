r"""Calibration of standard deviations by held-out labels, also of forces of a level that has no force labels.

Standard deviations :math:`s` of a model are scaled so that :math:`a^2 \langle s^2\rangle` is the mean squared error of
the held-out conformations. Intervals follow from quantiles :math:`q_p` of :math:`|e|/(a s)` (split conformal inference,
Angelopoulos and Bates, arXiv 2107.07511): :math:`\pm q_p\,a s` holds the label with probability :math:`p`.

Where a level l has no force labels, its mean squared error of forces is predicted from what is known: the errors of the
forces of a level b that has them, and of the energies :math:`\Delta e = e_l - e_b` of the difference, which is learnt
from energies,

.. math:: \langle e_{F,l}^2\rangle = \langle e_{F,b}^2\rangle + \kappa^2 \langle \Delta e^2 \rangle .

:math:`\kappa` in 1/Å is the ratio of the standard deviations of forces and energies of a linear model of the last
features that is trained on energies, see :func:`mfpyg.evaluation.uncertainty.force_per_energy`. Without a level b,
:math:`\langle e_{F,l}^2\rangle = \kappa^2 \langle e_l^2\rangle`. The quantiles are those of the sum of an error of b
and of a normally distributed one, or of the normal distribution. If the held-out conformations have pairs of near
geometries, their directional forces measure the mean squared error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

FEWEST = 10
"""Number of held-out conformations with a label that a calibration needs at least."""

PROBABILITIES = np.arange(1, 100) / 100
"""Probabilities of the quantiles."""

NORMAL = np.array([NormalDist().inv_cdf((1 + p) / 2) for p in PROBABILITIES.tolist()])
"""Quantiles of the absolute value of a standard normal variable."""


@dataclass
class HeldOut:
    """Labels and predictions of n held-out conformations with N atoms.

    Attributes:
        data: fingerprint of the data set.
        rows: numbers of the conformations, (n,) int64.
        n_atoms: number of atoms of each, (n,) int64.
        energy: labels and predictions of each level in kcal/mol, (2, n) float64; labels are NaN where missing.
        forces: labels and predictions of each level in kcal/mol/Å, (2, N, 3) float32; labels are NaN where missing.
        force_per_energy: κ in 1/Å of the levels with less than :data:`FEWEST` force labels.
        pairs: pairs of near geometries among the conformations, (m, 2) int64.
        pair_scale: √(k / 3n) / |d| of each pair in 1/Å, see :mod:`mfpyg.evaluation.pairs`: with it, the difference of
            two errors of energies has on average the square of an error of a force component, (m,).
    """

    data: str
    rows: np.ndarray
    n_atoms: np.ndarray
    energy: dict[str, np.ndarray]
    forces: dict[str, np.ndarray]
    force_per_energy: dict[str, float]
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    pair_scale: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def energy_errors(self, name: str) -> np.ndarray:
        """Predicted less labelled energies of a level, (n,), NaN where there is no label."""
        label, predicted = self.energy[name]
        errors: np.ndarray = predicted - label
        return errors

    def force_errors(self, name: str) -> np.ndarray:
        """Predicted less labelled forces of a level, (N, 3), NaN where there is no label."""
        label, predicted = self.forces[name]
        errors: np.ndarray = predicted.astype(np.float64) - label
        return errors

    def pair_errors(self, name: str) -> np.ndarray:
        """Errors of directional forces of the pairs with labels, scaled to those of force components, (m',)."""
        of_energy = self.energy_errors(name)
        errors = (of_energy[self.pairs[:, 1]] - of_energy[self.pairs[:, 0]]) * self.pair_scale
        known: np.ndarray = errors[np.isfinite(errors)]
        return known


@dataclass
class Calibration:
    r"""Calibration of the standard deviations of one level.

    Attributes:
        energy_scale, forces_scale: factors of the standard deviations.
        quantiles: quantiles of \|error\| over the scaled standard deviation of energies and of force components at
            :data:`PROBABILITIES`, (2, 99).
    """

    energy_scale: float
    forces_scale: float
    quantiles: np.ndarray


def calibrate(
    held_out: HeldOut, energy_std: Mapping[str, np.ndarray], forces_std: Mapping[str, np.ndarray]
) -> dict[str, Calibration]:
    """Calibrate standard deviations of held-out predictions.

    Args:
        held_out: labels and predictions.
        energy_std: standard deviations of each level before calibration, (n,).
        forces_std: those of force components, (N, 3).

    Returns:
        Calibrations of the levels with at least :data:`FEWEST` held-out energies, unless their standard deviations are
        zero, as those of equal members of an ensemble.
    """
    found = {}
    for name, std in energy_std.items():
        errors = held_out.energy_errors(name)
        known = np.isfinite(errors)
        if known.sum() < FEWEST or not std[known].any() or not forces_std[name].any():
            continue
        energy_scale, energy_quantiles = scale_and_quantiles(errors[known], std[known])
        forces_scale, forces_quantiles = _of_forces(held_out, name, forces_std)
        found[name] = Calibration(energy_scale, forces_scale, np.stack([energy_quantiles, forces_quantiles]))
    return found


def scale_and_quantiles(errors: np.ndarray, std: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Factor of standard deviations, and quantiles of \|error\| over their multiples.

    With n errors, the quantile at p is the one of rank ⌈(n + 1) p⌉, at most n, whose interval holds a further error
    with a probability of at least p. Standard deviations of zero, as those of components that vanish by symmetry for
    all members of an ensemble, are left out.
    """
    errors, std = errors[std > 0], std[std > 0]
    scale = float(np.sqrt(np.mean(errors**2) / np.mean(std**2)))
    ratios = np.sort(np.abs(errors) / (scale * std))
    ranks = -(-(len(ratios) + 1) * np.arange(1, 100) // 100)
    return scale, ratios[ranks.clip(max=len(ratios)) - 1]


def _of_forces(held_out: HeldOut, name: str, std: Mapping[str, np.ndarray]) -> tuple[float, np.ndarray]:
    errors = held_out.force_errors(name)
    known = np.isfinite(errors)
    if n_force_labels(held_out, name) >= FEWEST:
        return scale_and_quantiles(errors[known], std[name][known])
    mean_square, quantiles = expected_force_error(held_out, name, std)
    of_pairs = held_out.pair_errors(name)
    if len(of_pairs) >= FEWEST:
        mean_square = float(np.mean(of_pairs**2))
    return float(np.sqrt(mean_square / np.mean(std[name] ** 2))), quantiles


def expected_force_error(held_out: HeldOut, name: str, std: Mapping[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Mean squared error of force components of a level without force labels, and quantiles; see the module."""
    of_level = held_out.energy_errors(name)
    kappa = held_out.force_per_energy[name]
    rng = np.random.default_rng(0)
    best, quantiles = kappa**2 * float(np.nanmean(of_level**2)), NORMAL
    for base in held_out.forces:
        difference = of_level - held_out.energy_errors(base)
        if base == name or n_force_labels(held_out, base) < FEWEST or np.isfinite(difference).sum() < FEWEST:
            continue
        errors = held_out.force_errors(base)
        known = np.isfinite(errors)
        mean_square = float(np.mean(errors[known] ** 2)) + kappa**2 * float(np.nanmean(difference**2))
        if mean_square < best:
            of_base = std[base][known] if std[base][known].any() else std[name][known]  # zero for equal members
            shape = of_base / np.sqrt(np.mean(of_base**2))
            more = kappa * np.sqrt(np.nanmean(difference**2)) * shape * rng.standard_normal(len(shape))
            best, quantiles = mean_square, scale_and_quantiles(errors[known] + more, shape)[1]
    return best, quantiles


def n_force_labels(held_out: HeldOut, name: str) -> int:
    """Number of conformations with force labels of a level."""
    first = np.cumsum(held_out.n_atoms) - held_out.n_atoms
    return int(np.isfinite(held_out.forces[name][0][first]).all(axis=1).sum())
