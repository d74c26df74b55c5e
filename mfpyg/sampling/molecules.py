"""Molecules to sample: from SMILES, files of SMILES, and files of structures."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mfpyg.datasets.frames import Frame, frames_of
from mfpyg.errors import MFPyGError, MFPyGWarning, shown
from mfpyg.labeling.electrons import charge_and_multiplicity
from mfpyg.labeling.program import LabelError

SMILES_FILES = (".smi", ".smiles")


@dataclass(frozen=True)
class Molecule:
    """A molecule, or a periodic system, to sample.

    Attributes:
        name: canonical SMILES, the ``molecule`` of a given structure, or its formula.
        charge: total charge in e.
        multiplicity: 2S + 1.
        smiles: SMILES for conformers; ``None`` if there are structures.
        structures: given structures.
    """

    name: str
    charge: int = 0
    multiplicity: int = 1
    smiles: str | None = None
    structures: tuple[Atoms, ...] = ()


def read_molecules(words: Sequence[str], needs_spin: bool = True) -> list[Molecule]:
    """Molecules of SMILES, of ``.smi`` files with one at the start of each line, and of files that ASE reads.

    Structures of the same name, charge and multiplicity are one molecule. A molecule that is named twice is taken once.

    Args:
        words: SMILES and names of files.
        needs_spin: see :func:`from_frame`.

    Warns:
        MFPyGWarning: naming those that are given twice.

    Raises:
        MFPyGError: for a SMILES or file that cannot be read, naming it and the line or frame.
    """
    found: dict[tuple[str, int, int, bool], Molecule] = {}
    for molecule in _molecules_of(words, needs_spin):
        key = (molecule.name, molecule.charge, molecule.multiplicity, molecule.smiles is None)
        if key not in found:
            found[key] = molecule
        elif molecule.structures:
            found[key] = replace(found[key], structures=found[key].structures + molecule.structures)
        else:
            message = f"{molecule.name} is given more than once, and taken once"
            warnings.warn(message, MFPyGWarning, stacklevel=2)
    return list(found.values())


def _molecules_of(words: Iterable[str], needs_spin: bool) -> Iterator[Molecule]:
    for word in words:
        path = Path(word)
        if not path.is_file():
            yield from_smiles(word)
        elif path.suffix.lower() in SMILES_FILES:
            yield from _of_smiles_file(path)
        else:
            for frame in frames_of(path, hint="write it as extended XYZ"):
                yield from_frame(frame, f"{path}: frame {frame.number}", needs_spin)


def from_smiles(smiles: str, where: str = "") -> Molecule:
    """Molecule of a SMILES: charge from formal charges, multiplicity from unpaired electrons, all with parallel spins.

    Raises:
        MFPyGError: if RDKit is not installed or refuses it.
    """
    chem = _rdkit()
    from rdkit import rdBase

    prefix = f"{where}: " if where else ""
    with rdBase.BlockLogs():
        parsed = chem.MolFromSmiles(smiles, sanitize=False)
        if parsed is None or not parsed.GetNumAtoms():
            file = " and is no file" if "." in smiles and not where else ""
            raise MFPyGError(f"{prefix}{shown(smiles)} is no SMILES that RDKit reads{file}; expected one such as CCO")
        problems = [problem.Message() for problem in chem.DetectChemistryProblems(parsed)]
        if problems:
            raise MFPyGError(f"{prefix}RDKit refuses the SMILES {shown(smiles)}: {problems[0]}")
        chem.SanitizeMol(parsed)
        if any(atom.GetAtomicNum() == 0 for atom in parsed.GetAtoms()):
            raise MFPyGError(f"{prefix}the SMILES {shown(smiles)} has an atom without an element; name all elements")
        parsed = chem.MolFromSmiles(smiles)  # with stereochemistry and without explicit hydrogen atoms
        unpaired = sum(atom.GetNumRadicalElectrons() for atom in parsed.GetAtoms())
        name = chem.MolToSmiles(parsed)
        return Molecule(name, int(chem.GetFormalCharge(parsed)), 1 + int(unpaired), smiles=name)


def _of_smiles_file(path: Path) -> Iterator[Molecule]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MFPyGError(f"{path}: not text in UTF-8; expected a SMILES at the start of each line") from error
    empty = True
    for number, line in enumerate(lines, start=1):
        if line.strip():
            empty = False
            yield from_smiles(line.split()[0], f"{path}, line {number}")
    if empty:
        raise MFPyGError(f"{path}: empty; expected a SMILES at the start of each line")


def from_frame(frame: Frame, where: str, needs_spin: bool = True) -> Molecule:
    """Molecule of a given structure, with the name under ``molecule``, else its formula.

    Args:
        frame: frame as read.
        where: name of the file and frame, for the error message.
        needs_spin: whether an odd number of electrons needs a multiplicity; otherwise it is 2.

    Raises:
        MFPyGError: as :func:`mfpyg.labeling.electrons.charge_and_multiplicity`.
    """
    try:
        charge, multiplicity = charge_and_multiplicity(frame, needs_spin)
    except LabelError as error:
        raise MFPyGError(f"{where}: {error}") from error
    name = frame.values.get("molecule")
    if name is None:
        from mfpyg.datasets.chunks import formula  # imports torch

        name = formula(frame.z)
    atoms = Atoms(frame.z, frame.pos, cell=frame.cell, pbc=frame.pbc)
    return Molecule(str(name), charge, multiplicity, structures=(atoms,))


def conformers(smiles: str, number: int, seed: int) -> list[Atoms]:
    """Conformers of RDKit's ETKDGv3, relaxed with MMFF94, or UFF where it has no parameters; lowest energies first.

    Args:
        smiles: a SMILES that :func:`from_smiles` accepts.
        number: number of conformers to embed.
        seed: seed of the distance geometry.

    Returns:
        Geometries about their centre, in the order of the atoms of the SMILES, then hydrogen atoms.

    Raises:
        MFPyGError: if RDKit finds none.
    """
    chem = _rdkit()
    from rdkit import rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    with rdBase.BlockLogs():
        molecule = chem.AddHs(chem.MolFromSmiles(smiles))
        options = rdDistGeom.ETKDGv3()
        options.randomSeed, options.numThreads = seed, 1
        found = list(rdDistGeom.EmbedMultipleConfs(molecule, number, options))
        if not found:
            options.useRandomCoords = True
            found = list(rdDistGeom.EmbedMultipleConfs(molecule, number, options))
        if not found:
            raise MFPyGError("RDKit finds no conformer; give a structure as a file instead of the SMILES")
        relaxation = {"numThreads": 1, "maxIters": 2000, "ignoreInterfragInteractions": False}
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, **relaxation)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
            results = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(molecule, **relaxation)
        else:
            results = [(0, 0.0)] * len(found)
    z = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    order = np.argsort([energy for _, energy in results], kind="stable")
    return [Atoms(z, molecule.GetConformer(found[k]).GetPositions()) for k in order]


def _rdkit() -> Any:
    try:
        from rdkit import Chem
    except ImportError as error:
        raise MFPyGError(
            f"SMILES need RDKit, which is not installed ({error}): pip install 'mfpyg[label]', or give structures"
        ) from error
    return Chem
