"""Networks for the tests of models."""

from __future__ import annotations

from collections.abc import Iterator

import e3nn
import pytest


@pytest.fixture(scope="module")
def without_torchscript() -> Iterator[None]:
    """e3nn's layers as they are: compiling them takes half of the time of the tests of nequip."""
    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(jit_script_fx=False)
    yield
    e3nn.set_optimization_defaults(**before)
