"""Fewer labels, as if the rest had never been computed: which ones, and that nothing in a training sees the others."""

from __future__ import annotations

import copy
import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mfpyg
from mfpyg import settings as s
from mfpyg.cli import evaluate, train
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.batches import BatchLoader
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.datasets.references import fit_references
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import parse_fidelities
from mfpyg.settings import SplitSettings
from mfpyg.training.check import check_settings, label_fractions
from mfpyg.training.fit import stages_of
from mfpyg.training.inputs import Inputs

TINY = [
    "--model.n-features=6", "--model.n-atom-layers=1", "--model.n-sensitivities=5", "--batch-size=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def minichno() -> MiniCHNO:
    return MiniCHNO()


@pytest.fixture(scope="module")
def splits(minichno: MiniCHNO) -> dict[str, np.ndarray]:
    return make_splits(minichno, SplitSettings(), seed=0)


def kept(dataset: ConformationDataset, fidelity: str, prop: str = "energy") -> set[int]:
    column = dataset.fidelities.index(fidelity)
    return set(np.flatnonzero(dataset._data[f"{prop}_mask"][:, column].numpy()).tolist())


def poisoned(dataset: ConformationDataset, thinned: ConformationDataset, poison: float) -> ConformationDataset:
    """The thinned data set with ``poison`` in place of every label that was lost."""
    result = copy.copy(thinned)
    result._data = copy.copy(thinned._data)
    of_atom = torch.repeat_interleave(torch.arange(len(dataset)), dataset.slices["z"].diff())
    for prop in ("energy", "forces"):
        lost = dataset._data[f"{prop}_mask"] & ~thinned._data[f"{prop}_mask"]
        assert lost.any()
        values = thinned._data[prop].clone()
        values[lost if prop == "energy" else lost[of_atom]] = poison
        result._data[prop] = values
    return result


# Which labels


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.3, 0.5, 0.999, 1.0])
def test_the_fraction_is_kept_of_training_and_validation_and_all_of_the_rest(
    minichno: MiniCHNO, splits: dict[str, np.ndarray], fraction: float
) -> None:
    thinned = thin_labels(minichno, splits, {"cc": fraction, "tz": fraction}, seed=0)
    for fidelity in ("cc", "tz"):
        before, after = kept(minichno, fidelity), kept(thinned, fidelity)
        for name, rows in splits.items():
            having, left = before & set(rows.tolist()), after & set(rows.tolist())
            if name in ("train", "val"):
                assert len(left) == max(1, round(fraction * len(having)))
            else:
                assert left == having
    for fidelity in ("dz", "mp2"):
        assert kept(thinned, fidelity) == kept(minichno, fidelity)


def test_forces_are_lost_with_the_energies(minichno: MiniCHNO, splits: dict[str, np.ndarray]) -> None:
    thinned = thin_labels(minichno, splits, {"dz": 0.2}, seed=0)
    rows = set(np.concatenate([splits["train"], splits["val"]]).tolist())
    assert kept(thinned, "dz", "forces") & rows == kept(thinned, "dz") & rows


def test_what_a_fraction_keeps_is_among_what_a_larger_one_keeps(
    minichno: MiniCHNO, splits: dict[str, np.ndarray]
) -> None:
    sets = [kept(thin_labels(minichno, splits, {"cc": f}, 3), "cc") for f in (0.01, 0.1, 0.11, 0.3, 0.9, 1.0)]
    for smaller, larger in itertools.pairwise(sets):
        assert smaller < larger
    pair = thin_labels(minichno, splits, {"cc": 0.1, "dz": 0.5}, 3)
    assert kept(pair, "cc") < kept(pair, "dz"), "expensive labels are among the conformations with cheap ones"


def test_seeds_decide_what_is_kept(minichno: MiniCHNO, splits: dict[str, np.ndarray]) -> None:
    one, same, other = (kept(thin_labels(minichno, splits, {"cc": 0.1}, seed), "cc") for seed in (5, 5, 6))
    assert one == same != other


def test_the_data_set_itself_is_not_changed(minichno: MiniCHNO, splits: dict[str, np.ndarray]) -> None:
    masks = {name: minichno._data[name].clone() for name in ("energy_mask", "forces_mask")}
    thinned = thin_labels(minichno, splits, {"cc": 0.1, "dz": 0.1}, 0)
    for name, mask in masks.items():
        assert torch.equal(minichno._data[name], mask)
        assert not torch.equal(thinned._data[name], mask)
    assert thinned.fingerprint == minichno.fingerprint
    assert thinned._data.energy.data_ptr() == minichno._data.energy.data_ptr(), "labels are copied for nothing"
    assert thin_labels(minichno, splits, {}, 0) is minichno


def test_items_batches_and_counts_are_of_what_is_kept(minichno: MiniCHNO, splits: dict[str, np.ndarray]) -> None:
    minichno[0]  # an item that is kept as an object, with all its labels
    thinned = thin_labels(minichno, splits, {"cc": 0.1}, 0)
    column = thinned.fidelities.index("cc")
    having = kept(thinned, "cc")
    (batch,) = BatchLoader(thinned, batch_size=len(thinned))
    assert set(np.flatnonzero(batch.energy_mask[:, column].numpy()).tolist()) == having
    assert {i for i in range(len(thinned)) if bool(thinned[i].energy_mask[0, column])} == having
    (counts,) = (row for row in thinned.label_counts() if row["name"] == "cc")
    assert counts["energies"] == len(having)


# What is given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cc", "label_fraction is 'cc', expected a fidelity and a number, as in cc=0.1"),
        ("cc=", "label_fraction is 'cc='"),
        ("cc=few", "label_fraction is 'cc=few'"),
        ("cc=nan", "label_fraction is 'cc=nan'"),
        ("cc:0.1", "label_fraction is 'cc:0.1'"),
        ("ccc=0.1", r"unknown fidelity of label_fraction 'ccc' \(known: dz, cc\); did you mean 'cc'"),
        ("tz=0.1", r"unknown fidelity of label_fraction 'tz' \(known: dz, cc\)"),
        ("cc=0", "label_fraction of cc is 0, expected a number above 0 and at most 1"),
        ("cc=-0.1", "label_fraction of cc is -0.1"),
        ("cc=1.01", "label_fraction of cc is 1.01"),
        ("cc=inf", "label_fraction of cc is inf"),
    ],
)
def test_wrong_fractions_are_refused(capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    values = s.defaults("small", "hipnn")
    values.update(fidelities=["dz:EF", "cc:E"], label_fraction=[text])
    with pytest.raises(MFPyGError, match=message):
        check_settings(s.from_dict(values))
    with pytest.raises(SystemExit) as stop:
        train.main(["--fidelities", "dz:EF", "cc:E", "--label-fraction", text])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_directions_without_hessians_are_refused() -> None:
    values = s.defaults("small", "hipnn")
    values.update(fidelities=["dz:EF", "cc:E"], hessian_directions=2)
    with pytest.raises(MFPyGError, match="hessian_directions is 2, which has no effect without Hessians"):
        check_settings(s.from_dict(values))
    values.update(fidelities=["dz:EFH", "cc:E"])
    check_settings(s.from_dict(values))


def test_a_fidelity_given_twice_is_refused() -> None:
    values = s.defaults("small", "hipnn")
    values.update(fidelities=["dz:EF", "cc:E"], label_fraction=["cc=0.1", "cc=0.2"])
    with pytest.raises(MFPyGError, match="label_fraction names 'cc' twice"):
        check_settings(s.from_dict(values))


def settings_of(strategy: str, **changes: Any) -> s.TrainSettings:
    values = s.defaults("small", "hipnn")
    values.update(fidelities=["dz:EF", "cc:E"], label_fraction=["cc=0.1", "dz=0.5"], batch_size=64, strategy=strategy)
    values["model"].update(n_features=6, n_atom_layers=1, n_sensitivities=5)
    return s.from_dict({**values, **changes})


def test_fractions_are_read_and_kept_in_settings() -> None:
    settings = settings_of("mfl")
    assert label_fractions(settings, parse_fidelities(settings.fidelities)) == {"cc": 0.1, "dz": 0.5}
    assert s.from_dict(s.to_dict(settings)).label_fraction == ["cc=0.1", "dz=0.5"]


# What a training sees


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_lost_labels_never_reach_references(minichno: MiniCHNO, splits: dict[str, np.ndarray], poison: float) -> None:
    thinned = thin_labels(minichno, splits, {"cc": 0.1, "dz": 0.5}, 0)
    bad = poisoned(minichno, thinned, poison)
    species = (1, 6, 7, 8)
    expected = fit_references(thinned, splits["train"], species, ["dz", "cc"])
    found = fit_references(bad, splits["train"], species, ["dz", "cc"])
    for name in ("dz", "cc"):
        assert found[name].energies.tolist() == expected[name].energies.tolist()
    everything = fit_references(minichno, splits["train"], species, ["cc"])
    assert everything["cc"].energies.tolist() != expected["cc"].energies.tolist()
    potential, _ = stages_of(Inputs(settings_of("mfl"), parse_fidelities(["dz:EF", "cc:E"]), bad, splits))
    assert potential.reference("cc").tolist() == expected["cc"].energies.tolist()


@pytest.mark.parametrize("strategy", ["mfl", "tl", "delta", "meta"])
def test_conformations_of_a_stage_carry_one_of_its_labels(
    minichno: MiniCHNO, splits: dict[str, np.ndarray], strategy: str
) -> None:
    settings = settings_of(strategy)
    thinned = thin_labels(minichno, splits, {"cc": 0.1, "dz": 0.5}, settings.seed)
    _, stages = stages_of(Inputs(settings, check_settings(settings), thinned, splits))
    having = {name: kept(thinned, name) for name in ("dz", "cc")}
    if strategy == "mfl":
        (data,) = stages
        assert set(data.train.rows.tolist()) == (having["dz"] | having["cc"]) & set(splits["train"].tolist())
        assert set(data.val.tolist()) == (having["dz"] | having["cc"]) & set(splits["val"].tolist())
        return
    assert having["cc"] & set(splits["train"].tolist()) < having["dz"]  # so dz decides who has any, or one of the two
    first, second = stages
    assert set(first.train.rows.tolist()) == having["dz"] & set(splits["train"].tolist())
    assert set(second.train.rows.tolist()) == having["cc"] & set(splits["train"].tolist())
    assert set(second.val.tolist()) == having["cc"] & set(splits["val"].tolist())


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mfl", "tl", "delta", "meta"])
def test_poison_in_place_of_lost_labels_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    options = ["--fidelities", "dz:EF", "cc:E", *TINY, "--epochs=2", "--label-fraction", "cc=0.1", "dz=0.5"]
    results = []
    for poison in (None, float("nan"), 1e30):
        if poison is not None:

            def thin(dataset: Any, *rest: Any, poison: float = poison) -> Any:
                return poisoned(dataset, thin_labels(dataset, *rest), poison)

            monkeypatch.setattr("mfpyg.training.labels.thin_labels", thin)
        out = tmp_path / str(poison)
        train.main([*options, "--strategy", strategy, "--out", str(out)])
        results.append(
            (
                torch.load(out / "last.ckpt", weights_only=True)["state_dict"],
                [{k: v for k, v in row.items() if k != "seconds"} for row in rows(out)],
                (out / "metrics.json").read_text(),
            )
        )
    for weights, log, table in results[1:]:
        assert all(torch.equal(value, weights[name]) for name, value in results[0][0].items())
        assert log == results[0][1]
        assert table == results[0][2]


@pytest.mark.slow
def test_labels_seen_tables_and_evaluation_are_of_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--fidelities", "dz:EF", "cc:E", *TINY, "--epochs=1", "--sampling.strategy=balanced"]
    train.main([*options, "--label-fraction", "cc=0.1", "--out", str(run)])
    assert "labels of cc are kept for 60 conformations in train and 7 in val" in capsys.readouterr().out
    (row,) = rows(run)
    # Balanced: half of the 604 that an epoch draws carry a cc label, though only 60 have one.
    assert int(row["train/cc/energy_labels"]) == 302
    table = json.loads((run / "metrics.json").read_text())
    assert [table[name]["cc"]["energy"]["n"] for name in ("train", "val", "test")] == [60, 7, 72]
    assert [table[name]["dz"]["energy"]["n"] for name in ("train", "val", "test")] == [604, 67, 72]
    evaluate.main([str(run), "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == table
    evaluate.main([str(run), "--split", "all", "--json", str(tmp_path / "all.json")])
    assert json.loads((tmp_path / "all.json").read_text())["all"]["cc"]["energy"]["n"] == 788
    assert mfpyg.load(run).fidelities == ("dz", "cc")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mfl", "tl", "delta", "meta"])
def test_one_label_is_enough_to_train(tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    options = ["--fidelities", "dz:EF", "cc:E", *TINY, "--epochs=2", "--label-fraction", "cc=0.0001"]
    train.main([*options, "--strategy", strategy, "--out", str(run)])
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 20
    assert json.loads((run / "metrics.json").read_text())["train"]["cc"]["energy"]["n"] == 1
