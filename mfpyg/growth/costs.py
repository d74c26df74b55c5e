"""Computing time of the labels of a growth, as stored with each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mfpyg.labeling.store import LabelStore


@dataclass
class Cost:
    """Labels of a level.

    Attributes:
        labels: number of labels.
        failed: number of labels that could not be computed, whose time is not known.
        seconds: computing time of all labels.
    """

    labels: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean computing time of a label in seconds; at least a millisecond."""
        return max(self.seconds / max(self.labels, 1), 1e-3)


def costs_in(store: LabelStore, levels: Iterable[str]) -> dict[str, Cost]:
    """Cost of each level, of all labels in a store."""
    found = {name: Cost() for name in levels}
    for contents in store.all():
        cost = found[str(contents["level"]).partition("=")[0]]
        if "error" in contents:
            cost.failed += 1
        else:
            cost.labels += 1
            cost.seconds += contents["seconds"]
    return found


def per_frame(costs: Mapping[str, Cost]) -> float:
    """Mean computing time in seconds of the labels of a geometry at all of these levels."""
    return sum(cost.mean for cost in costs.values())


def spent(costs: Mapping[str, Cost]) -> float:
    """Computing time of all labels in seconds."""
    return sum(cost.seconds for cost in costs.values())


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(4.2), duration(90), duration(5400)
    ('4.2 s', '1.5 min', '1.5 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
