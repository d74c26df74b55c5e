"""Summaries of rounds: expected errors, tables, times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mfpyg
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.frames import Frame
from mfpyg.evaluation.uncertainty import fit_uncertainty
from mfpyg.growth.costs import Cost, duration, per_frame, spent
from mfpyg.growth.report import rounds_table
from mfpyg.growth.summary import expected_errors


def test_expected_errors_are_means_over_all_frames(untrained: Callable[..., Path], tmp_path: Path) -> None:
    dataset, potential = MiniCHNO(), mfpyg.load(untrained("dz:EF", "cc:E"))
    fit_uncertainty(potential, dataset, np.arange(0, 600), np.arange(600, 788))
    mfpyg.save(potential, tmp_path / "known.ckpt")
    rows = range(0, 788, 9)
    cell, pbc = np.zeros((3, 3)), np.zeros(3, bool)
    frames = [Frame(n, dataset[n].z.numpy(), dataset[n].pos.double().numpy(), cell, pbc, {}) for n in rows]
    found = expected_errors(tmp_path / "known.ckpt", frames, "cc")
    each = [potential.predict(dataset[n], {"cc": "EF"}, std=True)["cc"] for n in rows]
    energy = np.concatenate([one.energy_std.numpy() for one in each])
    forces = np.concatenate([one.forces_std.numpy() for one in each])
    assert len(energy) > 64  # more than a batch
    assert found["energy"] == pytest.approx(np.sqrt(np.mean(energy**2)), rel=1e-4)
    assert found["forces"] == pytest.approx(np.sqrt(np.mean(forces**2)), rel=1e-4)
    assert expected_errors(untrained("dz:EF", "cc:E"), frames, "cc") == {}


def test_costs_add_up() -> None:
    costs = {"xtb": Cost(2, 1.0), "cc": Cost(1, 5.0)}
    assert spent(costs) == 6.0
    assert per_frame(costs) == 5.5  # what failed is paid by what did not


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (4.218, "4.22 s"), (59.9, "59.9 s"), (90, "1.5 min"), (7200, "2 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_table_has_what_there_is() -> None:
    def errors(value: float) -> dict[str, Any]:
        return {"n": 3, "mae": value / 2, "rmse": value}

    first = {"labels": {"xtb": 9, "cc": 2}, "spent": 5.0, "expected": {}, "test": {"cc": {"forces": errors(4.0)}}}
    first["val"] = {"xtb": {"energy": errors(1.5), "forces": errors(3.25)}, "cc": {"energy": errors(2.5)}}
    second = {**first, "labels": {"xtb": 9, "cc": 5}, "spent": 90.0, "expected": {"energy": 0.5, "forces": 1.0}}
    header, rows = rounds_table([first, second], "cc")
    assert [head.replace("\n", " ") for head in header] == [
        *("round", "labels xtb", "labels cc", "processor time", "val xtb E", "val xtb F", "val cc E"),
        *("expected cc E", "expected cc F", "test cc F"),
    ]
    assert rows == [
        ["0", "9", "2", "5 s", "1.500", "3.250", "2.500", "–", "–", "4.000"],
        ["1", "9", "5", "1.5 min", "1.500", "3.250", "2.500", "0.500", "1.000", "4.000"],
    ]
