"""Training data in any file that ASE reads, and in compressed extended XYZ: labels, units, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mfpyg.datasets.extxyz import ASEFile, ExtXYZ
from mfpyg.datasets.spec import DatasetSpec, open_dataset
from mfpyg.errors import MFPyGError

EV = 23.060547830619
DFT = "dft=energy,forces@eV"
PACKERS: dict[str, Any] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def frames(n: int = 6) -> list[ase.Atoms]:
    """Molecules with results of a calculator, half of them with an atom whose force ASE would say is zero."""
    random = np.random.default_rng(2)
    images = []
    for i in range(n):
        atoms = ase.Atoms(["CO", "OHH"][i % 2], random.normal(size=(2 + i % 2, 3)))
        forces = random.normal(size=(len(atoms), 3))
        if i % 2:
            atoms.set_constraint(FixAtoms([0]))
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - i, forces=forces, free_energy=-20.0 - i)
        images.append(atoms)
    return images


def written(path: Path, images: list[ase.Atoms]) -> Path:
    ase.io.write(path, images)
    return path


def refusal(file: Path, *levels: str) -> str:
    with pytest.raises(MFPyGError) as error:
        open_dataset(DatasetSpec.parse(":".join([str(file), *(levels or (DFT,))])))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["md.traj", "md.json", "md.xyz", "md.db", "md.xyz.gz", "md.extxyz.gz", "md.xyz.bz2", "MD.XYZ.xz"]
)
def test_files_of_all_kinds_give_energies_and_forces_of_the_calculator(name: str, tmp_path: Path) -> None:
    images = frames()
    if name == "MD.XYZ.xz":
        plain = written(tmp_path / "plain.xyz", images)
        (tmp_path / name).write_bytes(lzma.compress(plain.read_bytes()))
    else:
        written(tmp_path / name, images)
    dataset = open_dataset(DatasetSpec.parse(f"{tmp_path / name}:{DFT}"))
    assert type(dataset) is (ASEFile if name.endswith(("traj", "json")) else ExtXYZ)
    for number, (item, atoms) in enumerate(zip(dataset, images, strict=True)):
        assert item.z.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(item.pos, atoms.positions, atol=1e-6)
        np.testing.assert_allclose(item.energy, [[(-10 - number) * EV]], rtol=1e-12)
        np.testing.assert_allclose(item.forces[:, 0], atoms.calc.results["forces"] * EV, rtol=1e-5, atol=1e-5)
        assert item.conformation.item() == number


def test_any_key_of_frames_can_be_a_label(tmp_path: Path) -> None:
    images = frames()
    for i, atoms in enumerate(images):
        atoms.info.update(cc=0.5 * i, molecule="carbonyl" if i % 2 == 0 else "", split=i % 3)
    del images[3].info["cc"]
    file = written(tmp_path / "md.traj", images)
    dataset = ASEFile(file, ["free=free_energy@eV", "cc=cc?@kcal/mol"])
    assert dataset._data.energy_mask.tolist() == [[True, i != 3] for i in range(6)]
    assert dataset._data.energy[2].tolist() == pytest.approx([-22 * EV, 1.0])
    assert dataset.molecules == ["carbonyl", "H2O1"]
    assert dataset.given_split().tolist() == [0, 1, 2, 0, 1, 2]


def test_cells_are_kept(tmp_path: Path) -> None:
    images = frames(2)
    images[1].set_cell([9.0, 8.0, 7.0])
    images[1].pbc = (True, True, False)
    images[1].calc = SinglePointCalculator(images[1], **images[1].calc.results)
    dataset = ASEFile(written(tmp_path / "md.traj", images), [DFT])
    assert dataset[1].cell.tolist() == [np.diag([9.0, 8.0, 7.0]).tolist()]
    assert dataset._data.pbc.tolist() == [[False] * 3, [True, True, False]]


def test_small_chunks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "md.traj", frames(9))
    whole = ASEFile(file, [DFT])
    monkeypatch.setattr("mfpyg.datasets.extxyz.ATOMS_IN_CHUNK", 5)
    assert len(list(whole.chunks(whole.levels))) > 3
    assert ASEFile(file, [DFT], root=tmp_path / "other").fingerprint == whole.fingerprint


def test_output_of_a_program_by_its_name(tmp_path: Path) -> None:
    """A file of quantum chemistry without a suffix, which ASE tells by its contents."""
    file = written(tmp_path / "md.traj", frames()).rename(tmp_path / "trajectory")
    assert len(open_dataset(DatasetSpec.parse(f"ase:{file}:{DFT}"))) == 6
    assert len(open_dataset(DatasetSpec.parse(f"{file}:{DFT}"))) == 6


# What is refused


def test_frame_without_results_is_named(tmp_path: Path) -> None:
    images = frames()
    images[4].calc = None
    message = refusal(written(tmp_path / "md.traj", images))
    assert f"{tmp_path / 'md.traj'}: frame 4 lacks the key 'energy' of 'dft' (keys found: none)" in message


def test_mistyped_key_is_asked_about(tmp_path: Path) -> None:
    file = written(tmp_path / "md.traj", frames())
    assert refusal(file, "dft=energie@eV").endswith("did you mean 'energy'?")


def test_file_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("notes\n" * 9)
    (tmp_path / "empty.traj").touch()
    message = refusal(tmp_path / "notes")
    assert "notes: ASE does not know its format; if it is extended XYZ, write xyz:FILE" in message
    assert "empty.traj: empty" in refusal(tmp_path / "empty.traj")
    with pytest.raises(MFPyGError, match=r"none\.traj: no such file; expected a file of atoms that ASE reads"):
        ASEFile(tmp_path / "none.traj", [DFT])


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_trajectory_is_refused(share: float, tmp_path: Path) -> None:
    file = written(tmp_path / "md.traj", frames(40))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert f"{file}: frame " in refusal(file)


@pytest.mark.parametrize("suffix", PACKERS)
def test_truncated_compressed_file_is_refused_where_it_ends(suffix: str, tmp_path: Path) -> None:
    text = written(tmp_path / "plain.xyz", frames(600)).read_bytes()
    file = tmp_path / f"md.xyz{suffix}"
    file.write_bytes(PACKERS[suffix](text)[:-1000])
    message = refusal(file)
    assert f"{file}: frame " in message
    assert int(message.partition("frame ")[2].split()[0]) > (0 if suffix == ".gz" else -1)


def test_frames_within_a_compressed_file_are_checked_as_those_of_others(tmp_path: Path) -> None:
    """ASE itself would end at the blank line without a word."""
    text = written(tmp_path / "plain.xyz", frames(2)).read_text()
    file = tmp_path / "md.xyz.gz"
    file.write_bytes(gzip.compress(f"{text}\n{text}".encode()))
    assert "frame 2: expected the number of atoms, found a blank line" in refusal(file)
