"""Sampling of epochs and batches, where fidelities have unequal amounts of labels.

A conformation belongs to the class of the rarest fidelity that it carries a label of. An epoch draws N
conformations, N being their number, class c with a share

    p_c ∝ n_c^(1/τ),        n_c: conformations of the class,

τ = 1 being the proportional strategy, in which every conformation is drawn once, and τ → ∞ the balanced one.
A class is gone through in one shuffled order after the other, over the epochs, so that all its conformations come
equally often. Everything follows from the seed and the epoch's number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mfpyg.errors import MFPyGError


@dataclass
class Sampling:
    """Conformations of the batches of each epoch.

    Attributes:
        rows: numbers of the conformations to train on, (n,) int64.
        labelled: True where one carries a label of a fidelity trained on, (n, T) bool; each of at least one.
        seed: of all orders.
        temperature: τ; ``math.inf`` for balanced.
        minimum: number among the T, and fewest graphs with a label of it in each batch; ``None`` for any.
        n_atoms: of each conformation, (n,), where graphs of like size are to be brought together.
        window: batches within which they are; 0 for none.
        budget: an epoch has as many batches as one of this number of conformations would have, for which there may
            be fewer: they are gone through in one shuffled order after the other, over the epochs, and no batch has
            more of them than there are. Of one class, whatever the temperature. ``None`` for the plain number.
    """

    rows: np.ndarray
    labelled: np.ndarray
    seed: int
    temperature: float = 1.0
    minimum: tuple[int, int] | None = None
    n_atoms: np.ndarray | None = None
    window: int = 0
    budget: int | None = None

    def __post_init__(self) -> None:
        assert self.labelled.any(axis=1).all()
        counts = self.labelled.sum(axis=0)  # (T,)
        rarity = np.where(self.labelled, counts, np.iinfo(np.int64).max)  # (n, T)
        kind = rarity.argmin(axis=1)  # (n,)
        self.classes = [np.flatnonzero(kind == number) for number in np.unique(kind)]
        if self.minimum is not None and counts[self.minimum[0]] < self.minimum[1]:
            raise MFPyGError(
                f"sampling.minimum is {self.minimum[1]} graphs a batch, but only {counts[self.minimum[0]]} "
                f"conformations of the training split have such a label"
            )

    def batches(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        """Numbers of the conformations in each batch of an epoch.

        Batches have nearly equal sizes, none more than ``batch_size``, so that no small last one gets
        the weight of a large one.
        """
        random = np.random.default_rng((self.seed, epoch))
        n_batches = math.ceil((self.budget or len(self.rows)) / batch_size)
        if self.budget not in (None, len(self.rows)):
            drawn = self._in_turn(epoch, n_batches)
        elif len(self.classes) == 1 or self.temperature == 1:
            drawn = random.permutation(len(self.rows))
        else:
            drawn = random.permutation(np.concatenate(self._drawn(epoch)))
        if self.window:
            drawn = self._like_sizes(drawn, n_batches)
        batches = np.array_split(drawn, n_batches)
        if self.minimum is not None:
            batches = self._with_minimum(batches, *self.minimum, random)
        if self.window:
            batches = [batches[number] for number in random.permutation(n_batches)]
        return [self.rows[batch] for batch in batches]

    def shares(self) -> np.ndarray:
        """Number of conformations of each class that an epoch draws, (n_classes,) int64; N in all."""
        sizes = np.array([len(members) for members in self.classes], np.float64)
        weights = sizes ** (1 / self.temperature)
        exact = len(self.rows) * weights / weights.sum()
        counts = np.floor(exact).astype(np.int64)
        largest = np.argsort(counts - exact, kind="stable")[: len(self.rows) - counts.sum()]
        counts[largest] += 1
        return counts

    def _drawn(self, epoch: int) -> list[np.ndarray]:
        """The members of each class that this epoch draws: the next ones in its endless sequence of orders."""
        drawn = []
        for number, (members, count) in enumerate(zip(self.classes, self.shares(), strict=True)):
            drawn.append(self._next(members, number, epoch, int(count)))
        return drawn

    def _in_turn(self, epoch: int, n_batches: int) -> np.ndarray:
        """Members for the budget, fewer where a batch would hold more than there are."""
        assert self.budget is not None
        n = len(self.rows)
        return self._next(np.arange(n), len(self.classes), epoch, min(self.budget, n_batches * n))

    def _next(self, members: np.ndarray, number: int, epoch: int, count: int) -> np.ndarray:
        """Members that an epoch draws of the endless sequence of shuffled orders of the seed and a number."""
        if not count:
            return members[:0]
        start = epoch * count
        orders = range(start // len(members), (start + count - 1) // len(members) + 1)
        sequence = [np.random.default_rng((self.seed, number, order)).permutation(members) for order in orders]
        offset = start - orders.start * len(members)
        return np.concatenate(sequence)[offset : offset + count]

    def _like_sizes(self, drawn: np.ndarray, n_batches: int) -> np.ndarray:
        assert self.n_atoms is not None
        ends = np.cumsum([len(batch) for batch in np.array_split(drawn, n_batches)])
        windows = np.split(drawn, ends[self.window - 1 : -1 : self.window])
        return np.concatenate([part[np.argsort(self.n_atoms[part], kind="stable")] for part in windows])

    def _with_minimum(
        self, batches: Sequence[np.ndarray], fidelity: int, least: int, random: np.random.Generator
    ) -> list[np.ndarray]:
        """Exchange graphs among batches, and where there are too few labels in all, draw labelled ones again."""
        having = self.labelled[:, fidelity]
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
    """Batches of one sampling for some steps, then of the next, round and round.

    Every epoch begins with a run of its own, so that its last one may be shorter.

    Attributes:
        samplings: with as many batches an epoch each.
        length: steps of a run.
    """

    samplings: Sequence[Sampling]
    length: int

    @property
    def rows(self) -> np.ndarray:
        """Conformations of any of them, (n,) int64."""
        return np.unique(np.concatenate([sampling.rows for sampling in self.samplings]))

    def which(self, epoch: int, step: int, n_steps: int) -> int:
        """The number of the sampling that a step of an epoch of ``n_steps`` takes its batch from."""
        runs = math.ceil(n_steps / self.length)
        return (epoch * runs + step // self.length) % len(self.samplings)

    def ends(self, step: int, n_steps: int) -> bool:
        """True if a step is the last of a run."""
        return (step + 1) % self.length == 0 or step + 1 == n_steps

    def batches(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        """Numbers of the conformations in each batch of an epoch."""
        every = [sampling.batches(epoch, batch_size) for sampling in self.samplings]
        n_steps = len(every[0])
        assert all(len(batches) == n_steps for batches in every)
        return [every[self.which(epoch, step, n_steps)][step] for step in range(n_steps)]
