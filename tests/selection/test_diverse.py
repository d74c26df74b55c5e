"""Order of diverse choices, against determinants."""

from __future__ import annotations

from itertools import islice

import numpy as np

from mfpyg.selection.diverse import in_order


def test_each_choice_has_the_largest_determinant() -> None:
    features = np.random.default_rng(0).normal(size=(9, 4)) * [3, 1, 1, 0.2]
    order = list(in_order(features))
    assert sorted(order) == list(range(9))
    for n in range(1, 9):
        found = {}
        for number in set(range(9)) - set(order[: n - 1]):
            chosen = features[[*order[: n - 1], number]]
            found[number] = np.linalg.slogdet(np.eye(n) + chosen @ chosen.T)[1]
        assert max(found, key=found.__getitem__) == order[n - 1]


def test_repetitions_come_last() -> None:
    features = np.repeat(np.diag([9.0, 8.0, 7.0]), 3, axis=0)
    assert {number // 3 for number in islice(in_order(features), 3)} == {0, 1, 2}
