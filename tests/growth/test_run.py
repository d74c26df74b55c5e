"""The loop: what each round labels and trains on, stops at any moment, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import yaml

import mfpyg.files
from mfpyg.errors import MFPyGError

WRITERS = (
    *("mfpyg.files", "mfpyg.growth.frames", "mfpyg.growth.training", "mfpyg.labeling.output"),
    *("mfpyg.selection.run", "mfpyg.study.figures"),
)


def splits_of(number: int) -> dict[str, set[tuple[int, ...]]]:
    """Positions of the frames of each split of a round, which identify them."""
    from mfpyg.datasets.spec import open_dataset, parse_specs

    settings = yaml.safe_load(Path(f"grown/round-{number}/train.yaml").read_text())
    dataset = open_dataset(parse_specs(settings["dataset"]))
    rows = np.load(f"grown/round-{number}/run/splits.npz")
    return {name: {tuple(dataset[int(row)].pos.flatten().tolist()) for row in rows[name]} for name in ("train", "val")}


@pytest.mark.slow
def test_two_rounds(growing: Any) -> None:
    growing()
    frames = growing.labels
    assert len(frames) == 40
    assert all("gfn1_energy" in frame.info and "gfn1_forces" in frame.arrays for frame in frames)
    chosen = [frame for frame in frames if "gfn2_energy" in frame.info]
    # Round 0 has half of 20 s without the 0.4 s of gfn1, round 1 what is left.
    assert growing.summary(0)["labels"] == {"gfn1": 40, "gfn2": 9}
    assert growing.summary(1)["labels"] == {"gfn1": 40, "gfn2": 19} == {"gfn1": 40, "gfn2": len(chosen)}
    assert growing.summary(1)["spent"] == pytest.approx(19.4)
    assert sum(frame.info["part"] == "val" for frame in chosen) == 4  # a quarter, as they are less than 40
    assert {z for frame in chosen for z in frame.numbers} == {1, 6, 8}
    for number in (0, 1):
        splits = splits_of(number)
        assert len(splits["val"]) == 10  # with labels of gfn1
        assert len(splits["train"]) == 30
        assert growing.summary(number)["val"]["gfn2"]["energy"]["n"] == (2, 4)[number]
        assert growing.summary(number)["expected"] == {}
    second = yaml.safe_load(Path("grown/round-1/run/config.yaml").read_text())
    assert second["init"] == "grown/round-0/run"
    assert second["fidelities"] == ["gfn1:EF", "gfn2:E"]
    assert Path("grown/potential").resolve() == Path("grown/round-1/run").resolve()
    page = Path("grown/report.html").read_text()
    assert "data:image/png;base64," in page
    assert "2 of 2 rounds are complete, with 19.4 s of 20 s" in page
    assert growing.lines[-2:] == [
        "  mfpyg-evaluate grown/potential", "  mfpyg-predict grown/potential FILE -o predicted.xyz --fidelity gfn2",
    ]  # fmt: skip

    before = {path: path.read_bytes() for path in Path("grown").rglob("*") if path.is_file()}
    n = len(growing.computed)
    growing()
    assert growing.lines[0].startswith("nothing left to do: 2 of 2 rounds are done")
    assert len(growing.computed) == n == 59
    after = {path: path.read_bytes() for path in Path("grown").rglob("*") if path.is_file()}
    assert {path for path in before if before[path] != after.get(path)} <= {Path("grown/error.png")}
    assert before.keys() == after.keys()


@pytest.mark.slow
def test_levels_are_chosen_for_each_geometry(growing: Any) -> None:
    """Two levels to choose from: what is labelled is what mfpyg-select has chosen, and random validation at both."""
    growing.seconds = {"gfn1": 0.2, "gfn2": 1.0}
    growing.config.update(everywhere=[], budget=30, select={"method": "multi-fidelity"})
    growing()
    recipe = yaml.safe_load(Path("grown/round-1/selected.xyz.yaml").read_text())
    assert (recipe["settings"]["method"], recipe["settings"]["target"]) == ("multi-fidelity", "gfn2")
    assert recipe["settings"]["costs"] == pytest.approx(growing.seconds)
    assert recipe["expected_error"]["after"] < recipe["expected_error"]["before"]
    chosen = {frame.info["frame"]: frame.info["levels"].split() for frame in frames_of_round(1)}
    selected = {
        frame.info["frame"]: frame.info["levels"].split() for frame in ase.io.read("grown/round-1/selected.xyz", ":")
    }
    assert selected.items() <= chosen.items()
    assert any(len(levels) == 1 for levels in selected.values())
    assert all(levels == ["gfn1", "gfn2"] for number, levels in chosen.items() if number not in selected)
    counts = {name: sum(name in levels for levels in chosen.values()) for name in growing.seconds}
    first, second = growing.summary(0)["labels"], growing.summary(1)["labels"]
    assert {name: second[name] - first[name] for name in counts} == counts
    assert 25 < growing.summary(1)["spent"] <= 30 + 1e-9


class Stops:
    """Presses Ctrl-C at the n-th file that is written, those of labels and trainings left out."""

    def __init__(self) -> None:
        self.left, self.paused = 0, False

    def replace_file(self, path: Path, write: Callable[[str], Any], real: Callable[..., None]) -> None:
        if not self.paused and not path.parent.parent.name.endswith(".labels"):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        real(path, write)

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.paused = True
        try:
            yield
        finally:
            self.paused = False


@pytest.mark.slow
def test_stops_at_every_file(growing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before each file is written, and in the middle of labels, a growth ends as if it had not been."""
    growing.config["out"] = "whole"
    growing()
    whole, growing.computed = len(growing.computed), []
    growing.config["out"] = "grown"
    stops, real = Stops(), mfpyg.files.replace_file
    for module in WRITERS:
        monkeypatch.setattr(f"{module}.replace_file", functools.partial(stops.replace_file, real=real))
    train = growing.train

    def training(job: Any) -> None:
        with stops.pause():
            train(job)

    growing.train = training
    calls = 0
    while True:
        stops.left, growing.stop_after = calls, len(growing.computed) + 7
        try:
            growing()
            break
        except KeyboardInterrupt:
            calls += 1
    assert calls > 10
    assert len(growing.computed) == whole
    same = ("frames.xyz", "labelled.xyz", "round-0/frames.xyz", "round-1/frames.xyz", "round-1/selected.xyz")
    for name in (*same, "round-0/summary.json", "round-1/run/metrics.json"):
        assert Path("grown", name).read_bytes() == Path("whole", name).read_bytes(), name


@pytest.mark.slow
def test_training_continues(growing: Any) -> None:
    """A training that was stopped before its table: it is resumed, and nothing is labelled or chosen anew."""
    train, arguments = growing.train, []

    def stopping(job: Any) -> None:
        arguments.append(job.command()[3:])
        train(job)
        if len(arguments) == 1:
            (job.folder / "metrics.json").unlink()
            raise KeyboardInterrupt

    growing.train = stopping
    growing.config["rounds"] = 1
    with pytest.raises(KeyboardInterrupt):
        growing()
    n = len(growing.computed)
    growing()
    assert [words[0] for words in arguments] == ["--config", "--resume"]
    assert len(growing.computed) == n
    assert growing.summary(0)["labels"]["gfn2"] == 19


def test_other_settings_are_refused(growing: Any) -> None:
    growing.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        growing()
    growing.config.update(budget="1h", rounds=3, jobs=2)
    with pytest.raises(KeyboardInterrupt):
        growing()
    growing.config["train"]["epochs"] = 3  # nothing is trained yet
    with pytest.raises(KeyboardInterrupt):
        growing()
    growing.config.update(seed=1, levels={**growing.config["levels"], "gfn2": "tblite:GFN2-xTB:EF"})
    changed = r"levels\.gfn2 was tblite:GFN2-xTB:E, now tblite:GFN2-xTB:EF; seed was 0, now 1; restore them, or choose"
    with pytest.raises(MFPyGError, match=rf"grown was grown with other settings: {changed}"):
        growing()
    last = Path("grown/round-0/run/last.ckpt")
    last.parent.mkdir(parents=True)
    last.touch()
    growing.config.update(seed=0, levels={**growing.config["levels"], "gfn2": "tblite:GFN2-xTB:E"})
    growing.config["train"]["epochs"] = 4
    with pytest.raises(MFPyGError, match=r"other settings: train\.epochs was 3, now 4; restore"):
        growing()
    Path("grown/grow.yaml").unlink()
    with pytest.raises(MFPyGError, match="grown is not empty, and not a folder of mfpyg-grow; choose another with -o"):
        growing()


@pytest.mark.slow
def test_budget_below_the_first_labels(growing: Any) -> None:
    growing.config["budget"] = 0.3
    with pytest.raises(
        MFPyGError, match=r"budget is 0\.3 s, but the first labels \(40 of gfn1\) took 0\.4 s; raise it"
    ):
        growing()
    growing.config["budget"] = "1s"
    with pytest.raises(MFPyGError, match=r"first labels \(40 of gfn1, 2 of gfn2\) took 2\.4 s; raise it and call"):
        growing()
    growing.config.update(budget=4, rounds=3)
    growing()
    assert len(growing.computed) == 40 + 3  # the first two have been kept
    assert growing.summary(1)["labels"]["gfn2"] == 3
    assert growing.lines[-4] == "the rest of the budget, 0.6 s, is below one label; report: grown/report.html"
    page = Path("grown/report.html").read_text()
    assert "2 of 3 rounds are complete, with 3.4 s of 4 s of processor time. It has ended, as the rest" in page


@pytest.mark.slow
def test_failures_are_left_out_and_named(growing: Any) -> None:
    """What cannot be computed is charged, named, and not chosen again; there is no level for all geometries here."""
    growing.failing = {"CH4O"}
    growing.config.update(everywhere=[], budget=24, levels={"gfn2": "tblite:GFN2-xTB:E"})
    growing()
    assert {frame.get_chemical_formula() for frame in growing.labels} == {"CH4", "H2O"}
    first, second = ({frame.info["frame"] for frame in frames_of_round(number)} for number in (0, 1))
    assert not first & second
    failed = growing.computed.count(("gfn2", "CH4O"))
    assert failed > 1
    assert growing.summary(1)["failed"] == {"gfn2": failed}
    assert growing.summary(1)["spent"] == len(growing.computed) <= 24
    named = [line for line in growing.lines if line.startswith("failed: frame ")]
    assert len(named) == failed
    assert named[0].endswith(" (CH4O): gfn2: no convergence")
    assert Path("grown/report.html").read_text().count("no convergence") == failed


def frames_of_round(number: int) -> list[ase.Atoms]:
    found = ase.io.read(f"grown/round-{number}/frames.xyz", ":")
    assert isinstance(found, list)
    return found


def test_nothing_but_failures(growing: Any) -> None:
    growing.failing = {"CH4", "H2O", "CH4O"}
    expected = r"level gfn1: none of 40 labels could be computed, the first because: no convergence; once this is"
    with pytest.raises(MFPyGError, match=expected):
        growing()
    n = len(growing.computed)
    with pytest.raises(MFPyGError, match=expected):
        growing()
    assert len(growing.computed) == n
    growing.failing = set()
    growing.stop_after = n + 45
    with pytest.raises(KeyboardInterrupt):
        growing(retry=True)
    assert ("gfn2", "CH4") in growing.computed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "geometries-of-mine.xyz"}, "geometries-of-mine.xyz: no such file"),
        ({"pool": "one.xyz"}, "1 geometries are too few to train on, and to validate on others"),
        ({"levels": {"b": "pyscf:HF/3-22G:E"}, "everywhere": []}, "level 'b': PySCF does not know the basis"),
        ({"pool": None, "molecules": ["XX"]}, "'XX' is no SMILES that RDKit reads"),
    ],
)
def test_what_could_not_be_started_leaves_nothing(growing: Any, changes: dict[str, Any], message: str) -> None:
    growing.stop_after, good = 0, dict(growing.config)
    ase.io.write("one.xyz", ase.io.read("geometries.xyz", 0), format="extxyz")
    growing.config.update(changes)
    with pytest.raises(MFPyGError, match=message):
        growing()
    assert not Path("grown").exists()
    growing.config = good
    with pytest.raises(KeyboardInterrupt):
        growing()


def test_labels_that_cost_more_than_the_share_of_a_round(growing: Any) -> None:
    """The last molecules of a round cost more than those that told the cost."""
    growing.config.update(budget=30, rounds=2)

    def compute(jobs: Any, store: Any) -> None:
        computed(jobs, store)
        growing.seconds["gfn2"] *= 4

    computed, growing.compute = growing.compute, compute
    growing()
    assert 15 < growing.summary(0)["spent"] < 30
