"""When to renew a neighbour list with a skin, without waiting for a GPU in every step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mfpyg.device import Later, waits
from mfpyg.errors import MFPyGError

_SLOW = 1 / 8
"""Decrease of the slack in a step up to which motion is slow."""

_SLOW_STEPS = 8
"""Steps of slow motion after which the slack is read one step later."""


@dataclass
class Slack:
    """Slack of a neighbour list: the part of the skin that is left, 1 after a search, and sufficient down to 0.

    Reading it waits for all earlier work of a GPU. In slow motion, that of the step before is read instead, which is
    known by then, and the list is renewed when less than half is left. Where that was not enough, results must be
    replaced by NaN (:meth:`mfpyg.interop.steps.Steps.predict` does), and the next step raises an error. After that, and
    where another simulation of the same systems begins (``slow_steps`` is set to 0), each slack is read again.

    Attributes:
        skin: skin in Å.
        slow_steps: number of steps of slow motion so far.
        last: last slack that is known.
        pending: slack of the step before, if it is not known.
    """

    skin: float
    slow_steps: int = 0
    last: float = 1.0
    pending: Later | None = None

    def renewed(self) -> Slack:
        """Slack after a new search for the same systems."""
        return Slack(self.skin, self.slow_steps)

    def is_sufficient(self, now: Tensor) -> bool:
        """True if the list can be used in this step, as far as is known.

        Args:
            now: slack of this step, () float64.

        Raises:
            MFPyGError: if the list was used in the step before, but was not sufficient.
        """
        if self.pending is not None:
            before, self.pending = self.pending.read(), None
            if before < 0:
                self.slow_steps = 0
                raise MFPyGError(
                    f"an atom suddenly moved by about {self.skin / 4:g} Å or more in one step, too far for the skin of "
                    "the neighbour list; use smaller steps, or a larger skin"
                )
            self._note(before)
            if not before >= 0.5:  # also of positions that are not finite, which a search refuses
                return False
        if waits(now.device) and self.slow_steps >= _SLOW_STEPS:
            self.pending = Later(now)
            return True
        self._note(float(now))
        return self.last >= 0

    def _note(self, slack: float) -> None:
        self.slow_steps = self.slow_steps + 1 if self.last - slack <= _SLOW else 0
        self.last = slack
