"""The laws that every potential must obey, to be checked in one line::

    from mfpyg.testing import check_potential

    check_potential(MyBackbone([1, 6, 7, 8]))

Each is checked in float64 on random molecules, with random weights in place of those a network starts with, so that
nothing is right only because a weight is zero.
"""

from __future__ import annotations

from mfpyg.testing.check import check_potential
from mfpyg.testing.subject import Law, PotentialError

__all__ = ["Law", "PotentialError", "check_potential"]
