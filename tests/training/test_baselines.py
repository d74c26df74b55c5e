"""Training on what a baseline leaves of the labels: subtracted once, added back by the loaded potential."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import mfpyg
from mfpyg import baselines
from mfpyg.cli import train
from mfpyg.datasets import MiniCHNO
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import parse_fidelities
from mfpyg.models import MultiFidelityPotential
from mfpyg.settings import TrainSettings
from mfpyg.training.baselines import check_baselines, without_baselines

TINY = (
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64",
    "--compile=off",
)  # fmt: skip


class Springs:
    """E = ½ k Σ |x − centre|² of each molecule, k in kcal/mol/Å²: a baseline without second derivatives."""

    def __init__(self, method: str) -> None:
        self.k = float(method)

    def __call__(self, z: Tensor, pos: Tensor, batch: Tensor, n_graphs: int) -> tuple[Tensor, Tensor]:
        sizes = torch.bincount(batch, minlength=n_graphs)
        centre = pos.new_zeros(n_graphs, 3).index_add(0, batch, pos) / sizes[:, None]
        away = (pos - centre[batch]).detach()
        return 0.5 * self.k * away.square().sum(dim=1), -self.k * away


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines.registry, "known", dict(baselines.registry.known))
        baselines.register("springs", Springs)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baselines") / "run"
    train.main(["--fidelities", "dz:EF", "cc:E", "--epochs=2", "--baseline", "cc=springs:5", "--out", str(out), *TINY])
    return out


def test_labels_are_those_without_it_and_others_are_left_alone() -> None:
    full = MiniCHNO()
    left = without_baselines(TrainSettings(baseline=["cc=springs:5"]), full)
    dz, cc, of = full.fidelities.index("dz"), full.fidelities.index("cc"), Springs("5")
    n_labelled = 0
    for number in range(0, len(full), 30):
        before, after = full[number], left[number]
        energies, forces = of(before.z, before.pos.double(), torch.zeros_like(before.z), 1)
        assert torch.equal(before.energy[:, dz], after.energy[:, dz])
        assert torch.equal(before.forces[:, dz], after.forces[:, dz])
        assert torch.equal(before.energy_mask, after.energy_mask)
        assert torch.equal(before.forces[:, cc].isnan(), after.forces[:, cc].isnan())
        if before.energy_mask[0, cc]:
            n_labelled += 1
            torch.testing.assert_close(before.energy[0, cc] - after.energy[0, cc], energies.sum())
        if before.forces_mask[0, cc]:
            torch.testing.assert_close(before.forces[:, cc] - after.forces[:, cc], forces.float(), atol=1e-4, rtol=0)
    assert n_labelled > 5
    assert left.fingerprint == full.fingerprint


def test_one_of_two_levels_is_evaluated_once_for_each_geometry(
    make_potential: Callable[..., MultiFidelityPotential], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, evaluated = MiniCHNO(), list[int]()

    class Counted(Springs):
        def __call__(self, z: Tensor, pos: Tensor, batch: Tensor, n_graphs: int) -> tuple[Tensor, Tensor]:
            evaluated.append(n_graphs)
            return super().__call__(z, pos, batch, n_graphs)

    monkeypatch.setattr(baselines, "make", Counted)
    both = without_baselines(TrainSettings(baseline=["dz=5", "cc=5"]), full)
    assert sum(evaluated) == len(full)
    for name in ("dz", "cc"):
        alone, column = without_baselines(TrainSettings(baseline=[f"{name}=5"]), full), full.fidelities.index(name)
        for key in ("energy", "forces"):
            expected, found = alone._data[key][:, column], both._data[key][:, column]
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)

    potential = make_potential(fidelities=["dz", "cc"])
    potential.baselines = dict.fromkeys(("dz", "cc"), Counted("5"))
    evaluated.clear()
    found = potential.predict(full[0], {"dz": "EF", "cc": "EF"})
    assert evaluated == [1]
    for name in ("dz", "cc"):
        torch.testing.assert_close(found[name].energy, potential.predict(full[0], {name: "E"})[name].energy)
        torch.testing.assert_close(found[name].forces, potential.predict(full[0], {name: "EF"})[name].forces)


@pytest.mark.slow
def test_loaded_potential_adds_it_back(run: Path, tmp_path: Path) -> None:
    """Errors at the end, of totals, are those of the best epoch, of what is left."""
    potential = mfpyg.load(run)
    assert list(potential.baselines) == ["cc"]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["val/loss"]))
    table = json.loads((run / "metrics.json").read_text())["val"]
    for name in ("dz", "cc"):
        assert table[name]["energy"]["rmse"] == pytest.approx(float(best[f"val/{name}/energy_rmse"]), rel=1e-3)
    data = MiniCHNO()[0]
    mfpyg.save(potential, tmp_path / "copy.ckpt")
    again, expected = mfpyg.load(tmp_path / "copy.ckpt")(data, "cc"), potential(data, "cc")
    assert torch.equal(again.forces, expected.forces)
    potential.baselines = {}
    energies, forces = Springs("5")(data.z, data.pos.double(), torch.zeros_like(data.z), 1)
    torch.testing.assert_close(expected.energy[0] - potential(data, "cc").energy[0], energies.sum())
    torch.testing.assert_close(expected.forces - potential(data, "cc").forces, forces.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_resumed_and_further_trained_runs_keep_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(["--resume", str(run), "--baseline", "cc=springs:6"])
    assert "baseline was ['cc=springs:5'], now ['cc=springs:6']" in " ".join(capsys.readouterr().err.split())
    train.main(["--resume", str(run), "--epochs=3"])
    assert list(mfpyg.load(run).baselines) == ["cc"]
    further = ["--init", str(run), "--add-fidelity", "mp2:E", "--epochs=1", "--compile=off", "--batch-size=64"]
    train.main([*further, "--baseline", "mp2=springs:7", "--out", str(tmp_path / "further")])
    written = yaml.safe_load((tmp_path / "further" / "config.yaml").read_text())
    assert written["baseline"] == ["cc=springs:5", "mp2=springs:7"]
    assert {name: one.k for name, one in mfpyg.load(tmp_path / "further").baselines.items()} == {"cc": 5, "mp2": 7}
    for baseline, message in (
        ("cc=springs:6", "trained with the baseline springs:5 of 'cc'"),
        ("dz=springs:6", "trained with no baseline of 'dz'"),
        ("tz=springs:6", "unknown fidelity of baseline 'tz'"),
    ):
        with pytest.raises(SystemExit):
            train.main([*further, "--baseline", baseline, "--out", str(tmp_path / "other")])
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["delta", "tl"])
def test_other_strategies(tmp_path: Path, strategy: str) -> None:
    both = ("--baseline", "cc=springs:5", "dz=springs:3")
    train.main(
        [
            "--fidelities",
            "dz:EF",
            "cc:E",
            "--strategy",
            strategy,
            "--epochs=2",
            *both,
            "--out",
            str(tmp_path / "a"),
            *TINY,
        ]
    )
    potential = mfpyg.load(tmp_path / "a")
    assert set(potential.baselines) == set(potential.fidelities)
    data = MiniCHNO()[0]
    total = potential(data, "cc").energy.item()
    potential.baselines = {}
    energies, _ = Springs("5")(data.z, data.pos.double(), torch.zeros_like(data.z), 1)
    assert total - potential(data, "cc").energy.item() == pytest.approx(energies.sum().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("baseline", "fidelities", "message"),
    [
        ("cc", ["cc:E"], "baseline has 'cc', expected each fidelity once"),
        ("dz=springs:1", ["cc:E"], "unknown fidelity of baseline 'dz'"),
        ("cc=springz:1", ["cc:E"], "did you mean 'springs'"),
        ("cc=springs:1", ["cc:EFH"], "leave Hessians out, or the baseline"),
    ],
)
def test_wrong_ones_are_refused(baseline: str, fidelities: list[str], message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        check_baselines(TrainSettings(baseline=[baseline]), parse_fidelities(fidelities))


def test_older_checkpoints_have_none(untrained: Callable[..., Path]) -> None:
    path = untrained("dz:EF")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["mfpyg"]["config"]["baseline"]
    torch.save(checkpoint, path)
    assert mfpyg.load(path).baselines == {}
