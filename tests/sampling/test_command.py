"""``mfpyg-sample``: its files, what it refuses, and Ctrl-C."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import bulk

from mfpyg.cli import sample
from mfpyg.datasets.frames import frames_of
from mfpyg.evaluation.pairs import find_pairs
from mfpyg.files import sha256_of

EMT = ("--calculator=ase:emt.yaml", "--temperature=300", "--equilibration=20", "--stride=20", "--modes=3")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copper and gold in ``in.xyz``, and a calculator for them in ``emt.yaml``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])  # as the command sets it
    frames = [bulk(name, cubic=True) for name in ("Cu", "Au", "Ag")]
    for atoms in frames:
        atoms.rattle(0.05, seed=1)
    ase.io.write("in.xyz", frames, format="extxyz")
    Path("emt.yaml").write_text("calculator: emt\n")
    return tmp_path


def run(*arguments: str, status: int = 0) -> None:
    if status == 0:
        sample.main(arguments)
        return
    with pytest.raises(SystemExit) as end:
        sample.main(arguments)
    assert end.value.code == status


def test_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("in.xyz", "-o", "out.xyz", *EMT, "--dynamics=2", "--pairs=2")
    frames = list(frames_of(Path("out.xyz")))
    assert "written: out.xyz, 24 geometries of 3 molecules (3 conformers, 9 along modes, 6" in capsys.readouterr().out
    keys = [frame.values.get("pair") for frame in frames]
    pairs = find_pairs([frame.z for frame in frames], [frame.pos for frame in frames], keys)
    assert len(pairs) == 6
    assert all(pair.length == pytest.approx(0.01 * np.sqrt(4), rel=1e-4) for pair in pairs)
    assert {frame.values["molecule"] for frame in frames} == {"Cu4", "Au4", "Ag4"}
    assert all(frame.pbc.all() for frame in frames)
    recipe = yaml.safe_load(Path("out.xyz.yaml").read_text())
    assert recipe["settings"]["pairs"] == 2
    about = {"name": "ase:emt.yaml", "version": ase.__version__, "method": "emt", "settings": {}}
    assert recipe["calculator"] == about
    assert {"mfpyg", "ase", "numpy"} <= set(recipe["versions"])
    assert recipe["molecules"][0]["geometries"] == {"conformer": 1, "modes": 3, "dynamics": 2, "partner": 2}
    assert sorted(path.name for path in here.iterdir()) == ["emt.yaml", "in.xyz", "out.xyz", "out.xyz.yaml"]


@pytest.mark.slow
def test_one_seed_gives_one_file_in_any_number_of_processes(here: Path) -> None:
    run("in.xyz", "-o", "a.xyz", *EMT, "--dynamics=2")
    run("in.xyz", "-o", "b.xyz", *EMT, "--dynamics=2", "--jobs=2")
    run("in.xyz", "-o", "c.xyz", *EMT, "--dynamics=2", "--seed=1")
    assert Path("a.xyz").read_bytes() == Path("b.xyz").read_bytes() != Path("c.xyz").read_bytes()
    assert Path("a.xyz.yaml").read_bytes() == Path("b.xyz.yaml").read_bytes()


@pytest.mark.slow
def test_finished_molecules_survive_ctrl_c(here: Path) -> None:
    arguments = ["in.xyz", *EMT, "--jobs=2"]
    run(*arguments, "--dynamics=30", "-o", "whole.xyz")
    command = [sys.executable, "-m", "mfpyg.cli.sample", *arguments, "--dynamics=30", "-o", "out.xyz"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, start_new_session=True)
    part = Path("out.xyz.part")
    while not part.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was faster than Ctrl-C")
    assert process.returncode == 130
    assert "of 3 molecules are done; the same command continues" in output
    assert not Path("out.xyz").exists()
    with part.open("a") as file:
        file.write('{"key": "damaged')
    run(*arguments, "--dynamics=30", "-o", "out.xyz")
    assert Path("out.xyz").read_bytes() == Path("whole.xyz").read_bytes()
    assert not part.exists()


def test_finished_molecules_are_not_sampled_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfpyg.sampling import files

    original, names = files._finish, list[str]()

    def counted(molecule: Any, settings: Any) -> Any:
        names.append(molecule.name)
        if len(names) == 3:
            raise KeyboardInterrupt
        return original(molecule, settings)

    monkeypatch.setattr(files, "_finish", counted)
    run("in.xyz", "-o", "out.xyz", *EMT, "--dynamics=1", status=130)
    run("in.xyz", "-o", "out.xyz", *EMT, "--dynamics=1")
    assert names == ["Cu4", "Au4", "Ag4", "Ag4"]


def test_molecules_that_fail_are_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    iron = bulk("Fe", cubic=True)
    ase.io.write("iron.xyz", iron, format="extxyz")
    run("in.xyz", "iron.xyz", "-o", "out.xyz", *EMT, "--dynamics=0", status=1)
    assert "Fe2 is left out: ase:emt.yaml fails at the first structure (elements Fe" in capsys.readouterr().err
    assert len(list(frames_of(Path("out.xyz")))) == 12
    assert "fails" in yaml.safe_load(Path("out.xyz.yaml").read_text())["molecules"][3]["error"]
    run("iron.xyz", "-o", "none.xyz", *EMT, status=2)
    assert "error: Fe2: ase:emt.yaml fails at the first structure" in capsys.readouterr().err
    assert not Path("none.xyz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no molecule given"),
        (("in.xyz",), "option -o is missing"),
        (("in.xyz", "-o", "emt.yaml"), "emt.yaml: unknown suffix, expected .xyz or .extxyz"),
        (("in.xyz", "-o", "in.xyz"), "in.xyz exists; choose another name"),
        (("in.xyz", "-o", "no/out.xyz"), "no: no such folder"),
        (("in.xyz", "-o", "out.xyz", "--jobs=0"), "--jobs is 0"),
        (("in.xyz", "-o", "out.xyz", "--modes=x"), "modes is x, expected a whole number"),
        (("in.xyz", "-o", "out.xyz", "--modes=-1"), "modes is -1, expected a number of at least 0"),
        (("in.xyz", "-o", "out.xyz", "--temperature", "0"), "temperature is 0.0, expected numbers above 0"),
        (("in.xyz", "-o", "out.xyz", "--temprature", "9"), "did you mean '--temperature'?"),
        (("in.xyz", "-o", "out.xyz", "--calculator=emt"), "malformed program 'emt': expected PROGRAM:METHOD"),
        (("in.xyz", "-o", "out.xyz", "--calculator=orca:x"), "unknown program 'orca'"),
        (("in.xyz", "-o", "out.xyz", "--calculator=ase:no.yaml"), "no.yaml: no such file; expected a YAML file"),
        (("in.xyz", "-o", "out.xyz", "--calculator=tblite:GFN3"), "unknown method of tblite 'GFN3'"),
        (("in.xyz", "-o", "out.xyz", "--calculator=mfpyg:no@cc"), "no: no such checkpoint"),
    ],
)
def test_refusals(here: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(*arguments, status=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out.xyz").exists()


def test_an_output_with_a_recipe_is_not_replaced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.xyz.yaml").touch()
    run("in.xyz", "-o", "out.xyz", *EMT, status=2)
    assert "out.xyz.yaml exists" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "words"), [("tblite", ("in.xyz",)), ("rdkit", ("C", "--calculator=ase:emt.yaml"))])
def test_missing_packages_are_named_with_the_extra(
    here: Path,
    package: str,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named '{package}'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    run(*words, "-o", "out.xyz", status=2)
    error = capsys.readouterr().err
    assert "is not installed" in error
    assert "pip install 'mfpyg[label]'" in error


def test_a_trained_potential(here: Path, untrained: Callable[..., Path]) -> None:
    """Of random weights, so that what it relaxes to would not be a molecule."""
    from ase.build import molecule

    untrained("dz:EF", "cc:E")
    ase.io.write("water.xyz", molecule("H2O"), format="extxyz")
    options = ("--calculator=mfpyg:model.ckpt@cc", "--no-relax", "--modes=2", "--dynamics=0", "--temperature=10")
    run("water.xyz", "-o", "out.xyz", *options)
    assert len(list(frames_of(Path("out.xyz")))) == 3
    about = yaml.safe_load(Path("out.xyz.yaml").read_text())["calculator"]
    assert about["version"].partition(", checkpoint ")[2] == sha256_of(Path("model.ckpt"))[:16]


@pytest.mark.slow
def test_any_program_of_labels(here: Path) -> None:
    pytest.importorskip("pyscf", reason="of the extra label")
    from ase.build import molecule

    ase.io.write("water.xyz", molecule("H2O"), format="extxyz")
    run("water.xyz", "-o", "out.xyz", "--calculator=pyscf:HF/sto-3g", "--modes=2", "--dynamics=0", "--temperature=300")
    first, *_ = list(frames_of(Path("out.xyz")))
    assert np.linalg.norm(first.pos[0] - first.pos[1]) == pytest.approx(0.989, abs=0.002)


@pytest.mark.slow
def test_smiles_with_xtb(here: Path) -> None:
    for package in ("rdkit", "tblite"):
        pytest.importorskip(package, reason="of the extra label")
    options = ("--temperature=300", "--modes=3", "--dynamics=2", "--equilibration=20", "--stride=20", "--pairs=1")
    for name in ("a.xyz", "b.xyz"):
        run("O", "F", "[NH4+]", "[CH3]", "-o", name, *options)
    assert Path("a.xyz").read_bytes() == Path("b.xyz").read_bytes()
    values = [frame.values for frame in frames_of(Path("a.xyz"))]
    assert list(dict.fromkeys(v["molecule"] for v in values)) == ["O", "F", "[NH4+]", "[CH3]"]
    assert {v.get("charge") for v in values if v["molecule"] == "[NH4+]"} == {1}
    assert {v.get("multiplicity") for v in values if v["molecule"] == "[CH3]"} == {2}
    water = ase.io.read("a.xyz", 0)
    assert water.get_distance(0, 1) == pytest.approx(0.96, abs=0.01)
    assert water.get_angle(1, 0, 2) == pytest.approx(107, abs=1)
