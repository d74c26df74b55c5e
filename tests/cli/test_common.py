"""What the commands share."""

from __future__ import annotations

import os

import pytest
import torch

from mfpyg.cli.common import threads


def test_threads_are_as_many_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for environment in (None, "7"):
        if environment is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", environment)
        with threads(before + 1):
            assert torch.get_num_threads() == before + 1
            assert os.environ["OMP_NUM_THREADS"] == str(before + 1)
        assert torch.get_num_threads() == before
        assert os.environ.get("OMP_NUM_THREADS") == environment
