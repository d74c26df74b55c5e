"""``mfpyg-label`` from file to file: what it writes, resumes, leaves out and refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase
import ase.io
import h5py
import numpy as np
import pytest
import yaml

from mfpyg.datasets.spec import DatasetSpec, open_dataset
from mfpyg.units import EV_TO_KCAL_MOL

A, B = "a=ase:springs:Springs:EF", "b=ase:b.yaml:EFD"


@pytest.fixture(autouse=True)
def _second_level(labelling: Any) -> None:
    Path("b.yaml").write_text("calculator: springs:Springs\narguments: {k: 2.0}\ncharge: charge\nmultiplicity: spin\n")


def dataset_of(output: str) -> str:
    """The data set that the command has named."""
    (line,) = [line for line in output.splitlines() if line.startswith("train with: ")]
    (dataset,) = shlex.split(line.partition("--dataset ")[2])
    return dataset


def test_labels_of_two_levels(labelling: Any) -> None:
    frames = labelling.write(["H2O", "CO2", "CH4"], name="kept", dft_energy=-3.5)
    assert labelling("--level", A, B, "--jobs", "2") == 0
    for frame, before in zip(ase.io.read("out.xyz", ":"), frames, strict=True):
        x = before.positions
        assert frame.info["a_energy"] == 0.5 * (x**2).sum()
        assert frame.info["b_energy"] == (x**2).sum()
        np.testing.assert_allclose(frame.arrays["a_forces"], -x)
        np.testing.assert_allclose(frame.arrays["b_forces"], -2 * x)
        np.testing.assert_allclose(frame.info["b_dipole"], x.sum(axis=0))
        assert (frame.info["name"], frame.info["dft_energy"]) == ("kept", -3.5)
        assert "a_dipole" not in frame.info
    about = yaml.safe_load(Path("out.xyz.yaml").read_text())
    assert about["levels"]["b"] | {"version": 0, "seconds": 0, "total_seconds": 0} == {
        "program": "ase", "version": 0, "method": "springs:Springs", "letters": "EFD", "labels": 3, "failed": 0,
        "settings": {"arguments": {"k": 2.0}, "charge": "charge", "multiplicity": "spin"}, "seconds": 0,
        "total_seconds": 0,
        "units": {"energy": "eV", "forces": "eV/Å", "dipole": "e·Å"},
    }  # fmt: skip
    assert about["dataset"] == "out.xyz:a=a_energy,a_forces@eV:b=b_energy,b_forces,D=b_dipole@eV"
    assert dataset_of(labelling.output) == about["dataset"]
    assert 0 < about["levels"]["a"]["seconds"] < 1
    dataset = open_dataset(DatasetSpec.parse(about["dataset"]), properties="EFD")
    energies = [0.5 * (frame.positions**2).sum() * EV_TO_KCAL_MOL for frame in frames]
    np.testing.assert_allclose([float(data.energy[0, 0]) for data in dataset], energies)


def test_nothing_is_computed_twice(labelling: Any) -> None:
    labelling.write(["H2O", "CO2", "H2O"])
    repeated = ase.io.read("in.xyz", ":")
    ase.io.write("in.xyz", [*repeated, repeated[0]], format="extxyz")
    assert labelling("--level", A, "--threads", "3") == 0
    assert sorted(labelling.computed) == ["CO2 3", "H2O 3", "H2O 3"]  # two are the same frame
    assert len(ase.io.read("out.xyz", ":")) == 4
    first = Path("out.xyz").read_bytes()
    assert labelling("--level", A) == 0
    assert Path("out.xyz").read_bytes() == first
    assert labelling("--level", A, B) == 0  # the labels of a are there
    assert len(labelling.computed) == 6


def test_failures_are_named_and_left_out(labelling: Any) -> None:
    """An error, a crash, a result that is not a number, and what cannot become a job; the others are labelled."""
    labelling.write(["H2O", "Ne", "He", "Kr", "OH", "Ar"])
    assert labelling("--level", A, B) == 0
    assert [str(frame.symbols) for frame in ase.io.read("out.xyz", ":")] == ["H2O", "OH"]
    lines = [line for line in labelling.output.splitlines() if line.startswith("failed")]
    assert lines == [
        "failed: frame 1 (Ne): a, b: RuntimeError: no neon at all",
        "failed: frame 2 (He): a, b: its process was ended by SIGKILL; perhaps it ran out of memory",
        "failed: frame 3 (Kr): a, b: the result is not a finite number; check for atoms that are much too close",
        "failed: frame 4 (HO): b: odd number of electrons, 9, and no multiplicity; state it as 'multiplicity'",
        "failed: frame 5 (Ar): a, b: ValueError: no argon yet",
    ]
    assert dataset_of(labelling.output) == "out.xyz:a=a_energy,a_forces@eV:b=b_energy?,b_forces?,D=b_dipole?@eV"
    assert "nan" not in Path("out.xyz").read_text().lower()
    assert len(yaml.safe_load(Path("out.xyz.yaml").read_text())["failures"]) == 9
    stored = [json.loads(path.read_text()) for path in Path("out.xyz.labels").glob("??/*.json")]
    assert all((one["seconds"] > 0) == (one["formula"] != "He") for one in stored)  # its process was killed
    n = len(labelling.computed)
    Path("argon").touch()
    assert labelling("--level", A, B) == 0
    assert len(labelling.computed) == n
    assert labelling("--level", A, B, "--retry") == 0
    assert [str(frame.symbols) for frame in ase.io.read("out.xyz", ":")] == ["H2O", "OH", "Ar"]
    assert "Ar" not in labelling.output


def test_what_was_stopped_has_not_failed(labelling: Any) -> None:
    """The first process that computes xenon is ended from outside."""
    labelling.write(["H2O", "Xe", "CO2"])
    assert labelling("--level", A) == 0
    assert (
        "failed: frame 1 (Xe): a: its process was ended by SIGTERM; the same command computes it\n" in labelling.output
    )
    assert [str(frame.symbols) for frame in ase.io.read("out.xyz", ":")] == ["H2O", "CO2"]
    assert labelling("--level", A) == 0
    assert "failed:" not in labelling.output
    assert [str(frame.symbols) for frame in ase.io.read("out.xyz", ":")] == ["H2O", "Xe", "CO2"]
    assert len(labelling.computed) == 4


def test_nothing_but_failures(labelling: Any) -> None:
    labelling.write(["Ne", "Ne"])
    assert labelling("--level", A) == 2
    assert "none of 2 labels could be computed" in labelling.errors
    assert not Path("out.xyz").exists()


def test_charges_and_periodic_frames(labelling: Any) -> None:
    cell = {"cell": [4, 4, 4], "pbc": True}
    ion = ase.Atoms("H", [[1.0, 2, 3]], info={"charge": 1}, **cell)
    ase.io.write("in.xyz", [ion, ase.Atoms("H2", [[0, 0, 0], [0, 0, 1]])], format="extxyz")
    assert labelling("--level", B) == 0
    crystal, molecule = ase.io.read("out.xyz", ":")
    assert crystal.pbc.all()
    assert crystal.info["b_energy"] == 14 + 1  # the charge, which this calculator adds
    assert "b_dipole" not in crystal.info
    assert "b_dipole" in molecule.info
    assert dataset_of(labelling.output).endswith("D=b_dipole?@eV")


def test_hdf5(labelling: Any) -> None:
    frames = labelling.write(["H2O", "CO2", "H2O", "Ar"])
    assert labelling("--level", A, out="out.h5") == 0
    with h5py.File("out.h5") as file:
        assert list(file) == ["CO2", "H2O"]
        group = file["H2O"]
        assert group["atomic_numbers"][:].tolist() == [1, 1, 8]
        assert group["a.energy"].attrs["unit"] == "eV"
        assert group["a.energy"].attrs["method"] == "springs:Springs"
        np.testing.assert_allclose(group["a.forces"][1], -frames[2].positions)
    dataset = open_dataset(DatasetSpec.parse(dataset_of(labelling.output)))
    assert len(dataset) == 3
    ase.io.write("in.xyz", ase.Atoms("H", cell=[3, 3, 3], pbc=True), format="extxyz")
    assert labelling("--level", A, out="b.h5") == 2
    assert "in.xyz: frame 0 is periodic, but b.h5 is for molecules; write .xyz" in labelling.errors


def test_missing_labels_in_hdf5_are_nan(labelling: Any) -> None:
    labelling.write(["H2O", "CH3"])
    radicals = ase.io.read("in.xyz", ":")
    radicals.append(ase.Atoms("CH3", radicals[1].positions + 1, info={"multiplicity": 2}))
    ase.io.write("in.xyz", radicals, format="extxyz")
    assert labelling("--level", A, B, out="out.h5") == 0
    with h5py.File("out.h5") as file:
        assert np.isnan(file["CH3/b.energy"][:]).tolist() == [True, False]
        assert np.isnan(file["CH3/b.forces"][:]).all(axis=(1, 2)).tolist() == [True, False]
    dataset = open_dataset(DatasetSpec.parse(dataset_of(labelling.output)))
    assert dataset._data.energy_mask.sum(dim=0).tolist() == [3, 2]


SLOW = "s=ase:slow.yaml:EF"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_at_any_time_and_resumed(labelling: Any, number: signal.Signals) -> None:
    """No label is lost, none computed twice but those that were being computed, and no process stays behind."""
    Path("slow.yaml").write_text("calculator: springs:Springs\narguments: {pause: 0.3}\n")
    labelling.write([f"C{n}H4" for n in range(1, 13)])
    command = [sys.executable, "-m", "mfpyg.cli.label", "in.xyz", "-o", "out.xyz", "--level", SLOW, "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 60
    while len(labelling.computed) < 5 and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), output
    if number != signal.SIGKILL:
        assert "of 12 labels are done; the same command continues" in output
    time.sleep(0.5)  # an orphan would go on
    begun, stored = len(labelling.computed), len(list(Path("out.xyz.labels").glob("*/*.json")))
    time.sleep(0.5)
    assert len(labelling.computed) == begun
    assert 0 < stored < 12
    assert not Path("out.xyz").exists()
    assert labelling("--level", SLOW, "--jobs", "2") == 0
    assert len(ase.io.read("out.xyz", ":")) == 12
    assert len(labelling.computed) == begun + 12 - stored
    for path in Path("out.xyz.labels").glob("*/*.json"):
        json.loads(path.read_text())
    assert not list(Path("out.xyz.labels").glob("*/.*"))


def test_one_at_a_time_in_a_folder(labelling: Any) -> None:
    from mfpyg.labeling.run import _locked

    labelling.write(["H2O"])
    with _locked(Path("out.xyz.labels")):
        assert labelling("--level", A) == 2
    assert "another mfpyg-label is writing to this folder" in labelling.errors


def test_output_of_other_levels(labelling: Any) -> None:
    labelling.write(["H2O"])
    assert labelling("--level", A) == 0
    assert labelling("--level", B) == 2
    assert "out.xyz has labels of level 'a', which is not among those given; give it too" in labelling.errors
    assert labelling("--level", "a=ase:lj:EF") == 2
    assert "out.xyz has level 'a' computed with ase:springs:Springs, not a=ase:lj:EF" in labelling.errors
    Path("foreign.xyz").touch()
    assert labelling("--level", A, out="foreign.xyz") == 2
    assert "foreign.xyz exists and was not written by mfpyg-label" in labelling.errors


def test_labels_of_an_earlier_output_are_kept_and_replaced(labelling: Any) -> None:
    labelling.write(["H2O", "Ar"], a_energy=77.0)
    assert labelling("--level", A) == 0
    (frame,) = ase.io.read("out.xyz", ":")
    assert frame.info["a_energy"] != 77
    assert labelling("--level", B, source="out.xyz", out="both.xyz") == 0
    (both,) = ase.io.read("both.xyz", ":")
    assert both.info["a_energy"] == frame.info["a_energy"]
    assert {"a_forces", "b_forces"} <= both.arrays.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.xyz", "-o", "out.xyz", "--level", A], "none.xyz: no such file"),
        (["in.xyz", "--level", A], "option -o is missing"),
        (["in.xyz", "-o", "out.xyz"], "no level given: expected at least one"),
        (["in.xyz", "-o", "out.traj", "--level", A], "unknown suffix of the output '.traj'"),
        (["in.xyz", "-o", "in.xyz", "--level", A], "in.xyz is the input"),
        (["in.xyz", "-o", "no/out.xyz", "--level", A], "no: no such folder"),
        (["in.xyz", "-o", ".", "--level", A], ". is a folder"),
        (["in.xyz", "-o", "out.xyz", "--level", A, A], "level 'a' is given 2 times"),
        (["in.xyz", "-o", "out.xyz", "--level", A, "--jobs", "0"], "--jobs is 0, expected a whole number"),
        (["in.xyz", "-o", "out.xyz", "--level", A, "--threads", "x"], "threads is x, expected"),
        (["in.xyz", "-o", "out.xyz", "--level", A, "--launcher", "pbs"], "unknown launcher 'pbs'"),
        (["in.xyz", "-o", "out.xyz", "--level", A, "--slurm", "time=1"], "launcher is local"),
    ],
)
def test_mistakes_are_one_line(labelling: Any, arguments: list[str], message: str) -> None:
    from mfpyg.cli import label

    labelling.write(["H2O"])
    with pytest.raises(SystemExit) as stop:
        label.main(arguments)
    errors = labelling.capsys.readouterr().err
    assert stop.value.code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not os.path.exists("computed")


def test_frames_name_their_levels(labelling: Any) -> None:
    """As mfpyg-select writes them; a frame that names none gets all."""
    frames = labelling.write(["H2O", "CO2", "CH4", "N2"])
    for frame, names in zip(frames, ("a", "b", "b a", None), strict=True):
        frame.info.update({} if names is None else {"levels": names})
    ase.io.write("in.xyz", frames, format="extxyz")
    assert labelling("--level", A, B, "--jobs", "1") == 0
    found = ase.io.read("out.xyz", ":")
    having = [[level for level in "ab" if f"{level}_energy" in frame.info] for frame in found]
    assert having == [["a"], ["b"], ["a", "b"], ["a", "b"]]
    assert not any("levels" in frame.info for frame in found)
    assert len(labelling.computed) == 6
    assert dataset_of(labelling.output) == "out.xyz:a=a_energy?,a_forces?@eV:b=b_energy?,b_forces?,D=b_dipole?@eV"
    about = yaml.safe_load(Path("out.xyz.yaml").read_text())
    assert [about["levels"][name]["labels"] for name in "ab"] == [3, 3]


def test_levels_of_frames_that_are_not_given(labelling: Any) -> None:
    """They may be computed elsewhere, which a note says; if no frame asks for what is given, it is an error."""
    labelling.write(["H2O", "CO2"], levels="a cc")
    assert labelling("--level", A) == 0
    assert "note: labels that frames of in.xyz name in 'levels', but --level does not, are not computed: 2 of 'cc'" in (
        labelling.errors
    )
    assert labelling("--level", "ccc=ase:springs:Springs:E", out="b.xyz") == 2
    assert "in.xyz: its frames are to be labelled at a, cc (their 'levels'), not at ccc" in labelling.errors
    assert "did you mean 'cc'?" in labelling.errors
    labelling.write(["H2O"], levels=3)
    assert labelling("--level", A, out="c.xyz") == 2
    assert "in.xyz: frame 0: levels is 3, expected names of levels" in labelling.errors
    assert not Path("c.xyz").exists()
