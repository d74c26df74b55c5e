"""Checks of the physical laws that every potential must obey::

    from mfpyg.testing import check_potential

    check_potential(MyBackbone([1, 6, 7, 8]))

The laws are checked in float64 on random molecules. The weights are random instead of the initial ones, so that no law
holds only because a weight is zero.
"""

from __future__ import annotations

from mfpyg.testing.check import check_potential
from mfpyg.testing.subject import Law, PotentialError

__all__ = ["Law", "PotentialError", "check_potential"]
