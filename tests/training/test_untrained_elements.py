"""A level of theory that never saw an element: what it predicts there, and that every interface says so."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.optimize import BFGS
from torch_geometric.data import Data

import mfpyg
from mfpyg.checkpoint import read_checkpoint
from mfpyg.cli import inspection, predict, study, train
from mfpyg.datasets import MiniCHNO
from mfpyg.datasets.references import compositions
from mfpyg.errors import MFPyGWarning
from mfpyg.interop.ase import MFPyGCalculator
from mfpyg.models import MultiFidelityPotential
from mfpyg.units import EV_TO_KCAL_MOL

STRATEGIES = ("mfl", "tl", "delta", "meta")
HYDRAZINE = molecule("N2H4")
HYDRAZINE_CC = -3035.0
"""Energy of hydrazine in eV at CCSD(T)/cc-pVDZ; ωB97X/6-31G(d) has −3042."""


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sixth of MiniCHNO as extended XYZ; ``cc`` energies of molecules without nitrogen alone."""
    dataset = MiniCHNO(fidelities=["dz", "cc"])
    nitrogen = compositions(dataset, (7,))[:, 0] > 0
    frames = []
    for row in range(0, 660, 6):
        data = dataset[row]
        frame = ase.Atoms(data.z.numpy(), data.pos.numpy())
        frame.info["dft_energy"] = float(data.energy[0, 0]) / EV_TO_KCAL_MOL
        frame.arrays["dft_forces"] = data.forces[:, 0].numpy() / EV_TO_KCAL_MOL
        if not nitrogen[row]:
            frame.info["cc_energy"] = float(data.energy[0, 1]) / EV_TO_KCAL_MOL
        frames.append(frame)
    path = tmp_path_factory.mktemp("lacking") / "lacking.xyz"
    ase.io.write(path, frames, format="extxyz")
    return path


@pytest.fixture(scope="module")
def run_of(lacking: Path) -> Callable[..., Path]:
    """Trains for two epochs, once for each set of options."""
    done: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in done:
            out = lacking.parent / f"run{len(done)}"
            done[options] = out
            spec = f"{lacking}:dft=dft_energy,dft_forces@eV:cc=cc_energy?@eV"
            shared = ["--preset=small", "--epochs=2", "--compile=off", "--out", str(out), "--dataset", spec]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MFPyGWarning)
                train.main([*shared, "--fidelities", "dft:EF", "cc:E", *options])
        return done[options]

    return run


def energy(potential: mfpyg.models.Potential, atoms: ase.Atoms, fidelity: str) -> float:
    """In eV."""
    data = Data(z=torch.from_numpy(atoms.numbers), pos=torch.from_numpy(atoms.positions).float())
    return float(potential(data, fidelity=fidelity, forces=False).energy) / EV_TO_KCAL_MOL


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_total_energies_are_right_to_some_electronvolts(run_of: Callable[..., Path], strategy: str) -> None:
    potential = mfpyg.load(run_of("--strategy", strategy))
    with pytest.warns(MFPyGWarning, match="'cc' was never trained on N"):
        found = energy(potential, HYDRAZINE, "cc")
    assert abs(found - HYDRAZINE_CC) < 2  # it was −65 eV, and with the references of dft −3042
    species = read_checkpoint(run_of("--strategy", strategy))["mfpyg"]["trained_species"]
    assert species["cc"] == [1, 6, 8]
    assert species.get("dft", [1, 6, 7, 8]) == [1, 6, 7, 8]


@pytest.mark.slow
def test_each_interface_warns_once(run_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_of("--strategy", "mfl")
    potential = mfpyg.load(run)
    with pytest.warns(MFPyGWarning, match="'cc' was never trained on N") as caught:
        _ = [energy(potential, HYDRAZINE, "cc") for _ in range(3)]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = mfpyg.load(run)
        energy(other, HYDRAZINE, "dft")
        energy(other, molecule("CH3OH"), "cc")
    atoms = HYDRAZINE.copy()
    atoms.calc = MFPyGCalculator(run, "cc")
    with pytest.warns(MFPyGWarning, match="'cc' was never trained on N") as caught:
        BFGS(atoms, logfile=None).run(steps=3)
    assert len(caught) == 1
    ase.io.write(tmp_path / "in.xyz", [HYDRAZINE, HYDRAZINE, molecule("CH3OH")])
    capsys.readouterr()
    predict.main([str(run), str(tmp_path / "in.xyz"), "-o", str(tmp_path / "out.xyz"), "--fidelity", "cc"])
    assert capsys.readouterr().err.count("'cc' was never trained on N") == 1
    several = [str(run), str(run), str(tmp_path / "in.xyz")]
    predict.main([*several, "-o", str(tmp_path / "out.xyz"), "--fidelity", "cc"])
    assert capsys.readouterr().err.count("'cc' was never trained on N") == 1
    inspection.main([str(run)])
    assert "never trained on this element" in capsys.readouterr().out
    inspection.main([str(run), "--json", "-"])
    levels = json.loads(capsys.readouterr().out)["fidelities"]
    assert levels["cc"]["trained_elements"] == ["H", "C", "O"]
    assert levels["dft"]["trained_elements"] == ["H", "C", "N", "O"]


@pytest.mark.slow
def test_evaluate_warns_once(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run, out = run_of("--strategy", "mfl"), str(tmp_path / "errors.json")
    command = [sys.executable, "-m", "mfpyg.cli.evaluate", str(run), "--json", out]
    spec = ["--dataset", "minichno"]  # where cc has labels of molecules with N, under its own name
    done = subprocess.run([*command, *spec], capture_output=True, text=True, check=True)
    assert done.stderr.count("'cc' was never trained on N") == 1


@pytest.mark.slow
def test_given_references_are_kept_and_outlive_their_file(
    run_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "references.yaml"
    path.write_text("cc: {unit: eV, N: -1485.25, O: -2041}\n")
    for strategy in ("mfl", "delta"):
        run = run_of("--references", str(path), "--strategy", strategy)
        found = mfpyg.load(run).reference("cc").numpy() / EV_TO_KCAL_MOL
        assert found[2:] == pytest.approx([-1485.25, -2041], rel=1e-12)
    run = run_of("--references", str(path), "--strategy", "delta")
    path.write_text("cc: {unit: eV, N: -1485, O: -2041}\n")
    with pytest.raises(SystemExit):
        train.main(["--resume", str(run)])
    assert "other reference energies of cc" in capsys.readouterr().err
    path.unlink()
    capsys.readouterr()
    train.main(["--resume", str(run)])
    assert "nothing left to train" in capsys.readouterr().out


@pytest.mark.slow
def test_an_added_fidelity_takes_given_references_and_leaves_those_of_init(
    run_of: Callable[..., Path], lacking: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, path, out = run_of("--strategy", "mfl"), tmp_path / "references.yaml", tmp_path / "out"
    options = ["--init", str(run), "--add-fidelity", "new:E", "--finetune.old=frozen", "--epochs=1", "--out", str(out)]
    options += ["--dataset", f"{lacking}:new=cc_energy?@eV:cc=cc_energy?@eV:dft=dft_energy,dft_forces@eV"]
    path.write_text("cc: {unit: eV, N: -1485.25}\n")
    with pytest.raises(SystemExit):
        train.main([*options, "--fidelities", "cc:E", "--finetune.old=replayed", "--references", str(path)])
    assert "reference energies of 'cc'" in capsys.readouterr().err
    path.write_text("new: {unit: eV, N: -1485.25}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MFPyGWarning)
        train.main([*options, "--references", str(path), "--compile=off"])
    before, after = mfpyg.load(run), mfpyg.load(out)
    assert after.reference("new")[2] == pytest.approx(-1485.25 * EV_TO_KCAL_MOL, rel=1e-12)
    assert torch.equal(before.reference("cc"), after.reference("cc"))
    assert after.trained_species == {"dft": (1, 6, 7, 8), "cc": (1, 6, 8), "new": (1, 6, 8)}


def test_edges_warn_and_saving_keeps_what_was_trained_on(untrained: Callable[..., Path], tmp_path: Path) -> None:
    potential = mfpyg.load(untrained("dz:EF"))
    assert isinstance(potential, MultiFidelityPotential)
    z = torch.tensor([7, 1])
    edges, vectors = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.predict_edges(z, edges, vectors, "dz")  # a checkpoint that does not say what it was trained on
    potential.trained_species = {"dz": (1, 6, 8)}
    mfpyg.save(potential, tmp_path / "saved.ckpt")
    saved = mfpyg.load(tmp_path / "saved.ckpt")
    with pytest.warns(MFPyGWarning, match="'dz' was never trained on N"):
        saved.predict_edges(z, edges, vectors, "dz")
    assert np.isfinite(energy(saved, molecule("H2O"), "dz"))


def test_a_missing_file_of_references_is_one_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        train.main(["--fidelities", "dz:E", "--references", "nowhere.yaml"])
    assert end.value.code == 2
    assert "nowhere.yaml: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_is_not_extended_with_other_references(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, out = tmp_path / "references.yaml", tmp_path / "study"
    options = ["SF-CC/E", "--epochs=1", "--preset=small", "--compile=off", "--jobs=1", "--out", str(out)]
    path.write_text("cc: {unit: eV, N: -1485.25}\n")
    study.main([*options, "--references", str(path), "--members=1"])
    path.write_text("cc: {unit: eV, N: -1490}\n")
    with pytest.raises(SystemExit):
        study.main([*options, "--references", str(path), "--members=2"])
    assert "other reference energies of cc" in capsys.readouterr().err
    assert not list(out.rglob("seed-1"))
