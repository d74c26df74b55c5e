"""Labels besides energies and forces: units, signs, masks, batches, unions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from torch_geometric.loader import DataLoader

from mfpyg.datasets import ANI1x, ExtXYZ, MiniCHNO, PaddedNPZ, Pyanitools, UnionDataset
from mfpyg.datasets.batches import BatchLoader
from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.datasets.labels import Labels, joined
from mfpyg.datasets.levels import BUNDLED
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity, check_available
from mfpyg.properties import DIPOLE, HESSIAN
from mfpyg.units import HARTREE_TO_KCAL_MOL, derivative_factor, dipole_factor

EV = 23.060547830619


@pytest.fixture(scope="module")
def minichno() -> MiniCHNO:
    return MiniCHNO(properties="HD")


def test_bundled_labels_are_those_of_the_file(minichno: MiniCHNO) -> None:
    assert minichno.letters == "EFHD"
    column, row = minichno.fidelities.index("dz"), 0
    with h5py.File(BUNDLED) as file:
        for name in file:
            group = file[name]
            for dipole, hessian in zip(group["wb97x_dz.dipole"][:], group["wb97x_dz.hessian"][:], strict=True):
                data = minichno[row]
                row += 1
                assert data.dipole_mask[0, column]
                assert torch.equal(data.dipole[0, column], torch.from_numpy(dipole))
                assert bool(data.hessian_mask[0, column]) == (not np.isnan(hessian).any())
                assert not data.hessian_mask[0, 1:].any()
                if data.hessian_mask[0, column]:
                    n = len(data.z)
                    found = data.hessian.reshape(n, n, 3, 3).permute(0, 2, 1, 3)
                    expected = torch.from_numpy(hessian) * HARTREE_TO_KCAL_MOL
                    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
                else:
                    assert len(data.hessian) == 0
    assert row == len(minichno)
    counts = {level["name"]: (level["Hessians"], level["dipoles"]) for level in minichno.label_counts()}
    assert counts["dz"] == (111, 788)
    assert counts["cc"] == (0, 0)


def test_energies_and_forces_keep_their_fingerprint(minichno: MiniCHNO) -> None:
    """That of a file without other labels, so that runs which were trained on it can go on."""
    assert MiniCHNO().letters == "EF"
    assert MiniCHNO().fingerprint == "57151cf1820d46fb4b108be78131145c900c49719bdb4c1a15d0ffd58cb0d4a4"
    assert minichno.fingerprint != MiniCHNO().fingerprint
    assert minichno.geometries == MiniCHNO().geometries


@pytest.mark.parametrize("whole_only", [False, True])
def test_group_of_a_release_without_the_key_has_no_such_labels(
    minichno: MiniCHNO, tmp_path: Path, whole_only: bool
) -> None:
    path = Path(shutil.copy(BUNDLED, tmp_path / "some.h5"))
    with h5py.File(path, "r+") as file:
        first, second, *_ = file
        n_first, n_second = len(file[first]["coordinates"]), len(file[second]["coordinates"])
        del file[first]["wb97x_dz.hessian"], file[second]["wb97x_dz.dipole"]
    dataset = MiniCHNO(tmp_path, file=path, properties="HD", whole_only=whole_only)
    assert dataset.letters == "EFHD"
    masks = {"hessian": slice(0, n_first), "dipole": slice(n_first, n_first + n_second)}
    for name, without in masks.items():
        expected = minichno._data[f"{name}_mask"].clone()
        assert expected[without].any()
        expected[without] = False
        assert torch.equal(dataset._data[f"{name}_mask"], expected)
    assert torch.equal(dataset._data.hessian, minichno._data.hessian[minichno.slices["hessian"][n_first] :])
    torch.testing.assert_close(dataset._data.energy, minichno._data.energy, rtol=0, atol=0, equal_nan=True)
    check_available([Fidelity("dz", "EFHD")], dataset.present_levels, dataset.what)


def test_property_that_no_group_of_a_release_has_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copy(BUNDLED, tmp_path / "none.h5"))
    with h5py.File(path, "r+") as file:
        for group in file.values():
            group.move("wb97x_dz.hessian", "wb97x_dz.hesian")
    dataset = MiniCHNO(tmp_path, file=path, properties="HD")
    with pytest.raises(MFPyGError, match="has no Hessians of 'dz'"):
        check_available([Fidelity("dz", "EH")], dataset.present_levels, dataset.what)


def test_batches_are_those_of_pyg(minichno: MiniCHNO) -> None:
    rows = torch.arange(0, len(minichno), 17)
    ours = next(iter(BatchLoader(minichno[rows], len(rows))))
    theirs = next(iter(DataLoader(minichno[rows], len(rows))))
    for key in theirs.to_dict():
        one, two = ours[key], theirs[key]
        assert torch.equal(torch.nan_to_num(one), torch.nan_to_num(two)), key
    assert ours.hessian_mask.sum() > 0
    sizes = ours.ptr.diff()[ours.hessian_mask[:, 0]].square()
    assert len(ours.hessian) == sizes.sum()


def test_thinned_hessians_are_taken_out(minichno: MiniCHNO) -> None:
    rows = {"train": np.arange(600), "val": np.arange(600, 671)}
    thinned = thin_labels(minichno, rows, {"dz": 0.3}, seed=0)
    before, after = minichno._data.hessian_mask[:, 0], thinned._data.hessian_mask[:, 0]
    assert 0 < after[:600].sum() < before[:600].sum()
    for row in torch.nonzero(after).flatten().tolist():
        assert torch.equal(thinned[row].hessian, minichno[row].hessian)
    for row in torch.nonzero(before & ~after).flatten().tolist():
        assert len(thinned[row].hessian) == 0


def test_union_keeps_and_masks(minichno: MiniCHNO, tmp_path: Path) -> None:
    atoms = ase.Atoms("OH2", [[0, 0, 0], [0, 0, 1.0], [0.9, 0, 0]])
    atoms.info = {"dft": -76.0, "mu": [0.1, 0.2, 0.3]}
    ase.io.write(tmp_path / "water.xyz", atoms, format="extxyz")
    water = ExtXYZ(tmp_path / "water.xyz", ["new=dft,D=mu@eV,D=Debye"], root=tmp_path / "water")
    union = UnionDataset(tmp_path / "union", [minichno, water])
    assert union.letters == "EFHD"
    last, new = union[len(minichno)], union.fidelities.index("new")
    assert last.dipole_mask.tolist() == [[name == "new" for name in union.fidelities]]
    expected = torch.tensor([0.1, 0.2, 0.3]) * dipole_factor("Debye")
    torch.testing.assert_close(last.dipole[0, new], expected.float(), rtol=1e-6, atol=0)
    assert len(last.hessian) == 0
    for row in range(0, len(minichno), 50):
        assert torch.equal(union[row].hessian, minichno[row].hessian)
        assert torch.equal(union[row].dipole[:, :new].nan_to_num(), minichno[row].dipole.nan_to_num())


def crystals() -> list[ase.Atoms]:
    random, found = np.random.default_rng(0), []
    for n in (2, 3):
        atoms = ase.Atoms(["C", "O", "O"][:n], 2 * random.normal(size=(n, 3)), cell=[5.0, 6, 7], pbc=True)
        voigt = random.normal(size=6)
        results = {"energy": -1.0, "forces": random.normal(size=(n, 3)), "stress": voigt}
        atoms.calc = SinglePointCalculator(atoms, **results)
        full = voigt[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        atoms.info["virial"] = -full * atoms.get_volume()
        found.append(atoms)
    return found


@pytest.mark.parametrize("name", ["crystals.xyz", "crystals.db", "crystals.traj"])
def test_stresses_of_ase(tmp_path: Path, name: str) -> None:
    from mfpyg.datasets import ASEFile

    images = crystals()
    if name.endswith("db"):
        with ase.db.connect(tmp_path / name) as database:
            for atoms in images:
                database.write(atoms)
    else:
        ase.io.write(tmp_path / name, images)
    kind: Any = ASEFile if name.endswith("traj") else ExtXYZ
    dataset = kind(tmp_path / name, ["dft=energy,forces,S=stress@eV"], root=tmp_path)
    for data, atoms in zip(dataset, images, strict=True):
        expected = torch.from_numpy(atoms.get_stress(voigt=False) * EV)
        torch.testing.assert_close(data.stress[0, 0].double(), expected, rtol=1e-6, atol=1e-6)


def test_virials_become_stresses(tmp_path: Path) -> None:
    images = crystals()
    ase.io.write(tmp_path / "crystals.xyz", images, format="extxyz")
    ways = ["a=energy,V=virial@eV", "b=energy,S=stress@eV,S=eV/Å^3"]
    one, two = (ExtXYZ(tmp_path / "crystals.xyz", [way], root=tmp_path)._data.stress for way in ways)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("label", "message"), [("S=s", "frame 0: a stress, but not periodic"),
                                                ("V=s", "frame 0: a stress, but not periodic"),
                                                ("D=d", "frame 1: a dipole, but periodic")])  # fmt: skip
def test_labels_of_other_systems_are_refused(tmp_path: Path, label: str, message: str) -> None:
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.info = {"e": -1.0, "s": np.eye(3), "d": np.zeros(3)}
    crystal = atoms.copy()
    crystal.cell, crystal.pbc = [4.0, 4, 4], True
    ase.io.write(tmp_path / "both.xyz", [atoms, crystal], format="extxyz")
    with pytest.raises(MFPyGError, match=message):
        ExtXYZ(tmp_path / "both.xyz", [f"dft=e,{label}@eV"], root=tmp_path)


def test_hessians_of_frames_and_arrays_are_the_same(tmp_path: Path) -> None:
    random, n = np.random.default_rng(1), 3
    z, pos = np.array([8, 1, 1]), random.normal(size=(4, n, 3)).astype(np.float32)
    energy, hessian = random.normal(size=4), random.normal(size=(4, n, 3, n, 3))
    charges = random.normal(size=(4, n))
    hessian[2] = np.nan
    np.savez(tmp_path / "a.npz", R=pos, z=np.tile(z, (4, 1)), E=energy, H=hessian, Q=charges)
    level = "dz=E,H=H,Q=Q@Hartree,H=Hartree/bohr^2"
    arrays = PaddedNPZ(tmp_path / "a.npz", [level], root=tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("water")
        group["species"], group["coordinates"] = np.array([b"O", b"H", b"H"]), pos
        group["E"], group["H"], group["Q"] = energy, hessian, charges
    groups = Pyanitools(tmp_path / "a.h5", [level], root=tmp_path)
    images = []
    for i in range(4):
        atoms = ase.Atoms(z, pos[i].astype(float))
        atoms.info = {"E": energy[i], "H": hessian[i].reshape(-1)}
        atoms.arrays["Q"] = charges[i]
        images.append(atoms)
    with ase.db.connect(tmp_path / "a.db") as database:
        for atoms in images:
            database.write(atoms, data={**atoms.info, "Q": atoms.arrays["Q"]})
    frames = ExtXYZ(tmp_path / "a.db", [level], root=tmp_path)
    for dataset in (arrays, groups, frames):
        assert dataset._data.hessian_mask.flatten().tolist() == [True, True, False, True]
        found = dataset[3].hessian.reshape(n, n, 3, 3).permute(0, 2, 1, 3).double().numpy()
        np.testing.assert_allclose(found, hessian[3] * derivative_factor("Hartree/bohr^2", 2), rtol=1e-6)
        np.testing.assert_allclose(dataset[1].charges[:, 0], charges[1], rtol=1e-6)


def test_ani1x_has_its_own_dipoles_and_charges(data_folder: Path, tmp_path: Path) -> None:
    file = data_folder / "ani1x_excerpt.h5"
    if not file.is_file():
        pytest.skip(f"no {file}")
    dataset = ANI1x(tmp_path, ["dz", "tz"], file=file, properties="DQ")
    data = dataset._data
    both = (data.dipole_mask[:, 0] & data.charges_mask[:, 0]).numpy()
    assert both.sum() > 80
    moments = torch.zeros(len(dataset), 3, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(dataset)), dataset.slices["z"].diff())
    moments.index_add_(0, owner, data.charges[:, :1].double() * data.pos)
    slope = np.polyfit(moments.numpy()[both].ravel(), data.dipole[:, 0].numpy()[both].ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.05)
    totals = torch.zeros(len(dataset)).index_add_(0, owner, data.charges[:, 0])
    assert totals[both].abs().max() < 1e-3


def test_pairs_of_several_levels_are_in_the_order_of_conformations() -> None:
    n_atoms = np.array([1, 2, 3])
    columns = [np.full((14, 3, 3), t, np.float64) for t in range(2)]
    columns[0][1:5] = np.nan  # the second conformation
    columns[1][13, 2, 1] = np.nan  # one component of the third
    labels = Labels.of(HESSIAN, n_atoms, columns)
    assert labels.mask.tolist() == [[True, True], [False, True], [True, False]]
    assert labels.incomplete.tolist() == [0, 1]
    assert labels.values[:, 0, 0].tolist() == [0, 1, *[1] * 4, *[0] * 9]
    assert labels.counts(n_atoms).tolist() == [2, 4, 9]
    each = [labels.select(np.ones(3, bool), [t], n_atoms) for t in range(2)]
    again = joined(each, n_atoms)
    assert np.array_equal(again.values, labels.values)
    assert np.array_equal(again.mask, labels.mask)
    part = labels.select(np.array([False, True, True]), [1, 0], n_atoms)
    assert part.mask.tolist() == [[True, False], [False, True]]
    assert part.values[:, 0, 0].tolist() == [*[1] * 4, *[0] * 9]


def test_an_infinite_component_is_found() -> None:
    labels = Labels.of(DIPOLE, np.array([3, 2]), [np.array([[0.0, 1, 2], [0, np.inf, 0]])])
    assert labels.infinite.tolist() == [False, True]


def test_chunks_with_hessians_are_limited_by_pairs_of_atoms(
    minichno: MiniCHNO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every reader, so that memory is bounded whatever the size of the molecules."""
    n, atoms, numbers = 6, 5, np.array([8, 6, 1, 1, 1])
    rng = np.random.default_rng(0)
    hessians, pos = rng.random((n, atoms, 3, atoms, 3)), rng.random((n, atoms, 3)) + np.arange(atoms)[:, None]
    np.savez(tmp_path / "all.npz", R=pos, Z=numbers, e=np.zeros(n), h=hessians)
    frames = [
        ase.Atoms(numbers, x, info={"e": 0.0, "h": h.reshape(15, 15)}) for x, h in zip(pos, hessians, strict=True)
    ]
    ase.io.write(tmp_path / "all.xyz", frames, format="extxyz")
    files = [kind(tmp_path / f"all.{end}", ["dz=e,H=h@eV"]) for kind, end in ((PaddedNPZ, "npz"), (ExtXYZ, "xyz"))]
    union = UnionDataset(tmp_path / "union", files)
    assert torch.equal(files[0]._data.hessian, files[1]._data.hessian)
    for module in ("padded", "extxyz", "union"):
        monkeypatch.setattr(f"mfpyg.datasets.{module}.ATOMS_IN_CHUNK", 2 * atoms**2)
    for dataset in (*files, union):
        sizes = [len(chunk) for chunk in dataset.chunks(dataset.present_levels)]
        assert sizes == [2] * (len(dataset) // 2)
