"""The labels that reduce the expected error of forces most per cost, one after the other."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from mfpyg.selection.posterior import Features, Posterior

NOTHING = 1e-9
"""Reduction, over the expected mean squared error at the start, below which a label tells nothing."""


class Greedy:
    """Greedy choice of labels.

    The reductions are computed again only for labels that were best before the last choice (lazy evaluation, Minoux
    1978), and for further levels of the molecules that were chosen, as labels of two levels of one molecule tell more
    together.

    Args:
        posterior: distribution of the weights, which is updated.
        features: features of each candidate, with those of forces where a level has force labels.
        missing: numbers of the levels to choose from, for each candidate.
        known: numbers of the levels that label each candidate already.
        letters: letters of the labels of each level.
        costs: cost of a label of each level.
    """

    def __init__(
        self,
        posterior: Posterior,
        features: Sequence[Features],
        missing: Sequence[Sequence[int]],
        known: Sequence[Sequence[int]],
        letters: Mapping[int, str],
        costs: Mapping[int, float],
    ) -> None:
        self.posterior, self.features, self.letters, self.costs = posterior, features, letters, costs
        self.known = [list(levels) for levels in known]
        self.start = posterior.mean_square_error()
        self.chosen: dict[int, list[int]] = {}
        self._latest: dict[tuple[int, int], int] = {}
        self._heap: list[tuple[float, int, int, int]] = []
        for number, levels in enumerate(missing):
            for level in levels:
                self._push(number, level, 0)

    def rows(self, number: int, level: int) -> np.ndarray:
        """Coefficients of the labels of a candidate at a level, see :meth:`Posterior.rows`."""
        parts = []
        for letter in self.letters[level]:
            known = [other for other in self.known[number] if letter in self.letters[other]]
            parts.append(self.posterior.rows(self.features[number], letter, level, known))
        return np.concatenate(parts)

    def _push(self, number: int, level: int, time: int) -> None:
        gain = self.posterior.gain(self.rows(number, level))
        self._latest[number, level] = time
        if gain > NOTHING * self.start:
            heapq.heappush(self._heap, (-gain / self.costs[level], number, level, time))

    def run(self, budget: float, most: int | None = None) -> dict[int, list[int]]:
        """Choose labels until none fits into the budget or tells anything.

        Args:
            budget: largest sum of the costs.
            most: number of molecules at most.

        Returns:
            Levels of each chosen candidate, by its number, in the order of choice.
        """
        left, time = budget * (1 + 1e-12), 0  # sums of costs such as 0.1 round
        while self._heap:
            _, number, level, evaluated = heapq.heappop(self._heap)
            full = number not in self.chosen and len(self.chosen) == most
            if self.costs[level] > left or full or evaluated < self._latest[number, level]:
                continue
            if evaluated < time:
                self._push(number, level, time)
                continue
            self.posterior.observe(self.rows(number, level))
            left, time = left - self.costs[level], time + 1
            self.known[number].append(level)
            self.chosen.setdefault(number, []).append(level)
            for other in self.costs:
                if (number, other) in self._latest and other not in self.known[number]:
                    self._push(number, other, time)
        return self.chosen
