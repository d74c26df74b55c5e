"""Each source of a union is judged by its own keys and units; and a bad frame hides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from mfpyg.datasets import ConformationDataset, ExtXYZ, MiniCHNO, UnionDataset
from mfpyg.datasets.consistency import Slope
from mfpyg.datasets.levels import level_of
from mfpyg.doctor import View, diagnose
from mfpyg.doctor.slope import judge
from mfpyg.units import EV_TO_KCAL_MOL, HARTREE_TO_KCAL_MOL

from .conftest import only

Change = Callable[[list[Atoms]], None]


def written(
    path: Path, factor: float = 1 / EV_TO_KCAL_MOL, sign: int = 1, molecules: int = 20, change: Change | None = None
) -> Path:
    """Level ``dz`` of some bundled molecules as extended XYZ with keys e and f; in eV unless said otherwise."""
    data = MiniCHNO(fidelities=["dz"])
    frames = []
    for row in np.flatnonzero(data._data.molecule.numpy() < molecules):
        one = data[int(row)]
        atoms = Atoms(one.z.numpy(), one.pos.numpy())
        atoms.info["e"] = float(one.energy[0, 0]) * factor
        atoms.info["molecule"] = data.molecules[int(one.molecule)]
        atoms.arrays["f"] = sign * one.forces[:, 0].numpy().astype(float) * factor
        frames.append(atoms)
    if change is not None:
        change(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, frames, format="extxyz")
    return path


def union(folder: Path, *members: ConformationDataset) -> UnionDataset:
    return UnionDataset(folder / "union", members)


@pytest.mark.parametrize("molecules", [20, 1])
def test_unit_of_the_second_source(tmp_path: Path, molecules: int) -> None:
    file = written(tmp_path / "mine.xyz", 1 / HARTREE_TO_KCAL_MOL, molecules=molecules)
    mine = ExtXYZ(file, ["dz=e@eV"])
    found = only(diagnose(union(tmp_path, MiniCHNO(fidelities=["dz"]), mine)), "unit of energies", "certain", "dz")
    assert "read as eV, they seem to be in Hartree" in found.evidence
    assert "in mine.xyz" in found.evidence
    assert found.fix == "define the level with energies in Hartree"


def test_energies_of_another_reference(tmp_path: Path) -> None:
    def formation(frames: list[Atoms]) -> None:
        for atoms in frames:
            atoms.info["e"] = atoms.info["e"] * 0.005 * (1 + 0.5 * np.sin(len(atoms)))

    mine = ExtXYZ(written(tmp_path / "mine.xyz", change=formation), ["dz=e@eV"])
    found = only(diagnose(union(tmp_path, MiniCHNO(fidelities=["dz"]), mine)), "unit of energies", "certain", "dz")
    assert "different units or zeros of energy" in found.evidence
    assert "'e' in mine.xyz" in found.fix


def test_gradients_of_the_second_source(tmp_path: Path) -> None:
    mine = ExtXYZ(written(tmp_path / "mine.xyz", sign=-1), ["dz=e,f@eV"])
    findings = diagnose(union(tmp_path, MiniCHNO(fidelities=["dz"]), mine))
    found = only(findings, "energies against forces", "certain", "dz")
    assert "in mine.xyz" in found.evidence
    assert found.fix == "the reader must take the key 'f' negated"


def test_own_unit_of_a_sentinel(tmp_path: Path) -> None:
    def sentinel(frames: list[Atoms]) -> None:
        for atoms in frames[::20]:
            atoms.info["e"] = -999.5

    mine = ExtXYZ(written(tmp_path / "mine.xyz", change=sentinel), ["dz=e@eV"])
    findings = diagnose(union(tmp_path, MiniCHNO(fidelities=["dz"]), mine))
    assert "have exactly -999.5 eV" in only(findings, "repeated energy", "certain", "dz").evidence


def test_sources_without_the_fidelity_are_left_out(tmp_path: Path) -> None:
    mine = ExtXYZ(written(tmp_path / "mine.xyz"), ["other=e@eV"])
    view = View(union(tmp_path, MiniCHNO(fidelities=["dz"]), mine))
    parts = {level.name: view.parts(column) for column, level in view.levels}
    assert [(name, level.labels["E"].unit) for name, _, level in parts["dz"]] == [("minichno.h5", "Hartree")]
    assert [(name, level.labels["E"].unit) for name, _, level in parts["other"]] == [("mine.xyz", "eV")]


def test_sources_of_one_name_are_numbered(tmp_path: Path) -> None:
    right = ExtXYZ(written(tmp_path / "a" / "mine.xyz"), ["dz=e,f@eV"])
    wrong = ExtXYZ(written(tmp_path / "b" / "mine.xyz", sign=-1), ["dz=e,f@eV"])
    view = View(union(tmp_path, right, wrong))
    assert view.names == ["mine.xyz #1", "mine.xyz #2"]
    assert view.where(len(view) - 1).endswith("of mine.xyz #2")
    found = only(diagnose(view.dataset), "energies against forces", "certain", "dz")
    assert "in mine.xyz #2" in found.evidence


def one_force(frames: list[Atoms]) -> None:
    frames[5].arrays["f"][0, 0] += 1000


def one_energy(frames: list[Atoms]) -> None:
    frames[5].info["e"] = 0.0


@pytest.mark.parametrize("change", [one_force, one_energy])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_bad_frame_does_not_hide_gradients(tmp_path: Path, change: Change, sign: int) -> None:
    mine = ExtXYZ(written(tmp_path / "mine.xyz", sign=sign, change=change), ["dz=e,f@eV"])
    findings = diagnose(mine)
    if sign > 0:
        assert not [f for f in findings if f.check == "energies against forces"]
    else:
        found = only(findings, "energies against forces", "certain", "dz")
        assert "the forces are gradients" in found.evidence


def test_too_few_pairs_and_too_uneven_ones_are_told_apart() -> None:
    level = level_of("dz", "", E="e", F="f")
    few, uneven = (judge(Slope(1.0, 0.1, 1.0, n, 1.2), level, "", []) for n in (4, 200))
    assert few is not None
    assert "only 4 pairs" in few.evidence
    assert uneven is not None
    assert "of 200 pairs of near conformations, a few outweigh all others" in uneven.evidence
