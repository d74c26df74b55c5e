"""Molecules of C, H, N and O with up to nine heavy atoms: enumerated for the small, drawn for the larger ones.

A molecule grows by an atom, by a ring that closes, or by a higher bond order, under the valences of neutral atoms.
Small molecules are enumerated; of larger ones a random set grows from each size to the next. What :func:`sensible`
refuses, such as chains of heteroatoms, strained bridges or cumulated double bonds, neither grows nor is written:

    python benchmarks/pretrained/molecules.py --out runs/chno

writes ``train.smi``, ``small.smi`` (those of ``train.smi`` with two to four heavy atoms), ``held-out.smi`` and
``tested.smi``, a SMILES a line.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from rdkit import Chem, RDLogger

ENUMERATED = 5
"""Heavy atoms up to which all molecules are grown."""

GROWN = 4000
"""Molecules of each larger size that grow further."""

SIZES = {1: 3, 2: 10, 3: 40, 4: 200, 5: 600, 6: 800, 7: 800, 8: 700, 9: 600}
"""Molecules to write at most, by number of heavy atoms; a tenth of those from four heavy atoms is held out."""

TESTED = ("CCC", "CCO", "CC=O", "CC#N", "COC", "OC=O", "CCCC", "NC=O", "C1CO1", "C=CC", "CCN", "C#CC")
"""Molecules that a model is tested on at the expensive levels: the larger ones of the bundled data, and five others."""

BONDS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)

_NONSENSE = [
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "O=O",
        "[N,O]~[N,O]~[N,O]",  # chains of heteroatoms
        "[#7,#8;r]~[#7,#8;r]~[#7,#8;r]",
        "[*]O-O[*]",
        "[*]~[*]O-[OX2]",
        "[#6]N=O",
        "[NX2]=[NX2]",
        "[NX3;!$(N-C=O)][OX2]",
        "[#6]=[C]=[#6,#7]",  # cumulated beyond ketenes and isocyanates
        "N=C=N",
        "[*]=C=C=[*]",
        "[*]N=C=C",
        "C#C[N,O]",
        "[CX4]([OH,NH2])[OH,NH2]",  # lose water or ammonia
        "[CX4]([OH])[OX2;!$(OC=O)]",
        "[CX4]([OH,NH2])[NX3;!$(N-C=O)]",
        "[CX3;!$(C=O)]([OH])=[#6,#7;!a;!$(N-O)]",  # enols
        "C=[CX3][NH2]",
        "C(=O)([OH])[NX3]",
        "C(=O)([OH])O",
        "N[NX3]C=C",
        "[#6;X3;r3]",  # strained
        "[#7;X2;r3]",
        "[#7,#8;r3]~[#7,#8;r3]",
        "[r4]=[r4]",
        "[a;r4]",
        "[r3,r4]=[CX3]",
        "[r]#[r]",
        "[r]=C=[*]",
        "[r]=[r]=[*]",
    )
]


def sensible(molecule: Chem.Mol) -> bool:
    """True of molecules without strain and groups that do not last, and with at most one heteroatom for each carbon."""
    rings = molecule.GetRingInfo().AtomRings()
    n_heavy = molecule.GetNumAtoms()
    if n_heavy > 4 and sum(atom.GetAtomicNum() > 6 for atom in molecule.GetAtoms()) > n_heavy // 2:
        return False
    if len(rings) > 2 or sum(len(ring) < 5 for ring in rings) > 1:
        return False
    if len(rings) == 2 and len(set(rings[0]) & set(rings[1])) not in (0, 2):  # bridged and spiro
        return False
    return not any(molecule.HasSubstructMatch(pattern) for pattern in _NONSENSE)


def grown(molecule: Chem.Mol) -> Iterator[Chem.Mol]:
    """All molecules with one heavy atom more."""
    for atom in molecule.GetAtoms():
        for symbol, valence in (("C", 4), ("N", 3), ("O", 2)):
            for order in range(1, 1 + min(atom.GetTotalNumHs(), valence, 3)):
                larger = Chem.RWMol(molecule)
                larger.AddBond(atom.GetIdx(), larger.AddAtom(Chem.Atom(symbol)), BONDS[order - 1])
                yield larger


def bonded(molecule: Chem.Mol) -> Iterator[Chem.Mol]:
    """All molecules with a ring more, or a bond of higher order."""
    free = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()]
    for one, other in combinations(free, 2):
        bond = molecule.GetBondBetweenAtoms(one, other)
        more = Chem.RWMol(molecule)
        if bond is None:
            more.AddBond(one, other, BONDS[0])
        elif bond.GetBondType() in BONDS[:2]:
            more.GetBondBetweenAtoms(one, other).SetBondType(BONDS[BONDS.index(bond.GetBondType()) + 1])
        else:
            continue
        yield more


def canonical(molecule: Chem.Mol) -> str | None:
    """SMILES of a sensible molecule; ``None`` of others."""
    made = Chem.MolFromSmiles(Chem.MolToSmiles(molecule))
    return Chem.MolToSmiles(made) if made is not None and sensible(made) else None


def next_size(smaller: list[str], rng: random.Random, most: int | None) -> list[str]:
    """Molecules with one heavy atom more, at most so many, in sorted order."""
    found, fresh = set[str](), set[str]()
    for smiles in smaller:
        fresh |= {new for more in grown(kekulized(smiles)) if (new := canonical(more)) is not None}
    while fresh:
        found |= fresh
        if most is not None and len(found) > 20 * most:
            break
        start = sorted(fresh) if most is None else rng.sample(sorted(fresh), min(most, len(fresh)))
        fresh = {new for smiles in start for more in bonded(kekulized(smiles)) if (new := canonical(more))} - found
    return sorted(found) if most is None else draw(sorted(found), most, rng)


def draw(molecules: list[str], n: int, rng: random.Random) -> list[str]:
    """At most n random molecules, a fifth of them aromatic if there are so many."""
    aromatic = [smiles for smiles in molecules if any(letter in smiles for letter in "cno")]
    chosen = rng.sample(aromatic, min(n // 5, len(aromatic)))
    others = sorted(set(molecules) - set(chosen))
    return chosen + rng.sample(others, min(n - len(chosen), len(others)))


def kekulized(smiles: str) -> Chem.Mol:
    molecule = Chem.MolFromSmiles(smiles)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    for atom in molecule.GetAtoms():  # as of [nH], which may be bonded further
        atom.SetNumExplicitHs(0)
        atom.SetNoImplicit(False)
    return molecule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/chno"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    rng, molecules = random.Random(options.seed), ["C", "N", "O"]
    tested = set(map(Chem.CanonSmiles, TESTED))
    train, held_out = list[str](), list[str]()
    for size, n in SIZES.items():
        if size > 1:
            molecules = next_size(molecules, rng, None if size <= ENUMERATED else GROWN)
        allowed = [smiles for smiles in molecules if smiles not in tested]
        chosen = draw(allowed, n, rng)
        rng.shuffle(chosen)
        n_held_out = len(chosen) // 10 if size > 3 else 0
        held_out += chosen[:n_held_out]
        train += chosen[n_held_out:]
        print(f"{size} heavy atoms: {len(molecules):,} molecules, {len(chosen):,} chosen, {n_held_out} held out")
    options.out.mkdir(parents=True, exist_ok=True)
    small = [smiles for smiles in train if Chem.MolFromSmiles(smiles).GetNumAtoms() in (2, 3, 4)]
    for name, of in (("train", train), ("small", small), ("held-out", held_out), ("tested", TESTED)):
        (options.out / f"{name}.smi").write_text("".join(f"{smiles}\n" for smiles in of))
    print(f"{len(train):,} molecules for training, {len(held_out)} held out")


if __name__ == "__main__":
    main()
