"""Choices that need a trained potential, on the bundled data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml

import mfpyg
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.frames import frames_of
from mfpyg.evaluation.features import last_features_of
from mfpyg.evaluation.uncertainty import fit_uncertainty
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.frames import batch_of
from mfpyg.selection.features import features_of_frames, features_of_rows
from mfpyg.selection.multi_fidelity import LabelledMolecules, _grams
from mfpyg.selection.posterior import Features
from mfpyg.selection.trained import open_trained
from mfpyg.selection.uncertainty import by_uncertainty

ROWS = range(0, 788, 30)
OPTIONS = ("model.ckpt", "pool.xyz", "--target=cc", "--cost", "cc=10", "dz=1")


def chosen(path: str = "next.xyz") -> list[tuple[bytes, str]]:
    """Positions and levels of the chosen frames, in order."""
    return [(atoms.positions.tobytes(), atoms.info["levels"]) for atoms in ase.io.read(path, ":")]


@pytest.mark.parametrize("method", ["multi-fidelity", "diverse", "uncertainty"])
def test_choices(selecting: Any, shaken: Any, untrained: Any, method: str) -> None:
    frames = shaken(ROWS)
    untrained("dz:EF", "cc:E")
    assert selecting(*OPTIONS, "--budget=60", f"--method={method}") == 0, selecting.errors
    found = chosen()
    assert len({positions for positions, _ in found}) == len(found)
    assert {positions for positions, _ in found} <= {atoms.positions.tobytes() for atoms in frames}
    recipe = yaml.safe_load(Path("next.xyz.yaml").read_text())
    counts = Counter(name for _, levels in found for name in levels.split())
    assert recipe["labels"] == {
        name: {"number": counts[name], "cost": counts[name] * cost} for name, cost in (("cc", 10.0), ("dz", 1.0))
    }
    assert recipe["cost"] <= 60
    assert recipe["settings"]["method"] == method
    if method != "multi-fidelity":
        assert {levels for _, levels in found} == {"cc dz"}
        assert len(found) == 5
    else:
        assert recipe["cost"] > 50
        assert 0 < recipe["expected_error"]["after"] < recipe["expected_error"]["before"]
        assert recipe["levels"]["cc"]["parent"] == "dz"
    assert selecting(*OPTIONS, "--budget=60", f"--method={method}", out="again.xyz") == 0
    assert chosen("again.xyz") == found


def test_costs_decide_the_level(selecting: Any, shaken: Any, untrained: Any) -> None:
    shaken(ROWS)
    untrained("dz:EF", "cc:E")
    for cost, level in (("cc=1e6", "dz"), ("cc=1e-6", "cc")):
        arguments = (*OPTIONS[:-2], cost, "dz=1", "--budget=20", "--max=10")
        assert selecting(*arguments, out=f"{level}.xyz") == 0
        assert len(chosen(f"{level}.xyz")) == 10
        assert all(level in levels.split() for _, levels in chosen(f"{level}.xyz"))
    assert {levels for _, levels in chosen("dz.xyz")} == {"dz"}


def test_frames_of_the_training_are_left_out(selecting: Any, pool: Any, shaken: Any, untrained: Any) -> None:
    """Also without the key of a level, as the data of the run have it."""
    untrained("dz:EF", "cc:E")
    shaken([0, 30])
    new = ase.io.read("pool.xyz", ":")
    pool([60, 90, 120])
    ase.io.write("pool.xyz", [*ase.io.read("pool.xyz", ":"), *new], format="extxyz")
    for method in ("random", "multi-fidelity"):
        assert selecting(*OPTIONS, "--budget=1e3", f"--method={method}", out=f"{method}.xyz") == 0
        assert "left out: 3 of 5 frames, which have all labels already" in selecting.output
        assert {positions for positions, _ in chosen(f"{method}.xyz")} == {atoms.positions.tobytes() for atoms in new}
    pool([60, 90])
    assert "pool.xyz: all 2 frames have labels of cc, dz already" in selecting.refused(*OPTIONS, "--budget=20")


def test_labels_that_were_not_trained_on_count(selecting: Any, shaken: Any, untrained: Any) -> None:
    """A frame that has a level already gets another, and its label is not paid for again."""
    frames = shaken(ROWS)
    untrained("dz:EF", "cc:E")
    for atoms in frames:
        atoms.info["e"], atoms.arrays["f"] = -100.0, np.zeros((len(atoms), 3))
    ase.io.write("cheap.xyz", frames, format="extxyz")
    assert selecting(*OPTIONS, "--budget=40", "--labelled=cheap.xyz:dz=e,f@eV") == 0
    assert {levels for _, levels in chosen()} == {"cc"}


def test_nothing_that_fits_helps(selecting: Any, shaken: Any, untrained: Any) -> None:
    """The cheap label is there already, and the other one too expensive."""
    frames = shaken([0, 30])
    untrained("dz:EF", "cc:E")
    for atoms in frames:
        atoms.info["e"], atoms.arrays["f"] = -100.0, np.zeros((len(atoms), 3))
    ase.io.write("cheap.xyz", frames, format="extxyz")
    message = selecting.refused(*OPTIONS, "--budget=4", "--labelled=cheap.xyz:dz=e,f@eV")
    assert "budget is 4: no label that it suffices for tells anything about forces of 'cc'" in message


def test_labels_of_one_molecule_in_several_data_sets_are_joined(untrained: Any, tmp_path: Path) -> None:
    untrained("dz:EF", "cc:E")
    trained = open_trained(tmp_path / "model.ckpt")
    random = np.random.default_rng(0)

    def molecules(rows: list[int], letters: dict[int, str]) -> LabelledMolecules:
        features = [Features(random.normal(size=3), random.normal(size=(6, 3))) for _ in rows]
        return LabelledMolecules(np.array(rows), features, [dict(letters) for _ in rows], np.zeros((len(rows), 2)), [])

    one, other = molecules([3, 50], {0: "EF"}), molecules([50, 100], {1: "E"})
    grams = _grams(one, trained.dataset, [(other, trained.dataset), (one, trained.dataset)])
    expected = {
        ("E", (0,)): one.features[0].of("E"),
        ("E", (0, 1)): one.features[1].of("E"),
        ("E", (1,)): other.features[1].of("E"),
        ("F", (0,)): np.concatenate([one.features[0].of("F"), one.features[1].of("F")]),
    }
    assert grams.of.keys() == expected.keys()
    for key, rows in expected.items():
        np.testing.assert_allclose(grams.of[key], rows.T @ rows)


def test_levels_are_compared_by_what_their_baselines_leave(
    selecting: Any, shaken: Any, untrained: Any, tmp_path: Path
) -> None:
    untrained("dz:EF", "cc:E", baseline=["dz=d3bj:b3lyp", "cc=d3bj:pbe"], precision=64)
    trained, full = open_trained(tmp_path / "model.ckpt"), MiniCHNO()
    one, other = trained.train[full._data.energy_mask.all(dim=1)[trained.train].numpy()][:2].tolist()
    left = trained.without_baselines(np.array([one]))
    bare = mfpyg.load(tmp_path / "model.ckpt")
    bare.baselines = {}
    for name in ("dz", "cc"):
        column = full.fidelities.index(name)
        dispersion = trained.potential(full[one], name).energy - bare(full[one], name).energy
        assert dispersion.abs() > 0.01
        found = full[one].energy[:, column] - left[one].energy[:, left.fidelities.index(name)]
        torch.testing.assert_close(found, dispersion, rtol=0, atol=1e-9)
        assert torch.equal(left[other].energy[:, left.fidelities.index(name)], full[other].energy[:, column])
    shaken(ROWS)
    assert selecting(*OPTIONS, "--budget=60") == 0, selecting.errors


@pytest.mark.parametrize("fitted", [False, True])
def test_uncertain_frames_come_first(shaken: Any, untrained: Any, tmp_path: Path, fitted: bool) -> None:
    """By the standard deviations of forces; without any, by those of the last layer, which differ by a factor."""
    shaken(ROWS)
    untrained("dz:EF", "cc:E", precision=64)
    trained = open_trained(tmp_path / "model.ckpt")
    if fitted:
        fit_uncertainty(trained.potential, trained.dataset, trained.train, trained.held_out)
    assert trained.potential.has_std("cc") == fitted
    frames = list(frames_of(tmp_path / "pool.xyz"))
    order = by_uncertainty(frames, "cc", trained, np.random.default_rng(0), "pool.xyz")
    fit_uncertainty(trained.potential, trained.dataset, trained.train, trained.held_out)
    variance = []
    for frame in frames:
        data = batch_of([frame], Ensemble(trained.potential))
        variance.append(float(trained.potential.predict(data, {"cc": "E"}, std=True)["cc"].forces_std.square().mean()))
    assert order.tolist() == np.argsort(variance)[::-1].tolist()


def test_features_of_frames_and_conformations(shaken: Any, untrained: Any, tmp_path: Path) -> None:
    shaken([700, 3, 400])
    untrained("dz:EF", "cc:E", precision=64)
    trained = open_trained(tmp_path / "model.ckpt")
    frames = list(frames_of(tmp_path / "pool.xyz"))
    found = features_of_frames(trained.potential, frames, "cc", "", jacobian=True)
    head = trained.potential.head("cc")  # type: ignore[attr-defined]
    weights = np.concatenate([np.zeros(4), *(level.weight[0].detach().numpy() for level in head.levels)])
    for frame, features in zip(frames, found, strict=True):
        forces = trained.potential(batch_of([frame], Ensemble(trained.potential)), "cc").forces.numpy().ravel()
        np.testing.assert_allclose(features.of("F") @ weights, forces, atol=1e-8)
    rows = np.array([700, 3, 400, 5])
    of_rows = features_of_rows(trained.potential, trained.dataset, rows, "cc", jacobian=True)
    for row, features in zip(rows, of_rows, strict=True):
        alone = last_features_of(trained.potential, MiniCHNO()[int(row)], "cc", jacobian=True)
        np.testing.assert_allclose(features.energy, alone.graphs[0].numpy(), atol=1e-6)
        np.testing.assert_allclose(features.of("F"), alone.jacobian.flatten(0, 1).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target ccc", "unknown level of the run 'ccc' (known: dz, cc); did you mean 'cc'?"),
        ("--target ccc --method=diverse", "unknown fidelity 'ccc'"),
        ("--target ccc --method=uncertainty", "unknown fidelity 'ccc'"),
        ("--target cc --cost tz=4", "unknown level of the run 'tz'"),
        ("--target cc --dataset other.xyz:dz=e,f@eV:cc=c@eV", "has other conformations or labels than model.ckpt"),
        ("--target cc --budget=0.5", "budget is 0.5, below one label"),
    ],
)
def test_mistakes_are_one_line(
    selecting: Any, shaken: Any, untrained: Any, write_xyz: Any, options: str, message: str
) -> None:
    shaken([0, 30])
    untrained("dz:EF", "cc:E")
    write_xyz(Path("other.xyz"), [0, 30, 60], dz="e,f", cc="c")
    arguments = ["--budget=20", "--cost", "cc=10", "dz=1", *options.split()]
    assert message in selecting.refused("model.ckpt", "pool.xyz", *arguments)


def test_runs_and_frames_that_cannot_be_used(selecting: Any, shaken: Any, untrained: Any) -> None:
    frames = shaken([0, 30])
    mfpyg.save(mfpyg.load(untrained("dz:EF", "cc:E")), "saved.ckpt")
    message = selecting.refused("saved.ckpt", *OPTIONS[1:], "--budget=20")
    assert "saved.ckpt: its training data are not known; expected a run of mfpyg-train" in message
    frames[1].symbols[0] = "S"
    ase.io.write("pool.xyz", frames, format="extxyz")
    for method in ("multi-fidelity", "diverse", "uncertainty"):
        message = selecting.refused(*OPTIONS, "--budget=20", f"--method={method}")
        assert "pool.xyz: frame 1: " in message
        assert "S" in message
    checkpoint = torch.load("model.ckpt", weights_only=True)
    checkpoint["mfpyg"]["data"]["name"] = ["gone.xyz:dz=e,f@eV:cc=c@eV"]
    torch.save(checkpoint, "model.ckpt")
    message = selecting.refused(*OPTIONS, "--budget=20")
    assert "if the data have moved, say where they are now: mfpyg-select model.ckpt --dataset NEW" in message


def test_large_pools_are_sampled(selecting: Any, shaken: Any, untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANDIDATES", "TARGETS", "LABELLED"):
        monkeypatch.setattr(f"mfpyg.selection.multi_fidelity.{name}", 8)
    shaken(ROWS)
    untrained("dz:EF", "cc:E")
    assert selecting(*OPTIONS, "--budget=1e6") == 0
    assert "note: 8 random ones of 27 frames are considered" in selecting.output
    assert len(chosen()) == 8
