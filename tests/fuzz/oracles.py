"""What a mutated file holds, read slowly and independently of the package: one value at a time, no block, no ASE.

An oracle either says exactly what the data set has to be, or why the file should have been refused
(:class:`Wrong`), or that it can't tell (:class:`Unsure`), for the few texts whose meaning only ASE's parser defines.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HARTREE = 627.5094740631
"""In kcal/mol."""

_ELEMENTS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc
Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi
Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS = _ELEMENTS.split()

Keys = tuple[str, tuple[str, ...], str | None, int]
"""Name of a level, keys of the summands of its energy, key of its forces, and the forces' sign."""

RELEASE_KEYS: dict[str, list[Keys]] = {
    "minichno": [
        ("dz", ("wb97x_dz.energy",), "wb97x_dz.forces", 1),
        ("tz", ("wb97x_tz.energy",), "wb97x_tz.forces", 1),
        ("mp2", ("hf_tz.energy", "mp2_tz.corr_energy"), None, 1),
        ("cc", ("ccsd(t)_dz.energy",), "ccsd(t)_dz.forces", 1),
    ],
    "ani1x": [
        ("dz", ("wb97x_dz.energy",), "wb97x_dz.forces", 1),
        ("tz", ("wb97x_tz.energy",), "wb97x_tz.forces", 1),
        ("mp2", ("hf_tz.energy", "mp2_tz.corr_energy"), None, 1),
        ("cc", ("ccsd(t)_cbs.energy",), None, 1),
    ],
}


class Wrong(Exception):
    """The file is no correct one: it should have been refused."""


class Unsure(Exception):
    """The oracle can't tell."""


@dataclass
class Molecule:
    """One conformation as the data set has to have it; labels by level, missing ones NaN."""

    z: list[int]
    pos: list[list[np.float32]]
    energy: list[float]
    forces: list[list[list[np.float32]]]
    molecule: set[str]
    conformation: int
    split: int = -1
    cell: list[list[np.float32]] = field(default_factory=lambda: [[np.float32(0)] * 3 for _ in range(3)])
    pbc: list[bool] = field(default_factory=lambda: [False] * 3)


@dataclass
class Expected:
    """A whole data set.

    Attributes:
        fidelities: names of the levels, in the order of the labels.
        molecules: all conformations.
        notes: on what is correct but remarkable.
        ordered: whether the order is the file's; a group with two names may stand at either.
    """

    fidelities: list[str]
    molecules: list[Molecule] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ordered: bool = True


def differences(dataset: Any, expected: Expected) -> list[str]:
    """What differs between a data set and what it should be; nothing may."""
    if list(dataset.fidelities) != expected.fidelities:
        return [f"fidelities {list(dataset.fidelities)}, expected {expected.fidelities}"]
    if len(dataset) != len(expected.molecules):
        return [f"{len(dataset)} conformations, expected {len(expected.molecules)}"]
    found = []
    right_ones = expected.molecules
    if not expected.ordered:
        names = [dataset.molecules[int(item.molecule)] for item in dataset]
        by_name = {(name, right.conformation): right for right in right_ones for name in right.molecule}
        keys = [(name, int(item.conformation)) for name, item in zip(names, dataset, strict=True)]
        right_ones = [by_name[key] for key in keys if key in by_name]
        if len({id(right) for right in right_ones}) < len(expected.molecules):
            return [f"molecules {keys}, expected {sorted(by_name)}"]
    periodic = any(any(right.pbc) for right in right_ones)
    for i, right in enumerate(right_ones):
        item = dataset[i]
        if ("cell" in item, "pbc" in item) != (periodic, periodic):
            found.append(f"keys of {i}: {sorted(item.keys())}, expected {'a' if periodic else 'no'} cell")
        elif periodic and not (_same(item.cell[0].tolist(), right.cell) and item.pbc[0].tolist() == right.pbc):
            found.append(f"cell of {i}: {item.cell.tolist()} {item.pbc.tolist()}, expected {right.cell} {right.pbc}")
        if item.z.tolist() != right.z:
            found.append(f"z of {i}: {item.z.tolist()}, expected {right.z}")
        if not _same(item.pos.tolist(), right.pos):
            found.append(f"pos of {i}: {item.pos.tolist()}, expected {right.pos}")
        if not _same(item.energy[0].tolist(), right.energy):
            found.append(f"energy of {i}: {item.energy[0].tolist()}, expected {right.energy}")
        if item.energy_mask[0].tolist() != [not math.isnan(value) for value in right.energy]:
            found.append(f"energy_mask of {i}: {item.energy_mask.tolist()}")
        for t in range(len(expected.fidelities)):
            forces = right.forces[t]
            whole = bool(forces) and not any(math.isnan(x) for atom in forces for x in atom)
            if not whole:
                forces = [[np.float32("nan")] * 3 for _ in right.z]
            if not _same(item.forces[:, t].tolist(), forces):
                found.append(f"forces {t} of {i}: {item.forces[:, t].tolist()}, expected {forces}")
            if bool(item.forces_mask[0, t]) != whole:
                found.append(f"forces_mask {t} of {i}: {bool(item.forces_mask[0, t])}, expected {whole}")
        name = dataset.molecules[int(item.molecule)]
        if name not in right.molecule:
            found.append(f"molecule of {i}: {name!r}, expected {right.molecule}")
        found += [
            f"{key} of {i}: {int(item[key])}, expected {getattr(right, key)}"
            for key in ("conformation", "split")
            if int(item[key]) != getattr(right, key)
        ]
    unprintable = [name for name in dataset.molecules if name.encode(errors="replace") != name.encode(errors="ignore")]
    return found + [f"molecule {name!r} can't be printed" for name in unprintable]


def _same(found: Any, right: Any) -> bool:
    if isinstance(right, (list, tuple)):
        return len(found) == len(right) and all(map(_same, found, right))
    return float(found) == float(right) or (math.isnan(found) and math.isnan(right))


# --- HDF5 -----------------------------------------------------------------------------------------------------


def _array(group: h5py.Group, key: str, notes: list[str]) -> h5py.Dataset:
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise Wrong(f"{group.name}/{key} is a link")
    array = group[key]
    if not isinstance(array, h5py.Dataset):
        raise Wrong(f"{group.name}/{key} is no array")
    if array.is_virtual or array.external:
        raise Wrong(f"{group.name}/{key} is kept elsewhere")
    if array.shape is None:
        raise Wrong(f"{group.name}/{key} has no values")
    if array.size and _has_holes(array):
        raise Wrong(f"{group.name}/{key} was never written, or not all of it")
    if array.dtype.kind == "f" and not any(array.id.get_type().equal(kind) for kind in _FLOATS):
        notes.append("no IEEE float")
    return array


def _address(thing: h5py.Group) -> Any:
    """What tells an object of the file from any other; where its header can't be read twice, only from itself."""
    try:
        return h5py.h5o.get_info(thing.id).addr
    except RuntimeError:
        return object()


def _kind(group: h5py.Group, key: str) -> type | None:
    """Class of what stands under a name, none for links. What can't be opened is an array; its use then shows it."""
    link = group.get(key, getlink=True)
    if link is None:
        raise Wrong(f"{group.name} lists {key}, where nothing can be found")
    if not isinstance(link, h5py.HardLink):
        return None
    try:
        return type(group[key])
    except (KeyError, OSError, RuntimeError):
        return h5py.Dataset


_FLOATS = [
    *(h5py.h5t.IEEE_F16LE, h5py.h5t.IEEE_F16BE, h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F32BE),
    *(h5py.h5t.IEEE_F64LE, h5py.h5t.IEEE_F64BE, h5py.h5t.NATIVE_LDOUBLE),
]


def _has_holes(array: h5py.Dataset) -> bool:
    """Whether some of it was never written, so that HDF5 makes it up."""
    layout = array.id.get_create_plist().get_layout()
    if layout == h5py.h5d.CHUNKED:
        chunks = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
        return array.id.get_num_chunks() < chunks
    return layout == h5py.h5d.CONTIGUOUS and array.id.get_offset() is None


def _label(array: h5py.Dataset, shape: tuple[int, ...]) -> np.ndarray:
    """Labels may have more axes of length one, or fewer, but for the first."""
    if array.shape[:1] == shape[:1] and [n for n in array.shape if n != 1] == [n for n in shape if n != 1]:
        return _numbers(array, array.shape).reshape(shape)
    return _numbers(array, shape)


def _numbers(array: h5py.Dataset, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.dtype.kind != "f":
        raise Wrong(f"{array.name} is {array.shape} {array.dtype}, expected {shape} floats")
    return array[()]


def _labels(group: h5py.Group, levels: Sequence[Keys], n: int, size: int, notes: list[str]) -> Iterator[Any]:
    """For each conformation its energies and its forces, by level."""
    arrays = {key: _label(_array(group, key, notes), (n,)) for _, energy, _, _ in levels for key in energy}
    for _, _, forces, _ in levels:
        if forces is not None:
            arrays[forces] = _label(_array(group, forces, notes), (n, size, 3))
    for row in range(n):
        energies, all_forces = [], []
        for _, energy, forces, sign in levels:
            total = 0.0
            for key in energy:
                total = total + float(arrays[key][row])
            energies.append(total * HARTREE if energy else math.nan)
            all_forces.append(
                []
                if forces is None
                else [
                    [np.float32(float(arrays[forces][row, atom, x]) * (sign * HARTREE)) for x in range(3)]
                    for atom in range(size)
                ]
            )
        for value in [*energies, *(x for of_level in all_forces for atom in of_level for x in atom)]:
            if math.isinf(value):
                raise Wrong(f"{group.name}: infinite label of conformation {row}")
        yield energies, all_forces


def _positions(group: h5py.Group, size: int, notes: list[str]) -> list[list[list[np.float32]]]:
    array = _array(group, "coordinates", notes)
    if len(array.shape) != 3:
        raise Wrong(f"{array.name} has shape {array.shape}")
    values = _numbers(array, (array.shape[0], size, 3))
    found = [[[np.float32(x) for x in atom] for atom in row] for row in values]
    if not all(math.isfinite(x) for row in found for atom in row for x in atom):
        raise Wrong(f"{group.name}: coordinates not finite")
    return found


def release(path: Path, layout: str, mode: str) -> Expected:
    """A file in the ANI-1x release layout.

    Args:
        path: of the file.
        layout: ``minichno`` or ``ani1x``, which says what keys the levels have.
        mode: ``usual`` for those of the levels that the file has, ``asked`` for dz and cc only, ``whole`` for those
            that all groups have.
    """
    with h5py.File(path, "r") as file:
        names = list(file)
        addresses = set()
        for name in names:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise Wrong(f"{name} is a link")
            if not isinstance(file[name], h5py.Group):
                raise Wrong(f"{name} is an array")
            addresses.add(_address(file[name]))
        if len(addresses) < len(names):
            raise Wrong("one group under two names, so each of its conformations twice")
        keys = [set(file[name]) for name in names]
        somewhere, everywhere = set().union(*keys), set.intersection(*keys) if keys else set()
        levels: list[Keys] = []
        for level, energy, forces, sign in RELEASE_KEYS[layout]:
            if mode == "asked" and level not in ("dz", "cc"):
                continue
            if mode == "whole" and not everywhere.issuperset({*energy, *({forces} & somewhere)}):
                continue
            if somewhere.issuperset(energy):
                levels.append((level, energy, forces if forces in somewhere else None, sign))
            elif mode == "asked":
                raise Wrong(f"no {level}")
        expected = Expected([level[0] for level in levels])
        with_split = 0
        for name, present in zip(names, keys, strict=True):
            group = file[name]
            z = _array(group, "atomic_numbers", expected.notes)
            if len(z.shape) != 1 or z.dtype.kind not in "iu":
                raise Wrong(f"{z.name} is {z.shape} {z.dtype}")
            numbers = [int(v) for v in z[()]]
            if any(not 1 <= number <= 118 for number in numbers):
                raise Wrong(f"{z.name} holds {numbers}")
            positions = _positions(group, len(numbers), expected.notes)
            n = len(positions)
            split, molecule = [-1] * n, [name.strip("/")] * n
            if "split" in present:
                array = _array(group, "split", expected.notes)
                if array.shape != (n,) or array.dtype.kind not in "iu":
                    raise Wrong(f"{array.name} is {array.shape} {array.dtype}")
                split = [int(v) for v in array[()]]
                if any(value not in (0, 1, 2) for value in split):
                    raise Wrong(f"{array.name} holds {split}")
                with_split += n
            if "molecule" in present:
                array = _array(group, "molecule", expected.notes)
                if array.shape != (n,) or h5py.check_string_dtype(array.dtype) is None:
                    raise Wrong(f"{array.name} is {array.shape} {array.dtype}")
                try:
                    molecule = [bytes(v).decode() for v in array[()]]
                except UnicodeDecodeError:
                    raise Wrong(f"{array.name} is no text") from None
            for row, (energy, forces) in enumerate(_labels(group, levels, n, len(numbers), expected.notes)):
                if not numbers:
                    raise Wrong(f"{group.name}: no atoms")
                found = Molecule(numbers, positions[row], energy, forces, {molecule[row]}, row, split[row])
                expected.molecules.append(found)
    if with_split not in (0, len(expected.molecules)):
        raise Wrong("split in some groups only")
    return expected


def pyanitools(path: Path, optional: bool) -> Expected:
    """A file in the pyanitools layout; ``optional`` where groups may lack energies or forces."""
    expected = Expected(["dz"], ordered=False)
    with h5py.File(path, "r") as file:
        names_of: dict[Any, set[str]] = {}
        order: list[Any] = []
        used: set[str] = set()
        waiting: list[tuple[str, h5py.Group, tuple[Any, ...]]] = [("", file["/"], ())]
        while waiting:
            name, group, above = waiting.pop(0)
            address = _address(group)
            if address in above:
                continue
            if address not in names_of:
                names_of[address] = set()
                order.append((address, group))
            names_of[address].add(name)
            inner = [
                (f"{name}/{key}" if name else key, group[key], (*above, address))
                for key in group
                if _kind(group, key) is h5py.Group
            ]
            waiting = inner + waiting
        for address, group in order:
            arrays = [key for key in group if _kind(group, key) is h5py.Dataset]
            if not arrays:
                if not len(group):
                    expected.notes.append("empty group")
                continue
            if names_of[address] == {""}:
                raise Wrong("arrays at the root")
            species = _array(group, "species", expected.notes)
            if len(species.shape) != 1 or h5py.check_string_dtype(species.dtype) is None:
                raise Wrong(f"{species.name} is {species.shape} {species.dtype}")
            symbols = [bytes(symbol).decode("utf-8", "replace").strip(" \0") for symbol in species[()]]
            if any(symbol not in SYMBOLS for symbol in symbols):
                raise Wrong(f"{species.name} holds {symbols}")
            numbers = [1 + SYMBOLS.index(symbol) for symbol in symbols]
            positions = _positions(group, len(numbers), expected.notes)
            energy = ("energies",) if "energies" in arrays else ()
            forces = "forces" if "forces" in arrays else None
            if not optional and not (energy and forces):
                raise Wrong(f"{group.name} lacks labels")
            used |= {*energy, *({forces} - {None})}
            levels: list[Keys] = [("dz", energy, forces, -1)]
            for row, (energies, of_row) in enumerate(
                _labels(group, levels, len(positions), len(numbers), expected.notes)
            ):
                if not numbers:
                    raise Wrong(f"{group.name}: no atoms")
                found = Molecule(numbers, positions[row], energies, of_row, names_of[address], row)
                expected.molecules.append(found)
        if used != {"energies", "forces"}:
            raise Wrong(f"no group has some label; only {used}")
    return expected


# --- extended XYZ ---------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d+")
_PAIR = re.compile(r"([^\s\"'{}\[\]\\=]+)(?:=(?:\"([^\"\\]*)\"|([^\s\"'{}\[\]\\=]+)))?(?:\s+|$)")

XYZ_FACTOR = 23.060547830619
"""One eV in kcal/mol."""


def _number(text: str) -> float:
    text = re.sub(r"(?<=\d)_(?=\d)", "", text)  # as Python reads it
    if _NUMBER.fullmatch(text) is None:
        raise Wrong(f"{text!r} is no number")
    return float(text)


def extxyz(path: Path, levels: Sequence[Keys], optional: Sequence[str]) -> Expected:
    """Frames of an extended-XYZ file, line by line."""
    expected = Expected([level[0] for level in levels])
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Wrong("no text") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    row = number = with_split = 0
    seen: set[str] = set()
    while row < len(lines) and lines[row].strip():
        if not re.fullmatch(r"\s*\d+\s*", lines[row], re.ASCII):
            raise Wrong(f"line {row} is no count")
        n = int(lines[row])
        atoms = lines[row + 2 : row + 2 + n]
        if n == 0 or len(atoms) < n:
            raise Wrong(f"frame {number} of {n} atoms has {len(atoms)}")
        info = _comment(lines[row + 1])
        columns = _columns(info.pop("Properties", "species:S:1:pos:R:3"))
        rows = [_row(line, columns) for line in atoms]
        arrays: dict[str, list[list[Any]]] = {}
        for name, _, _ in columns:
            if name in arrays:
                raise Wrong(f"column {name} twice")
            arrays[name] = [found[name] for found in rows]
        for twice in arrays.keys() & info.keys():
            raise Unsure(f"{twice} in comment and columns")
        cell, pbc = _lattice(info)
        found = _frame(arrays, info, levels, optional, number)
        found.cell, found.pbc = _checked_lattice(cell, pbc, f"frame {number}")
        seen |= arrays.keys() | info.keys()
        with_split += found.split >= 0
        expected.molecules.append(found)
        row, number = row + 2 + n, number + 1
    if any(line.strip() for line in lines[row:]):
        raise Wrong(f"text after the blank line {row}")
    _finish(expected, levels, seen, with_split)
    return expected


def _comment(line: str) -> dict[str, str]:
    line, at, info = line.strip(), 0, {}
    while at < len(line):
        match = _PAIR.match(line, at)
        if match is None:
            raise Unsure(f"comment {line[at : at + 20]!r}")
        key, quoted, bare = match.groups()
        if key in info:
            raise Wrong(f"{key} twice in a comment")
        info[key] = quoted if quoted is not None else bare if bare is not None else "T"
        at = match.end()
    return info


def _columns(text: str) -> list[tuple[str, str, int]]:
    parts = text.split(":")
    if len(parts) % 3:
        raise Wrong(f"Properties={text}")
    columns = []
    for name, kind, width in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if kind not in ("R", "I", "S", "L") or not re.fullmatch(r"[1-9]\d*", width, re.ASCII):
            raise Wrong(f"Properties={text}")
        columns.append((name, kind, int(width)))
    return columns


def _row(line: str, columns: Sequence[tuple[str, str, int]]) -> dict[str, list[Any]]:
    words = line.split()
    if len(words) != sum(width for _, _, width in columns):
        raise Wrong(f"row {line[:60]!r} has {len(words)} columns, not as Properties say")
    found: dict[str, list[Any]] = {}
    for name, kind, width in columns:
        here, words = words[:width], words[width:]
        if kind == "R":
            found[name] = [_number(word) for word in here]
        elif kind == "I":
            if not all(_INTEGER.fullmatch(word) for word in here):
                raise Wrong(f"{here} are no integers")
            found[name] = [int(word) for word in here]
        else:
            found[name] = list(here)
    return found


def _lattice(info: dict[str, str]) -> tuple[list[list[float]], list[bool]]:
    """Lattice vectors and along which of them a frame is repeated; their keys are taken out of the comment."""
    words = info.get("pbc", "F" if "Lattice" not in info else "T").split()
    if len(words) not in (1, 3):
        raise Wrong(f"pbc {words}")
    if any(word not in ("T", "F", "True", "False", "true", "false", "TRUE", "FALSE") for word in words):
        if not all(word in ("0", "1") for word in words):
            raise Wrong(f"pbc {words}")
        words = ["FT"[int(word)] for word in words]
    numbers = [_number(word) for word in info.get("Lattice", "0 0 0 0 0 0 0 0 0").split()]
    if len(numbers) != 9:
        raise Wrong(f"Lattice of {len(numbers)} numbers")
    pbc = [word[0] in "Tt" for word in words] * (3 // len(words))
    for key in ("pbc", "Lattice"):
        info.pop(key, None)
    return [numbers[:3], numbers[3:6], numbers[6:]], pbc


def _checked_lattice(cell: list[list[float]], pbc: list[bool], where: str) -> tuple[list[list[np.float32]], list[bool]]:
    """Lattice vectors in single precision, those that are no numbers zero; refused where nothing can be repeated."""
    with np.errstate(over="ignore"):
        single = [[np.float32(x) for x in vector] for vector in cell]
    finite = [all(math.isfinite(x) for x in vector) for vector in single]
    vectors = [[float(x) for x in vector] for vector, repeated in zip(single, pbc, strict=True) if repeated]
    if any(repeated and not good for repeated, good in zip(pbc, finite, strict=True)):
        raise Wrong(f"{where}: periodic along what is no number")
    lengths = [math.hypot(*vector) for vector in vectors]
    # Gram and Schmidt: the volume is the product of what is left of each vector beside those before.
    volume, basis = 1.0, list[list[float]]()
    for vector in vectors:
        for unit in basis:
            along = sum(x * y for x, y in zip(vector, unit, strict=True))
            vector = [x - along * y for x, y in zip(vector, unit, strict=True)]
        left = math.hypot(*vector)
        volume *= left
        basis.append([x / left for x in vector] if left else vector)
    least = max(0.1, 1e-4 * math.prod(lengths))
    if vectors and abs(volume / least - 1) < 1e-3:
        raise Unsure(f"{where}: a cell at the border of what is one")
    if vectors and volume < least:
        raise Wrong(f"{where}: periodic in no volume")
    zero = [np.float32(0)] * 3
    return [vector if good else zero for vector, good in zip(single, finite, strict=True)], pbc


def _frame(
    arrays: Mapping[str, list[list[Any]]],
    info: Mapping[str, Any],
    levels: Sequence[Keys],
    optional: Sequence[str],
    number: int,
) -> Molecule:
    z = [1 + SYMBOLS.index(symbol) for symbol in _symbols(arrays)]
    positions = arrays.get("pos", arrays.get("positions"))
    if positions is None or any(len(atom) != 3 for atom in positions):
        raise Wrong("no positions")
    pos = [[np.float32(x) for x in atom] for atom in positions]
    if not all(math.isfinite(x) for atom in pos for x in atom):
        raise Wrong("positions not finite")
    energies, all_forces = [], []
    for _, energy, forces, sign in levels:
        total = 0.0
        if len(z) == 1 and any((key in arrays) != (key == forces) for key in (*energy, forces)):
            raise Unsure("a row of an array where one atom alone makes it what is expected")
        for key in energy:
            if key not in info and key not in optional:
                raise Wrong(f"frame {number} lacks {key}")
            total = total + (_number(info[key]) if key in info else math.nan)
        energies.append(total * XYZ_FACTOR)
        if forces is None or (forces not in arrays and forces in optional):
            all_forces.append([])
            continue
        if forces not in arrays or any(len(atom) != 3 for atom in arrays[forces]):
            raise Wrong(f"frame {number} lacks {forces}")
        with np.errstate(over="ignore"):
            all_forces.append([[np.float32(x * (sign * XYZ_FACTOR)) for x in atom] for atom in arrays[forces]])
    for value in [*energies, *(x for of_level in all_forces for atom in of_level for x in atom)]:
        if math.isinf(value):
            raise Wrong("infinite label")
    split = -1
    if "split" in info:
        if info["split"] not in ("0", "1", "2"):
            raise Wrong(f"split {info['split']}")
        split = int(info["split"])
    return Molecule(z, pos, energies, all_forces, _names(info.get("molecule", ""), z), number, split)


def _symbols(arrays: Mapping[str, list[list[Any]]]) -> list[str]:
    given = arrays.get("Z", arrays.get("numbers"))
    if given is not None:
        if any(len(atom) != 1 or not isinstance(atom[0], int) or not 1 <= atom[0] <= 118 for atom in given):
            raise Wrong("no elements")
        return [SYMBOLS[atom[0] - 1] for atom in given]
    given = arrays.get("species", arrays.get("symbols"))
    if given is None or any(len(atom) != 1 for atom in given):
        raise Wrong("no elements")
    symbols = [str(atom[0]).capitalize() for atom in given]
    if any(symbol not in SYMBOLS for symbol in symbols):
        raise Wrong(f"no elements: {symbols}")
    return symbols


def _names(given: str, z: Sequence[int]) -> set[str]:
    if _INTEGER.fullmatch(given):
        return {str(int(given))}
    if given:
        return {given}
    counts: dict[str, int] = {}
    for number in z:
        symbol = SYMBOLS[number - 1]
        counts[symbol] = counts.get(symbol, 0) + 1
    order = sorted(counts)
    if "C" in counts:
        order = ["C", *(["H"] if "H" in counts else []), *(symbol for symbol in order if symbol not in ("C", "H"))]
    return {"".join(f"{symbol}{counts[symbol]}" for symbol in order)}


def _finish(expected: Expected, levels: Sequence[Keys], seen: set[str], with_split: int) -> None:
    for _, energy, forces, _ in levels:
        for key in (*energy, *([forces] if forces else [])):
            if key not in seen:
                raise Wrong(f"no frame has {key}")
    if with_split not in (0, len(expected.molecules)):
        raise Wrong("split in some frames only")
    if not expected.molecules:
        raise Wrong("empty")


# --- ASE databases --------------------------------------------------------------------------------------------


def database(path: Path, levels: Sequence[Keys], optional: Sequence[str]) -> Expected:
    """Rows of an ASE database, by SQL alone."""
    expected = Expected([level[0] for level in levels])
    with_split, seen = 0, set[str]()
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        (healthy,) = connection.execute("PRAGMA quick_check(systems)").fetchone()
        if healthy != "ok":  # rows may be missing
            raise Wrong(f"SQLite: {' '.join(healthy.split())[:100]}")
        rows = connection.execute(
            "SELECT id, numbers, positions, cell, pbc, energy, forces, key_value_pairs, data FROM systems ORDER BY id"
        ).fetchall()
    except sqlite3.Error as error:
        raise Wrong(f"SQLite: {error}") from None
    finally:
        connection.close()
    for number, (_, numbers, positions, cell, pbc, energy, forces, pairs, data) in enumerate(rows):
        n = len(numbers) // 4
        z = list(struct.unpack(f"<{n}i", numbers))
        if any(not 1 <= value <= 118 for value in z):
            raise Wrong(f"row {number}: elements {z}")
        if not isinstance(positions, bytes) or len(positions) != 24 * n:
            raise Wrong(f"row {number}: positions")
        if pbc is not None and not isinstance(pbc, int):
            raise Wrong(f"row {number}: pbc")
        vectors = [[0.0] * 3 for _ in range(3)] if cell is None else _triples(cell)
        if len(vectors) != 3:
            raise Wrong(f"row {number}: cell")
        info: dict[str, Any] = {}
        arrays: dict[str, list[list[Any]]] = {}
        if energy is not None:
            info["energy"] = energy
        if forces is not None:
            arrays["forces"] = _triples(forces)
        extra = _data_of(data)
        for key, value in {**extra, **json.loads(pairs)}.items():
            (arrays if isinstance(value, list) else info)[key] = value
        arrays |= {"Z": [[value] for value in z], "pos": _triples(positions)}
        texts = {key: value if isinstance(value, str) else repr(value) for key, value in info.items()}
        seen |= arrays.keys() | info.keys()
        for _, keys, force_key, _ in levels:
            if any(isinstance(info.get(key, 0.0), (str, bool)) for key in keys):
                raise Wrong(f"row {number}: energy no number")
            if force_key in arrays and len(arrays[force_key]) != n:
                raise Wrong(f"row {number}: forces of another size")
        found = _frame(arrays, texts, levels, optional, number)
        repeated = [bool((pbc or 0) & bit) for bit in (1, 2, 4)]
        found.cell, found.pbc = _checked_lattice(vectors, repeated, f"row {number}")
        with_split += found.split >= 0
        expected.molecules.append(found)
    _finish(expected, levels, seen, with_split)
    return expected


def _triples(blob: bytes) -> list[list[Any]]:
    if not isinstance(blob, bytes) or len(blob) % 24:
        raise Wrong("no triples of numbers")
    return [list(struct.unpack("<3d", blob[at : at + 24])) for at in range(0, len(blob), 24)]


def _data_of(blob: Any) -> dict[str, Any]:
    """ASE's ``data``: an offset, arrays, and at the offset JSON that says where the arrays are."""
    if blob is None or blob == b"" or isinstance(blob, str):
        return json.loads(blob) if blob else {}
    (offset,) = struct.unpack("<q", blob[:8])
    found = json.loads(blob[offset:].decode())
    result: dict[str, Any] = {}
    for key, value in (found or {}).items():
        if isinstance(value, dict) and "__ndarray__" in value:
            shape, kind, start = value["__ndarray__"]
            if kind != "float64" or len(shape) != 2 or shape[1] != 3:
                raise Wrong(f"array {key} is {shape} {kind}")
            value = _triples(blob[start : start + 24 * shape[0]])
            if len(value) != shape[0]:
                raise Wrong(f"array {key} is cut off")
        result[key] = value
    return result
