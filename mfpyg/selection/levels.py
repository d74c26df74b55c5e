r"""Covariance of the errors of several levels, from their labels and from held-out errors.

Each level but the first is a multiple of an earlier one plus an independent difference, as in the autoregressive model
of Kennedy and O'Hagan (Biometrika 87, 1, 2000): :math:`w_l = \rho_l w_{p(l)} + \delta_l`. The multiple is that of the
labels of molecules that have both, after their compositions are fitted. The variances are those with which the
distribution of :mod:`mfpyg.selection.posterior` describes the held-out errors best, of forces where there are force
labels, else of energies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from mfpyg.errors import MFPyGError
from mfpyg.selection.posterior import NOISE, Features

FEWEST = 3
"""Degrees of freedom that the comparison of the labels of two levels needs at least."""

PRIOR_WEIGHT = 4
"""Number of held-out molecules that the variance expected from the labels counts as."""


@dataclass
class LabelledMolecules:
    """Molecules with labels of T levels.

    Attributes:
        rows: numbers of n conformations in their data set, (n,) int64.
        features: their features.
        letters: letters of the labels of each, by the number of the level.
        energy: energies in kcal/mol, (n, T), NaN where missing; labels, or errors of predictions.
        forces: errors of forces in kcal/mol/Å of each, by the number of the level, (3 n_atoms,); empty for labels.
        weight: number of molecules that each stands for, as random ones of a larger set.
    """

    rows: np.ndarray
    features: list[Features]
    letters: list[dict[int, str]]
    energy: np.ndarray
    forces: list[dict[int, np.ndarray]]
    weight: float = 1.0


def level_covariance(
    names: Sequence[str], trained: LabelledMolecules, held_out: LabelledMolecules, constant: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """B, (T, T) in (kcal/mol/Å)², and a description of each level for the recipe.

    Args:
        names: names of the levels.
        trained: molecules and labels that were trained on.
        held_out: others, with the errors of their predictions.
        constant: True for features whose sum depends on the composition alone, (d,).

    Raises:
        MFPyGError: if there is no held-out label of the level with the most labels.
    """
    n_labels = [_n_values(trained, level) for level in range(len(names))]
    order = sorted(range(len(names)), key=lambda level: -n_labels[level])
    mixing, variances = np.eye(len(names)), np.zeros(len(names))
    levels, about = np.zeros((len(names), len(names))), dict[str, Any]()
    for rank, level in enumerate(order):
        parent, slope, expected = _parent(trained, level, order[:rank], constant, levels)
        if parent is not None:
            mixing[level] += slope * mixing[parent]
        n, ratio = _held_out_ratio(trained, held_out, level, parent, slope)
        if parent is None and not n:
            raise MFPyGError(
                f"no labels of '{names[level]}' in validation; they are needed to know how large errors are"
            )
        weight = 0 if parent is None else PRIOR_WEIGHT
        variances[level] = (weight * expected + n * ratio) / (weight + n)
        levels = mixing @ np.diag(variances) @ mixing.T
        about[names[level]] = {
            **({} if parent is None else {"parent": names[parent], "slope": round(slope, 3)}),
            "scale": float(f"{np.sqrt(variances[level]):.3g}"),
            "held_out": n,
        }
    return levels, about


def _n_values(molecules: LabelledMolecules, level: int) -> int:
    """Number of energies and components of forces."""
    count = 0
    for features, letters in zip(molecules.features, molecules.letters, strict=True):
        count += sum(len(features.of(letter)) for letter in letters.get(level, ""))
    return count


def _parent(
    trained: LabelledMolecules, level: int, earlier: Sequence[int], constant: np.ndarray, levels: np.ndarray
) -> tuple[int | None, float, float]:
    """Earlier level that tells most about the labels of a level, the slope, and the expected variance of the rest."""
    if not earlier:
        return None, 0.0, 0.0
    best: tuple[float, int, float, float] | None = None
    for other in earlier:
        both = np.isfinite(trained.energy[:, [level, other]]).all(axis=1)
        counts = np.stack([features.energy[constant] for features in trained.features])[both]
        y, x = (trained.energy[both, number] for number in (level, other))
        if len(y) - (np.linalg.matrix_rank(counts) if len(y) else 0) < FEWEST:
            continue
        y, x = (values - counts @ np.linalg.lstsq(counts, values, rcond=None)[0] for values in (y, x))
        slope = float(x @ y / (x @ x))
        rest = float(np.sum((y - slope * x) ** 2))
        if best is None or rest < best[0]:
            best = rest, other, slope, levels[other, other] * rest / float(x @ x)
    if best is None:  # no molecules in common: nothing is known but that levels of theory are alike
        return earlier[0], 1.0, levels[earlier[0], earlier[0]]
    return best[1:]


def _held_out_ratio(
    trained: LabelledMolecules, held_out: LabelledMolecules, level: int, parent: int | None, slope: float
) -> tuple[int, float]:
    """Number of held-out molecules, and the mean of their squared errors over the variances expected with B = 1."""
    covariance = _unit_covariance(trained, level, parent)
    ratios: dict[str, list[float]] = {letter: [] for letter in NOISE}
    for number, (features, letters) in enumerate(zip(held_out.features, held_out.letters, strict=True)):
        for letter in _common(letters, level, parent):
            values = held_out.forces[number] if letter == "F" else held_out.energy[number][:, None]
            error = values[level] - (slope * values[parent] if parent is not None else 0.0)
            rows = features.of(letter)
            variance = np.einsum("md,de,me->m", rows, covariance, rows)
            known = variance > 1e-12  # not of forces that vanish by symmetry
            ratios[letter].append(float(np.mean(error[known] ** 2 / variance[known])) if known.any() else 0.0)
    found = ratios["F"] or ratios["E"]
    return len(found), float(np.mean(found)) if found else 0.0


def _common(letters: Mapping[int, str], level: int, parent: int | None) -> list[str]:
    """Letters that a level and its parent have both."""
    return [letter for letter in letters.get(level, "") if parent is None or letter in letters.get(parent, "")]


def _unit_covariance(trained: LabelledMolecules, level: int, parent: int | None) -> np.ndarray:
    """Covariance of the weights of a level's difference to its parent, with B = 1, given what was trained on."""
    precision = np.eye(len(trained.features[0].energy))
    for features, letters in zip(trained.features, trained.letters, strict=True):
        for letter in _common(letters, level, parent):
            rows = features.of(letter)
            precision += trained.weight * rows.T @ rows / NOISE[letter]
    return np.asarray(cho_solve(cho_factor(precision), np.eye(len(precision))))
