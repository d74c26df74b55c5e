"""Files of predictions: extended XYZ, JSON and CSV, written in one step."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mfpyg.datasets.frames import frames_of
from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.files import as_extxyz, output_of, predict_file
from mfpyg.inference.frames import FramePrediction, predict_frames
from mfpyg.units import EV_TO_KCAL_MOL

from .conftest import TOLERANCE, Frames, Make, all_alone, alone, written


def labelled(frames: Frames) -> Frames:
    """With results of another method, and whatever else frames may carry."""
    random = np.random.default_rng(1)
    for number, atoms in enumerate(frames):
        n = len(atoms)
        atoms.info = {"name": f"frame {number}", "weight": 0.5 * number, "list": [1, 2], "cc_energy": 1.0, "flag": True}
        atoms.new_array("mass", random.random(n))
        atoms.new_array("site", np.arange(n))
        atoms.new_array("fixed", random.random((n, 3)) > 0.5)
        atoms.new_array("label", np.array(["a", "bcd", "e"] * 3)[:n])
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=random.random((n, 3)), free_energy=-2.0)
    return frames


def test_one_fidelity_is_read_as_results_by_ase(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    source, target = written(tmp_path / "in.xyz", labelled(mixed_frames)), tmp_path / "out.xyz"
    assert predict_file(Ensemble(small_potential()), source, target, "cc", properties="EFS") == len(mixed_frames)
    for found, atoms in zip(ase.io.read(target, ":"), ase.io.read(source, ":"), strict=True):
        periodic = bool(atoms.pbc.all())
        expected = alone(small_potential(), atoms, "cc", periodic)
        assert found.get_potential_energy() == pytest.approx(expected.energy, **TOLERANCE)
        assert found.get_forces() == pytest.approx(expected.forces, abs=5.1e-9)
        assert ("stress" in found.calc.results) == periodic
        if periodic:
            assert found.get_stress(voigt=False) == pytest.approx(expected.stress, abs=1e-12)
        assert "free_energy" not in found.calc.results
        assert (found.positions == atoms.positions).all()
        assert (found.cell == atoms.cell).all()
        assert found.info.pop("list").tolist() == atoms.info.pop("list").tolist()
        assert found.info == atoms.info
        for name in ("mass", "site", "fixed", "label"):
            assert (found.arrays[name] == atoms.arrays[name]).all()


def test_all_properties_are_read_by_ase(
    small_potential: Make, ions: tuple[Frames, list[float]], tmp_path: Path
) -> None:
    potential, (frames, charges) = small_potential(charges=["cc"]), ions
    source, target = written(tmp_path / "in.xyz", frames), tmp_path / "out.xyz"
    predict_file(Ensemble(potential), source, target, "cc", properties="EFSHDQ")
    for found, atoms, charge in zip(ase.io.read(target, ":"), ase.io.read(source, ":"), charges, strict=True):
        expected = all_alone(potential, atoms, "cc", charge)
        assert found.get_charges() == pytest.approx(expected.charges, abs=5.1e-9)  # 8 decimals, as ASE's
        assert found.get_charges().sum() == pytest.approx(charge, abs=5.1e-9 * len(atoms))
        assert ("dipole" in found.calc.results) == (not atoms.pbc.any())
        if not atoms.pbc.any():
            assert found.get_dipole_moment() == pytest.approx(expected.dipole, abs=1e-11)
        assert ("stress" in found.calc.results) == atoms.pbc.all()
        assert found.info.pop("hessian") == pytest.approx(expected.hessian, abs=1e-10)
        assert found.info == atoms.info
        assert (found.get_initial_charges() == atoms.get_initial_charges()).all()


def test_charges_of_another_method_are_replaced_by_those_predicted(small_potential: Make, tmp_path: Path) -> None:
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])
    atoms.calc = SinglePointCalculator(atoms, dipole=np.ones(3), charges=np.array([1.0, -1.0]))
    source, target = written(tmp_path / "in.xyz", [atoms]), tmp_path / "out.xyz"
    ensemble = Ensemble(small_potential(charges=["cc"]))
    predict_file(ensemble, source, target, "cc")
    kept = ase.io.read(target)
    assert kept.get_dipole_moment().tolist() == [1, 1, 1]
    assert kept.get_charges().tolist() == [1, -1]
    with pytest.warns(MFPyGWarning, match="'charges' .replaced by the prediction, frame 0., 'dipole' .replaced"):
        predict_file(ensemble, source, target, "cc", properties="EQ")
    replaced = ase.io.read(target)
    assert abs(replaced.get_charges() - [1, -1]).min() > 0.1
    assert set(replaced.calc.results) == {"energy", "charges"}


def test_several_fidelities_have_names(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    source, target = written(tmp_path / "in.xyz", labelled(mixed_frames)), tmp_path / "out.xyz"
    ensemble = Ensemble([small_potential(seed, charges=["dz", "cc"]) for seed in (0, 1)])
    predict_file(ensemble, source, target, ensemble.fidelities, properties="EFHDQ")
    for found, one in zip(
        ase.io.read(target, ":"),
        predict_frames(ensemble, frames_of(source), ensemble.fidelities, properties="EFHDQ"),
        strict=True,
    ):
        for name, values in one.of.items():
            assert found.info[f"{name}_energy"] == values.energy
            assert found.info[f"{name}_energy_std"] == values.energy_std
            assert found.arrays[f"{name}_forces"] == pytest.approx(values.forces, abs=5.1e-9)
            assert found.arrays[f"{name}_forces_std"] == pytest.approx(values.forces_std, abs=5.1e-9)
            for suffix in ("", "_std"):
                charges = found.arrays[f"{name}_charges{suffix}"]
                assert charges == pytest.approx(getattr(values, f"charges{suffix}"), abs=5.1e-9)
                assert (found.info[f"{name}_hessian{suffix}"] == getattr(values, f"hessian{suffix}")).all()
                dipole = found.info.get(f"{name}_dipole{suffix}")
                assert np.array_equal(dipole, getattr(values, f"dipole{suffix}"))
        assert found.get_potential_energy() == -1.0  # what the frame came with


def test_other_units_are_not_under_the_names_of_ase(
    small_potential: Make, mixed_frames: Frames, tmp_path: Path
) -> None:
    source, target = written(tmp_path / "in.xyz", mixed_frames), tmp_path / "out.xyz"
    predict_file(Ensemble(small_potential()), source, target, "cc", unit="KCAL/mol")
    for found, atoms in zip(ase.io.read(target, ":"), ase.io.read(source, ":"), strict=True):
        assert found.calc is None
        assert found.info["energy_unit"] == "kcal/mol"
        energy = alone(small_potential(), atoms, "cc").energy
        assert found.info["cc_energy"] == pytest.approx(energy * EV_TO_KCAL_MOL, **TOLERANCE)


def test_extended_xyz_is_that_of_ase_to_the_last_digit(
    small_potential: Make, mixed_frames: Frames, tmp_path: Path
) -> None:
    for atoms in labelled(mixed_frames):
        atoms.info["note"] = 'a "quoted" = {word}'
        atoms.positions = atoms.positions.round(8)  # more digits are written as they are
        atoms.arrays["mass"] = atoms.arrays["mass"].round(8)
    expected = []
    ensemble = Ensemble(small_potential(charges=["cc"]))
    found = list(predict_frames(ensemble, mixed_frames, "cc", properties="EFSDQ"))
    for one, atoms in zip(found, mixed_frames, strict=True):
        results = vars(one.of["cc"])
        atoms.calc = SinglePointCalculator(atoms, **{key: v for key, v in results.items() if v is not None})
        expected.append(atoms)
    text = "".join(as_extxyz(found, output_of(["cc"], "eV", properties="EFSDQ")))
    assert text == written(tmp_path / "by_ase.xyz", expected, format="extxyz").read_text()


def test_what_the_format_can_not_hold_is_left_out(small_potential: Make, tmp_path: Path) -> None:
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], info={"text": "two\nlines", "good": 1})
    atoms.new_array("tensor", np.zeros((2, 3, 3)))
    atoms.new_array("words", np.array(["two words", ""]))
    atoms.info["complex"] = 1j
    atoms.set_constraint(FixAtoms([0]))
    found = predict_frames(Ensemble(small_potential()), [atoms], "cc")
    output = output_of(["cc"], "eV")
    (tmp_path / "out.xyz").write_text("".join(as_extxyz(found, output)))
    (read,) = ase.io.read(tmp_path / "out.xyz", ":")
    assert read.info == {"text": "two\nlines", "good": 1}
    assert {*output.lost} == {"tensor", "words", "complex", "constraints"}
    assert output.lost["tensor"] == "per-atom array of float64 and shape (2, 3, 3) that the format cannot hold, frame 0"
    assert set(read.arrays) == {"numbers", "positions"}


def numbers(one: FramePrediction, name: str) -> dict[str, object]:
    found = vars(one.of[name])
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in found.items()}


@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
def test_json_has_every_number_and_its_unit(
    small_potential: Make, mixed_frames: Frames, tmp_path: Path, name: str
) -> None:
    source, target = written(tmp_path / "in.xyz", mixed_frames), tmp_path / name
    ensemble = Ensemble([small_potential(seed, charges=["dz", "cc"]) for seed in (0, 1)])
    predict_file(ensemble, source, target, ["dz", "cc"], properties="EFSHDQ", unit="Hartree")
    if name.endswith("l"):
        frames = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert all(frame["energy_unit"] == "Hartree" for frame in frames)
    else:
        whole = json.loads(target.read_text(encoding="utf-8"))
        assert whole["fidelities"] == ["dz", "cc"]
        assert whole["units"]["energy"] == whole["units"]["energy_std"] == "Hartree"
        assert (whole["units"]["forces"], whole["units"]["stress"]) == ("Hartree/Å", "Hartree/Å³")
        assert (whole["units"]["hessian"], whole["units"]["dipole"]) == ("Hartree/Å²", "e·Å")
        assert whole["units"]["charges"] == whole["units"]["charges_std"] == "e"
        frames = whole["frames"]
    expected = predict_frames(ensemble, frames_of(source), ["dz", "cc"], properties="EFSHDQ", unit="Hartree")
    for number, (frame, one) in enumerate(zip(frames, expected, strict=True)):
        assert frame["frame"] == number
        assert frame["formula"] == mixed_frames[number].get_chemical_formula()
        for fidelity in ("dz", "cc"):
            assert frame[fidelity] == numbers(one, fidelity)


def test_standard_deviations_of_a_single_potential(
    small_potential: Make, add_std: Make, mixed_frames: Frames, tmp_path: Path
) -> None:
    """Only of energies and forces, empty for a fidelity without; no column of them if no fidelity has any."""
    source, ensemble = written(tmp_path / "in.xyz", mixed_frames), Ensemble(add_std(small_potential(), "cc"))
    expected = [one.of["cc"] for one in predict_frames(ensemble, frames_of(source), "cc")]
    predict_file(ensemble, source, tmp_path / "out.xyz", "cc", properties="EFS")
    for found, values in zip(ase.io.read(tmp_path / "out.xyz", ":"), expected, strict=True):
        assert found.get_potential_energy() == pytest.approx(values.energy, abs=1e-8)
        assert found.info["energy_std"] == pytest.approx(values.energy_std, rel=1e-12)
        assert found.arrays["forces_std"] == pytest.approx(values.forces_std, abs=5.1e-9)
        assert "stress_std" not in found.info
    predict_file(ensemble, source, tmp_path / "out.json", ["dz", "cc"], properties="FS")
    whole = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(whole["units"]) == {"energy", "energy_std", "forces", "forces_std", "stress"}
    found = [frame["cc"]["energy_std"] for frame in whole["frames"]]
    assert found == pytest.approx([values.energy_std for values in expected], rel=1e-12)
    assert {frame["dz"]["forces_std"] for frame in whole["frames"]} == {None}
    for fidelities, heads in (
        (["dz", "cc"], ["dz_energy [eV]", "dz_energy_std [eV]", "cc_energy [eV]", "cc_energy_std [eV]"]),
        (["dz"], ["dz_energy [eV]"]),
    ):
        predict_file(ensemble, source, tmp_path / "out.csv", fidelities, properties="E")
        with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0])[3:] == heads
        assert {row.get("dz_energy_std [eV]", "") for row in rows} == {""}


@pytest.mark.parametrize("properties", ["ES", "EFSDQ"])
def test_csv_is_a_row_a_frame(small_potential: Make, mixed_frames: Frames, tmp_path: Path, properties: str) -> None:
    source, target = written(tmp_path / "in.xyz", mixed_frames), tmp_path / "out.csv"
    ensemble = Ensemble([small_potential(seed, charges=["cc"]) for seed in (0, 1)])
    predict_file(ensemble, source, target, "cc", properties=properties)
    with target.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert ("cc_forces [eV/Å]" in rows[0]) == ("F" in properties)
    for row, one in zip(rows, predict_frames(ensemble, frames_of(source), "cc", properties=properties), strict=True):
        values = one.of["cc"]
        assert int(row["frame"]) == one.frame.number
        assert int(row["n_atoms"]) == len(one.frame.z)
        assert float(row["cc_energy [eV]"]) == pytest.approx(values.energy, **TOLERANCE)
        assert float(row["cc_energy_std [eV]"]) == pytest.approx(values.energy_std, **TOLERANCE)
        if "F" in properties:
            found = np.array(row["cc_forces [eV/Å]"].split(), float).reshape(-1, 3)
            assert found == pytest.approx(values.forces, **TOLERANCE)
            charges = np.array(row["cc_charges [e]"].split(), float)
            assert charges == pytest.approx(values.charges, **TOLERANCE)
            dipole = np.array(row["cc_dipole_std [e·Å]"].split(), float)
            assert dipole == pytest.approx([] if values.dipole is None else values.dipole_std, **TOLERANCE)
        stress = np.array(row["cc_stress [eV/Å³]"].split(), float)
        assert stress == pytest.approx(
            [] if values.stress is None else values.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        )


# All or nothing


def test_an_error_leaves_what_was_there(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    source, target = written(tmp_path / "in.xyz", [*mixed_frames * 50, ase.Atoms("Cl")]), tmp_path / "out.xyz"
    target.write_text("old")
    with pytest.raises(MFPyGError, match=r"in\.xyz: frame 300: element Cl"):
        predict_file(Ensemble(small_potential()), source, target, "cc")
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.xyz", "out.xyz"]


def test_an_interrupt_leaves_nothing(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    source = written(tmp_path / "in.xyz", mixed_frames)

    def interrupted(found):  # type: ignore[no-untyped-def]
        yield next(found)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(Ensemble(small_potential()), source, tmp_path / "out.csv", "cc", track=interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["in.xyz"]


def test_a_second_run_replaces_the_first(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    source, target = written(tmp_path / "in.xyz", mixed_frames), tmp_path / "out.xyz"
    texts = []
    for name in ("dz", "cc", "dz"):
        predict_file(Ensemble(small_potential()), source, target, name)
        texts.append(target.read_text())
    assert texts[0] == texts[2] != texts[1]


def test_the_input_is_never_the_output(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    source = written(tmp_path / "in.xyz", mixed_frames)
    (tmp_path / "link.xyz").symlink_to(source)
    for target in (source, tmp_path / "link.xyz"):
        with pytest.raises(MFPyGError, match="is the input; choose another name"):
            predict_file(Ensemble(small_potential()), source, target, "cc")
    with pytest.raises(MFPyGError, match="unknown suffix"):
        predict_file(Ensemble(small_potential()), source, tmp_path / "out.txt", "cc")
    with pytest.raises(MFPyGError, match="did you mean 'jsonl'"):
        predict_file(Ensemble(small_potential()), source, tmp_path / "out.txt", "cc", output_format="json_l")


def test_hessians_are_not_written_to_csv(small_potential: Make, mixed_frames: Frames, tmp_path: Path) -> None:
    source = written(tmp_path / "in.xyz", mixed_frames)
    with pytest.raises(MFPyGError, match=r"^Hessians do not fit in CSV; leave them out, or write .xyz, .json or"):
        predict_file(Ensemble(small_potential()), source, tmp_path / "out.csv", "cc", properties="EH")
