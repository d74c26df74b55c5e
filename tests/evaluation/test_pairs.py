"""Pairs: finding them in labelled data, and the errors of their directional forces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mfpyg.datasets import ExtXYZ
from mfpyg.errors import MFPyGError
from mfpyg.evaluation import pairs as module
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.evaluation.pairs import NEAR, SAME, Pair, directional_forces, find_pairs, pairs_of
from mfpyg.evaluation.report import as_text, metrics_table
from mfpyg.evaluation.uncertainty import fit_uncertainty
from mfpyg.sampling.pairs import partner


@pytest.fixture
def shaken() -> Atoms:
    atoms = molecule("CH3OH")
    atoms.rattle(0.06, seed=2)
    return atoms


def test_pairs_by_key_and_by_nearness_are_the_same(shaken: Atoms) -> None:
    rng = np.random.default_rng(0)
    frames: list[tuple[np.ndarray, str | None]] = []
    for number in range(6):
        one = shaken.copy()
        one.positions += 0.1 * rng.normal(size=one.positions.shape)
        paired = number % 2 == 0
        frames.append((one.positions, f"m/0/{number}" if paired else None))
        if paired:
            frames.append((partner(one, 0.01, rng), f"m/0/{number}"))
    z, pos, keys = [shaken.numbers] * len(frames), [x for x, _ in frames], [key for _, key in frames]
    pairs = find_pairs(z, pos)
    assert [(p.first, p.second) for p in pairs] == [(0, 1), (3, 4), (6, 7)]
    by_key = find_pairs(z, pos, keys)
    assert [(p.first, p.second) for p in by_key] == [(p.first, p.second) for p in pairs]
    np.testing.assert_allclose(by_key[0].direction, pairs[0].direction)
    energy = np.arange(18, dtype=float).reshape(9, 2)
    energy[4, 1] = np.nan
    found = directional_forces(pairs, energy)
    assert found.shape == (3, 2)
    assert np.isnan(found).sum() == 1
    assert found[0, 0] == pytest.approx(-2 / pairs[0].length)
    assert directional_forces([], energy).shape == (0, 2)


def test_each_geometry_is_in_one_pair_and_duplicates_in_none(shaken: Atoms) -> None:
    x, direction = shaken.positions, np.zeros_like(shaken.positions)
    direction[0, 0] = np.sqrt(len(shaken))
    pos = [x, x + 0.02 * direction, x + 0.029 * direction, x]
    pairs = find_pairs([shaken.numbers] * 4, pos)
    assert [(p.first, p.second) for p in pairs] == [(1, 2)]  # the nearest ones; 0 and 3 are the same


def test_wrong_pairs_are_refused(shaken: Atoms) -> None:
    z, pos = [shaken.numbers] * 3, [shaken.positions, shaken.positions + 0.01, shaken.positions]
    with pytest.raises(MFPyGError, match="pair 'a' has 3 geometries, expected 2"):
        find_pairs(z, pos, ["a"] * 3)
    with pytest.raises(MFPyGError, match="geometries 0 and 2 of a pair are the same"):
        find_pairs(z, pos, ["a", None, "a"])
    with pytest.raises(MFPyGError, match="geometries 0 and 1 of a pair have different atoms"):
        find_pairs([z[0], z[0][::-1]], pos[:2], ["a", "a"])


def slowly_nearest(points: np.ndarray) -> list[int]:
    """Number of the nearest point of each by all distances, −1 if it is too far."""
    root = np.sqrt(points.shape[1] / 3)
    length = np.linalg.norm(points[:, None] - points, axis=2)
    length[(length < SAME * root) | (length > NEAR * root)] = np.inf
    return [int(row.argmin()) if np.isfinite(row).any() else -1 for row in length]


@pytest.mark.parametrize("size", [6, 9, 60])
@pytest.mark.parametrize("width", [0.01, 0.1, 3.0])
def test_nearest_are_those_of_all_distances(size: int, width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(size)
    axes = np.linalg.qr(rng.normal(size=(size, size)))[0]
    points = 5 + (width * rng.normal(size=(120, size)) * np.geomspace(1, 0.05, size)) @ axes
    points[60:90] = points[:30] + 0.015 * rng.normal(size=(30, size))
    points[90] = points[3] + 1e-5
    expected = slowly_nearest(points)
    assert sum(row >= 0 for row in expected) > 40
    assert module._nearest(points).tolist() == expected
    monkeypatch.setattr(module, "_TILE", 16)  # so that these are many
    monkeypatch.setattr(module, "_PART", 50)
    assert module._nearest(points).tolist() == expected


def test_pairs_are_each_the_nearest_of_the_other(shaken: Atoms) -> None:
    """Not the geometries 0 and 1, although they are near, as 2 is nearer to 1."""
    direction = np.zeros_like(shaken.positions)
    direction[1, 2] = np.sqrt(len(shaken))
    pos = [shaken.positions + x * direction for x in (0, 0.02, 0.03, 0.055)]
    (pair,) = find_pairs([shaken.numbers] * 4, pos)
    assert (pair.first, pair.second) == (1, 2)
    np.testing.assert_allclose(pair.direction, direction / np.sqrt(len(shaken)), atol=1e-12)
    assert pair.length == pytest.approx(0.01 * np.sqrt(len(shaken)))
    assert find_pairs([shaken.numbers] * 4, pos, kinds=[0, 0, 1, 0])[0][:2] == (0, 1)


def written(path: Path, frames: Sequence[Atoms], *levels: str) -> ExtXYZ:
    ase.io.write(path, frames, format="extxyz")
    return ExtXYZ(path, list(levels), root=path.parent)


def test_members_have_the_same_molecule_charge_and_cell(tmp_path: Path, shaken: Atoms) -> None:
    """Eight geometries within 0.002 Å, and four conformations without an energy."""
    rng, frames = np.random.default_rng(0), []
    kinds: list[dict[str, Any]] = [{}, {"charge": 1}, {"molecule": "triplet"}, {"cell": 9.0}, {"cell": 9.5}]
    for kind in kinds:
        for step in (0.0, 0.01, 0.03):
            atoms = Atoms(shaken.numbers, partner(shaken, step, rng) if step else shaken.positions)
            if "cell" in kind:
                atoms.cell, atoms.pbc = [kind["cell"]] * 3, True
            atoms.info.update({key: value for key, value in kind.items() if key != "cell"})
            atoms.info["e"] = 1.0
            frames.append(atoms)
    frames[0].info.pop("e")  # so that the two others, which are farther from each other, are no pair
    dataset = written(tmp_path / "all.xyz", frames, "a=e?@eV")
    found = pairs_of(dataset, np.arange(len(frames)))
    assert [pair[:2] for pair in found] == [(3, 4), (6, 7), (9, 10), (12, 13)]
    assert all(isinstance(pair, Pair) for pair in found)
    assert [pair[:2] for pair in pairs_of(dataset, np.array([13, 7, 5, 12, 6]))] == [(6, 7), (12, 13)]


@pytest.fixture
def near_frames() -> list[Atoms]:
    """Geometries with near partners of a bent, a linear, and a diatomic molecule."""
    rng, frames = np.random.default_rng(1), []
    for name, n in (("CH3OH", 50), ("C2H2", 10), ("CO", 10)):
        for number in range(n):
            atoms = molecule(name)
            if name == "CH3OH":
                atoms.rattle(0.1, seed=number)
            else:
                atoms.positions *= 0.8 + 0.08 * number
            near = atoms.copy()
            near.positions = partner(atoms, 0.01, rng)
            frames += [atoms, near]
    return frames


def test_errors_of_directional_forces(
    tmp_path: Path, near_frames: list[Atoms], make_potential: Callable[..., Any]
) -> None:
    """Those of each pair alone, and nearly the errors of the forces along its direction, whose size they give."""
    truth, potential = make_potential(fidelities=["a", "b"], seed=1), make_potential(fidelities=["b", "a"], seed=2)
    bare = [atoms.copy() for atoms in near_frames]
    for atoms in near_frames:
        atoms.info.update(a=0.0, b=0.0)
    levels = "a=a@kcal/mol", "b=b@kcal/mol"
    for atoms, data in zip(bare, written(tmp_path / "pos.xyz", near_frames, *levels), strict=True):
        atoms.info.update(a=float(truth(data, fidelity="a").energy), b=float(truth(data, fidelity="b").energy))
    for number in range(0, 140, 4):  # every other pair has a single energy at level b
        bare[number].info["b"] = np.nan
    dataset = written(tmp_path / "all.xyz", bare, *levels)
    found = evaluate(potential, dataset, {"all": np.arange(140), "none": np.arange(0, 140, 2)}).metrics
    assert "directional_force" not in found["none"]["a"]
    for name, numbers in (("a", range(0, 140, 2)), ("b", range(2, 140, 4))):
        errors, along, k, square, components = [], [], [], 0.0, 0
        for number in numbers:
            one, two = dataset[number], dataset[number + 1]
            step = (two.pos - one.pos).double()
            column = dataset.fidelities.index(name)
            change = potential(two, fidelity=name).energy - potential(one, fidelity=name).energy
            errors.append(float(two.energy[0, column] - one.energy[0, column] - change) / float(step.norm()))
            middle = one.clone()
            middle.pos = (one.pos.double() + two.pos.double()) / 2
            error = potential(middle, fidelity=name).forces - truth(middle, fidelity=name).forces
            along.append(float((error * step).sum() / step.norm()))
            k.append({6: 12, 4: 7, 2: 1}[len(one.z)])
            square, components = square + float(error.square().sum()), components + error.numel()
        values = found["all"][name]["directional_force"]
        assert values["n"] == len(errors)
        assert values["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-9)
        assert values["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-9)
        assert np.median(np.abs(np.subtract(errors, along))) < 0.01 * values["rmse"]
        estimate = np.sqrt(np.dot(k, np.square(errors)) / components)
        assert values["component_rmse"] == pytest.approx(estimate, rel=1e-9)
        assert values["component_rmse"] == pytest.approx(np.sqrt(square / components), rel=0.3)
    text = as_text(metrics_table(found, {"a": "E"}))
    below = text[text.index("directional forces of near pairs in kcal/mol/Å") :]
    assert [line.split()[:3] for line in below.splitlines() if "all" in line] == [
        ["all", "b", "35"],
        ["all", "a:E", "70"],
    ]


def test_single_precision_is_enough(
    tmp_path: Path, near_frames: list[Atoms], make_potential: Callable[..., Any]
) -> None:
    """Total energies in float32 would be off by 1e-5 kcal/mol, which are some 1e-4 in directional forces."""
    for atoms in near_frames:
        atoms.info["a"] = 0.0
    dataset = written(tmp_path / "all.xyz", near_frames, "a=a@kcal/mol")
    potential, rows = make_potential(fidelities=["a"]), np.arange(len(near_frames))
    double = evaluate(potential, dataset, {"all": rows}).metrics["all"]["a"]["directional_force"]
    single = evaluate(potential.float(), dataset, {"all": rows}).metrics["all"]["a"]["directional_force"]
    assert double["rmse"] > 0.5
    assert single["rmse"] == pytest.approx(double["rmse"], abs=1e-3)
    assert torch.finfo(potential.dtype).bits == 32


def test_near_pairs_calibrate_forces(
    tmp_path: Path, near_frames: list[Atoms], make_potential: Callable[..., Any]
) -> None:
    """Standard deviations of forces without labels are as large as the errors that pairs of validation tell."""
    for atoms in near_frames:
        atoms.info["a"] = float(np.sum(atoms.positions**2))
    dataset = written(tmp_path / "all.xyz", near_frames, "a=a@kcal/mol")
    potential, validation = make_potential(fidelities=["a"]).eval(), np.arange(60, 100)  # of one molecule
    fit_uncertainty(potential, dataset, np.arange(60), validation)
    assert len(potential.held_out.pairs) == 20
    told = evaluate(potential, dataset, {"val": validation}).metrics["val"]["a"]["directional_force"]
    std = [potential.predict(dataset[int(row)], {"a": "EF"}, std=True)["a"].forces_std for row in validation]
    assert float(torch.cat(std).square().mean().sqrt()) == pytest.approx(told["component_rmse"], rel=1e-5)
