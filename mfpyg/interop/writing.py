"""Predictions of frames as text: extended XYZ, JSON, JSON lines, CSV. A frame at a time, so that any number fits."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import all_properties
from ase.data import chemical_symbols
from ase.io.extxyz import key_val_dict_to_str
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from ase.symbols import Symbols

from mfpyg.datasets.frames import Frame
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.interop.predict import FramePrediction
from mfpyg.units import energy_unit

_FORMATS = {"f": ("R", "%16.8f"), "i": ("I", "%8d"), "b": ("L", " %.1s"), "U": ("S", "%-2s"), "O": ("S", "%s")}
"""Of a column in extended XYZ by numpy's kind, as ASE writes them."""

_RESERVED = {"symbols", "positions", "numbers", "species", "pos", "Z", "Properties", "Lattice", "pbc"}
_QUANTITIES = ("energy", "energy_std", "forces", "forces_std", "stress", "stress_std")


@dataclass(frozen=True)
class Output:
    """What is written of each frame.

    Attributes:
        fidelities: names, in the order in which they are written.
        unit: of energies, a key of :data:`mfpyg.units.ENERGY_UNITS`; forces are per Å, stresses per Å³.
        quantities: those of the attributes of :class:`mfpyg.interop.predict.Values` that predictions have.
    """

    fidelities: tuple[str, ...]
    unit: str
    quantities: tuple[str, ...]

    @property
    def as_results(self) -> bool:
        """Whether ASE may read the values as results of a calculator: those of one fidelity, in ASE's unit."""
        return len(self.fidelities) == 1 and self.unit == "eV"

    def unit_of(self, quantity: str) -> str:
        """The unit of a quantity."""
        per = {"energy": "", "forces": "/Å", "stress": "/Å³"}
        return self.unit + per[quantity.removesuffix("_std")]


def output_of(fidelities: Iterable[str], unit: str, spread: bool, forces: bool, stress: bool) -> Output:
    """What is written where these are predicted.

    Args:
        unit: as :func:`mfpyg.units.energy_unit` reads it.

    Raises:
        MFPyGError: for an unknown unit.
    """
    wanted = {"energy": True, "forces": forces, "stress": stress}
    quantities = [q for q in _QUANTITIES if wanted[q.removesuffix("_std")] and (spread or not q.endswith("_std"))]
    return Output(tuple(fidelities), energy_unit(unit), tuple(quantities))


def as_extxyz(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """Frames as ASE's own writer writes them, digit by digit.

    Values of one fidelity in eV are called ``energy``, ``forces`` and ``stress``, which ASE reads as a calculator's
    results; all others have the fidelity's name before them (``cc_energy``), and ``energy_unit`` stands beside them
    unless it is eV. What else a frame came with is written too, as far as the format can hold it and no name is
    taken; beside results of ours, those that a frame came with are left out.
    """
    prefixes = {name: "" if output.as_results else f"{name}_" for name in output.fidelities}
    taken = {prefix + quantity for prefix in prefixes.values() for quantity in _QUANTITIES} | _RESERVED
    taken |= {*all_properties} if output.as_results else {"energy_unit"}
    for one in predictions:
        columns, info = _kept(one.frame, taken)
        for name, values in one.of.items():
            for quantity in output.quantities:
                value = getattr(values, quantity)
                if value is not None:
                    to = columns if quantity.startswith("forces") else info
                    to[prefixes[name] + quantity] = value
        if output.unit != "eV":
            info["energy_unit"] = output.unit
        yield _extxyz_frame(one.frame, columns, info)


def _kept(frame: Frame, taken: set[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a frame came with and extended XYZ can hold: columns of the atoms, and values of the frame."""
    columns, info = {}, {}
    for key, value in frame.values.items():
        if key in taken:
            continue
        if key not in frame.columns:
            if "\n" not in str(value):
                info[key] = voigt_6_to_full_3x3_stress(value) if key == "stress" and np.size(value) == 6 else value
        elif value.ndim <= 2 and value.dtype.kind in _FORMATS and _are_words(value):
            columns[key] = value
    return columns, info


def _are_words(column: np.ndarray) -> bool:
    return column.dtype.kind not in "UO" or all(len(str(word).split()) == 1 for word in column.flat)


def _extxyz_frame(frame: Frame, columns: dict[str, np.ndarray], info: dict[str, Any]) -> str:
    n = len(frame.z)
    arrays = [frame.pos, *(column.reshape(n, -1) for column in columns.values())]
    kinds = [array.dtype.kind for array in arrays]
    formats = "".join(f" {_FORMATS[kind][1]}" * array.shape[1] for kind, array in zip(kinds, arrays, strict=True))
    if {*kinds} == {"f"}:
        numbers = np.concatenate(arrays, axis=1).ravel().tolist()
    else:
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        numbers = [value for of_atom in rows for values in of_atom for value in values]
    properties = "species:S:1:pos:R:3"
    for name, array in zip(columns, arrays[1:], strict=True):
        properties += f":{name}:{_FORMATS[array.dtype.kind][0]}:{array.shape[1]}"
    cell = frame.cell.ravel().tolist()
    lattice = f'Lattice="{" ".join(map(str, cell))}" ' if any(cell) else ""
    about = " ".join([_pair(key, value) for key, value in info.items()] + [_pbc(*frame.pbc.tolist())])
    head = f"{n}\n{lattice}Properties={properties} {about}\n"
    return head + _template(frame.z.tobytes(), formats) % tuple(numbers)


@functools.lru_cache(maxsize=1024)
def _template(numbers: bytes, formats: str) -> str:
    """The lines of the atoms of these atomic numbers, (n,) int64 as bytes, each with these formats to be filled."""
    symbols = [chemical_symbols[z] for z in np.frombuffer(numbers, dtype=np.int64).tolist()]
    return "".join(f"{symbol:<2}{formats}\n" for symbol in symbols)


def _pair(key: str, value: Any) -> str:
    """As ASE writes it, which takes many times as long where a number needs no quotes."""
    return f"{key}={value}" if type(value) is float and key.isidentifier() else key_val_dict_to_str({key: value})


@functools.lru_cache
def _pbc(*repeats: bool) -> str:
    return key_val_dict_to_str({"pbc": np.array(repeats)})


def as_json(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """One object: ``units``, ``fidelities`` and ``frames``, a list with a line for each."""
    units = {quantity: output.unit_of(quantity) for quantity in output.quantities}
    head = {"units": units, "fidelities": output.fidelities}
    yield json.dumps(head, ensure_ascii=False)[:-1] + ', "frames": ['
    between = "\n"
    for one in predictions:
        yield between + json.dumps(_plain(one, output), allow_nan=False)
        between = ",\n"
    yield "\n]}\n"


def as_jsonl(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """A line for each frame, which says its unit, as there is no head."""
    for one in predictions:
        yield json.dumps({**_plain(one, output), "energy_unit": output.unit}, allow_nan=False) + "\n"


def _plain(one: FramePrediction, output: Output) -> dict[str, Any]:
    """Number in the file, formula, and each fidelity's values; stresses are (3, 3), or ``None`` where there is none."""
    about: dict[str, Any] = {"frame": one.frame.number, "formula": _formula(one.frame.z.tobytes())}
    for name, values in one.of.items():
        found = {quantity: getattr(values, quantity) for quantity in output.quantities}
        about[name] = {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in found.items()}
    return about


def as_csv(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """A row for each frame, with units in the first; the numbers of forces and stresses in a cell, by spaces.

    Forces are those of the first atom, then of the second; stresses xx, yy, zz, yz, xz, xy, as in ASE.
    """
    names = [f"{name}_{q} [{output.unit_of(q)}]" for name in output.fidelities for q in output.quantities]
    yield _csv_row(["frame", "formula", "n_atoms", *names])
    for one in predictions:
        row: list[Any] = [one.frame.number, _formula(one.frame.z.tobytes()), len(one.frame.z)]
        for values in one.of.values():
            row += [_cell(getattr(values, quantity), quantity) for quantity in output.quantities]
        yield _csv_row(row)


def _cell(value: float | np.ndarray | None, quantity: str) -> Any:
    if quantity.startswith("stress") and value is not None:
        value = full_3x3_to_voigt_6_stress(value)
    return " ".join(map(str, value.ravel().tolist())) if isinstance(value, np.ndarray) else value


def _csv_row(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


@functools.lru_cache(maxsize=1024)
def _formula(numbers: bytes) -> str:
    """Hill's formula of atomic numbers, (n,) int64 as bytes."""
    return str(Symbols(np.frombuffer(numbers, dtype=np.int64)).get_chemical_formula())


Writer = Callable[[Iterable[FramePrediction], Output], Iterator[str]]

WRITERS: dict[str, Writer] = {"extxyz": as_extxyz, "json": as_json, "jsonl": as_jsonl, "csv": as_csv}
"""Formats of the output, and how predictions become their text."""

_SUFFIXES = {".xyz": "extxyz", ".extxyz": "extxyz", ".json": "json", ".jsonl": "jsonl", ".csv": "csv"}


def format_of(path: Path, name: str | None = None) -> str:
    """The output format of this name; without one, that which the suffix of the file says.

    Raises:
        MFPyGError: for an unknown name or suffix.
    """
    if name is not None:
        if name not in WRITERS:
            raise unknown_name("output format", name, WRITERS)
        return name
    if path.suffix.lower() not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise MFPyGError(f"{path}: its suffix says no format (known: {known}); name one with --output-format")
    return _SUFFIXES[path.suffix.lower()]
