"""Reference energies of trained potentials fitted to labels: known shifts are found, forces stay the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from torch_geometric.data import Data

import mfpyg
from mfpyg.datasets import ExtXYZ, MiniCHNO
from mfpyg.datasets.batches import BatchLoader
from mfpyg.datasets.references import as_text, compositions
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.alignment import (
    add_references,
    align,
    alignment_notes,
    fit_to_predictions,
    offset_note,
)
from mfpyg.models import DeltaPotential, Potential
from mfpyg.units import EV_TO_KCAL_MOL

SHIFT = torch.tensor([-375.0, -23_890.0, 34_330.0, 12.5], dtype=torch.float64)
ROWS = np.arange(0, 788, 4)


def labelled_by(potential: Potential, fidelities: Sequence[str] = ("dz",)) -> MiniCHNO:
    """The bundled geometries with energies as the potential predicts them."""
    dataset = MiniCHNO()
    dataset._data = copy.copy(dataset._data)
    dataset._data.energy = dataset._data.energy.clone()
    for name in fidelities:
        energy = predicted(potential, np.arange(len(dataset)), name)[0]
        dataset._data.energy[:, dataset.fidelities.index(name)] = energy
    return dataset


def predicted(potential: Potential, rows: np.ndarray, fidelity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies and forces of bundled geometries."""
    (batch,) = BatchLoader(MiniCHNO(), plan=lambda epoch: [rows])
    found = potential.predict(batch, {fidelity: "EF"})[fidelity]
    assert found.forces is not None
    return found.energy, found.forces


def test_a_known_shift_is_restored_and_forces_are_the_same_bits(untrained: Callable[..., Path]) -> None:
    potential = mfpyg.load(untrained("dz:EF", "cc:E"))
    dataset, before = labelled_by(potential), potential.reference("dz").clone()
    energy, forces = predicted(potential, ROWS, "dz")
    of_cc = potential.reference("cc").clone()
    potential.shift_references("dz", SHIFT)
    found = fit_to_predictions(potential, dataset, ROWS, ["dz"])
    assert np.abs(found["dz"].shifts.energies + SHIFT.numpy()).max() < 1e-6
    assert found["dz"].shifts.undetermined == []
    rmse, left = found["dz"].rmse()
    assert rmse > 1e4
    assert left < 1e-6
    align(potential, found)
    assert (potential.reference("dz") - before).abs().max() < 1e-6
    assert torch.equal(potential.reference("cc"), of_cc)
    after = predicted(potential, ROWS, "dz")
    assert (after[0] - energy).abs().max() < 1e-5
    assert torch.equal(after[1], forces)


def test_levels_of_a_sum_of_two_networks_are_shifted_each_alone(untrained: Callable[..., Path]) -> None:
    base, difference = (mfpyg.load(untrained("dz:EF", name=f"{i}.ckpt", seed=i)) for i in range(2))
    difference.rename("cc-dz")  # type: ignore[operator]
    potential = DeltaPotential(base, difference, "dz", "cc").eval()  # type: ignore[arg-type]
    for name, other in (("dz", "cc"), ("cc", "dz")):
        before = {level: potential.reference(level).clone() for level in ("dz", "cc")}
        potential.shift_references(name, SHIFT)
        torch.testing.assert_close(potential.reference(name), before[name] + SHIFT, rtol=0, atol=1e-9)
        torch.testing.assert_close(potential.reference(other), before[other], rtol=0, atol=1e-9)


def test_what_the_compositions_do_not_determine_is_the_smallest_shift(untrained: Callable[..., Path]) -> None:
    """Of ethylene alone, C₂H₄, the shift of one C and two H is known; the smallest is along (2, 1) in H and C."""
    potential = mfpyg.load(untrained("dz:EF"))
    dataset = labelled_by(potential)
    counts = compositions(dataset, potential.species)
    ethylene = np.flatnonzero((counts == [4, 2, 0, 0]).all(axis=1))
    assert len(ethylene)
    potential.shift_references("dz", SHIFT)
    found = fit_to_predictions(potential, dataset, ethylene, ["dz"])
    total = -float(2 * SHIFT[0] + SHIFT[1])
    np.testing.assert_allclose(found["dz"].shifts.energies, [total * 2 / 5, total / 5, 0, 0], atol=1e-5)
    assert found["dz"].rmse()[1] < 1e-6
    (note,) = alignment_notes(found, "train", ["H", "C"])
    assert "dz energies of train do not determine the reference energies of H, C individually" in note
    assert "H, C, N, O individually" in alignment_notes(found, "train")[0]


@pytest.mark.parametrize("isolated", ["network", "reference"])
def test_isolated_atoms_are_exact_where_the_potential_promises_it(
    untrained: Callable[..., Path], tmp_path: Path, isolated: str
) -> None:
    """Elsewhere the network's output for an atom alone would spoil the energies of all molecules."""
    potential, random = mfpyg.load(untrained("dz:EF", isolated=isolated)), np.random.default_rng(0)
    frames = [molecule(name) for name in ("H2O", "H2O2", "CH4", "CH3OH", "NH3", "N2") for _ in range(5)]
    frames.append(ase.Atoms("O"))
    for frame in frames[:-1]:
        frame.positions += 0.05 * random.normal(size=frame.positions.shape)
    for frame in frames:
        data = Data(z=torch.from_numpy(frame.numbers), pos=torch.from_numpy(frame.positions).float())
        energy = float(potential(data, forces=False).energy)
        frame.info["energy"] = energy + (30.0 if len(frame) == 1 else 5.0 * len(frame))
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    dataset = ExtXYZ(tmp_path / "a.xyz", ["dz=energy@kcal/mol"])
    found = fit_to_predictions(potential, dataset, np.arange(len(dataset)), ["dz"])["dz"]
    expected = np.linalg.lstsq(found.counts, found.left, rcond=None)[0]
    if isolated == "reference":
        assert found.shifts.energies[3] == pytest.approx(30, abs=1e-3)
        assert found.shifts.isolated == ("O",)
    else:
        np.testing.assert_allclose(found.shifts.energies, expected, atol=1e-6)


def test_a_file_gives_the_energies_of_atoms_that_formation_energies_lack(
    untrained: Callable[..., Path], tmp_path: Path
) -> None:
    potential = mfpyg.load(untrained("dz:EF"))
    energy, _ = predicted(potential, ROWS, "dz")
    atoms = {1: -313.0, 6: -23_700.0, 7: -34_200.0, 8: -47_000.0}
    path = tmp_path / "atoms.yaml"
    path.write_text(as_text({"dz": atoms}))
    with pytest.raises(MFPyGError, match=r"dz has total energies already \(references of -47,\d+ to -\d+ kcal/mol\)"):
        add_references(potential, path)
    potential.shift_references("dz", -torch.tensor(list(atoms.values()), dtype=torch.float64))
    add_references(potential, path)
    assert (predicted(potential, ROWS, "dz")[0] - energy).abs().max() < 1e-5
    path.write_text(as_text({"dz": {1: -313.0, 6: -23_700.0}}))
    with pytest.raises(MFPyGError, match="dz has no energy of N, O, which the model knows"):
        add_references(potential, path)


def test_offsets_are_noted_if_the_composition_explains_large_errors() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(1, 7, (60, 4)).astype(float)
    n_atoms = counts.sum(axis=1)
    formation = counts @ SHIFT.numpy()
    noise = random.normal(0, 5, 60) * n_atoms
    note = offset_note("dz", formation + noise, counts, "fit them")
    assert note is not None
    size = np.sqrt(np.mean(((formation + noise) / n_atoms) ** 2))
    assert f"dz energies differ from the labels by {size:,.0f} kcal/mol per atom" in note
    assert note.endswith("fit them")
    assert offset_note("dz", noise, counts, "") is None  # a bad potential
    assert offset_note("dz", 100 * noise, counts, "") is None  # a worse one
    assert offset_note("dz", counts @ np.full(4, 0.9 * EV_TO_KCAL_MOL), counts, "") is None  # small
    assert offset_note("dz", formation[:4], counts[:4], "") is None  # four energies are explained by four numbers
    assert offset_note("dz", np.zeros(0), np.zeros((0, 4)), "") is None
