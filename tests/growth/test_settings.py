"""Settings of growths: what is read from YAML, what each part of the loop gets, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfpyg.errors import MFPyGError
from mfpyg.growth.settings import GrowSettings, differences, parse_seconds, read_settings
from mfpyg.options import build

pytest.importorskip("tblite", reason="tblite is not installed: pip install 'mfpyg[label]'")

GOOD: dict[str, Any] = {
    "molecules": ["CCO", "C=O"],
    "levels": {"gfn1": "tblite:GFN1-xTB:EF", "gfn2": "tblite:GFN2-xTB:E"},
    "everywhere": ["gfn1"],
    "budget": "2h",
    "seed": 5,
    "sample": {"modes": 7, "temperature": [300, 500]},
    "select": {"method": "random", "max": 9},
    "train": {"preset": "small", "optim": {"clip": 1.0}},
}


def settings(**changes: Any) -> GrowSettings:
    made: GrowSettings = build(GrowSettings, {key: value for key, value in {**GOOD, **changes}.items() if value != ""})
    return made


def test_each_part_gets_its_options() -> None:
    made = settings()
    made.check()
    assert made.seconds == 7200
    assert (made.target_name, made.chosen) == ("gfn2", ("gfn2",))
    assert (made.sampling.modes, made.sampling.temperature, made.sampling.seed) == (7, (300, 500), 5)
    select = made.selection({"gfn2": 3.0}, 60.0)
    assert (select.method, select.max, select.target, select.budget, select.seed) == ("random", 9, "gfn2", 60.0, 5)
    first = made.training(["gfn2:E"], "a.xyz:gfn2=e@eV", Path("split.npz"), Path("run"))
    assert (first.init, first.seed, first.batch_size, first.optim.clip, first.optim.lr) == (None, 5, 8, 1.0, 1e-3)
    assert (first.split.method, first.split.file) == ("index", "split.npz")
    later = made.training(["gfn2:E"], "a.xyz:gfn2=e@eV", Path("split.npz"), Path("run"), Path("round-0/run"))
    assert (later.init, later.optim.lr, later.references) == ("round-0/run", 1e-3, "fit")


@pytest.mark.parametrize(("text", "seconds"), [(30, 30), ("1.5h", 5400), ("20 min", 1200), ("2d", 172800), (0.5, 0.5)])
def test_times(text: Any, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", [0, -1, "h", "2 weeks", "1.2.3h", True, "", "nan", "1e400"])
def test_no_times(text: Any) -> None:
    with pytest.raises(MFPyGError, match="expected a time above 0 in seconds, or as 30min, 2h or 1d"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"molecule": ["C"]}, r"unknown setting 'molecule' \(known: .*did you mean 'molecules'"),
        ({"pool": "a.xyz"}, "molecules and pool: both given; expected one of them"),
        ({"molecules": ""}, "molecules and pool: neither given; expected one of them, as molecules: "),
        ({"molecules": "", "pool": "a.xyz"}, "sample is given, but pool names the geometries"),
        ({"levels": ""}, "no level given: expected at least one"),
        ({"levels": {"cc": 3}, "everywhere": ""}, "level 'cc' is 3, expected text as in xtb: tblite:GFN2-xTB:EF"),
        ({"levels": {"cc": "tblite:GFN3-xTB:E"}}, "level 'cc': unknown method of tblite 'GFN3-xTB'"),
        ({"levels": ["cc"]}, r"levels is \['cc'\], expected names and values"),
        ({"target": "gfn3"}, r"unknown level of target 'gfn3' \(known: gfn1, gfn2\); did you mean"),
        ({"everywhere": ["gfn2"]}, "everywhere has the target gfn2, so that nothing is chosen"),
        ({"budget": ""}, "budget is missing; expected the processor time of all labels together, as 2h"),
        ({"budget": "soon"}, "budget is 'soon', expected a time above 0"),
        ({"rounds": 0}, "rounds is 0, expected a number of at least 1"),
        ({"sample": {"mode": 3}}, "unknown setting 'sample.mode' .*did you mean 'sample.modes'"),
        ({"sample": {"seed": 3}}, "sample.seed is set by mfpyg-grow for each round; leave it out"),
        ({"sample": {"temperature": -3}}, "temperature is -3, expected numbers above 0, in K"),
        ({"train": {"epoch": 3}}, "train: unknown setting 'epoch' .*did you mean 'epochs'"),
        ({"train": {"init": "runs/a"}}, "train.init is set by mfpyg-grow for each round; leave it out"),
        ({"train": {"optim": {"rate": 1}}}, "train: unknown setting 'optim.rate'"),
        ({"train": {"epochs": 0}}, "train: epochs is 0, expected a number of at least 1"),
        ({"select": {"methods": "random"}}, "unknown setting 'select.methods' .*did you mean 'select.method'"),
        ({"select": {"method": "diversity"}}, "unknown method 'diversity' .*did you mean"),
        ({"select": {"budget": 3}}, "select.budget is set by mfpyg-grow for each round; leave it out"),
        ({"test": ["minichno"]}, r"test has none of the levels gfn1, gfn2 \(it has .*give the levels the same names"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        settings(**changes).check()


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "grow.yaml"
    path.write_text("molecules: [CCO]\nlevels: {a: 'tblite:GFN2-xTB:E'}\nbudget: 30min\ntest: minichno\nselect:\n")
    with pytest.raises(MFPyGError, match=r"grow.yaml: select is None, expected names and values"):
        read_settings(path)
    path.write_text("molecules: [CCO]\nlevels: {a: 'tblite:GFN2-xTB:E'}\nbudget: 30min\ntest: minichno\n")
    read = read_settings(path)
    assert (read.budget, read.test, read.rounds) == ("30min", ["minichno"], 4)
    path.write_text("molecules: [CCO]\nrunds: 3\n")
    with pytest.raises(MFPyGError, match=r"grow.yaml: unknown setting 'runds' .*did you mean 'rounds'"):
        read_settings(path)


def test_differences_are_named() -> None:
    before = {"budget": 3, "seed": 0, "train": {"epochs": 3}, "levels": {"a": "x"}}
    now = {"budget": 5, "seed": 0, "train": {"epochs": 3, "optim": {"lr": 1}}, "levels": {"b": "x"}}
    assert differences(before, before) == []
    assert differences(before, now) == [
        "levels.a was x, now absent", "train.optim.lr was absent, now 1", "levels.b was absent, now x",
    ]  # fmt: skip
