"""From run folders to tables, figures and report."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfpyg.cli import train
from mfpyg.datasets import MiniCHNO
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.ensemble import mean_estimate
from mfpyg.inference import dataset as predictions
from mfpyg.study import StudyResult, StudyRun, collect, write_figures, write_report, write_tables

from .conftest import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(study: list[StudyRun]) -> StudyResult:
    return collect(study)


def copied(run: StudyRun, folder: Path, **changes: Any) -> StudyRun:
    shutil.copytree(run.folder, folder)
    return dataclasses.replace(run, folder=folder, **changes)


def test_models_are_grouped_and_in_the_order_of_table_1(result: StudyResult) -> None:
    found = [(m.name, m.label_fraction, [run.seed for run in m.runs], m.n_labels) for m in result.models]
    assert found == [
        ("SF-CC/E", 1.0, [0, 1], 604),
        ("SF-CC/E", 0.5, [0], 302),
        ("MF-DZ/EF-TZ/EF", 1.0, [0], 138),
        ("MF-DZ/EF-CC/E", 1.0, [0, 1], 604),
    ]
    assert not result.failures
    assert result.sizes == {"test": (72, 14), "ood": (45, 7)}
    assert result.trained_on == {"minichno": {"train": 604, "val": 67, "test": 72, "ood": 45}}
    assert result.settings["model.n_features"] == 6
    assert result.methods["cc"] == "CCSD(T)/cc-pVDZ"
    assert result.label_counts["cc"] == {"train": (604, 0), "val": (67, 0), "test": (72, 72), "ood": (45, 8)}
    assert result.versions["torch"] == [torch.__version__]


def test_members_have_the_errors_of_their_own_tables(result: StudyResult) -> None:
    for model in result.models:
        tables = [json.loads((run.folder / "metrics.json").read_text()) for run in model.runs]
        for split in ("test", "ood"):
            assert set(model.errors[split]) == set(tables[0][split])
            for fidelity, of in model.errors[split].items():
                for prop in set(of) & {"energy", "forces"}:
                    expected = [table[split][fidelity][prop] for table in tables]
                    assert of[prop].n == expected[0]["n"]
                    assert of[prop].member_rmse == pytest.approx([e["rmse"] for e in expected], rel=1e-5)
                    assert of[prop].member_mae == pytest.approx([e["mae"] for e in expected], rel=1e-5)
                    assert of[prop].rmse == mean_estimate(of[prop].member_rmse)


def test_parity_is_of_the_averaged_prediction(result: StudyResult) -> None:
    dataset = MiniCHNO()
    n_atoms = dataset.slices["z"].diff().numpy()[np.flatnonzero(dataset.given_split() == 1)]
    model = result.models[0]
    for prop, scale in (("energy", n_atoms), ("forces", 1)):
        parity = model.parity["test"]["cc", prop]
        (label,), (predicted,) = parity.labels, parity.predictions
        errors = (predicted - label) * scale
        assert np.sqrt(np.mean(errors**2)) == pytest.approx(
            model.errors["test"]["cc"][prop].ensemble_rmse.value, rel=1e-6
        )
    assert set(model.parity["ood"]) == {("cc", "energy"), ("cc", "forces")}
    assert set(result.models[2].parity["test"]) == {("tz", "energy"), ("tz", "forces")}
    assert result.models[2].parity["ood"] == {}


def test_second_report_predicts_nothing(
    study: list[StudyRun], result: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("predicted anew")

    monkeypatch.setattr(predictions, "predict_rows", refuse)
    again = collect(study)
    assert [m.errors for m in again.models] == [m.errors for m in result.models]


def test_changed_checkpoint_is_predicted_anew_and_a_cut_file_made_anew(
    study: list[StudyRun], result: StudyResult, tmp_path: Path
) -> None:
    run = copied(study[0], tmp_path / "run")
    files = sorted(run.folder.glob("predictions-*.npz"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    (once,) = collect([run]).models
    assert (
        once.errors["test"]["cc"]["energy"].rmse.value == result.models[0].errors["test"]["cc"]["energy"].member_rmse[0]
    )
    checkpoint = torch.load(run.folder / "best.ckpt", weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        if "reference" not in name and weight.is_floating_point():
            weight.mul_(1.1)
    torch.save(checkpoint, run.folder / "best.ckpt")
    (other,) = collect([run]).models
    assert other.errors["test"]["cc"]["energy"].rmse.value != once.errors["test"]["cc"]["energy"].rmse.value
    assert len(list(run.folder.glob("predictions-*.npz"))) == 2


def test_runs_that_cannot_be_used_are_named_and_the_others_evaluated(study: list[StudyRun], tmp_path: Path) -> None:
    good = study[0]
    unfinished = copied(good, tmp_path / "unfinished", seed=2)
    (unfinished.folder / "metrics.json").unlink()
    damaged = copied(good, tmp_path / "damaged", seed=3)
    (damaged.folder / "best.ckpt").write_bytes(b"no")
    other_target = copied(good, tmp_path / "target", name="SF-TZ/E")
    other_splits = copied(study[1], tmp_path / "splits", seed=4)
    checkpoint = torch.load(other_splits.folder / "best.ckpt", weights_only=True)
    checkpoint["mfpyg"]["splits"]["ood"] = checkpoint["mfpyg"]["splits"]["ood"][1:]
    torch.save(checkpoint, other_splits.folder / "best.ckpt")
    other_levels = copied(study[3], tmp_path / "levels", name="SF-CC/E", seed=5)
    missing = StudyRun("MF-TZ/EF-CC/E", tmp_path / "missing")
    failed = StudyRun("SF-MP2/E", tmp_path / "failed", failure="the loss became NaN in epoch 3")
    found = collect([good, study[1], unfinished, damaged, other_target, other_splits, other_levels, missing, failed])
    assert [(m.name, [run.seed for run in m.runs]) for m in found.models] == [("SF-CC/E", [0, 1])]
    reasons = {failure.run: failure.reason for failure in found.failures}
    assert len(reasons) == len(found.failures) == 7
    for run, reason in (
        (unfinished, "not finished, it has no metrics.json"),
        (damaged, "damaged"),
        (other_target, "needs its target 'tz'"),
        (other_splits, f"{tmp_path / 'splits'}: its split ood is not that of {good.folder}"),
        (other_levels, "predicts dz, cc, but .*, an earlier member, cc"),
        (missing, "no such run folder"),
        (failed, "the loss became NaN in epoch 3"),
    ):
        assert re.search(reason, reasons[run]), reasons[run]
    page = write_report(found, tmp_path / "report").read_text(encoding="utf-8")
    for text in ("7 runs could not be used", "MF-TZ/EF-CC/E", "the loss became NaN in epoch 3", "its split ood is not"):
        assert text in page


def test_report_of_failures_alone_can_be_written(tmp_path: Path) -> None:
    found = collect([StudyRun("SF-CC/E", tmp_path / "none")])
    assert not found.models
    assert write_figures(found, tmp_path) == []
    write_tables(found, tmp_path)
    assert "no such run folder" in write_report(found, tmp_path).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))["models"] == []


def test_callers_mistakes_are_errors(study: list[StudyRun], tmp_path: Path) -> None:
    with pytest.raises(MFPyGError, match="two runs of SF-CC/E, mfl, 100% of the labels, seed 0"):
        collect([study[0], study[0]])
    with pytest.raises(MFPyGError, match=r"malformed model 'SF-CC'.*did you mean 'SF-CC/E'"):
        collect([StudyRun("SF-CC", tmp_path)])
    with pytest.raises(MFPyGError, match="a study of 0 runs"):
        collect([])
    with pytest.raises(MFPyGError, match="different names"):
        collect(study, others={"test": MiniCHNO()})


def test_other_data_are_evaluated_as_far_as_levels_agree(study: list[StudyRun]) -> None:
    part = MiniCHNO(fidelities=["dz"])[:40]
    found = collect([study[0], study[2]], splits=["test"], others={"some": part})  # type: ignore[dict-item]
    assert found.splits == ["test", "some"]
    assert "some" not in found.models[0].errors  # SF-CC/E
    assert set(found.models[1].errors["some"]) == {"dz"}
    assert found.models[1].errors["some"]["dz"]["energy"].n == 40
    assert found.sizes["some"][0] == 40


def test_number_of_labels_is_what_the_run_says_or_was_trained_on(study: list[StudyRun]) -> None:
    half = study[-1]
    assert collect([dataclasses.replace(half, n_labels=17)]).models[0].n_labels == 17
    with np.load(half.folder / "splits.npz") as splits:
        assert collect([half]).models[0].n_labels == len(splits["train"])


def test_number_of_labels_is_that_of_the_thinned_ones(study: list[StudyRun], tmp_path: Path) -> None:
    run = StudyRun("MF-DZ/EF-CC/E", tmp_path / "thinned", label_fraction=0.1)
    train.main(["--fidelities", "dz:EF", "cc:E", "--label-fraction", "cc=0.1", "--out", str(run.folder), *TINY])
    n = collect([study[0]]).models[0].n_labels
    assert collect([run]).models[0].n_labels == round(0.1 * n)


def test_tables_have_the_numbers_of_the_result(result: StudyResult, tmp_path: Path) -> None:
    written = {path.name for path in write_tables(result, tmp_path)}
    kinds = ("energy", "forces", "conformers", "conformer-forces", "improvement", "energy-dz", "forces-dz")
    assert {f"table-{kind}.{suffix}" for kind in kinds for suffix in ("md", "csv")} | {
        "errors.csv",
        "study.json",
    } <= written
    with (tmp_path / "table-forces.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["model"], row["labels"]): row for row in csv.DictReader(file)}
    assert set(rows) == {
        ("SF-CC/E*", "100%"),
        ("SF-CC/E*", "50%"),
        ("MF-DZ/EF-CC/E*", "100%"),
        ("MF-DZ/EF-TZ/EF", "100%"),
    }
    model = result.models[0]
    errors = model.errors["test"]["cc"]["forces"]
    cell = rows["SF-CC/E*", "100%"]["test: RMSE"]
    value, half = map(float, cell.split(" ± "))
    assert value == pytest.approx(np.mean(errors.member_rmse), abs=5e-4)
    assert half == pytest.approx(errors.rmse.high - errors.rmse.value, abs=5e-4)  # type: ignore[operator]
    single = rows["SF-CC/E*", "50%"]["test: RMSE"]
    assert re.fullmatch(r"\d+\.\d{3} ± –", single)
    assert rows["MF-DZ/EF-TZ/EF", "100%"]["ood: RMSE"] == "–"
    for path in tmp_path.glob("table-*"):
        assert "nan" not in path.read_text(encoding="utf-8").lower()
    lines = (tmp_path / "table-forces.md").read_text(encoding="utf-8").splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1
    stored = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert stored["models"][0]["errors"]["test"]["cc"]["forces"]["member_rmse"] == list(errors.member_rmse)
    with (tmp_path / "errors.csv").open(encoding="utf-8", newline="") as file:
        long = list(csv.DictReader(file))
    assert len(long) == sum(len(of) for m in result.models for s in m.errors.values() for of in s.values())
    (line,) = [
        row for row in long
        if (row["model"], row["label_fraction"], row["split"], row["property"]) == ("SF-CC/E", "1.0", "test", "forces")
    ]  # fmt: skip
    assert float(line["ensemble_rmse"]) == errors.ensemble_rmse.value


class Page(HTMLParser):
    """Checks that tags are closed in order, and remembers what is shown and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_report_stands_alone(result: StudyResult, tmp_path: Path) -> None:
    commands = ["mfpyg-train --fidelities cc:E --out 'runs/<a> & b'", "mfpyg-train --fidelities dz:EF cc:E"]
    figures = write_figures(result, tmp_path)
    path = write_report(result, tmp_path, commands=commands, title="Study <1>", figures=figures)
    page, source = Page(), path.read_text(encoding="utf-8")
    page.feed(source)
    page.close()
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in source
    assert "@import" not in source
    assert len(page.sources) == len(figures) == page.tags.count("img")
    assert all(one.startswith("data:image/png;base64,iVBOR") for one in page.sources)
    text = " ".join(page.text)
    for wanted in (
        *commands,
        "Study <1>",
        "MF-DZ/EF-CC/E",
        "CCSD(T)/cc-pVDZ",
        "604 in train",
        torch.__version__,
    ):
        assert wanted in text
    assert page.tags.count("table") == page.tags.count("figcaption") - len(figures) > 8
    assert "No improvement is given for models without a single-fidelity counterpart here: MF-DZ/EF-TZ/EF" in text
    for other in tmp_path.glob("*.png"):
        other.unlink()
    assert {figure.path.name for figure in figures} == {
        *("improvement.png", "learning-cc.png", "parity-SF-CC_E-mfl.png", "parity-MF-DZ_EF-CC_E-mfl.png"),
        "parity-MF-DZ_EF-TZ_EF-mfl.png",
    }
