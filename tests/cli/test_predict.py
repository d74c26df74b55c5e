"""``mfpyg-predict``: what it writes, and what it refuses in one line."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import torch

import mfpyg
from mfpyg.checkpoint import describe
from mfpyg.cli import predict
from mfpyg.datasets import MiniCHNO
from mfpyg.interop.ase import data_of
from mfpyg.models.build import build_potential
from mfpyg.settings import from_dict
from mfpyg.units import EV_TO_KCAL_MOL

SMALL = {
    "n_features": 6,
    "n_sensitivities": 5,
    "n_interactions": 1,
    "n_atom_layers": 1,
    "r_soft_max": 3.5,
    "cutoff": 4.0,
}


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``make_checkpoint(seed, *fidelities)``: path of an untrained potential of these, ``dz`` with a charge head."""
    folder = tmp_path_factory.mktemp("models")

    def make(seed: int = 0, *fidelities: str) -> str:
        names = fidelities or ("dz", "cc")
        path = folder / f"{seed}-{'-'.join(names)}.ckpt"
        if not path.exists():
            torch.manual_seed(seed)
            settings = from_dict({"fidelities": [f"{name}:E" for name in names], "model": SMALL})
            potential = build_potential(settings, [1, 6, 7, 8], names, {"dz": "DQ"} if "dz" in names else {})
            for head in potential.heads:
                head.reference.copy_(-1000 * torch.rand(4))
            for parameter in potential.further_heads.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            data = {"name": "minichno", "fingerprint": "0", "methods": {}}
            weights = {f"potential.{key}": value for key, value in potential.state_dict().items()}
            torch.save({"mfpyg": describe(potential, settings, data, {}), "state_dict": weights}, path)
        return str(path)

    return make


@pytest.fixture
def molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ase.Atoms]:
    """Every thirtieth bundled molecule, in ``in.xyz`` of the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    dataset = MiniCHNO()
    items = [dataset[i] for i in range(0, len(dataset), 30)]
    frames = [ase.Atoms(item.z.numpy(), item.pos.double().numpy().round(8)) for item in items]
    ase.io.write("in.xyz", frames)
    return frames


def test_predictions_are_read_by_ase(
    make_checkpoint: Callable[..., str], molecules: list[ase.Atoms], capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint()
    predict.main([model, "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--batch-size", "10"])
    assert capsys.readouterr().out == f"written: out.xyz, {len(molecules)} frames\n"
    potential = mfpyg.load(model)
    for found, atoms in zip(ase.io.read("out.xyz", ":"), molecules, strict=True):
        expected = potential(data_of(atoms), "cc")
        assert found.get_potential_energy() * EV_TO_KCAL_MOL == pytest.approx(float(expected.energy), abs=1e-4)
        assert found.get_forces() * EV_TO_KCAL_MOL == pytest.approx(expected.forces.numpy(), abs=1e-4)
    assert sorted(path.name for path in Path().iterdir()) == ["in.xyz", "out.xyz"]


def test_several_models_and_all_fidelities_in_a_table(
    make_checkpoint: Callable[..., str], molecules: list[ase.Atoms]
) -> None:
    models = [make_checkpoint(0), make_checkpoint(1), make_checkpoint(2, "dz", "tz", "cc")]
    predict.main([*models, "in.xyz", "-o", "out.csv", "--fidelity", "all", "--units", "kcal/mol"])
    with open("out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(molecules)
    assert [key for key in rows[0] if "dz" in key] == ["dz_energy [kcal/mol]", "dz_energy_std [kcal/mol]"]
    assert not [key for key in rows[0] if "tz" in key]
    for name in ("dz", "cc"):
        each = [mfpyg.load(model)(data_of(molecules[7]), name, forces=False).energy.item() for model in models]
        assert float(rows[7][f"{name}_energy [kcal/mol]"]) == pytest.approx(np.mean(each), abs=1e-3)
        assert float(rows[7][f"{name}_energy_std [kcal/mol]"]) == pytest.approx(np.std(each, ddof=1), abs=1e-3)


def test_a_molecule_an_ion_and_a_crystal_with_all_properties(
    make_checkpoint: Callable[..., str], molecules: list[ase.Atoms]
) -> None:
    model = make_checkpoint()
    ion, crystal = molecules[1], ase.build.bulk("C", "diamond", a=3.6)
    ion.info["charge"] = 1
    ase.io.write("mixed.xyz", [molecules[0], ion, crystal])
    predict.main([model, "mixed.xyz", "-o", "out.xyz", "--fidelity", "dz", "--properties", "EFSHDQ"])
    potential, found = mfpyg.load(model), ase.io.read("out.xyz", ":")
    for atoms, given, charge in zip(found, [molecules[0], ion, crystal], [0, 1, 0], strict=True):
        data = data_of(given)
        data.charge = torch.tensor([charge])
        expected = potential(data, "dz", properties="EQ")
        assert atoms.get_charges() == pytest.approx(expected.charges.numpy(), abs=1e-5)
        assert atoms.get_charges().sum() == pytest.approx(charge, abs=1e-5)
        assert atoms.info["hessian"].shape == (3 * len(atoms), 3 * len(atoms))
    assert ["dipole" in atoms.calc.results for atoms in found] == [True, True, False]
    assert ["stress" in atoms.calc.results for atoms in found] == [False, False, True]
    predict.main([model, "mixed.xyz", "-o", "out.csv", "--fidelity", "dz", "--properties", "D"])
    with open("out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dipoles = [np.array(row["dz_dipole [e·Å]"].split(), float) for row in rows]
    assert [len(dipole) for dipole in dipoles] == [3, 3, 0]
    assert dipoles[1] == pytest.approx(found[1].get_dipole_moment(), abs=1e-5)


def test_the_only_fidelity_needs_no_name(make_checkpoint: Callable[..., str], molecules: list[ase.Atoms]) -> None:
    predict.main([make_checkpoint(0, "cc"), "in.xyz", "-o", "out", "--output-format", "csv", "--forces"])
    assert Path("out").read_text(encoding="utf-8").startswith("frame,formula,n_atoms,cc_energy [eV],cc_forces [eV/Å]")
    predict.main([make_checkpoint(0, "cc"), "in.xyz", "-o", "out.xyz", "--no-forces"])
    assert "forces" not in Path("out.xyz").read_text(encoding="utf-8")


def test_what_is_not_kept_is_a_note(
    make_checkpoint: Callable[..., str], molecules: list[ase.Atoms], forks: Any
) -> None:
    atoms = molecules[0]
    atoms.info.update(note="", table=np.eye(2))
    atoms.info["ragged"] = [[1], [1, 2]]
    ase.io.write("in.traj", atoms)
    output = forks.whole(make_checkpoint(), "in.traj", "-o", "out.xyz", "--fidelity", "cc", command="predict")
    (note,) = [line for line in output.splitlines() if line.startswith("mfpyg-predict: note: ")]
    assert "out.xyz lacks some values of the input: 'ragged' (list that the format" in note
    found = ase.io.read("out.xyz")
    assert found.info["note"] == ""
    assert (found.info["table"] == np.eye(2)).all()
    assert found.get_forces().shape == (len(atoms), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one or more models and then the input file"),
        (["MODEL"], "expected one or more models and then the input file"),
        (["MODEL", "in.xyz"], "option -o is missing"),
        (["MODEL", "in.xyz", "-o", "in.xyz"], "in.xyz is one of the inputs"),
        (["MODEL", "in.xyz", "-o", "MODEL"], "is one of the inputs"),
        (["MODEL", "in.xyz", "-o", "."], "is a folder"),
        (["MODEL", "in.xyz", "-o", "no/out.xyz"], "no: no such folder"),
        (["MODEL", "in.xyz", "-o", "/dev/null"], "not a regular file"),
        (["MODEL", "in.xyz", "-o", "out.txt", "--fidelity", "cc"], "choose a format with --output-format"),
        (["MODEL", "in.xyz", "-o", "out.xyz"], "no fidelity given"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "ccc"], "did you mean 'cc'?"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelty", "cc"], "did you mean '--fidelity'?"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity"], "fidelity"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "all"], "expected names, or only all"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "cc"], "'cc' is given 2 times"),
        (["--fidelity", "cc", "MODEL", "in.xyz", "-o", "out.xyz"], "before all options"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--units", "ev/mol"], "unknown energy unit"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--batch-size", "0"], "--batch-size is 0"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--batch-size", "x"], "expected a whole number"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--accelerator", "gpu"], "unknown accelerator"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--format", "extxy"], "did you mean 'extxyz'?"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--forces", "--no-forces"], "cannot be combined"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--properties", "EFX"], "malformed --properties 'EFX': expected letters"),
        (
            ["MODEL", "in.xyz", "-o", "out.xyz", "--properties", "E", "--stress"],
            "--properties cannot be combined with --forces",
        ),
        (["MODEL", "in.xyz", "-o", "out.csv", "--fidelity", "cc", "--properties", "EH"], "Hessians do not fit in CSV"),
        (
            ["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--properties", "EDQ"],
            "fidelity 'cc' has no head for dipoles and charges; fidelities with one: dz",
        ),
        (["MODEL", "none.xyz", "-o", "out.xyz", "--fidelity", "cc"], "none.xyz: no such file"),
        (
            ["none", "in.xyz", "-o", "out.xyz", "--fidelity", "cc"],
            "none: no such checkpoint; expected a run folder of mfpyg-train or a .ckpt file",
        ),
        (["in.xyz", "in.xyz", "-o", "out.xyz", "--fidelity", "cc"], "in.xyz: damaged, or not a checkpoint"),
        (["MODEL", "MODEL", "-o", "out.xyz", "--fidelity", "cc"], "expected the input file as the last argument"),
        (["MODEL", "in.xyz", "-o", "out.xyz", "--fidelity", "cc", "--stress", "--x"], "unknown option --x"),
        (["MODEL", "wrong.xyz", "-o", "out.xyz", "--fidelity", "cc"], "wrong.xyz: frame 1: element Cl is unknown"),
    ],
)
def test_a_mistake_is_a_line(
    make_checkpoint: Callable[..., str],
    molecules: list[ase.Atoms],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    ase.io.write("wrong.xyz", [molecules[0], ase.Atoms("HCl", [(0, 0, 0), (0, 0, 1.3)])])
    before = {path: path.read_bytes() for path in Path().iterdir()}
    with pytest.raises(SystemExit) as stop:
        predict.main([make_checkpoint() if argument == "MODEL" else argument for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("mfpyg-predict: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(make_checkpoint: Callable[..., str], molecules: list[ase.Atoms], forks: Any) -> None:
    Path("long.xyz").write_text(Path("in.xyz").read_text() * 10_000)

    def stop(running: Any) -> None:
        while not (temporary := list(Path().glob(".out.xyz.*"))) or not temporary[0].stat().st_size:
            assert running.alive()
            time.sleep(0.05)
        running.send(signal.SIGINT)

    command = [make_checkpoint(), "long.xyz", "-o", "out.xyz", "--fidelity", "cc"]
    ended = forks.run(*command, command="predict", hit=stop)
    assert ended.status == 130, ended.output
    assert ended.output.endswith("mfpyg-predict: stopped\n")
    assert sorted(path.name for path in Path().iterdir() if path.suffix) == ["in.xyz", "long.xyz"]


_MEMORY = """
import os, resource, sys
from pathlib import Path
from typing import Any
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.files import predict_file

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20

def watched(found):
    for number, one in enumerate(found, start=1):
        if number % 4000 == 0:
            print(number, resident(), flush=True)
        yield one

ensemble = Ensemble(sys.argv[1])
predict_file(ensemble, Path("short.xyz"), Path("out.xyz"), "cc")
print(0, resident())
predict_file(ensemble, Path("long.xyz"), Path("out.xyz"), "cc", track=watched)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's own figure")
def test_memory_does_not_grow_with_the_file(make_checkpoint: Callable[..., str], molecules: list[ase.Atoms]) -> None:
    text = Path("in.xyz").read_text()
    for name, n_frames in (("short.xyz", 4000), ("long.xyz", 20_000)):
        Path(name).write_text(text * (n_frames // len(molecules) + 1))
    command = [sys.executable, "-c", _MEMORY, make_checkpoint()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    resident = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(resident) == 6
    assert max(resident) - resident[0] < 8, resident  # a list of the frames takes 22 more
