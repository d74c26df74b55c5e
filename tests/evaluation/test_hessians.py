"""Errors of whole Hessians, and of frequencies at stationary points, against each conformation alone."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule

from mfpyg.datasets import ExtXYZ
from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.evaluation import hessians
from mfpyg.evaluation.evaluate import evaluate
from mfpyg.evaluation.frequencies import harmonic_frequencies
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.hessian import hessian

LEVELS = ["a=a_e,a_f,H=a_h?@kcal/mol", "b=b_e,b_f,H=b_h?@kcal/mol"]


@pytest.fixture
def dataset(tmp_path: Path) -> ExtXYZ:
    """Water with Hessians of both levels at a stationary point of ``a``, methane with one of ``b``, and none."""
    random, frames = np.random.default_rng(0), []
    for name, labelled, force in (("H2O", "ab", 0.5), ("CH4", "b", 3.0), ("CO2", "", 0.1)):
        atoms = molecule(name)
        n = len(atoms)
        for level in "ab":
            forces = np.zeros((n, 3))
            forces[0] = (force if level == "a" else 2 * force), 0, 0
            atoms.info[f"{level}_e"] = 0.0
            atoms.new_array(f"{level}_f", forces)
            if level in labelled:
                half = 100 * random.normal(size=(3 * n, 3 * n))
                atoms.info[f"{level}_h"] = half + half.T
        frames.append(atoms)
    ase.io.write(tmp_path / "all.xyz", frames, format="extxyz")
    return ExtXYZ(tmp_path / "all.xyz", LEVELS, root=tmp_path)


@pytest.fixture
def potential() -> MultiFidelityPotential:
    torch.manual_seed(0)
    made = MultiFidelityPotential(HIPNN([1, 6, 8], 1, 0, 4, 4), ["b", "a"]).double().eval()
    for head in made.heads:
        for level in head.levels:
            level.reset_parameters()
    return made


def test_errors_are_those_of_each_conformation_alone(dataset: ExtXYZ, potential: MultiFidelityPotential) -> None:
    found = evaluate(potential, dataset, {"all": np.arange(3)}, parity=True)
    errors: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    frequencies: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for data in dataset:
        n, number = len(data.z), 0
        for column, name in enumerate("ab"):
            if not data.hessian_mask[0, column]:
                continue
            label = data.hessian[number * n * n : (number + 1) * n * n].view(n, n, 3, 3)
            number += 1
            predicted = hessian(potential, data, name)
            errors[name].append((predicted - label).flatten().numpy())
            if name == "a":
                both = [harmonic_frequencies(h, data.z, data.pos) for h in (predicted, label)]
                frequencies[name].append((both[0] - both[1]).numpy())
    for name, values in found.metrics["all"].items():
        e = np.concatenate(errors[name])
        assert values["hessian"]["n"] == len(e) == {"a": 81, "b": 81 + 225}[name]
        assert values["hessian"]["rmse"] == pytest.approx(np.sqrt(np.mean(e**2)), rel=1e-6)
        assert values["hessian"]["mae"] == pytest.approx(np.abs(e).mean(), rel=1e-6)
        assert len(found.parity["all"][name, "hessian"].labels) == {"a": 1, "b": 2}[name]
    (of_water,) = frequencies["a"]
    assert found.metrics["all"]["a"]["frequencies"]["n"] == len(of_water) == 3
    assert found.metrics["all"]["a"]["frequencies"]["rmse"] == pytest.approx(np.sqrt(np.mean(of_water**2)), rel=1e-4)
    assert "frequencies" not in found.metrics["all"]["b"], "forces of 1 and 6 kcal/mol/Å are not stationary"


def test_large_graphs_are_left_out_and_counted(
    dataset: ExtXYZ, potential: MultiFidelityPotential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessians, "MAX_ATOMS", 4)
    with pytest.warns(MFPyGWarning, match="Hessians of 1 conformations with more than 4 atoms are not evaluated"):
        found = evaluate(potential, dataset, {"all": np.arange(3)})
    assert found.metrics["all"]["b"]["hessian"]["n"] == 81


def test_hessians_that_are_not_finite_are_named(
    dataset: ExtXYZ, potential: MultiFidelityPotential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessians, "hessian", lambda *arguments: hessian(*arguments) / 0)
    with pytest.raises(MFPyGError, match=r"the [ab] predicted Hessian of \w+, conformation \d, is NaN or infinite"):
        evaluate(potential, dataset, {"all": np.arange(3)})
    monkeypatch.undo()
    dataset._data.hessian[0, 0, 0] = torch.nan  # of water at level a
    with pytest.raises(MFPyGError, match=r"the a Hessian label of H2O1, conformation 0, is NaN or infinite"):
        evaluate(potential, dataset, {"all": np.arange(1)})
