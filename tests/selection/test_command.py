"""``mfpyg-select`` from file to file: random choices, frames that are known, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml

COSTS = ("--cost", "cc=10", "dz=2.5")
RANDOM = ("pool.xyz", "--method=random", *COSTS)


def test_random_choice(selecting: Any, pool: Any) -> None:
    pool(range(0, 788, 20))
    assert selecting(*RANDOM, "--budget=100") == 0
    chosen, frames = ase.io.read("next.xyz", ":"), ase.io.read("pool.xyz", ":")
    assert len(chosen) == 8
    assert {atoms.info["levels"] for atoms in chosen} == {"cc dz"}
    keys = [atoms.positions.tobytes() for atoms in frames]
    numbers = [keys.index(atoms.positions.tobytes()) for atoms in chosen]
    assert len(set(numbers)) == 8
    assert numbers != sorted(numbers)
    recipe = yaml.safe_load(Path("next.xyz.yaml").read_text())
    assert recipe["labels"] == {"cc": {"number": 8, "cost": 80.0}, "dz": {"number": 8, "cost": 20.0}}
    assert (recipe["cost"], recipe["frames"], recipe["pool"]["frames"]) == (100.0, 8, 40)
    assert recipe["settings"]["costs"] == {"cc": 10.0, "dz": 2.5}
    assert selecting.output.endswith(
        "written: next.xyz, 8 of 40 frames, labels: 8 cc, 8 dz; cost 100 of 100; recipe: next.xyz.yaml\n"
    )
    assert selecting(*RANDOM, "--budget=100", out="again.xyz") == 0
    assert Path("again.xyz").read_bytes() == Path("next.xyz").read_bytes()
    assert selecting(*RANDOM, "--budget=100", "--seed=1", out="other.xyz") == 0
    assert Path("other.xyz").read_bytes() != Path("next.xyz").read_bytes()


def test_limits(selecting: Any, pool: Any) -> None:
    pool(range(12))
    for options, n in ((("--budget=37",), 2), (("--budget=1e6",), 12), (("--budget=1e6", "--max=5"), 5)):
        assert selecting(*RANDOM, *options, out=f"{n}.xyz") == 0
        assert len(ase.io.read(f"{n}.xyz", ":")) == n


def test_frames_keep_what_they_have(selecting: Any, pool: Any) -> None:
    pool([0, 400])
    frames = ase.io.read("pool.xyz", ":")
    for number, atoms in enumerate(frames):
        atoms.info.update(name=f"frame {number}", charge=0)
        atoms.arrays["shift"] = np.arange(len(atoms)) / 8
    ase.io.write("pool.xyz", frames, format="extxyz")
    assert selecting(*RANDOM, "--levels=dz", "--budget=5") == 0
    for atoms in ase.io.read("next.xyz", ":"):
        before = frames[int(atoms.info["name"][-1])]
        assert atoms.info == {**before.info, "levels": "dz"}
        np.testing.assert_array_equal(atoms.positions, before.positions)
        np.testing.assert_array_equal(atoms.arrays["shift"], before.arrays["shift"])


def test_labelled_frames_are_left_out(selecting: Any, pool: Any, write_xyz: Any) -> None:
    """Those with all labels are dropped, whatever their orientation; others get the levels that they lack."""
    write_xyz(Path("known.xyz"), [0, 30, 60], dz="e,f", cc="c")
    write_xyz(Path("cheap.xyz"), [90], dz="e,f")
    pool([0, 30, 90, 120, 120, 150])
    frames = ase.io.read("pool.xyz", ":")
    frames[0].rotate(50, (1, 2, 3))
    frames[0].translate((3, 0, 1))
    frames[1] = frames[1][::-1]
    ase.io.write("pool.xyz", frames, format="extxyz")
    known = ("--labelled", "known.xyz:dz=e,f@eV:cc=c@eV", "cheap.xyz:dz=e,f@eV")
    assert selecting(*RANDOM, *known, "--budget=1000") == 0
    chosen = {atoms.positions.tobytes(): atoms.info["levels"] for atoms in ase.io.read("next.xyz", ":")}
    assert chosen == {frames[n].positions.tobytes(): "cc dz" for n in (3, 5)} | {frames[2].positions.tobytes(): "cc"}
    assert selecting.output.startswith(
        "left out: 2 of 6 frames, which have all labels already\n"
        "left out: 1 of 6 frames, which are the same as earlier ones\n"
    )
    recipe = yaml.safe_load(Path("next.xyz.yaml").read_text())
    assert recipe["pool"] == {"file": "pool.xyz", "frames": 6, "labelled": 2, "repeated": 1}
    pool([0, 60])
    message = selecting.refused(*RANDOM, *known, "--budget=1000", out="none.xyz")
    assert "pool.xyz: all 2 frames have labels of cc, dz already; give frames without" in message


def test_costs_and_labels_of_mfpyg_label(selecting: Any, pool: Any, write_xyz: Any) -> None:
    """The YAML file beside its output has the seconds, and says what the labels are, wherever it is now."""
    Path("moved").mkdir()
    write_xyz(Path("moved/out.xyz"), [0, 30], dz="dz_energy,dz_forces")
    levels = {"dz": {"seconds": 2.0}, "cc": {"seconds": 50.0}, "tz": {"seconds": None}}
    about = {"dataset": "out.xyz:dz=dz_energy,dz_forces@eV", "levels": levels}
    Path("moved/out.xyz.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    pool([0, 60, 90])
    arguments = ("pool.xyz", "--method=random", "--labelled=moved/out.xyz", "--cost", "moved/out.xyz.yaml", "cc=70")
    assert selecting(*arguments, "--budget=1000") == 0
    assert sorted(atoms.info["levels"] for atoms in ase.io.read("next.xyz", ":")) == ["cc", "dz cc", "dz cc"]
    assert "labels: 2 dz, 3 cc; cost 214 of 1000" in selecting.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pool.xyz --method=random --budget=9", "no cost is given; expected NAME=NUMBER"),
        ("pool.xyz --method=random --cost cc --budget=9", "cost is 'cc', expected NAME=NUMBER, as cc=12.5"),
        ("pool.xyz --method=random --cost cc=0 --budget=9", "cost is 'cc=0', expected NAME=NUMBER with a number above"),
        ("pool.xyz --method=random --cost no.yaml --budget=9", "no.yaml: no such file"),
        ("pool.xyz --method=random --cost pool.yaml --budget=9", "pool.yaml: no levels; expected a YAML file that"),
        ("RANDOM --levels dz tz --budget=9", "level 'tz' has no cost (there are those of cc, dz); add tz=NUMBER"),
        ("RANDOM --levels dz dz --budget=9", "level 'dz' is given 2 times"),
        ("RANDOM", "option --budget is missing"),
        ("RANDOM --budget=much", "budget is much, expected a number"),
        ("RANDOM --budget=-1", "budget is -1.0, expected a number of at least 0"),
        ("RANDOM --budget=0", "budget is 0, expected a number above 0"),
        ("RANDOM --budget=2", "budget is 2, below one label: the cheapest, of 'dz', costs 2.5"),
        ("RANDOM --budget=10", "budget is 10, below one frame: its labels of cc, dz cost 12.5"),
        ("RANDOM --budget=100 --max 0", "max is 0, expected a number of at least 1"),
        ("RANDOM --budget=100 --method=randm", "unknown method 'randm'"),
        ("RANDOM --budget=100 --labelled known.xyz", "known.xyz: its levels of theory are not known"),
        ("RANDOM --budget=100 --bugdet=1", "did you mean '--budget'?"),
        ("no.xyz --method=random --cost cc=1 --budget=9", "no.xyz: no such file"),
        ("--method=random --cost cc=1 --budget=9", "before all options; found none"),
        ("pool.xyz --cost cc=1 --target cc --budget=9", "expected a run and the file of frames"),
        ("run pool.xyz --cost cc=1 --budget=9", "no target is given; method multi-fidelity needs the level"),
        ("run pool.xyz --cost cc=1 --target cc --budget=9", "run: no such checkpoint; expected a run folder"),
    ],
)
def test_mistakes_are_one_line(selecting: Any, pool: Any, options: str, message: str) -> None:
    pool([0, 30])
    Path("pool.yaml").write_text("a: 1\n")
    Path("known.xyz").write_bytes(Path("pool.xyz").read_bytes())
    assert message in selecting.refused(*options.replace("RANDOM", " ".join(RANDOM)).split())


def test_outputs_are_not_replaced(selecting: Any, pool: Any) -> None:
    pool([0, 30])
    Path("next.xyz.yaml").touch()
    assert "next.xyz.yaml exists; choose another name" in selecting.refused(*RANDOM, "--budget=100")
    Path("next.xyz").touch()
    assert "next.xyz exists; choose another name" in selecting.refused(*RANDOM, "--budget=100")
    assert "unknown suffix, expected .xyz or .extxyz" in selecting.refused(*RANDOM, "--budget=100", out="next.db")
    assert "nowhere: no such folder" in selecting.refused(*RANDOM, "--budget=100", out="nowhere/next.xyz")
