"""Total charges of conformations: every source, unions, batches, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import h5py
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from mfpyg.datasets import (
    ANI1x,
    ASEFile,
    ConformationDataset,
    ExtXYZ,
    MiniCHNO,
    PaddedNPY,
    PaddedNPZ,
    Pyanitools,
    UnionDataset,
)
from mfpyg.datasets.batches import BatchLoader
from mfpyg.doctor.duplicates import find
from mfpyg.doctor.view import View
from mfpyg.errors import MFPyGError
from mfpyg.graph import RadiusGraph
from mfpyg.inspection import inspect
from mfpyg.models import HIPNN, MultiFidelityPotential

CHARGES = [0, 1, -2, 1]
LEVEL = "dft=E@Hartree"


def arrays() -> dict[str, Any]:
    """Water in four conformations."""
    pos = np.array([[0, 0, 0], [0, 0, 1.0], [0.9, 0, 0]]) + 0.05 * np.random.default_rng(0).normal(size=(4, 3, 3))
    return {"R": pos.round(3).astype(np.float32), "Z": np.array([8, 1, 1]), "E": np.arange(4.0) - 76}


def images() -> list[ase.Atoms]:
    made = arrays()
    return [ase.Atoms(made["Z"], pos, info={"E": e}) for pos, e in zip(made["R"], made["E"], strict=True)]


def with_info(key: str, charges: Any = CHARGES, of: Callable[[Any], Any] = int) -> list[ase.Atoms]:
    found = images()
    for atoms, charge in zip(found, charges, strict=True):
        if charge is not None:
            atoms.info[key] = of(charge)
    return found


def with_initial(charges: Any = CHARGES) -> list[ase.Atoms]:
    found = images()
    for atoms, charge in zip(found, charges, strict=True):
        atoms.set_initial_charges([charge - 0.8, 0.39995, 0.4])
    return found


def with_dipole(atoms: ase.Atoms) -> ase.Atoms:
    atoms.info["mu"] = np.zeros(3)
    return atoms


def xyz(folder: Path, frames: list[ase.Atoms], level: str = LEVEL) -> ExtXYZ:
    columns = ["symbols", "positions", *(["initial_charges"] if frames[0].has("initial_charges") else [])]
    ase.io.write(folder / "a.xyz", frames, format="extxyz", columns=columns)
    return ExtXYZ(folder / "a.xyz", [level], root=folder)


def trajectory(folder: Path, frames: list[ase.Atoms]) -> ASEFile:
    ase.io.write(folder / "a.traj", frames)
    return ASEFile(folder / "a.traj", [LEVEL], root=folder)


def database(folder: Path, frames: list[ase.Atoms], how: str = "data") -> ExtXYZ:
    with ase.db.connect(folder / "a.db") as rows:
        for atoms in frames:
            rows.write(atoms, **({"data": atoms.info} if how == "data" else {"key_value_pairs": atoms.info}))
    return ExtXYZ(folder / "a.db", [LEVEL], root=folder)


def npz(folder: Path, **more: Any) -> PaddedNPZ:
    np.savez(folder / "a.npz", **arrays(), **more)
    return PaddedNPZ(folder / "a.npz", [LEVEL], root=folder)


def npy(folder: Path, **more: Any) -> PaddedNPY:
    for key, array in {**arrays(), **more}.items():
        np.save(folder / f"a-{key}.npy", array)
    return PaddedNPY(folder, [LEVEL], root=folder)


def groups(folder: Path, level: str = LEVEL, **more: Any) -> Pyanitools:
    made = arrays()
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("water")
        group["species"], group["coordinates"], group["E"] = np.array([b"O", b"H", b"H"]), made["R"], made["E"]
        for key, array in more.items():
            group[key] = array
    return Pyanitools(folder / "a.h5", [level], root=folder)


SOURCES = {
    "xyz": lambda folder: xyz(folder, with_info("charge")),
    "xyz, total_charge": lambda folder: xyz(folder, with_info("total_charge", of=float)),
    "xyz, none is 0": lambda folder: xyz(folder, with_info("charge", [c or None for c in CHARGES])),
    "xyz, initial charges": lambda folder: xyz(folder, with_initial()),
    "trajectory": lambda folder: trajectory(folder, with_info("charge")),
    "trajectory, initial charges": lambda folder: trajectory(folder, with_initial()),
    "database, pairs": lambda folder: database(folder, with_info("charge"), "pairs"),
    "database, data": lambda folder: database(folder, with_info("charge")),
    "database, initial charges": lambda folder: database(folder, with_initial()),
    "npz": lambda folder: npz(folder, charge=np.array(CHARGES)),
    "npz, PhysNet": lambda folder: npz(folder, Q=np.array(CHARGES, float)),
    "npy": lambda folder: npy(folder, total_charge=np.array(CHARGES, np.int8)[:, None]),
    "pyanitools": lambda folder: groups(folder, charge=np.array(CHARGES) + 4e-4),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_has_them(source: str, tmp_path: Path) -> None:
    dataset = SOURCES[source](tmp_path)
    assert dataset._data.charge.tolist() == CHARGES
    assert (dataset[2].charge.dtype, dataset[2].charge.tolist()) == (torch.float32, [-2])
    assert dataset.total_charges.tolist() == CHARGES
    assert inspect(Path(dataset.processed_paths[0]))["charged"] == 3
    again = dataset[[3, 0]].copy()
    assert again._data.charge.tolist() == [1, 0]


NOT_CHARGED = {
    "xyz": lambda folder: xyz(folder, with_info("charge", [0] * 4)),
    "initial charges": lambda folder: xyz(folder, with_initial([0] * 4)),
    "labels": lambda folder: xyz(folder, with_initial([0.3] * 4), "dft=E,Q=initial_charges@Hartree"),
    "partial charges": lambda folder: xyz(folder, with_initial([0, 0.02, 0.3, 0])),
    "atomic charges of a database": lambda folder: database(folder, with_info("charge", of=lambda c: [c, 0.1, 0.2])),
    "atomic charges": lambda folder: npz(folder, charge=np.full((4, 3), 0.3)),
    "quadrupoles": lambda folder: npz(folder, Q=np.ones((4, 3, 3))),
    "atomic charges of groups": lambda folder: groups(folder, charge=np.full((4, 3, 1), 0.3)),
    "labels of groups": lambda folder: groups(folder, "dft=E,Q=charge@Hartree", charge=np.full((4, 3), 0.3)),
}


@pytest.mark.parametrize("source", NOT_CHARGED)
def test_neutral_data_and_atomic_charges_change_nothing(source: str, tmp_path: Path) -> None:
    """Fingerprints of runs that were trained on such data stay the same."""
    dataset = NOT_CHARGED[source](tmp_path)
    assert "charge" not in dataset[0]
    assert dataset.total_charges.tolist() == [0] * 4
    if dataset.letters == "EF":
        (tmp_path / "without").mkdir()
        assert dataset.fingerprint == groups(tmp_path / "without").fingerprint


def test_fingerprint_depends_on_them(tmp_path: Path) -> None:
    charged, neutral = npz(tmp_path, charge=np.array(CHARGES)), groups(tmp_path)
    assert charged.fingerprint != neutral.fingerprint
    assert charged.geometries == neutral.geometries
    assert charged[[0]].copy().fingerprint == neutral[[0]].copy().fingerprint


REFUSED = {
    "a whole number": (
        lambda folder: npz(folder, charge=np.array([0, 1, 0.5, 1])),
        r"a\.npz: conformation 2: the total charge is 0.5 e, expected a whole number",
    ),
    "NaN": (
        lambda folder: groups(folder, charge=np.array([0, np.nan, 0, 0])),
        "group water: conformation 1: .* is nan e",
    ),
    "infinity": (lambda folder: xyz(folder, with_info("charge", [0, 0, 0, "Infinity"], str)), "frame 3: .* is inf e"),
    "too large": (lambda folder: npz(folder, charge=np.array([1e300, 0, 0, 0])), "conformation 0: .* is 1e[+]300 e"),
    "a number": (lambda folder: xyz(folder, with_info("charge", of=lambda c: f"{c}+")), "frame 0: charge has type <U2"),
    "truth value": (lambda folder: database(folder, with_info("charge", of=bool)), "frame 0: charge has type bool"),
    "ragged": (
        lambda folder: database(folder, with_info("charge", of=lambda c: [[c], [1, 2]])),
        "frame 0 cannot be read",
    ),
    "shape": (lambda folder: groups(folder, charge=np.zeros(3)), r"charge has shape \(3,\), expected \(4,\) total"),
    "two keys": (
        lambda folder: npz(folder, charge=np.array(CHARGES), Q=np.array(CHARGES)),
        r"a\.npz: total charges under both Q and charge; expected one of these keys",
    ),
    "initial charges": (
        lambda folder: xyz(
            folder, [with_dipole(atoms) for atoms in with_initial([0, 0.02, 0, 0])], "dft=E,D=mu@Hartree"
        ),
        r"frame 1: the initial charges add up to 0\.01995 e, expected a whole number; give the total charge",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    with pytest.raises(MFPyGError, match=message) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)


def test_stated_charge_goes_before_initial_charges(tmp_path: Path) -> None:
    frames = with_initial([0.3, 0.3, 0.3, 0.3])
    for atoms, charge in zip(frames, CHARGES, strict=True):
        atoms.info["charge"] = charge
    assert xyz(tmp_path, frames).total_charges.tolist() == CHARGES


def release(path: Path, release_file: Path, charges: dict[str, list[int]]) -> ANI1x:
    with h5py.File(release_file) as old, h5py.File(path, "w") as new:
        for name in old:
            old.copy(name, new)
            if name in charges:
                new[name]["charge"] = np.array(charges[name])
    return ANI1x(path.with_suffix(""), file=path)


def test_groups_of_a_release_without_them_are_neutral(release_file: Path, tmp_path: Path) -> None:
    dataset = release(tmp_path / "ions.h5", release_file, {"H3N1": [1, 0]})
    found = {dataset.molecules[d.molecule]: [] for d in dataset}
    for data in dataset:
        found[dataset.molecules[data.molecule]].append(data.charge.item())
    assert found == {"H2O1": [0] * 4, "C1H4": [0] * 3, "H3N1": [1, 0]}


@pytest.fixture
def charged(release_file: Path, tmp_path: Path) -> ConformationDataset:
    """Three molecules, some charged, and neutral ones of the bundled data."""
    ions = release(tmp_path / "ions.h5", release_file, {"H3N1": [1, 0], "H2O1": [-1, 0, 2, 0]})
    return UnionDataset(tmp_path / "union", [MiniCHNO(fidelities=["dz"]), ions])


def test_union_has_zeros_where_a_member_has_none(charged: UnionDataset) -> None:
    neutral, ions = charged.members
    assert "charge" not in neutral[0]
    assert charged._data.charge.tolist() == [0] * len(neutral) + ions._data.charge.tolist()
    assert sorted(ions._data.charge.tolist()) == [-1, 0, 0, 0, 0, 0, 0, 1, 2]
    again = UnionDataset(Path(charged.root) / "again", [ions, neutral])
    assert again._data.charge.tolist() == ions._data.charge.tolist() + [0] * len(neutral)


def test_union_of_neutral_data_has_none(release_file: Path, tmp_path: Path) -> None:
    neutral = release(tmp_path / "ions.h5", release_file, {"H3N1": [0, 0]})
    union = UnionDataset(tmp_path / "union", [MiniCHNO(fidelities=["dz"]), neutral])
    assert "charge" not in union[0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_those_of_pyg_and_charges_add_up(charged: UnionDataset, shuffle: bool) -> None:
    rows = np.arange(len(charged) - 20, len(charged))
    rows = np.random.default_rng(0).permutation(rows) if shuffle else rows
    ours = next(iter(BatchLoader(charged[rows], len(rows))))
    theirs = next(iter(DataLoader(charged[rows], len(rows))))
    assert ours.keys() == theirs.keys()
    for key in theirs.to_dict():
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, equal_nan=True)
    assert (ours.charge.shape, ours.charge.dtype) == ((20,), torch.float32)
    torch.manual_seed(0)
    sizes = {"n_interactions": 1, "n_atom_layers": 1, "n_features": 6, "n_sensitivities": 5, "cutoff": 4.0}
    potential = MultiFidelityPotential(HIPNN([1, 6, 7, 8], **sizes), ["dz"], further={"dz": "Q"})
    charges = potential.predict(ours, {"dz": "EQ"})["dz"].charges.detach()
    sums = torch.zeros(20).index_add_(0, ours.batch, charges)
    torch.testing.assert_close(sums, ours.charge, rtol=0, atol=1e-6)
    assert set(ours.charge.tolist()) == {-1, 0, 1, 2}


def test_edges_transforms_and_required_levels_keep_them(charged: UnionDataset) -> None:
    members = charged.members
    edges = UnionDataset(charged.root, members, pre_transform=RadiusGraph(3.0))
    assert torch.equal(edges._data.charge, charged._data.charge)
    cations = UnionDataset(charged.root, members, pre_filter=Cations())
    assert cations._data.charge.tolist() == [2, 1]
    cc = UnionDataset(charged.root, members, required=["cc"])  # which the last conformation of a group lacks
    assert sorted(cc._data.charge.tolist()) == [-1, 0, 0, 0, 1, 2]


class Cations:
    def __call__(self, data: Data) -> bool:
        return data.charge.item() > 0

    def __repr__(self) -> str:
        return "Cations()"


def test_ions_are_no_duplicates_of_the_neutral_molecule(tmp_path: Path) -> None:
    made = arrays()
    made["R"][:] = made["R"][0]
    np.savez(tmp_path / "a.npz", **made, charge=np.array(CHARGES))
    pairs = find(View(PaddedNPZ(tmp_path / "a.npz", [LEVEL], root=tmp_path)))
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([1], [3])
