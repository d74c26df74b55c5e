"""Methanol, plain and in a harmonic potential."""

from __future__ import annotations

import pytest
from ase import Atoms
from ase.build import molecule

from mfpyg.labeling.program import hessian_of

from .springs import Quadratic, Springs


@pytest.fixture
def methanol() -> Atoms:
    return molecule("CH3OH")


@pytest.fixture
def harmonic(methanol: Atoms) -> Atoms:
    """Methanol in a potential that is exactly harmonic, with the second derivatives of springs."""
    methanol.calc = Springs(methanol, stiffness=10)
    methanol.calc = Quadratic(methanol, hessian_of(methanol.calc, methanol).reshape(18, 18))
    return methanol
