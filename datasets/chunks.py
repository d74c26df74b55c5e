"""Chunks of conformations, in which raw files are read.

Every source is a generator of chunks of a few thousand concatenated conformations in the package's units, so that
memory is bounded whatever the size of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ase.data import chemical_symbols
from torch_geometric.data import Data

from mfpyg.centering import centered
from mfpyg.datasets.labels import Labels
from mfpyg.datasets.total_charges import whole_charges
from mfpyg.errors import MFPyGError, shortened

Track = Callable[[Sequence[str]], Iterable[str]]
"""Iterates over the names of a file's groups and shows progress; ``iter`` shows nothing."""

ATOMS_IN_CHUNK = 1 << 18
"""Approximate number of atoms in a chunk; of pairs of atoms with Hessians."""

SMALLEST, FLATTEST = 0.1, 1e-4
"""Smallest length, area or volume (Å, Å², Å³) that periodic lattice vectors may span, and smallest ratio of it to the
product of their lengths. Hydrogen under the highest pressures has 1 Å³ per atom; long polytypes in rhombohedral axes
have a ratio of 1e-3."""


def formula(z: np.ndarray) -> str:
    """Formula of atomic numbers (n,), in Hill order with all counts, such as ``C1H4``."""
    counts = Counter(chemical_symbols[i] if 0 <= i < len(chemical_symbols) else "X" for i in z.tolist())
    first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
    return "".join(f"{symbol}{counts[symbol]}" for symbol in [*first, *sorted(set(counts) - set(first))])


def by_formula(z: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number conformations by their formulas.

    Args:
        z: atomic numbers, (n, n_atoms), 0 for padding.

    Returns:
        The number of each conformation's formula, (n,) int64, and the formulas.
    """
    compositions, inverse = np.unique(np.sort(z, axis=1), axis=0, return_inverse=True)
    return inverse.reshape(-1), [formula(numbers[numbers != 0]) for numbers in compositions]


def same_numbers(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """True if the shapes differ only by axes of length one, as energies (n, 1) and (n,) do."""
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]


def keys_found(keys: Iterable[str]) -> str:
    """Keys of a file, for the error message about a missing one."""
    names = sorted(keys)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"(keys found: {', '.join(shortened(names[:20])) or 'none'}{more})"


@dataclass
class Chunk:
    """Concatenated conformations, in kcal/mol and Å; T is the number of levels read.

    Attributes:
        n_atoms: atoms of each conformation, (n,) int64.
        z: atomic numbers, (Σ n_atoms,) int64.
        pos: positions, (Σ n_atoms, 3) float32; before :meth:`check` also float64, as in the file.
        labels: labels of each property by its letter, energies and forces at least.
        molecule: number of each conformation's molecule in ``names``, (n,) int64.
        names: names of the molecules; formulas if the file does not tell isomers apart.
        conformation: number within the group or the file, (n,) int64.
        split: 0 pool, 1 test, 2 out of sample; -1 if the file does not say, (n,) int64.
        source: number of the source in a union of several, (n,) int64.
        cell: lattice vectors as rows, Å, (n, 3, 3), of the dtype of ``pos``, zeros where there are none; ``None`` in
            all chunks of a source of molecules.
        pbc: whether the conformation is repeated along each of them, (n, 3) bool; ``None`` if ``cell`` is.
        charge: total charge in e, 0 if the file does not say, (n,) float32; before :meth:`check` as in the file.
    """

    n_atoms: np.ndarray
    z: np.ndarray
    pos: np.ndarray
    labels: dict[str, Labels]
    molecule: np.ndarray
    names: list[str]
    conformation: np.ndarray
    split: np.ndarray = field(default=None)  # type: ignore[arg-type]
    source: np.ndarray = field(default=None)  # type: ignore[arg-type]
    cell: np.ndarray | None = None
    pbc: np.ndarray | None = None
    charge: np.ndarray = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.split is None:
            self.split = np.full(len(self), -1, np.int64)
        if self.source is None:
            self.source = np.zeros(len(self), np.int64)
        if self.charge is None:
            self.charge = np.zeros(len(self), np.float32)

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def periodic(self) -> np.ndarray:
        """True for conformations that are periodic in some direction, (n,) bool."""
        if self.pbc is None:
            return np.zeros(len(self), bool)
        return np.logical_or.reduce(self.pbc, axis=1)

    @property
    def owner(self) -> np.ndarray:
        """Number within the chunk of each atom's conformation, (Σ n_atoms,) int64."""
        return np.repeat(np.arange(len(self)), self.n_atoms)

    def check(self, where: Callable[[int], str]) -> None:
        """Validate the values.

        Positions and cells become float32; float64 positions far from the origin, where float32 lacks digits, are moved
        near it first (see :mod:`mfpyg.centering`). Lattice vectors that are NaN or infinite become zeros in directions
        without periodicity. Total charges are rounded to whole numbers.

        Args:
            where: names a conformation of the chunk, for the error message.

        Raises:
            MFPyGError: for an unknown atomic number, a position that is not finite, an infinite label, a total
                charge that is not a whole number, or invalid periodic lattice vectors.
        """
        owner = self.owner

        def refuse(bad: np.ndarray, what: str) -> None:
            rows = np.flatnonzero(bad)
            if rows.size:
                raise MFPyGError(f"{where(int(rows[0]))}: {what}")

        no_element = (self.z < 1) | (self.z >= len(chemical_symbols))
        if no_element.any():
            number = int(self.z[no_element][0])
            refuse(_any_by(owner, no_element, len(self)), f"unknown atomic number {number}")
        refuse(self.n_atoms < 1, "no atoms")
        with np.errstate(over="ignore"):  # infinities are refused later
            lost = np.logical_not(np.isfinite(self.pos.astype(np.float32, copy=False)).all(axis=1))
        refuse(_any_by(owner, lost, len(self)), "coordinates are NaN or infinite in float32")
        for labels in self.labels.values():
            name = labels.property.singular
            article = "an" if name[0] in "aeiou" else "a"
            refuse(labels.infinite, f"{article} {name} is infinite; NaN means missing")
            labelled = np.logical_or.reduce(labels.mask, axis=1)
            if labels.property.systems == "crystals":
                repeats = np.zeros((len(self), 3), bool) if self.pbc is None else self.pbc
                refuse(
                    labelled & ~np.logical_and.reduce(repeats, axis=1),
                    f"{article} {name}, but not periodic in three directions; leave it out",
                )
            if labels.property.systems == "molecules":
                refuse(labelled & self.periodic, f"{article} {name}, but periodic; leave it out")
        charge, broken = whole_charges(self.charge)
        if broken.any():
            refuse(broken, f"the total charge is {self.charge[broken][0]:g} e, expected a whole number")
        self.charge = charge
        if self.cell is not None and self.pbc is not None:
            with np.errstate(over="ignore"):  # infinities are refused later
                rounded = self.cell.astype(np.float32)
            _check_cells(rounded, self.pbc, refuse)
            self.cell[~np.isfinite(rounded).all(axis=2)] = 0
        if self.pos.dtype != np.float32:
            self._round()

    def _round(self) -> None:
        """Move positions near the origin, and convert them and cells to float32."""
        batch = Data(pos=torch.from_numpy(self.pos.astype(np.float64)), batch=torch.from_numpy(self.owner))
        if self.cell is not None and self.pbc is not None:
            batch.cell, batch.pbc = torch.from_numpy(self.cell.astype(np.float64)), torch.from_numpy(self.pbc)
        with np.errstate(over="ignore"):  # infinities are refused later
            self.pos = centered(batch, torch.float32).pos.numpy().astype(np.float32)
            self.cell = None if self.cell is None else self.cell.astype(np.float32)

    def select(self, keep: np.ndarray, levels: Sequence[int]) -> Chunk:
        """Conformations where ``keep`` (n,) bool is true, with the labels of these of the T levels."""
        atoms = np.repeat(keep, self.n_atoms)
        return Chunk(
            n_atoms=self.n_atoms[keep],
            z=self.z[atoms],
            pos=self.pos[atoms],
            labels={key: labels.select(keep, levels, self.n_atoms) for key, labels in self.labels.items()},
            molecule=self.molecule[keep],
            names=self.names,
            conformation=self.conformation[keep],
            split=self.split[keep],
            source=self.source[keep],
            cell=None if self.cell is None else self.cell[keep],
            pbc=None if self.pbc is None else self.pbc[keep],
            charge=self.charge[keep],
        )


def _check_cells(cell: np.ndarray, pbc: np.ndarray, refuse: Callable[[np.ndarray, str], None]) -> None:
    """Check that periodic lattice vectors are finite, nonzero and linearly independent.

    Args:
        cell, pbc: as in :class:`Chunk`.
        refuse: raises an error if any conformation is invalid, (n,) bool, with the reason.
    """
    vectors = np.where(pbc[:, :, None], cell, 0).astype(np.float64)  # (n, 3, 3)
    lengths = np.linalg.norm(vectors, axis=2)  # (n, 3)
    fix = "expected a vector in Å there, or F in pbc"
    for k, name in enumerate(("first", "second", "third")):
        refuse(
            ~np.isfinite(lengths[:, k]), f"periodic along its {name} lattice vector, which is NaN or infinite; {fix}"
        )
        refuse(pbc[:, k] & (lengths[:, k] == 0), f"periodic along its {name} lattice vector, which is zero; {fix}")
    # The Gram determinant is the squared length, area or volume; directions without periodicity count as 1.
    gram = vectors @ vectors.transpose(0, 2, 1) + np.eye(3) * ~pbc[:, None, :]
    volume = np.sqrt(np.maximum(np.linalg.det(gram), 0))
    flat = volume < FLATTEST * np.where(pbc, lengths, 1).prod(axis=1)
    refuse(
        pbc.any(axis=1) & ((volume < SMALLEST) | flat),
        "periodic along lattice vectors that span hardly any volume; expected those of a cell, in Å",
    )


def _any_by(owner: np.ndarray, atoms: np.ndarray, n: int) -> np.ndarray:
    """True for conformations with any true atom: (Σ n_atoms,) bool -> (n,) bool."""
    return np.bincount(owner[atoms], minlength=n) > 0
