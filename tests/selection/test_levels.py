"""Covariance of levels, from labels and predictions that were drawn from the model."""

from __future__ import annotations

import numpy as np
import pytest

from mfpyg.errors import MFPyGError
from mfpyg.selection.levels import LabelledMolecules, level_covariance
from mfpyg.selection.posterior import NOISE, Features

B = np.array([[9.0, 7.2], [7.2, 6.76]])  # 0.8 times the first level, and a difference with a variance of 1
D, N_ATOMS = 60, 3


def molecules(n: int, having: list[dict[int, str]], random: np.random.Generator) -> LabelledMolecules:
    """Molecules whose first two features are numbers of atoms, without labels yet."""
    features = []
    for _ in range(n):
        forces = random.normal(size=(3 * N_ATOMS, D)) / np.sqrt(D)
        forces[:, :2] = 0
        features.append(Features(np.concatenate([random.integers(1, 6, 2), random.normal(size=D - 2)]), forces))
    return LabelledMolecules(np.arange(n), features, having, np.full((n, 2), np.nan), [{} for _ in range(n)])


def simulated(seed: int, n_cc: int) -> tuple[LabelledMolecules, LabelledMolecules]:
    """Molecules with labels, and others with the errors of the best predictions from these labels."""
    random = np.random.default_rng(seed)
    trained = molecules(90, [{0: "EF", 1: "E"}] * n_cc + [{0: "EF"}] * (90 - n_cc), random)
    held_out = molecules(200, [{0: "EF", 1: "E"}] * 200, random)
    factor = np.linalg.cholesky(B)
    weights = factor @ random.normal(size=(2, D))
    rows, labels, places = [], [], []
    for number, (features, letters) in enumerate(zip(trained.features, trained.letters, strict=True)):
        for letter in "EF":
            of = features.of(letter)
            values = weights @ of.T + np.sqrt(NOISE[letter]) * factor @ random.normal(size=(2, len(of)))
            for level in [level for level, there in letters.items() if letter in there]:
                rows.append(of)
                labels.append(values[level])
                places += [(level, number, letter, component) for component in range(len(of))]
                if letter == "E":
                    trained.energy[number, level] = values[level, 0]
    features, level = np.concatenate(rows), np.array([place[0] for place in places])
    same = np.array([[NOISE[a[2]] * (a[1:] == b[1:]) for b in places] for a in places])
    matrix = B[np.ix_(level, level)] * (features @ features.T + same)
    found = B[:, level] * np.linalg.solve(matrix, np.concatenate(labels)) @ features
    for number, of in enumerate(held_out.features):
        held_out.energy[number] = (found - weights) @ of.energy
        held_out.forces[number][0] = of.of("F") @ (found - weights)[0]
    return trained, held_out


def test_covariance_is_found() -> None:
    constant = np.arange(D) < 2
    found, slopes = [], []
    for seed in range(4):
        levels, about = level_covariance(["dz", "cc"], *simulated(seed, 40), constant)
        assert (about["cc"]["parent"], about["dz"]["held_out"], about["cc"]["held_out"]) == ("dz", 200, 200)
        found.append(levels)
        slopes.append(about["cc"]["slope"])
    np.testing.assert_allclose(np.mean(found, axis=0), B, rtol=0.25)
    assert np.mean(slopes) == pytest.approx(0.8, abs=0.05)
    variances = [levels[1, 1] - levels[0, 1] ** 2 / levels[0, 0] for levels in found]
    assert np.mean(variances) == pytest.approx(1.0, rel=0.3)


def test_levels_without_common_molecules_count_as_alike() -> None:
    trained, held_out = simulated(0, 40)
    for number in range(40):
        trained.letters[number] = {1: "E"}
        trained.energy[number, 0] = np.nan
    held_out.letters[:] = [{0: "EF"}] * 200
    levels, about = level_covariance(["dz", "cc"], trained, held_out, np.arange(D) < 2)
    assert (about["cc"]["slope"], about["cc"]["held_out"]) == (1.0, 0)
    assert levels[0, 1] == pytest.approx(levels[0, 0])
    assert levels[1, 1] == pytest.approx(2 * levels[0, 0])


def test_held_out_labels_are_needed() -> None:
    trained, held_out = simulated(0, 40)
    held_out.letters[:] = [{1: "E"}] * 200
    with pytest.raises(MFPyGError, match="no labels of 'dz' in validation"):
        level_covariance(["dz", "cc"], trained, held_out, np.arange(D) < 2)
