"""The slope of energy differences against work."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.consistency import Slope, align, energy_work_pairs, near_pairs, spread_rows
from mfpyg.doctor import View
from mfpyg.doctor.slope import measure
from mfpyg.units import HARTREE_TO_KCAL_MOL


@pytest.mark.parametrize("fidelity", ["dz", "tz", "cc"])
def test_slope_of_bundled_data_is_one(fidelity: str) -> None:
    view = View(MiniCHNO())
    column = view.dataset.fidelities.index(fidelity)
    both = view.energy_mask[:, column] & view.forces_mask[:, column]
    slope, _ = measure(view, column, np.flatnonzero(both))
    assert slope.value == pytest.approx(1, abs=0.01)
    assert slope.correlation > 0.999
    assert slope.error < 0.01


def test_gradients_of_s66x8(data_folder: Path) -> None:
    path = data_folder / "comp6_s66x8.h5"
    if not path.is_file():
        pytest.skip("needs comp6_s66x8.h5")
    with h5py.File(path) as file:
        each = [
            energy_work_pairs(
                group["coordinates"][...],
                group["energies"][...] * HARTREE_TO_KCAL_MOL,
                group["forces"][...] * HARTREE_TO_KCAL_MOL,
            )
            for group in file["s66x8"].values()
        ]
    slope = Slope.fit(*(np.concatenate(part) for part in zip(*each, strict=True)))
    assert slope.value == pytest.approx(-1, abs=0.01)
    assert slope.correlation < -0.99


def test_harmonic_pairs_with_any_rotation() -> None:
    """The trapezoid rule is exact for a harmonic energy; here of distances to the centroid."""
    random = np.random.default_rng(0)
    shape = random.normal(size=(6, 3))
    pos = shape + 0.05 * random.normal(size=(40, 6, 3))
    d = np.linalg.norm(pos[:, :, None] - pos[:, None], axis=-1)
    rest = np.linalg.norm(shape[:, None] - shape, axis=-1)
    stretch = d - rest
    energy = 100 * (stretch**2).sum(axis=(1, 2)) / 2
    unit = (pos[:, :, None] - pos[:, None]) / (d + np.eye(6))[..., None]
    forces = -2 * 100 * (stretch[..., None] * unit).sum(axis=2)
    for i in range(40):
        rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
        rotation *= np.sign(np.linalg.det(rotation))
        pos[i], forces[i] = pos[i] @ rotation + random.normal(size=3), forces[i] @ rotation
    slope = Slope.fit(*energy_work_pairs(pos, energy, forces))
    assert slope.value == pytest.approx(1, abs=0.01)
    assert slope.correlation > 0.999


def test_a_few_wrong_labels_do_not_move_the_slope() -> None:
    random = np.random.default_rng(0)
    work = random.normal(size=200)
    energy = work + 0.001 * random.normal(size=200)
    energy[:10] += 50
    assert Slope.fit(energy, work, np.full(200, 0.1)).value == pytest.approx(1, abs=0.02)


def test_near_pairs() -> None:
    line = np.array([0.0, 0.01, 1.0, 1.02, 5.0])
    pos = np.zeros((5, 2, 3))
    pos[:, 1, 0] = 1 + line
    pairs = near_pairs(pos, 2)
    assert pairs.tolist() == [[0, 1], [2, 3]]
    assert near_pairs(pos[:1], 10).shape == (0, 2)
    assert near_pairs(np.zeros((9, 1, 3)), 10).shape == (0, 2)


def test_near_pairs_of_many_are_bounded() -> None:
    pos = np.random.default_rng(0).normal(size=(5000, 4, 3)).astype(np.float32)
    pairs = near_pairs(pos, 300)
    assert len(pairs) == 300
    assert pairs.max() > 4000
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(spread_rows(5000, 2000)) <= 2000


def test_alignment_does_not_reflect() -> None:
    a = np.random.default_rng(0).normal(size=(1, 5, 3))
    _, _, rotation = align(a, a * [1, 1, -1])
    assert np.linalg.det(rotation[0]) == pytest.approx(1)
