"""Processor time of the labels of a growth, as stored with each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mfpyg.labeling.store import LabelStore


@dataclass
class Cost:
    """Labels of a level.

    Attributes:
        labels: number of labels.
        seconds: processor time, that of labels that could not be computed included.
    """

    labels: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Processor time in seconds for a label; at least a millisecond."""
        return max(self.seconds / max(self.labels, 1), 1e-3)


def costs_in(store: LabelStore, levels: Iterable[str]) -> dict[str, Cost]:
    """Cost of each level, of all labels in a store."""
    found = {name: Cost() for name in levels}
    for contents in store.all():
        cost = found[str(contents["level"]).partition("=")[0]]
        cost.labels += "error" not in contents
        cost.seconds += contents.get("seconds", 0.0)
    return found


def per_frame(costs: Mapping[str, Cost]) -> float:
    """Mean processor time in seconds of the labels of a geometry at all of these levels."""
    return sum(cost.mean for cost in costs.values())


def spent(costs: Mapping[str, Cost]) -> float:
    """Processor time of all labels in seconds."""
    return sum(cost.seconds for cost in costs.values())


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(4.2), duration(90), duration(5400)
    ('4.2 s', '1.5 min', '1.5 h')
    """
    unit, size = unit_of(seconds)
    return f"{seconds / size:.3g} {unit}"


def unit_of(seconds: float) -> tuple[str, int]:
    """Unit for people of a time, and its seconds."""
    return next(((unit, size) for unit, size in (("h", 3600), ("min", 60)) if seconds >= size), ("s", 1))
