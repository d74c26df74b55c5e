"""Training a trained potential further: what changes, what stays bit for bit, and from what it begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mfpyg
from mfpyg.checkpoint import trained_labels
from mfpyg.cli import evaluate, train
from mfpyg.cli.train import parse
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.batches import BatchLoader
from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.datasets.references import compositions, labelled_energies
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.uncertainty import fit_uncertainty
from mfpyg.fidelity import parse_fidelities
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.uncertainty import uncertainty_state
from mfpyg.settings import SplitSettings, from_dict, to_dict
from mfpyg.training import run
from mfpyg.training.initial import read_initial, start_of
from mfpyg.training.inputs import Inputs
from mfpyg.training.strategies import finetune
from mfpyg.training.strategies.finetune import inherited_splits

Make = Callable[..., Path]
MODES = ("frozen", "kept", "replayed")
BRIEF = ("--epochs=2", "--batch-size=151", "--optim.lr=0.01", "--label-fraction", "cc=0.1")


@pytest.fixture(scope="module")
def minichno() -> MiniCHNO:
    return MiniCHNO()


def prepared(dataset: MiniCHNO, model: Path, *options: str) -> tuple[Inputs, Any]:
    """Inputs of ``mfpyg-train --init``, and the potential that it would train, before the first step."""
    settings = parse(["--init", str(model), *options])[0]
    initial = read_initial(str(model))
    splits, _ = inherited_splits(settings, dataset, initial)
    torch.manual_seed(settings.seed)
    inputs = Inputs(settings, parse_fidelities(settings.fidelities), dataset, splits, start=start_of(initial))
    return inputs, finetune.stages(inputs)[0]


def same_predictions(one: MultiFidelityPotential, two: MultiFidelityPotential, fidelity: str) -> bool:
    """Whether energies and forces are the same bits."""
    (batch,) = BatchLoader(MiniCHNO(), plan=lambda epoch: [np.arange(0, 788, 20)])
    first, second = (potential.eval().predict(batch, {fidelity: "EF"})[fidelity] for potential in (one, two))
    assert first.forces is not None
    assert second.forces is not None
    return torch.equal(first.energy, second.energy) and torch.equal(first.forces, second.forces)


def trained(model: Path, out: Path, *options: str) -> Path:
    train.main(["--init", str(model), "--out", str(out), *BRIEF, *options])
    return out


# Before the first step


@pytest.mark.parametrize("head", [{}, {"kind": "nonlinear"}, {"private_blocks": 1}])
@pytest.mark.parametrize("old", MODES)
def test_with_nothing_trained_old_predictions_are_the_same_bits(
    minichno: MiniCHNO, untrained: Make, old: str, head: dict[str, Any]
) -> None:
    model = untrained("dz:EF", "mp2:E", **head)
    _, potential = prepared(minichno, model, "--add-fidelity", "cc:E", "tz:EF", "--finetune.old", old)
    assert isinstance(potential, MultiFidelityPotential)
    assert potential.fidelities == ("dz", "mp2", "cc", "tz")
    for fidelity in ("dz", "mp2"):
        assert same_predictions(potential, mfpyg.load(model), fidelity)


def test_new_fidelity_begins_as_a_copy_with_references_of_its_own(minichno: MiniCHNO, untrained: Make) -> None:
    model = untrained("dz:EF", "mp2:E", private_blocks=1)
    for source, options in (("mp2", []), ("dz", ["--finetune.head-from", "dz"])):
        potential = prepared(minichno, model, "--add-fidelity", "cc:E", *options)[1]
        number = potential.fidelities.index(source)
        for parts in (potential.heads, potential.private):
            for (name, one), two in zip(parts[2].named_parameters(), parts[number].parameters(), strict=True):
                assert torch.equal(one, two), name
                assert one is not two
        assert not torch.equal(potential.reference("cc"), potential.reference(source))


@pytest.mark.parametrize("source", ["dz", "fresh"])
def test_new_fidelity_has_no_head_that_it_has_no_labels_for(untrained: Make, source: str) -> None:
    """It would predict dipoles that nothing has been compared with."""
    model = untrained("dz:EFD")
    options = ("--add-fidelity", "cc:E", "--finetune.head-from", source)
    assert prepared(MiniCHNO(properties="EFD"), model, *options)[1].further == {"dz": "DQ"}


def test_fresh_head_is_drawn_by_the_seed(minichno: MiniCHNO, untrained: Make) -> None:
    model = untrained("dz:EF", private_blocks=1)

    def weights(*options: str) -> list[torch.Tensor]:
        _, potential = prepared(minichno, model, "--add-fidelity", "cc:E", "--finetune.head-from=fresh", *options)
        return list(potential.parts_of(["cc"]).parameters())

    old = list(mfpyg.load(model).parts_of(["dz"]).parameters())
    for one, same, other, copied in zip(weights(), weights(), weights("--seed=1"), old, strict=True):
        assert torch.equal(one, same)
        if one.dim() > 1:  # those that are drawn
            assert not torch.equal(one, other)
            assert not torch.equal(one, copied)


def test_references_are_the_least_squares_of_what_the_copy_leaves(minichno: MiniCHNO, untrained: Make) -> None:
    inputs, potential = prepared(minichno, untrained("dz:EF"), "--add-fidelity", "cc:E")
    potential, column = potential.eval(), minichno.fidelities.index("cc")
    rows = inputs.splits["train"]
    (batch,) = BatchLoader(minichno, plan=lambda epoch: [rows])
    left = (batch.energy[:, column] - potential.predict(batch, {"cc": "E"})["cc"].energy).numpy()
    counts = compositions(minichno, potential.species)[rows]
    assert np.abs(counts.T @ left).max() < 1e-2  # orthogonal to every element's count; about 1e6 before
    assert np.sqrt(np.mean(left**2)) < 50


def test_references_of_init_are_kept_or_fitted_to_the_labels(minichno: MiniCHNO, untrained: Make) -> None:
    """References that few labels had left far off."""
    model = untrained("dz:EF", "cc:E")
    initial = read_initial(str(model))
    for given, refit in ((["--references=fit"], True), (["--references=keep"], False), ([], False)):
        settings = parse(["--init", str(model), "--fidelities", "cc:E", *given])[0]
        splits, _ = inherited_splits(settings, minichno, initial)
        start = start_of(initial)
        off = torch.tensor([3.0, 200.0, -50.0, 70.0], dtype=torch.float64)
        start.potential.reference("cc").add_(off)
        dz = start.potential.reference("dz").clone()
        potential, _ = finetune.stages(
            Inputs(settings, parse_fidelities(settings.fidelities), minichno, splits, start=start)
        )
        column, rows = minichno.fidelities.index("cc"), splits["train"]
        (batch,) = BatchLoader(minichno, plan=lambda epoch, rows=rows: [rows])
        left = (batch.energy[:, column] - potential.eval().predict(batch, {"cc": "E"})["cc"].energy).numpy()
        counts = compositions(minichno, potential.species)[rows]
        assert (np.abs(counts.T @ left).max() < 1e-2) == refit
        assert torch.equal(potential.reference("dz"), dz)  # which is not trained


def test_formation_energies_trained_on_total_energies_are_noted(minichno: MiniCHNO, untrained: Make) -> None:
    """Only their zero is wrong, and references fitted to the labels put it right."""
    model = untrained("dz:EF")
    initial = read_initial(str(model))
    for given, noted in (([], True), (["--references=fit"], False)):
        settings = parse(["--init", str(model), "--fidelities", "dz:E", *given])[0]
        splits, _ = inherited_splits(settings, minichno, initial)
        start = start_of(initial)
        start.potential.shift_references("dz", -start.potential.reference("dz"))
        inputs = Inputs(settings, parse_fidelities(settings.fidelities), minichno, splits, start=start)
        finetune.stages(inputs)
        text = [note for note in inputs.notes if "dz energies differ from the labels" in note]
        assert len(text) == noted
        assert all("--references fit shifts the reference energies of init" in note for note in text)


def test_settings_of_before_references_fit_are_read(untrained: Make) -> None:
    """Checkpoints between the releases have ``finetune.refit`` in their place."""
    values = to_dict(parse(["--init", str(untrained("dz:EF")), "--fidelities", "dz:E"])[0])
    for refit, references in ((True, "fit"), (False, None)):
        settings = from_dict({**values, "finetune": {**values["finetune"], "refit": refit}})
        assert settings.references == references


def test_element_without_labels_has_the_difference_per_electron_of_the_others(
    minichno: MiniCHNO, untrained: Make
) -> None:
    """With no label of a molecule with N, its energy can't be fitted; the other level's is 72 kcal/mol too low."""
    model = untrained("dz:EF")
    settings = parse(["--init", str(model), "--add-fidelity", "cc:E"])[0]
    initial = read_initial(str(model))
    splits, _ = inherited_splits(settings, minichno, initial)
    nitrogen = compositions(minichno, (7,))[:, 0] > 0
    splits = {name: rows[~nitrogen[rows]] if name == "train" else rows for name, rows in splits.items()}
    inputs = Inputs(settings, parse_fidelities(settings.fidelities), minichno, splits, start=start_of(initial))
    potential, _ = finetune.stages(inputs)
    place = potential.species.index(7)
    before, after = potential.reference("dz")[place], potential.reference("cc")[place]
    counts = compositions(minichno, potential.species)
    cc, dz = (labelled_energies(minichno, name, np.arange(len(minichno))) for name in ("cc", "dz"))
    true = np.linalg.lstsq(counts, cc - dz, rcond=None)[0][place]
    assert true > 70
    assert abs(after - before - true) < 12
    note = next(note for note in inputs.notes if "reference energies of N" in note)
    assert "extrapolated from those of dz" in note


def test_a_fidelity_twice_or_an_unknown_source_is_refused(untrained: Make) -> None:
    potential = mfpyg.load(untrained("dz:EF"))
    with pytest.raises(MFPyGError, match="there is a fidelity 'dz' already"):
        potential.add_fidelity("dz", "dz")
    with pytest.raises(MFPyGError, match="unknown fidelity 'cc'"):
        potential.add_fidelity("tz", "cc")
    with pytest.raises(MFPyGError, match="unknown fidelity 'cc'"):
        potential.parts_of(["cc"])


# What is trained


@pytest.mark.parametrize(
    ("old", "fidelities"), [("frozen", ["cc:E"]), ("kept", ["cc:E"]), ("replayed", ["dz:EF", "cc:E"])]
)
def test_each_way_trains_what_it_says(untrained: Make, tmp_path: Path, old: str, fidelities: list[str]) -> None:
    model, out = untrained("dz:EF"), tmp_path / "run"
    trained(model, out, "--add-fidelity", "cc:E", "--finetune.old", old)
    before = torch.load(model, weights_only=True)["state_dict"]
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    after = checkpoint["state_dict"]
    changing = {"frozen": (), "kept": ("backbone.",), "replayed": ("backbone.", "heads.0.")}[old]
    for name, value in before.items():
        may = name.removeprefix("potential.").startswith(changing) and not name.endswith("reference")
        assert torch.equal(value, after[name]) != may, name
    for name in ("potential.heads.1.levels.0.weight", "potential.heads.1.levels.1.bias"):
        assert not torch.equal(after[name], before[name.replace("heads.1", "heads.0")]), name
    assert same_predictions(mfpyg.load(out), mfpyg.load(model), "dz") == (old == "frozen")
    described = checkpoint["mfpyg"]
    assert described["fidelities"] == ["dz", "cc"]
    assert (
        described["config"]["fidelities"]
        == fidelities
        == yaml.safe_load((out / "config.yaml").read_text())["fidelities"]
    )
    assert trained_labels(described) == {"dz": "EF", "cc": "E"}
    # The moments of the optimiser are those of trained parameters alone.
    n_trained = sum(not torch.equal(after[name], value) for name, value in before.items())
    own = sum(name.startswith("potential.heads.1.levels") for name in after)
    assert len(checkpoint["optimizer_states"][0]["state"]) == n_trained + own


def test_run_is_an_ordinary_one_and_says_where_it_comes_from(
    untrained: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mfpyg.files import sha256_of
    from mfpyg.study import StudyRun, collect

    model, out = untrained("dz:EF"), tmp_path / "run"
    trained(model, out, "--add-fidelity", "cc:E", "--finetune.old=frozen")
    record = torch.load(out / "best.ckpt", weights_only=True)["mfpyg"]["init"]
    assert (record["path"], record["sha256"], record["fidelities"]) == (str(model), sha256_of(model), ["dz:EF"])
    assert yaml.safe_load((out / "config.yaml").read_text())["finetune"]["sha256"] == sha256_of(model)
    output = capsys.readouterr().out
    assert "dz:EF; frozen, 14 parameters are trained" in output
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"dz", "cc"} <= set(metrics["test"])
    assert "dz:EF" in (out / "metrics.txt").read_text()
    evaluate.main([str(out), "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == metrics
    result = collect([StudyRun("SF-CC/E", out, label_fraction=0.1)], splits=["test"], resamples=10)
    assert not result.failures
    assert result.models[0].n_labels == 60
    # Once more from there, under the settings of the run itself: the first model is remembered, and what it learnt.
    trained(out, tmp_path / "third", "--add-fidelity", "tz:E", "--finetune.old=frozen", "--label-fraction", "tz=0.5")
    described = torch.load(tmp_path / "third" / "best.ckpt", weights_only=True)["mfpyg"]
    assert described["init"]["fidelities"] == ["dz:EF", "cc:E"]
    assert described["init"]["init"] == record
    assert same_predictions(mfpyg.load(tmp_path / "third"), mfpyg.load(out), "cc")


def test_existing_fidelities_are_trained_further(untrained: Make, tmp_path: Path) -> None:
    model, out = untrained("dz:EF", "cc:E"), tmp_path / "run"
    trained(model, out, "--fidelities", "cc:E")
    before, after = (torch.load(p, weights_only=True)["state_dict"] for p in (model, out / "last.ckpt"))
    changed = {name.split(".")[1] + name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"backboneblocks", "heads1"}
    assert torch.equal(before["potential.heads.1.reference"], after["potential.heads.1.reference"])
    assert parse(["--init", str(model)])[0].fidelities == ["dz:EF", "cc:E"]


def test_statistics_of_a_frozen_network_do_not_drift(tmp_path: Path) -> None:
    """A plug-in may keep running statistics, which no optimiser knows of."""
    import mfpyg.models

    if "with-statistics" not in mfpyg.backbones.names():
        mfpyg.models.register("with-statistics", WithStatistics)
    options = ["--epochs=1", "--batch-size=151", "--compile=off"]
    train.main(["--backbone=with-statistics", "--fidelities", "dz:E", *options, "--out", str(tmp_path / "model")])
    model = tmp_path / "model"
    arguments = ["--init", str(model), "--add-fidelity", "cc:E", *options]
    for old in ("frozen", "kept"):
        train.main([*arguments, "--finetune.old", old, "--out", str(tmp_path / old)])
        one, two = (torch.load(run / "best.ckpt", weights_only=True)["state_dict"] for run in (model, tmp_path / old))
        statistics = [name for name in one if "running" in name]
        assert len(statistics) == 2
        assert all(torch.equal(one[name], two[name]) == (old == "frozen") for name in statistics)
    assert same_predictions(mfpyg.load(tmp_path / "frozen"), mfpyg.load(model), "dz")


class WithStatistics(mfpyg.models.Backbone):
    """A SchNet with a batch normalisation behind."""

    def __init__(self, species: list[int], cutoff: float = 3.0) -> None:
        from mfpyg.models.schnet import SchNetBackbone

        super().__init__(species, cutoff)
        inner = SchNetBackbone(species, n_interactions=1, n_features=8, n_filters=8, n_gaussians=5, cutoff=cutoff)
        self.inner, self.norm = inner, torch.nn.BatchNorm1d(8)
        self.feature_sizes = inner.feature_sizes

    def forward(self, graph: Any) -> list[torch.Tensor]:
        first, *levels = self.inner(graph)
        return [first, *[self.norm(level) for level in levels]]


# Splits


def test_splits_of_the_same_conformations_are_those_of_the_model(minichno: MiniCHNO, untrained: Make) -> None:
    model = untrained("dz:EF", seed=3)
    initial = read_initial(str(model))
    settings = parse(["--init", str(model), "--add-fidelity", "cc:E"])[0]
    splits, notes = inherited_splits(settings, minichno, initial)
    expected, other = (make_splits(minichno, SplitSettings(), seed) for seed in (3, settings.seed))
    assert {name: rows.tolist() for name, rows in splits.items()} == {n: rows.tolist() for n, rows in expected.items()}
    assert splits["val"].tolist() != other["val"].tolist()
    assert notes == ["the splits are those of init, which was trained on the same conformations"]
    # Other levels of the same file are other labels of the same conformations.
    levels = MiniCHNO(fidelities=("hf_dz",))
    assert levels.fingerprint != minichno.fingerprint
    assert inherited_splits(settings, levels, initial)[0]["test"].tolist() == expected["test"].tolist()
    # A method that is named is followed, and what that means for the test is said.
    settings.split.method = "random"
    splits, notes = inherited_splits(settings, minichno, initial)
    seen = set(expected["train"].tolist()) | set(expected["val"].tolist())
    n = len(seen & set(splits["test"].tolist()))
    assert n > 0
    assert notes == [
        f"note: {n} of {len(splits['test'])} in test were in training or validation of init; errors there are too low"
    ]
    # Other data have splits of their own.
    settings.split.method = "auto"
    part = minichno.copy(range(0, 788, 2))
    splits, notes = inherited_splits(settings, part, initial)
    assert max(rows.max() for rows in splits.values()) < len(part)
    assert "val and test may contain some of it" in notes[0]


def test_fractions_that_would_do_nothing_are_refused(minichno: MiniCHNO, untrained: Make) -> None:
    model = untrained("dz:EF")
    settings = parse(["--init", str(model), "--add-fidelity", "cc:E", "--split.val=0.2"])[0]
    with pytest.raises(
        MFPyGError, match=r"split.val and split.test have no effect, as init was trained on the same data"
    ):
        inherited_splits(settings, minichno, read_initial(str(model)))


def test_labels_left_out_have_no_part_in_the_references(minichno: MiniCHNO, untrained: Make) -> None:
    model = untrained("dz:EF")
    settings = parse(["--init", str(model), "--add-fidelity", "cc:E", "--label-fraction", "cc=0.1"])[0]
    initial = read_initial(str(model))
    splits, _ = inherited_splits(settings, minichno, initial)

    def reference(shift: float) -> torch.Tensor:
        thin = thin_labels(minichno, splits, {"cc": 0.1}, settings.split_seed)
        column = thin.fidelities.index("cc")
        thin._data.energy = thin._data.energy.clone()
        thin._data.energy[~thin._data.energy_mask[:, column], column] += shift
        inputs = Inputs(settings, parse_fidelities(settings.fidelities), thin, splits, start=start_of(initial))
        return finetune.stages(inputs)[0].reference("cc")

    assert torch.equal(reference(0.0), reference(1e4))


# Data without the levels that are not trained on


NEW, MORE = "--dataset=mine.xyz:cc=cc_energy@eV", "--dataset=more.xyz:dz=energy@eV"


@pytest.fixture
def _small_data(
    untrained: Make, write_xyz: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here: ``runs/dz``, a model of ``dz`` and ``mp2``; ``mine.xyz`` with ``cc`` and ``more.xyz`` with ``dz`` alone."""
    monkeypatch.chdir(tmp_path)
    write_xyz(tmp_path / "mine.xyz", range(0, 788, 8), cc="cc_energy")
    write_xyz(tmp_path / "more.xyz", range(4, 788, 8), dz="energy")
    (tmp_path / "runs" / "dz").mkdir(parents=True)
    untrained("dz:EF", "mp2:E").rename(tmp_path / "runs" / "dz" / "best.ckpt")


@pytest.mark.slow
@pytest.mark.usefixtures("_small_data")
@pytest.mark.parametrize(
    ("options", "trained", "levels"),
    [
        (["--add-fidelity=cc:E"], ["dz:EF", "mp2:E", "cc:E"], {"dz", "mp2", "cc"}),
        (["--add-fidelity=cc:E", "--finetune.old=frozen", NEW], ["cc:E"], {"cc"}),
        (["--add-fidelity=cc:E", "--finetune.old=kept", NEW], ["cc:E"], {"cc"}),
        (["--fidelities=dz:E", MORE], ["dz:E"], {"dz"}),
    ],
    ids=["replayed", "frozen", "kept", "more data"],
)
def test_run_asks_for_what_is_trained_on_alone(options: list[str], trained: list[str], levels: set[str]) -> None:
    from mfpyg.datasets.spec import open_dataset, parse_specs
    from mfpyg.inference.dataset import run_predictions

    train.main(["--init=runs/dz", *options, "--epochs=1", "--batch-size=151", "--compile=off", "--out", "out"])
    out = Path("out")
    described = torch.load(out / "best.ckpt", weights_only=True)["mfpyg"]
    assert described["config"]["fidelities"] == trained
    assert set(described["fidelities"]) == {"dz", "mp2", *levels}
    header = (out / "metrics.csv").read_text().splitlines()[0]
    assert {name.split("/")[1] for name in header.split(",") if name.count("/") == 2} == levels
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["val"]) == levels
    evaluate.main(["out", "--json", "again.json", "--plot"])
    assert json.loads(Path("again.json").read_text()) == metrics
    dataset = open_dataset(parse_specs(described["data"]["name"]), [text.split(":")[0] for text in trained])
    found = run_predictions(out, dataset, described["splits"]["val"].long().numpy())
    assert {name for name, _ in found.values} == levels
    train.main(["--resume", "out", "--epochs=2"])
    assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] == 1
    # What the new data lack, other data have.
    evaluate.main(["out", "--dataset", "minichno", "--split=all", "--json", "all.json"])
    assert {"dz", "mp2", *levels} == set(json.loads(Path("all.json").read_text())["all"])
    evaluate.main(["out", "--dataset", "more.xyz:dz=energy@eV", "--json", "dz.json"])
    where = "val" if MORE in options else "all"  # its own data, or other
    assert set(json.loads(Path("dz.json").read_text())[where]) == {"dz"}


@pytest.mark.usefixtures("_small_data")
def test_monitor_may_be_what_is_trained_alone(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--init", "runs/dz", "--fidelities", "dz:E", "--dataset", "more.xyz:dz=energy@eV", "--out", "out"]
    train.main([*options, *BRIEF[:2], "--monitor=dz"])
    with pytest.raises(SystemExit):
        train.main([*options, "--monitor=mp2", "--out=other"])
    assert "unknown monitor 'mp2' (known: sum, dz)" in capsys.readouterr().err


def test_run_on_other_levels_has_no_labels_of_a_studys_target(
    untrained: Make, write_xyz: Callable[..., Path], tmp_path: Path
) -> None:
    from mfpyg.study import StudyRun, collect

    model, out = untrained("dz:EF", "cc:E"), tmp_path / "run"
    data = f"{write_xyz(tmp_path / 'more.xyz', range(0, 788, 8), dz='energy')}:dz=energy@eV"
    train.main(["--init", str(model), "--fidelities", "dz:E", "--dataset", data, "--out", str(out), *BRIEF[:2]])
    (of_model,) = collect([StudyRun("MF-DZ/EF-CC/E", out)], splits=["test"], resamples=10).models
    assert of_model.n_labels == 0
    assert set(of_model.errors["test"]) == {"dz"}


@pytest.mark.slow
def test_settings_of_a_run_make_it_again(untrained: Make, tmp_path: Path) -> None:
    model, out = untrained("dz:EF"), tmp_path / "run"
    trained(model, out, "--add-fidelity", "cc:E", "--finetune.old=frozen")
    shutil.copy(out / "config.yaml", tmp_path / "config.yaml")
    train.main(["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "again")])
    one, two = (torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (out, tmp_path / "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("compile_soon")
def test_compiled_steps_leave_a_frozen_network_alone(untrained: Make, tmp_path: Path) -> None:
    model = untrained("dz:EF")
    out = trained(model, tmp_path / "run", "--add-fidelity", "tz:EF", "--finetune.old=frozen", "--compile=on",
                  "--label-fraction", "tz=0.5")  # fmt: skip
    assert same_predictions(mfpyg.load(out), mfpyg.load(model), "dz")


def test_standard_deviations_are_those_of_the_new_weights(
    minichno: MiniCHNO, untrained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the initial potential are dropped before the first step, others are fitted at the end."""
    model, out = untrained("dz:EF", "cc:E"), tmp_path / "run"
    potential, checkpoint = mfpyg.load(model), torch.load(model, weights_only=True)
    splits = {name: rows.numpy().astype(np.int64) for name, rows in checkpoint["mfpyg"]["splits"].items()}
    fit_uncertainty(potential, minichno, splits["train"], splits["val"])
    torch.save({**checkpoint, "uncertainty": uncertainty_state(potential)}, model)
    assert mfpyg.load(model).has_std("cc")
    with monkeypatch.context() as patch:
        patch.setattr(run, "final_table", lambda *_: None)
        trained(model, out, "--epochs=1")
    for name in ("best.ckpt", "last.ckpt"):
        loaded = mfpyg.load(out / name)
        assert not loaded.has_std("cc")
        assert loaded.held_out is None
    train.main(["--resume", str(out)])
    found = mfpyg.load(out)
    data = minichno[700]
    before, after = (p.predict(data, {"dz": "E"}, std=True)["dz"].energy_std for p in (potential, found))
    assert before != after
    written = torch.load(out / "best.ckpt", weights_only=True)["uncertainty"]
    train.main(["--resume", str(out)])
    again = torch.load(out / "best.ckpt", weights_only=True)["uncertainty"]
    for name, layer in written["levels"].items():
        assert all(torch.equal(value, again["levels"][name][key]) for key, value in layer.items())
        assert torch.equal(written["quantiles"][name], again["quantiles"][name])
