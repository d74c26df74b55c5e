"""Calibration by held-out labels: ranks, normal errors, and forces of a level that has no force labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from mfpyg.models.calibration import (
    FEWEST,
    NORMAL,
    PROBABILITIES,
    HeldOut,
    calibrate,
    expected_force_error,
    n_force_labels,
    scale_and_quantiles,
)

HALF, FOUR_FIFTHS, NINETEEN_TWENTIETHS = 49, 79, 94
"""Places of the probabilities 0.5, 0.8 and 0.95."""


def held_out(energy: dict[str, np.ndarray], forces: dict[str, np.ndarray], n_atoms: int = 3, **kappa: float) -> HeldOut:
    """Given errors of energies, (n,), and of forces, (n · n_atoms, 3); NaN without a label."""
    n = len(next(iter(energy.values())))
    of_energy = {name: np.stack([np.where(np.isnan(e), np.nan, -7.0), e - 7]) for name, e in energy.items()}
    of_forces = {
        name: np.stack([np.where(np.isnan(e), np.nan, 5.0), np.nan_to_num(e + 5)]).astype(np.float32)
        for name, e in forces.items()
    }
    return HeldOut("data", np.arange(n), np.full(n, n_atoms), of_energy, of_forces, kappa)


def unknown(n: int) -> np.ndarray:
    return np.full((n, 3), np.nan)


def test_places_of_the_probabilities() -> None:
    assert [PROBABILITIES[i] for i in (HALF, FOUR_FIFTHS, NINETEEN_TWENTIETHS)] == [0.5, 0.8, 0.95]
    np.testing.assert_allclose(NORMAL, norm.ppf((1 + PROBABILITIES) / 2), atol=1e-14)


@pytest.mark.parametrize("n", [10, 67, 99, 100, 1000])
def test_quantiles_are_ratios_of_a_rank(n: int) -> None:
    """The least ratio with at least (n + 1) p ratios up to it, counted with whole numbers."""
    rng = np.random.default_rng(n)
    errors, std = rng.standard_normal(n) * 3, rng.uniform(0.5, 2, n)
    scale, quantiles = scale_and_quantiles(errors, std)
    assert scale == pytest.approx(math.sqrt(sum(errors**2) / sum(std**2)))
    ratios = sorted(abs(e) / (scale * s) for e, s in zip(errors, std, strict=True))
    for percent, quantile in enumerate(quantiles, start=1):
        rank = next((k for k in range(1, n + 1) if 100 * k >= percent * (n + 1)), n)
        assert quantile == pytest.approx(ratios[rank - 1], rel=1e-12)
    assert (np.diff(quantiles) >= 0).all()


def test_intervals_of_few_errors_hold_a_further_one_often_enough() -> None:
    """Split-conformal intervals from 19 errors of any distribution: p on average, up to 1 / 20 more."""
    rng, inside = np.random.default_rng(0), np.zeros(99)
    for _ in range(4000):
        std = rng.exponential(size=20) + 0.1
        errors = std * rng.standard_t(2, 20)
        scale, quantiles = scale_and_quantiles(errors[:19], std[:19])
        inside += np.abs(errors[19]) <= quantiles * scale * std[19]
    observed, expected = (inside / 4000)[:95], PROBABILITIES[:95]  # beyond, the largest of 19 is not enough
    assert (observed > expected - 0.03).all()
    assert (observed < expected + 0.05 + 0.03).all()


def test_normal_errors_have_the_quantiles_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    std = rng.uniform(0.2, 3, 100_000)
    scale, quantiles = scale_and_quantiles(2.5 * std * rng.standard_normal(len(std)), std)
    assert scale == pytest.approx(2.5, rel=0.01)
    assert quantiles[[HALF, FOUR_FIFTHS, NINETEEN_TWENTIETHS]] == pytest.approx([0.6745, 1.2816, 1.96], rel=0.02)


def test_standard_deviations_of_zero_are_left_out() -> None:
    rng = np.random.default_rng(0)
    errors, std = rng.standard_normal(50), rng.uniform(1, 2, 50)
    errors_0, std_0 = np.append(errors, [0, 1e-7, 3]), np.append(std, [0, 0, 0])
    one, two = scale_and_quantiles(errors, std), scale_and_quantiles(errors_0, std_0)
    assert one[0] == two[0]
    assert np.array_equal(one[1], two[1])


def test_missing_labels_leave_no_trace() -> None:
    rng, n = np.random.default_rng(0), 40
    energy, forces = rng.standard_normal(n), rng.standard_normal((n * 3, 3))
    energy_std, forces_std = rng.uniform(1, 2, n), rng.uniform(1, 2, (n * 3, 3))
    expected = calibrate(held_out({"dz": energy}, {"dz": forces}), {"dz": energy_std}, {"dz": forces_std})["dz"]
    more = np.append(energy, [np.nan] * 5), np.concatenate([forces, unknown(15)])
    std = np.append(energy_std, [1e9] * 5), np.concatenate([forces_std, np.full((15, 3), 1e9)])
    found = calibrate(held_out({"dz": more[0]}, {"dz": more[1]}), {"dz": std[0]}, {"dz": std[1]})["dz"]
    assert (found.energy_scale, found.forces_scale) == (expected.energy_scale, expected.forces_scale)
    assert np.array_equal(found.quantiles, expected.quantiles)


def test_too_few_labels_and_equal_members_give_none() -> None:
    rng = np.random.default_rng(0)
    errors, std = rng.standard_normal(20), np.ones(20)
    forces, forces_std = rng.standard_normal((60, 3)), np.ones((60, 3))
    few = np.where(np.arange(20) < FEWEST - 1, errors, np.nan)
    enough = np.where(np.arange(20) < FEWEST, errors, np.nan)
    for energy, of_energy, of_forces, number in (
        (few, std, forces_std, 0),
        (enough, std, forces_std, 1),
        (errors, 0 * std, forces_std, 0),
        (errors, std, 0 * forces_std, 0),
    ):
        found = calibrate(held_out({"dz": energy}, {"dz": forces}), {"dz": of_energy}, {"dz": of_forces})
        assert len(found) == number


def test_conformations_with_force_labels_are_counted() -> None:
    forces = np.ones((12, 3))
    forces[3:9] = np.nan
    assert n_force_labels(held_out({"dz": np.zeros(4)}, {"dz": forces}), "dz") == 2


# Forces of a level without force labels


def two_levels(n: int = 2000, **changes: Any) -> tuple[HeldOut, dict[str, np.ndarray]]:
    """Energies of ``dz`` off by 1, of ``cc`` less ``dz`` by 0.5 kcal/mol, ``dz`` forces by 4 kcal/mol/Å times σ."""
    rng = np.random.default_rng(0)
    std = np.repeat(rng.uniform(0.5, 1.5, (n * 3, 1)), 3, axis=1)
    std /= math.sqrt((std**2).mean())
    dz = rng.standard_normal(n)
    energy = {"dz": dz, "cc": dz + 0.5 * rng.standard_normal(n), **changes.pop("energy", {})}
    forces = {"dz": 4 * std * rng.standard_normal(std.shape), "cc": unknown(3 * n), **changes.pop("forces", {})}
    return held_out(energy, forces, cc=6.0, **changes), {"dz": std, "cc": 2 * std}


def test_errors_of_the_base_and_of_the_difference_add_up() -> None:
    found, std = two_levels()
    of_dz = np.mean(found.force_errors("dz") ** 2)
    of_difference = np.mean((found.energy_errors("cc") - found.energy_errors("dz")) ** 2)
    mean_square, quantiles = expected_force_error(found, "cc", std)
    assert mean_square == pytest.approx(of_dz + 6**2 * of_difference)
    assert mean_square == pytest.approx(4**2 + 6**2 * 0.5**2, rel=0.05)
    assert quantiles == pytest.approx(NORMAL, rel=0.1)  # of the sum of two normally distributed errors
    calibration = calibrate(found, {"dz": np.ones(2000), "cc": np.ones(2000)}, std)["cc"]
    assert calibration.forces_scale == pytest.approx(5 / 2, rel=0.03)
    assert np.array_equal(calibration.quantiles[1], quantiles)


def test_intervals_hold_errors_that_are_made_as_assumed() -> None:
    found, std = two_levels()
    calibration = calibrate(found, {"dz": np.ones(2000), "cc": np.ones(2000)}, std)["cc"]
    errors = 5 * std["dz"] * np.random.default_rng(1).standard_normal(std["dz"].shape)
    inside = np.abs(errors)[..., None] <= calibration.quantiles[1] * (calibration.forces_scale * std["cc"])[..., None]
    observed = inside.mean(axis=(0, 1))
    assert np.abs(observed - PROBABILITIES).max() < 0.02


def test_energies_alone_if_no_other_level_helps() -> None:
    """κ² ⟨e²⟩ without a level with forces, with too few of its forces, and where the sum is larger."""
    n = 2000
    few = np.full((3 * n, 3), np.nan)
    few[: 3 * (FEWEST - 1)] = 0.1
    for forces in ({"dz": unknown(3 * n)}, {"dz": few}, {"dz": np.full((3 * n, 3), 50.0)}):
        found, std = two_levels(forces=forces)
        mean_square, quantiles = expected_force_error(found, "cc", std)
        assert mean_square == pytest.approx(6**2 * np.mean(found.energy_errors("cc") ** 2))
        assert np.array_equal(quantiles, NORMAL)
    apart = np.where(np.arange(n) < n / 2, np.nan, 1.0)  # no conformation with both energies
    found, std = two_levels(energy={"dz": np.where(np.isnan(apart), 1.0, np.nan), "cc": apart})
    assert expected_force_error(found, "cc", std)[0] == pytest.approx(6**2)


def test_the_best_of_several_levels_is_taken() -> None:
    rng = np.random.default_rng(1)
    found, std = two_levels(forces={"tz": rng.standard_normal((6000, 3))}, energy={"tz": np.zeros(2000)})
    std["tz"] = std["dz"]
    assert expected_force_error(found, "cc", std)[0] == pytest.approx(4**2 + 6**2 * 0.5**2, rel=0.05)
    found.energy["tz"][1] = found.energy["cc"][1]  # the difference is now exact
    assert expected_force_error(found, "cc", std)[0] == pytest.approx(1, rel=0.05)


def test_near_pairs_tell_the_error_of_forces() -> None:
    """A linear error e(x) = g·x of the energy: pairs along random directions give |g|² / 3n on average."""
    rng, n, n_atoms = np.random.default_rng(0), 4000, 3
    gradient = rng.standard_normal(3 * n_atoms)
    direction = rng.standard_normal((n, 3 * n_atoms))
    direction *= 0.03 / np.linalg.norm(direction, axis=1, keepdims=True)
    energy = np.concatenate([np.zeros(n), direction @ gradient])
    one = held_out({"cc": energy}, {"cc": unknown(2 * n * n_atoms)}, n_atoms, cc=1.0)
    one.pairs, one.pair_scale = np.stack([np.arange(n), np.arange(n) + n], axis=1), np.full(n, 1 / 0.03)
    std = np.ones((2 * n * n_atoms, 3))
    found = calibrate(one, {"cc": np.ones(2 * n)}, {"cc": std})["cc"]
    assert found.forces_scale == pytest.approx(np.sqrt(np.mean(gradient**2)), rel=0.05)
    one.pairs, one.pair_scale = one.pairs[: FEWEST - 1], one.pair_scale[: FEWEST - 1]  # too few
    found = calibrate(one, {"cc": np.ones(2 * n)}, {"cc": std})["cc"]
    assert found.forces_scale == pytest.approx(np.sqrt(np.mean(energy**2)))


def test_pairs_without_labels_are_left_out() -> None:
    one = held_out({"cc": np.array([1.0, 3.0, np.nan, 2.0])}, {"cc": unknown(12)}, cc=1.0)
    one.pairs, one.pair_scale = np.array([[0, 1], [1, 2]]), np.array([5.0, 7.0])
    np.testing.assert_allclose(one.pair_errors("cc"), [10.0])
