"""Predictions of many frames are those of each alone, whatever it comes from and goes to."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import numpy as np
import pytest
import torch

from mfpyg.datasets.frames import frames_of, total_charge
from mfpyg.errors import MFPyGError
from mfpyg.inference import frames as predict
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.files import predict_file
from mfpyg.inference.frames import QUANTITIES, predict_frames
from mfpyg.interop.ase import data_of
from mfpyg.models import DeltaPotential
from mfpyg.properties import PROPERTIES
from mfpyg.units import EV_TO_KCAL_MOL, HARTREE_TO_KCAL_MOL

from .conftest import TOLERANCE, Frames, Make, all_alone, alone, written

# One by one


@pytest.mark.parametrize("batch_size", [1, 2, 4, 256])
def test_each_frame_is_predicted_as_if_alone(small_potential: Make, mixed_frames: Frames, batch_size: int) -> None:
    potential = small_potential()
    found = list(predict_frames(Ensemble(potential), mixed_frames, ["cc", "dz"], batch_size=batch_size))
    assert [one.frame.number for one in found] == list(range(len(mixed_frames)))
    for one, atoms in zip(found, mixed_frames, strict=True):
        assert list(one.of) == ["cc", "dz"]
        for fidelity, values in one.of.items():
            expected = alone(potential, atoms, fidelity)
            assert values.energy == pytest.approx(expected.energy, **TOLERANCE)
            assert values.forces == pytest.approx(expected.forces, **TOLERANCE)
            assert values.stress is None
            assert values.energy_std is None


def test_stresses_are_of_frames_that_have_a_volume(small_potential: Make, mixed_frames: Frames) -> None:
    potential = small_potential(0, "cc")
    for one, atoms in zip(
        predict_frames(Ensemble(potential), mixed_frames, properties="EFS"), mixed_frames, strict=True
    ):
        values, periodic = one.of["cc"], bool(atoms.pbc.all())
        expected = alone(potential, atoms, "cc", periodic)
        assert values.forces == pytest.approx(expected.forces, **TOLERANCE)
        assert (values.stress is not None) == periodic
        if periodic:
            assert values.stress == pytest.approx(expected.stress, **TOLERANCE)


def test_all_properties_are_those_of_the_potential(small_potential: Make, ions: tuple[Frames, list[float]]) -> None:
    potential, (frames, charges) = small_potential(charges=["dz", "cc"]), ions
    predicted = predict_frames(Ensemble(potential), frames, ["cc", "dz"], properties="QDHSFE", batch_size=4)
    for one, atoms, charge in zip(predicted, frames, charges, strict=True):
        for fidelity, values in one.of.items():
            expected = all_alone(potential, atoms, fidelity, charge)
            for name in QUANTITIES:
                found, value = getattr(values, name), getattr(expected, name)
                assert (found is None) == (value is None), name
                assert value is None or found == pytest.approx(value, rel=1e-11, abs=1e-10), name
            assert values.charges.sum() == pytest.approx(charge, abs=1e-12)
            assert (values.dipole is not None) == (not atoms.pbc.any())


def test_members_of_an_ensemble_give_mean_and_spread(small_potential: Make, mixed_frames: Frames) -> None:
    members = [small_potential(seed) for seed in range(3)]
    members[2].backbone.cutoff = 3.0  # its edges are not those of the others
    for one, atoms in zip(predict_frames(Ensemble(members), mixed_frames, "dz"), mixed_frames, strict=True):
        each = [alone(member, atoms, "dz") for member in members]
        values = one.of["dz"]
        assert values.energy == pytest.approx(np.mean([e.energy for e in each]), **TOLERANCE)
        assert values.energy_std == pytest.approx(np.std([e.energy for e in each], ddof=1), **TOLERANCE)
        assert values.forces == pytest.approx(np.mean([e.forces for e in each], axis=0), **TOLERANCE)
        assert values.forces_std == pytest.approx(np.std([e.forces for e in each], axis=0, ddof=1), **TOLERANCE)


def test_standard_deviations_of_a_single_potential(small_potential: Make, add_std: Make, mixed_frames: Frames) -> None:
    """Of the fidelity that has them, also of frames with different properties, in the unit of the energies."""
    potential = add_std(small_potential(), "cc")
    predicted = predict_frames(Ensemble(potential), mixed_frames, ["dz", "cc"], properties="EFS", unit="eV")
    for one, atoms in zip(predicted, mixed_frames, strict=True):
        expected = potential.predict(data_of(atoms), {"cc": "EF"}, std=True)["cc"]
        assert expected.energy_std is not None
        assert expected.forces_std is not None
        values = one.of["cc"]
        assert values.energy_std == pytest.approx(float(expected.energy_std) / EV_TO_KCAL_MOL, **TOLERANCE)
        assert values.forces_std == pytest.approx(expected.forces_std.numpy() / EV_TO_KCAL_MOL, **TOLERANCE)
        assert values.stress_std is None
        assert one.of["dz"].energy_std is one.of["dz"].forces_std is None
        assert one.of["dz"].forces == pytest.approx(alone(potential, atoms, "dz").forces, **TOLERANCE)
    (first, *_) = predict_frames(Ensemble(potential), mixed_frames, "cc", properties="E")
    assert first.of["cc"].energy_std is not None
    assert first.of["cc"].forces_std is None


def test_every_property_has_a_spread(small_potential: Make, ions: tuple[Frames, list[float]]) -> None:
    members, (frames, charges) = [small_potential(seed, charges=["dz"]) for seed in range(2)], ions
    predicted = predict_frames(Ensemble(members), frames, "dz", properties="EFSHDQ")
    for one, atoms, charge in zip(predicted, frames, charges, strict=True):
        each, values = [all_alone(member, atoms, "dz", charge) for member in members], one.of["dz"]
        for name in (p.name for p in PROPERTIES.values()):
            both = [getattr(e, name) for e in each]
            if both[0] is not None:
                assert getattr(values, name) == pytest.approx(np.mean(both, axis=0), rel=1e-11, abs=1e-10)
                assert getattr(values, f"{name}_std") == pytest.approx(np.std(both, axis=0, ddof=1), abs=1e-9)
            else:
                assert getattr(values, name) is getattr(values, f"{name}_std") is None


def test_a_sum_of_two_networks_is_predicted_too(small_potential: Make, mixed_frames: Frames) -> None:
    delta = DeltaPotential(small_potential(0, "dz"), small_potential(1, "cc"), "dz", "cc").eval()
    for one, atoms in zip(predict_frames(Ensemble(delta), mixed_frames, "cc"), mixed_frames, strict=True):
        assert one.of["cc"].forces == pytest.approx(alone(delta, atoms, "cc").forces, **TOLERANCE)  # type: ignore[arg-type]


def test_float32_sees_the_edges_of_float32(small_potential: Make, mixed_frames: Frames) -> None:
    potential = small_potential().float()
    for one, atoms in zip(predict_frames(Ensemble(potential), mixed_frames, "cc"), mixed_frames, strict=True):
        expected = alone(potential, atoms, "cc")
        assert one.of["cc"].energy == pytest.approx(expected.energy, abs=1e-5)
        assert one.of["cc"].forces == pytest.approx(expected.forces, abs=1e-5)


def test_float32_does_not_see_where_the_origin_is(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    potential, random = small_potential().float(), np.random.default_rng(0)
    far = [atoms.copy() for atoms in mixed_frames]
    for atoms in far[::2]:
        atoms.positions += [1e4, -2e4, 1e4]
    for atoms in far[1::2]:
        atoms.positions += (random.integers(-1000, 1001, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
    near, found = (list(predict_frames(Ensemble(potential), frames, "cc")) for frames in (mixed_frames, far))
    for ours, theirs, atoms in zip(found, near, far, strict=True):
        assert ours.of["cc"].energy == pytest.approx(theirs.of["cc"].energy, abs=1e-6)
        np.testing.assert_allclose(ours.of["cc"].forces, theirs.of["cc"].forces, atol=1e-6)
        np.testing.assert_array_equal(ours.frame.pos, atoms.positions)  # which are written out
    text = written(tmp_path / "far.xyz", far, format="extxyz")
    predict_file(Ensemble(potential), text, tmp_path / "out.xyz", ["cc"])
    for atoms, given, theirs in zip(ase.io.iread(tmp_path / "out.xyz"), far, near, strict=True):
        np.testing.assert_allclose(atoms.positions, given.positions, atol=1e-8)
        np.testing.assert_allclose(atoms.get_forces(), theirs.of["cc"].forces, atol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("kcal/mol", 1.0), ("hartree", HARTREE_TO_KCAL_MOL)])
def test_energies_and_forces_are_in_the_unit(small_potential: Make, unit: str, factor: float) -> None:
    potential, atoms = small_potential(0, "cc"), ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])
    (one,) = predict_frames(Ensemble(potential), [atoms], unit=unit)
    expected = potential(data_of(atoms))
    assert one.of["cc"].energy * factor == pytest.approx(float(expected.energy))
    assert one.of["cc"].forces * factor == pytest.approx(expected.forces.numpy())


def test_dipoles_and_charges_do_not_depend_on_the_unit_of_energies(small_potential: Make) -> None:
    potential, atoms = small_potential(0, "cc", charges=["cc"]), ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])
    ours, theirs = (
        next(predict_frames(Ensemble(potential), [atoms], properties="HDQ", unit=unit)).of["cc"]
        for unit in ("eV", "kcal/mol")
    )
    assert (ours.charges == theirs.charges).all()
    assert (ours.dipole == theirs.dipole).all()
    assert ours.dipole[2] == pytest.approx(1.1 * ours.charges[1], rel=1e-12)
    assert ours.hessian * EV_TO_KCAL_MOL == pytest.approx(theirs.hessian, rel=1e-12)


def test_energies_alone_take_no_backward_pass(small_potential: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.autograd, "grad")
    (one,) = predict_frames(Ensemble(small_potential()), [ase.Atoms("O")], "cc", properties="E")
    assert one.of["cc"].forces is None


def test_batches_are_bounded_in_atoms(
    small_potential: Make, mixed_frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "ATOMS", 6)
    batches: list[int] = []

    class Counting(Ensemble):
        def predict(self, data, *rest, **options):  # type: ignore[no-untyped-def]
            batches.append(len(data.z))
            return super().predict(data, *rest, **options)

    assert len(list(predict_frames(Counting(small_potential()), mixed_frames, "cc"))) == len(mixed_frames)
    assert batches == [6, 9, 3, 6]  # of 5, 1; 9; 3; 4, 2 atoms


def test_frames_are_taken_as_they_are_needed(small_potential: Make) -> None:
    taken = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal taken
        while True:
            taken += 1
            yield ase.Atoms("CO", [(0, 0, 0), (0, 0, 1 + 0.001 * taken)])

    found = predict_frames(Ensemble(small_potential()), endless(), "cc", batch_size=3)
    assert [next(found).frame.number for _ in range(7)] == list(range(7))
    assert taken <= 10


# What is wrong with a frame


def broken(kind: str) -> ase.Atoms:
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])
    if kind == "element":
        atoms.numbers[1] = 17
    if kind == "nan":
        atoms.positions[1, 2] = np.nan
    if kind == "far":
        atoms.positions[1, 2] = 1e300
    if kind == "none":
        del atoms[:]
    if kind == "overlap":
        atoms.positions[1] = 0
    if kind == "image":
        atoms.set_cell([3, 3, 3])
        atoms.set_pbc(True)
        atoms.positions[1] = (0, 3, 0)
    if kind == "volume":
        atoms.set_cell([[1, 0, 0], [2, 0, 0], [0, 0, 1]])
        atoms.set_pbc(True)
    if kind == "no cell":
        atoms.set_pbc(True)
    return atoms


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"charge": "1+"}, r"charge has type .*, expected total charges in e"),
        ({"charge": np.nan}, "the total charge is nan e, expected a whole number"),
        ({"charge": [1, 0, 0]}, r"charge has shape \(1, 3\), expected"),
        ({"initial_charges": [1.0, np.inf]}, "the initial charges add up to inf e, expected a whole number"),
    ],
)
def test_a_charge_that_is_no_number_is_refused(
    small_potential: Make, mixed_frames: Frames, given: dict[str, Any], message: str
) -> None:
    ensemble = Ensemble(small_potential(charges=["cc"]))
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], charges=given.pop("initial_charges", None), info=given)
    with pytest.raises(MFPyGError, match=f"^frame 6: {message}"):
        list(predict_frames(ensemble, [*mixed_frames, atoms], "cc", properties="Q"))
    assert len(list(predict_frames(ensemble, [atoms], "cc"))) == 1  # energies do not depend on it


@pytest.mark.parametrize("batch_size", [1, 100])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("element", "element Cl is unknown"),
        ("nan", "position of atom 1 is"),
        ("far", "position of atom 1 is"),
        ("none", "no atoms"),
        ("overlap", "atoms 0 and 1 are at the same place"),
        ("image", "atoms 0 and 1 are at the same place"),
        ("volume", "span no volume"),
        ("no cell", "span no volume"),
    ],
)
def test_a_frame_that_is_wrong_is_named(
    small_potential: Make, mixed_frames: Frames, kind: str, message: str, batch_size: int
) -> None:
    frames = [*mixed_frames, broken(kind), *mixed_frames]
    with pytest.raises(MFPyGError, match=f"^in.traj: frame 6: .*{message}"):
        list(predict_frames(Ensemble(small_potential().float()), frames, "cc", batch_size=batch_size, source="in.traj"))


def test_a_prediction_that_is_no_number_is_refused(small_potential: Make, mixed_frames: Frames) -> None:
    potential = small_potential()
    with torch.no_grad():
        potential.heads[1].reference[0] = float("inf")
    with pytest.raises(MFPyGError, match=r"^frame \d: the prediction is not a finite number"):
        list(predict_frames(Ensemble(potential), mixed_frames, "cc"))


def test_wrong_names_and_numbers_are_refused_at_once(small_potential: Make) -> None:
    ensemble = Ensemble(small_potential())
    with pytest.raises(MFPyGError, match="did you mean 'cc'"):
        predict_frames(ensemble, [], ["dz", "ccc"])
    with pytest.raises(MFPyGError, match="no fidelity given"):
        predict_frames(ensemble, [])
    with pytest.raises(MFPyGError, match="batch size is 0"):
        predict_frames(ensemble, [], "cc", batch_size=0)
    with pytest.raises(MFPyGError, match="malformed properties 'EX'"):
        predict_frames(ensemble, [], "cc", properties="EX")
    some = Ensemble([small_potential(charges=["dz", "cc"]), small_potential(charges=["dz"])])
    assert (some.letters("dz"), some.letters("cc")) == ("EFSHDQ", "EFSH")
    with pytest.raises(MFPyGError, match="'cc' has no head for dipoles; fidelities with one: dz"):
        predict_frames(some, [], ["dz", "cc"], properties="ED")
    with pytest.raises(MFPyGError, match="unknown energy unit 'ev/mol'"):
        predict_frames(ensemble, [], "cc", unit="ev/mol")


# From files


@pytest.mark.parametrize("name", ["in.xyz", "in.extxyz", "in.traj", "in.db", "in.json", "in.xyz.gz"])
def test_files_of_many_kinds_give_the_same(
    small_potential: Make, mixed_frames: Frames, tmp_path: Path, name: str
) -> None:
    source = written(tmp_path / name, mixed_frames)
    found = list(predict_frames(Ensemble(small_potential()), frames_of(source), "cc"))
    for one, atoms in zip(found, mixed_frames, strict=True):
        assert one.of["cc"].forces == pytest.approx(alone(small_potential(), atoms, "cc").forces, abs=1e-6)
        assert (one.frame.pbc == atoms.pbc).all()


@pytest.mark.parametrize("name", ["in.xyz", "in.xyz.gz", "in.traj", "in.db"])
def test_total_charges_of_files_of_many_kinds(ions: tuple[Frames, list[float]], tmp_path: Path, name: str) -> None:
    if name.endswith("db"):  # ase.io.write leaves info out
        for atoms in ions[0]:
            ase.db.connect(tmp_path / name).write(atoms, data=atoms.info)
    else:
        written(tmp_path / name, ions[0])
    assert [total_charge(frame, "in") for frame in frames_of(tmp_path / name)] == ions[1]


@pytest.mark.parametrize(("name", "format"), [("POSCAR", None), ("in.cif", None), ("without", "vasp")])
def test_single_configurations_are_files_of_one_frame(
    mixed_frames: Frames, tmp_path: Path, name: str, format: str | None
) -> None:
    crystal = mixed_frames[1]
    source = written(tmp_path / name, [crystal], format=format or ("cif" if "cif" in name else "vasp"))
    (frame,) = frames_of(source, format)
    assert frame.z.tolist() == crystal.numbers.tolist()
    assert abs(np.linalg.det(frame.cell)) == pytest.approx(crystal.get_volume())


@pytest.mark.parametrize(
    ("name", "format", "where"),
    [("in.xyz", None, "in.xyz: frame 2: "), ("in.xyz.gz", None, "in.xyz.gz: frame 2: "), ("in.xyz", "xyz", "in.xyz ")],
)
def test_species_that_are_no_elements_are_named(tmp_path: Path, name: str, format: str | None, where: str) -> None:
    path = tmp_path / name
    text = "1\n\nC 0 0 0\n" * 2 + "2\n\nC 0 0 0\nO1 0 0 1\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    with pytest.raises(MFPyGError, match=f"{where}.* 'O1', not an element symbol; write the element alone"):
        list(frames_of(path, format))


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.xyz").touch()
    (tmp_path / "notes").write_text("notes\n" * 3)
    (tmp_path / "cut.traj").write_bytes(written(tmp_path / "whole.traj", [ase.Atoms("CO")] * 5).read_bytes()[:150])
    (tmp_path / "cut.xyz").write_text("2\n\nC 0 0 0\nO 0 0 1\n2\n\nC 0 0 0\n")
    for name, message in [
        ("none.xyz", "no such file"),
        (".", "is a folder"),
        ("empty.xyz", "empty"),
        ("notes", "ASE does not know its format; name it with --format"),
        ("cut.traj", "frame 0 cannot be read as 'traj'"),
        ("cut.xyz", "frame 1: truncated, 2 atoms expected and 1 found"),
    ]:
        with pytest.raises(MFPyGError, match=message):
            list(frames_of(tmp_path / name))
    with pytest.raises(MFPyGError, match="cannot read format 'extxy'; did you mean 'extxyz'"):
        frames_of(tmp_path / "notes", "extxy")
