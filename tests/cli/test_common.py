"""What the commands share."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from rich.console import Console

from mfpyg.cli.common import run, threads


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


def test_cells_of_notebooks_are_no_terminals(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does
    assert Console().is_terminal
    run("mfpyg-example", lambda _: print(Console().is_terminal), [])
    assert capsys.readouterr().out == "False\n"
