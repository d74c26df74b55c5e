"""Sampling of epochs and batches when fidelities have different numbers of labels.

A conformation belongs to the class of the rarest fidelity that it has a label of. An epoch draws N
conformations, N being their number, class c with a share

    p_c ∝ n_c^(1/τ),        n_c: conformations of the class,

τ = 1 being the proportional strategy, in which every conformation is drawn once, and τ → ∞ the balanced one.
Each class is traversed in one shuffled order after the other across epochs, so that all its conformations are drawn
equally often. Everything is determined by the seed and the epoch number. In a training on pairs of near geometries, a
pair is drawn as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mfpyg.errors import MFPyGError
from mfpyg.training.pairs import Units


@dataclass
class Sampling:
    """Conformations in the batches of each epoch.

    Attributes:
        rows: indices of the conformations to train on, (n,) int64.
        labelled: whether each has a label of each fidelity trained on, (n, T) bool; each has at least one.
        seed: seed of all orders.
        temperature: τ; ``math.inf`` for balanced.
        minimum: column of a fidelity among the T, and minimum number of graphs per batch with a label of it.
        n_atoms: number of atoms of each conformation, (n,); needed with ``window``.
        window: number of batches within which graphs of similar size are grouped; 0 for no grouping.
        budget: number of conformations that sets the number of batches per epoch; ``rows`` are then traversed in one
            shuffled order after the other, as a single class, and no batch has more than there are. ``None`` for the
            number of ``rows``.
        pair: numbers of the pairs that the conformations belong to, (n,) int64, see :mod:`mfpyg.training.pairs`.
    """

    rows: np.ndarray
    labelled: np.ndarray
    seed: int
    temperature: float = 1.0
    minimum: tuple[int, int] | None = None
    n_atoms: np.ndarray | None = None
    window: int = 0
    budget: int | None = None
    pair: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.labelled.any(axis=1).all()
        self.units = Units(len(self.rows), self.pair)
        self._labelled = self.units.any_of(self.labelled)  # (n_units, T)
        counts = self._labelled.sum(axis=0)  # (T,)
        rarity = np.where(self._labelled, counts, np.iinfo(np.int64).max)  # (n_units, T)
        kind = rarity.argmin(axis=1)  # (n_units,)
        self.classes = [np.flatnonzero(kind == number) for number in np.unique(kind)]
        if self.minimum is not None and counts[self.minimum[0]] < self.minimum[1]:
            raise MFPyGError(
                f"sampling.minimum is {self.minimum[1]} graphs a batch, but only {counts[self.minimum[0]]} "
                f"conformations of the training split have such a label"
            )

    def batches(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        """Indices of the conformations in each batch of an epoch.

        Batches have nearly equal sizes, at most ``batch_size`` (one more with pairs), so that no small last one gets
        the weight of a large one.
        """
        random = np.random.default_rng((self.seed, epoch))
        n_batches = math.ceil((self.budget or len(self.rows)) / batch_size)
        if self.budget not in (None, len(self.rows)):
            drawn = self._in_turn(epoch, n_batches)
        elif len(self.classes) == 1 or self.temperature == 1:
            drawn = random.permutation(len(self.units))
        else:
            drawn = random.permutation(np.concatenate(self._drawn(epoch)))
        if self.window:
            drawn = self._like_sizes(drawn, n_batches)
        batches = self.units.split(drawn, n_batches)
        if self.minimum is not None:
            batches = self._with_minimum(batches, *self.minimum, random)
        if self.window:
            batches = [batches[number] for number in random.permutation(n_batches)]
        return [self.rows[self.units.members(batch)] for batch in batches]

    def shares(self) -> np.ndarray:
        """Number of members of each class drawn per epoch, (n_classes,) int64; as many in total as there are."""
        sizes = np.array([len(members) for members in self.classes], np.float64)
        weights = sizes ** (1 / self.temperature)
        exact = len(self.units) * weights / weights.sum()
        counts = np.floor(exact).astype(np.int64)
        largest = np.argsort(counts - exact, kind="stable")[: len(self.units) - counts.sum()]
        counts[largest] += 1
        return counts

    def _drawn(self, epoch: int) -> list[np.ndarray]:
        """Members of each class drawn in this epoch: the next ones in its endless sequence of orders."""
        drawn = []
        for number, (members, count) in enumerate(zip(self.classes, self.shares(), strict=True)):
            drawn.append(self._next(members, number, epoch, int(count)))
        return drawn

    def _in_turn(self, epoch: int, n_batches: int) -> np.ndarray:
        """Conformations for the budget, fewer where a batch would have more than there are."""
        assert self.budget is not None
        n = len(self.units)
        count = math.ceil(self.budget * n / len(self.rows))
        return self._next(np.arange(n), len(self.classes), epoch, min(count, n_batches * n))

    def _next(self, members: np.ndarray, number: int, epoch: int, count: int) -> np.ndarray:
        """Members drawn in an epoch from an endless sequence of shuffled orders, given by the seed and ``number``."""
        if not count:
            return members[:0]
        start = epoch * count
        orders = range(start // len(members), (start + count - 1) // len(members) + 1)
        sequence = [np.random.default_rng((self.seed, number, order)).permutation(members) for order in orders]
        offset = start - orders.start * len(members)
        return np.concatenate(sequence)[offset : offset + count]

    def _like_sizes(self, drawn: np.ndarray, n_batches: int) -> np.ndarray:
        assert self.n_atoms is not None
        n_atoms = self.n_atoms[self.units.first]
        ends = np.cumsum([len(batch) for batch in self.units.split(drawn, n_batches)])
        windows = np.split(drawn, ends[self.window - 1 : -1 : self.window])
        return np.concatenate([part[np.argsort(n_atoms[part], kind="stable")] for part in windows])

    def _with_minimum(
        self, batches: Sequence[np.ndarray], fidelity: int, least: int, random: np.random.Generator
    ) -> list[np.ndarray]:
        """Exchange graphs among batches, and draw labelled ones again if there are too few in total."""
        having = self._labelled[:, fidelity]
        least_in = [min(least, len(batch)) for batch in batches]
        found = [int(having[batch].sum()) for batch in batches]
        if all(n >= enough for n, enough in zip(found, least_in, strict=True)):
            return list(batches)
        batches = [batch.copy() for batch in batches]
        surplus = [
            (number, place)
            for number, batch in enumerate(batches)
            for place in np.flatnonzero(having[batch])[least_in[number] :]
        ]
        surplus = [surplus[i] for i in random.permutation(len(surplus))]
        labelled = np.flatnonzero(having)
        for number, batch in enumerate(batches):
            places = np.flatnonzero(~having[batch])
            for place in places[: max(0, least_in[number] - found[number])]:
                if surplus:
                    other, there = surplus.pop()
                    batch[place], batches[other][there] = batches[other][there], batch[place]
                else:
                    another = random.choice(labelled)
                    while another in batch:
                        another = random.choice(labelled)
                    batch[place] = another
        return batches


@dataclass
class Interleaved:
    """Batches of one sampling for a run of steps, then of the next, in turn.

    Every epoch begins a new run, so that the last run of an epoch may be shorter.

    Attributes:
        samplings: samplings with equal numbers of batches per epoch.
        length: number of steps of a run.
    """

    samplings: Sequence[Sampling]
    length: int

    @property
    def rows(self) -> np.ndarray:
        """Conformations of all samplings, (n,) int64."""
        return np.unique(np.concatenate([sampling.rows for sampling in self.samplings]))

    def which(self, epoch: int, step: int, n_steps: int) -> int:
        """Index of the sampling that a step takes its batch from, in an epoch of ``n_steps``."""
        runs = math.ceil(n_steps / self.length)
        return (epoch * runs + step // self.length) % len(self.samplings)

    def ends(self, step: int, n_steps: int) -> bool:
        """True if a step is the last of a run."""
        return (step + 1) % self.length == 0 or step + 1 == n_steps

    def batches(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        """Indices of the conformations in each batch of an epoch."""
        every = [sampling.batches(epoch, batch_size) for sampling in self.samplings]
        n_steps = len(every[0])
        assert all(len(batches) == n_steps for batches in every)
        return [every[self.which(epoch, step, n_steps)][step] for step in range(n_steps)]
