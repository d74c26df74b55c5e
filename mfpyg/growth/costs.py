"""Processor time of the labels of a growth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
