"""Errors of several levels in the last layer, against the formulas for all labels at once."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from mfpyg.selection.greedy import Greedy
from mfpyg.selection.posterior import NOISE, Features, Grams, Posterior

LETTERS = {0: "EF", 1: "E"}
B = np.array([[4.0, 3.0], [3.0, 2.5]])
Label = tuple[int, int, str]
"""Number of the molecule, level, letter."""


def molecules(n: int, d: int = 5, seed: int = 0) -> list[Features]:
    random = np.random.default_rng(seed)
    return [Features(random.normal(size=d), random.normal(size=(6, d))) for _ in range(n)]


def labels_of(given: dict[int, list[int]]) -> list[Label]:
    """Labels of each molecule at its levels."""
    return [(number, level, letter) for number, of in given.items() for level in of for letter in LETTERS[level]]


def exact(levels: np.ndarray, features: list[Features], labels: list[Label], target: int, wanted: np.ndarray) -> float:
    """Mean variance of forces (m, d) of a level, from the covariance of all labels as a normal process."""

    def covariance(one: Label, other: Label) -> np.ndarray:
        a, b = (features[number].of(letter) for number, _, letter in (one, other))
        noise = NOISE[one[2]] * np.eye(len(a)) if (one[0], one[2]) == (other[0], other[2]) else 0.0
        return levels[one[1], other[1]] * (a @ b.T + noise)

    matrix = np.block([[covariance(one, other) for other in labels] for one in labels])
    cross = np.hstack([levels[target, level] * wanted @ features[n].of(letter).T for n, level, letter in labels])
    prior = levels[target, target] * np.sum(wanted**2, axis=1)
    return float(np.mean(prior - np.sum(cross * np.linalg.solve(matrix, cross.T).T, axis=1)))


def posterior_of(
    levels: np.ndarray, features: list[Features], given: dict[int, list[int]], target: int, wanted: np.ndarray
) -> Posterior:
    grams = Grams()
    for number, of in given.items():
        grams.add(features[number], [(level, LETTERS[level]) for level in of])
    return Posterior(levels, grams, target, wanted.T @ wanted / len(wanted))


GIVEN = {0: [0], 1: [0, 1], 2: [1], 3: [0, 1], 4: [0]}


@pytest.mark.parametrize("target", [0, 1])
def test_variance_is_that_of_a_normal_process(target: int) -> None:
    features, wanted = molecules(5), np.random.default_rng(1).normal(size=(9, 5))
    found = posterior_of(B, features, GIVEN, target, wanted).mean_square_error()
    assert found == pytest.approx(exact(B, features, labels_of(GIVEN), target, wanted), rel=1e-9)


@pytest.mark.parametrize(("number", "level"), [(0, 1), (2, 0), (4, 1), (5, 0), (5, 1)])
def test_gain_is_the_difference_that_a_label_makes(number: int, level: int) -> None:
    """Also of a second level of a molecule, whose noise is correlated with that of the first."""
    features, wanted = molecules(6), np.random.default_rng(1).normal(size=(9, 5))
    posterior = posterior_of(B, features, GIVEN, 1, wanted)
    known = [GIVEN.get(n, []) for n in range(6)]
    greedy = Greedy(posterior, features, [[] for _ in features], known, LETTERS, {0: 1.0, 1: 1.0})
    after = {**GIVEN, number: [*GIVEN.get(number, []), level]}
    rows = greedy.rows(number, level)
    expected = exact(B, features, labels_of(GIVEN), 1, wanted) - exact(B, features, labels_of(after), 1, wanted)
    assert posterior.gain(rows) == pytest.approx(expected, rel=1e-8)
    posterior.observe(rows)
    whole = posterior_of(B, features, after, 1, wanted)
    np.testing.assert_allclose(posterior.covariance, whole.covariance, atol=1e-12)


def choose(
    levels: np.ndarray, costs: dict[int, float], budget: float, n: int = 8, **options: int
) -> dict[int, list[int]]:
    features, wanted = molecules(n), np.random.default_rng(1).normal(size=(9, 5))
    posterior = posterior_of(levels, features, {0: [1]}, 1, wanted)
    missing = [[0], *([0, 1] for _ in range(n - 1))]
    known = [[1], *([] for _ in range(n - 1))]
    return Greedy(posterior, features, missing, known, LETTERS, costs).run(budget, **options)


def test_level_that_tells_nothing_is_not_chosen() -> None:
    chosen = choose(np.diag([5.0, 2.0]), {0: 1e-3, 1: 1.0}, 100.0)
    assert set(chosen) == set(range(1, 8))
    assert all(levels == [1] for levels in chosen.values())


def test_cheap_level_is_chosen_if_it_tells_as_much() -> None:
    """With forces beside, and at a tenth of the cost."""
    alike = np.array([[2.0, 2.0], [2.0, 2.0 + 1e-6]])
    chosen = choose(alike, {0: 0.1, 1: 1.0}, 0.75)
    assert list(chosen.values()) == [[0]] * 7


def test_cheap_forces_pay_until_the_difference_of_the_levels_is_the_larger_error() -> None:
    """At equal cost: forces where both levels have few labels, energies of the target where the other has many."""
    features, wanted = molecules(102, d=30), np.random.default_rng(1).normal(size=(9, 30))
    levels = np.array([[10.0, 10.0], [10.0, 10.2]])
    for n_cheap, best in ((4, 0), (100, 1)):
        given = {number: [0, 1] if number < 4 else [0] for number in range(n_cheap)}
        posterior = posterior_of(levels, features, given, 1, wanted)
        missing, known = [[] for _ in range(100)] + [[0, 1]] * 2, [[] for _ in features]
        greedy = Greedy(posterior, features, missing, known, LETTERS, {0: 1.0, 1: 1.0})
        gains = [max(posterior.gain(greedy.rows(number, level)) for number in (100, 101)) for level in (0, 1)]
        assert int(np.argmax(gains)) == best
        assert next(iter(greedy.run(1.0).values())) == [best]


@pytest.mark.parametrize(("budget", "most"), [(0.05, None), (3.3, None), (7.0, None), (50.0, 3)])
def test_budget(budget: float, most: int | None) -> None:
    costs = {0: 0.1, 1: 1.0}
    chosen = choose(B, costs, budget, most=most)
    assert sum(costs[level] for levels in chosen.values() for level in levels) <= budget + 1e-9
    assert len(chosen) <= (most or 8)
    if budget > 1 and most is None:
        everything = 8 * 0.1 + 7 * 1.0
        assert sum(costs[level] for levels in chosen.values() for level in levels) > min(budget, everything) - 1.0


def test_first_label_has_the_largest_gain_per_cost() -> None:
    features, wanted = molecules(8), np.random.default_rng(1).normal(size=(9, 5))
    costs = {0: 3.0, 1: 1.0}
    gains = {}
    for number, level in product(range(8), range(2)):
        if (number, level) != (0, 1):
            after = {**({0: [1]} if number else {0: [1, 0]}), **({number: [level]} if number else {})}
            change = exact(B, features, labels_of({0: [1]}), 1, wanted) - exact(
                B, features, labels_of(after), 1, wanted
            )
            gains[number, level] = change / costs[level]
    number, level = max(gains, key=gains.__getitem__)
    first = next(iter(choose(B, costs, 1e9).items()))
    assert first[0] == number
    assert first[1][0] == level
