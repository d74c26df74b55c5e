"""Chosen labels, and choices of whole frames for a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfpyg.errors import MFPyGError


@dataclass
class Choice:
    """Frames to label, and at which levels.

    Attributes:
        levels: levels to label each chosen frame at, by its number among the candidates, in the order of choice.
        about: what a method says about its choice, for the recipe.
        notes: lines for the user.
    """

    levels: dict[int, tuple[str, ...]]
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """Number of labels of each level."""
        return Counter(name for of_frame in self.levels.values() for name in of_frame)


def fill(
    order: Iterable[int],
    missing: Sequence[tuple[str, ...]],
    costs: Mapping[str, float],
    budget: float,
    most: int | None = None,
) -> Choice:
    """Take frames in an order, each with all levels that it lacks, as long as their labels fit into the budget.

    A frame that does not fit is passed over.

    Args:
        order: numbers of frames, the best first.
        missing: levels that each frame lacks.
        costs: cost of a label of each level.
        budget: largest sum of the costs.
        most: number of frames at most.

    Raises:
        MFPyGError: if no frame fits.
    """
    choice, left = Choice({}), budget * (1 + 1e-12)  # sums of costs such as 0.1 round
    for number in order:
        cost = sum(costs[name] for name in missing[number])
        if cost <= left:
            choice.levels[number] = missing[number]
            left -= cost
        if len(choice.levels) == most or left < min(costs.values()):
            break
    if not choice.levels:
        levels = min(missing, key=lambda names: sum(costs[name] for name in names))
        least = sum(costs[name] for name in levels)
        raise MFPyGError(f"budget is {budget:g}, below one frame: its labels of {', '.join(levels)} cost {least:g}")
    return choice
