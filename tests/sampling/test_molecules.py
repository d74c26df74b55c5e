"""Molecules of SMILES and of files."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.sampling.geometry import too_close
from mfpyg.sampling.molecules import conformers, from_smiles, read_molecules


@pytest.fixture
def _rdkit() -> None:
    pytest.importorskip("rdkit", reason="SMILES need RDKit, of the extra label")


@pytest.mark.usefixtures("_rdkit")
@pytest.mark.parametrize(
    ("smiles", "name", "charge", "multiplicity"),
    [
        ("OCC", "CCO", 0, 1),
        ("[NH4+]", "[NH4+]", 1, 1),
        ("CC(=O)[O-]", "CC(=O)[O-]", -1, 1),
        ("[CH3]", "[CH3]", 0, 2),
        ("[O][O]", "[O][O]", 0, 3),
    ],
)
def test_charge_and_multiplicity(smiles: str, name: str, charge: int, multiplicity: int) -> None:
    found = from_smiles(smiles)
    assert (found.name, found.charge, found.multiplicity) == (name, charge, multiplicity)


@pytest.mark.usefixtures("_rdkit")
@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("C((", r"'C\(\(' is no SMILES that RDKit reads; expected"),
        ("", "'' is no SMILES"),
        ("no.smi", "'no.smi' is no SMILES that RDKit reads and is no file"),
        ("C(C)(C)(C)(C)C", "RDKit refuses the SMILES 'C.*': Explicit valence for atom # 0 C, 5"),
        ("*CC", "has an atom without an element"),
    ],
)
def test_bad_smiles_are_named(smiles: str, message: str) -> None:
    with pytest.raises(MFPyGError, match=message):
        read_molecules([smiles])


@pytest.mark.usefixtures("_rdkit")
def test_a_file_of_smiles(tmp_path: Path) -> None:
    path = tmp_path / "list.smi"
    path.write_text("CCO ethanol\n\nC=O\tformaldehyde\nOCC again\n")
    with pytest.warns(MFPyGWarning, match="CCO is given more than once"):
        assert [m.name for m in read_molecules([str(path), "N"])] == ["CCO", "C=O", "N"]
    path.write_text("CCO\nC((\n")
    with pytest.raises(MFPyGError, match=r"list.smi, line 2: 'C\(\('"):
        read_molecules([str(path)])
    path.write_text("\n")
    with pytest.raises(MFPyGError, match="empty"):
        read_molecules([str(path)])


@pytest.mark.usefixtures("_rdkit")
def test_conformers_are_sound_and_follow_from_the_seed() -> None:
    one, again, other = (conformers("OCCO", 4, seed) for seed in (1, 1, 2))
    assert len(one) == 4
    assert all(str(atoms.symbols) == "OC2OH6" and not too_close(atoms) for atoms in one)
    assert all((a.positions == b.positions).all() for a, b in zip(one, again, strict=True))
    assert any((a.positions != b.positions).any() for a, b in zip(one, other, strict=True))
    assert len(conformers("[H][H]", 2, 0)[0]) == 2
    assert not any(too_close(atoms) for atoms in conformers("O.O", 3, 0))
    assert len(conformers("[Na+]", 1, 0)[0]) == 1  # no parameters of MMFF


def test_structures_of_a_file(tmp_path: Path) -> None:
    water, hydroxide, radical = molecule("H2O"), molecule("OH"), molecule("CH3")
    named = water.copy()
    named.info["molecule"] = "water"
    hydroxide.info.update(charge=-1, spin=0)
    radical.info["spin"] = 1
    triplet = molecule("O2")
    triplet.info["multiplicity"] = 3
    ase.io.write(tmp_path / "in.xyz", [water, named, hydroxide, radical, triplet, water], format="extxyz")
    found = read_molecules([str(tmp_path / "in.xyz")])
    assert [(m.name, m.charge, m.multiplicity, len(m.structures)) for m in found] == [
        ("H2O1", 0, 1, 2),
        ("water", 0, 1, 1),
        ("H1O1", -1, 1, 1),
        ("C1H3", 0, 2, 1),
        ("O2", 0, 3, 1),
    ]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"multiplicity": 2}, "frame 0: multiplicity is 2 with 10 electrons, expected an odd"),
        ({"charge": 1, "multiplicity": 1}, "multiplicity is 1 with 9 electrons"),
        ({"multiplicity": 0}, "multiplicity is 0"),
        ({"multiplicity": 1.5}, "multiplicity is 1.5"),
        ({"charge": 1}, "odd number of electrons, 9, and no multiplicity; state it as 'multiplicity'"),
        ({"charge": 0.5}, "the total charge is 0.5 e, expected a whole number"),
    ],
)
def test_impossible_electrons_are_named(tmp_path: Path, info: dict[str, float], message: str) -> None:
    water = molecule("H2O")
    water.info.update(info)
    ase.io.write(tmp_path / "in.xyz", water, format="extxyz")
    with pytest.raises(MFPyGError, match=message):
        read_molecules([str(tmp_path / "in.xyz")])


def test_periodic_structures(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "in.xyz", Atoms("Cu", cell=[3, 3, 3], pbc=True), format="extxyz")
    (found,) = read_molecules([str(tmp_path / "in.xyz")], needs_spin=False)
    assert found.multiplicity == 2
    assert found.structures[0].pbc.all()
    np.testing.assert_allclose(found.structures[0].cell.lengths(), 3)
