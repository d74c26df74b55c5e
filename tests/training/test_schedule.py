"""The plateau and cosine schedules."""

from __future__ import annotations

import pytest

from mfpyg.training.schedule import Plateau, cosine


def run(plateau: Plateau, metrics: list[float], batch_size: int, lr: float) -> list[tuple[int, float]]:
    history = []
    for metric in metrics:
        batch_size, lr = plateau.step(metric, batch_size, lr)
        history.append((batch_size, lr))
    return history


def test_batch_size_is_raised_to_its_maximum_before_the_rate_is_halved() -> None:
    history = run(Plateau(patience=1, factor=0.5, max_batch_size=60), [1.0] + [1.0] * 8, 16, 1e-3)
    assert history == [
        (16, 1e-3), (16, 1e-3), (32, 1e-3), (32, 1e-3), (60, 1e-3), (60, 1e-3), (60, 5e-4), (60, 5e-4), (60, 2.5e-4),
    ]  # fmt: skip


def test_an_improvement_restores_the_patience() -> None:
    history = run(Plateau(patience=1, factor=0.5, max_batch_size=16), [3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0], 16, 1.0)
    assert [lr for _, lr in history] == [1.0] * 6 + [0.5]


def test_less_than_one_part_in_ten_thousand_is_no_improvement() -> None:
    history = run(Plateau(patience=0, factor=0.5, max_batch_size=8), [1.0, 1.0 - 0.9e-4, 1.0 - 1.2e-4], 8, 1.0)
    assert [lr for _, lr in history] == [1.0, 0.5, 0.5]


def test_cosine_runs_from_one_to_a_hundredth() -> None:
    assert cosine(0.0) == pytest.approx(1.0)
    assert cosine(0.5) == pytest.approx(0.505)
    assert cosine(1.0) == pytest.approx(0.01)


def test_a_factor_near_one_still_raises_the_batch_size() -> None:
    history = run(Plateau(patience=0, factor=0.95, max_batch_size=18), [1.0] * 5, 16, 1.0)
    assert history == [(16, 1.0), (17, 1.0), (18, 1.0), (18, 0.95), (18, 0.95 * 0.95)]
