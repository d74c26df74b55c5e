"""Properties that levels of theory label and potentials predict: one table, over which everything else iterates.

Importable without torch. A new property is an entry of :data:`PROPERTIES`, a function that predicts it, and its tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from mfpyg import units
from mfpyg.errors import MFPyGError


@dataclass(frozen=True)
class Property:
    """A property of a molecule, a crystal, or their atoms.

    Attributes:
        letter: its letter in ``dz:EF``.
        name: key of its labels in ``Data``, attribute of predictions, and name in files and columns.
        singular, plural: names in messages.
        per: what a value belongs to: a ``graph``, an ``atom``, or a ``pair`` of atoms of a graph.
        shape: shape of a value.
        unit: unit inside the package.
        dtype: numpy's name of the type of labels.
        systems: what has the property: ``any``, ``molecules``, or ``crystals``, periodic in three directions.
        weight: weight in the loss unless another is given.
        head: output layers that predict it: those of the ``energy``, also for derivatives, or a key of :data:`HEADS`.
        canonical_unit: returns the canonical spelling of a unit of a file.
        factor: returns the conversion factor from a unit of a file.
        default_unit: unit in files that name only that of their energies, as a format of it.
    """

    letter: str
    name: str
    singular: str
    plural: str
    per: str
    shape: tuple[int, ...]
    unit: str
    canonical_unit: Callable[[str], str]
    factor: Callable[[str], float]
    default_unit: str
    dtype: str = "float32"
    systems: str = "any"
    weight: float = 1.0
    head: str = "energy"

    @property
    def mask(self) -> str:
        """Key of the mask in ``Data``."""
        return f"{self.name}_mask"

    def is_defined(self, pbc: Sequence[bool]) -> bool:
        """True if a system with these periodic directions has the property."""
        return {"any": True, "molecules": not any(pbc), "crystals": all(pbc)}[self.systems]


def _derivative(power: int) -> tuple[Callable[[str], str], Callable[[str], float]]:
    return partial(units.derivative_unit, power=power), partial(units.derivative_factor, power=power)


ENERGY = Property(
    *("E", "energy", "energy", "energies", "graph", (), "kcal/mol"),
    *(units.energy_unit, units.energy_factor, "{}", "float64"),
)
"""Total energy, the sum of atomic energies."""

FORCES = Property("F", "forces", "force", "forces", "atom", (3,), "kcal/mol/Å", *_derivative(1), "{}/Å")
"""−dE/dx."""

STRESS = Property(
    "S", "stress", "stress", "stresses", "graph", (3, 3), "kcal/mol/Å³", *_derivative(3), "{}/Å³", systems="crystals"
)
"""(1/V) dE/dε of graphs that are periodic in three directions; symmetric, positive under tension, as in ASE."""

HESSIAN = Property(
    *("H", "hessian", "Hessian", "Hessians", "pair", (3, 3), "kcal/mol/Å²", *_derivative(2), "{}/Å²"), weight=0.01
)
"""d²E/dx dx'. Of stretched bonds some thousand kcal/mol/Å², so that a weight of 1 would drown energies and forces."""

DIPOLE = Property(
    *("D", "dipole", "dipole", "dipoles", "graph", (3,), "e·Å"),
    *(units.dipole_unit, units.dipole_factor, "e·Å"),
    systems="molecules",
    head="charges",
)
"""Σ q x, of charged graphs relative to the centre of mass."""

CHARGES = Property(
    *("Q", "charges", "charge", "charges", "atom", (), "e"),
    *(units.charge_unit, units.charge_factor, "e"),
    head="charges",
)
"""Atomic charges, which add up to the charge of the graph."""

PROPERTIES = {p.letter: p for p in (ENERGY, FORCES, STRESS, HESSIAN, DIPOLE, CHARGES)}
"""All properties by their letters, in the order in which letters are written."""

BY_NAME = {p.name: p for p in PROPERTIES.values()}
"""All properties by their names."""


HEADS = {"charges": "mfpyg.models.charges:ChargeHead"}
"""Heads beside that of the energy, as ``module:class``; see :class:`mfpyg.models.heads.FurtherHead`."""


def heads_of(letters: Iterable[str]) -> tuple[str, ...]:
    """Heads, beside that of the energy, that predict these properties."""
    heads = [PROPERTIES[letter].head for letter in in_order(letters)]
    return tuple(dict.fromkeys(head for head in heads if head in HEADS))


def of_heads(heads: Iterable[str]) -> str:
    """Letters of the properties that these heads predict."""
    known = set(heads)
    return "".join(letter for letter, p in PROPERTIES.items() if p.head in known)


def in_order(letters: Iterable[str]) -> str:
    """Letters of properties, each once, in the order of :data:`PROPERTIES`."""
    chosen = set(letters)
    return "".join(letter for letter in PROPERTIES if letter in chosen)


def listed(letters: Iterable[str]) -> str:
    """Properties in words: ``energies and forces``."""
    *first, last = (PROPERTIES[letter].plural for letter in letters)
    return f"{', '.join(first)} and {last}" if first else last


def parse_letters(text: str, what: str) -> str:
    """Letters such as ``EFH``, in the order of :data:`PROPERTIES`.

    Args:
        text: letters in any order.
        what: what they belong to, for the error message.

    Raises:
        MFPyGError: for no letter, an unknown or a repeated one.
    """
    if not text or len(set(text)) < len(text) or not set(text) <= PROPERTIES.keys():
        known = ", ".join(f"{p.letter} ({p.plural})" for p in PROPERTIES.values())
        raise MFPyGError(f"malformed {what}: expected letters of properties, each once: {known}; as in dz:EFD")
    return in_order(text)
