"""Predictions of frames as text: extended XYZ, JSON, JSON lines, CSV. A frame at a time, so that any number fits."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.spacegroup import Spacegroup
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from ase.symbols import Symbols

from mfpyg.datasets.frames import Frame
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.interop.columns import FORMATS, OF_FORMAT, Columns, add_column, choose_digits
from mfpyg.interop.comment import pair
from mfpyg.interop.predict import FramePrediction
from mfpyg.units import energy_unit

_PREDICTED = {"energy", "energies", "free_energy", "forces", "stress", "stresses"}
"""Results that make no sense beside our energy."""

_QUANTITIES = ("energy", "energy_std", "forces", "forces_std", "stress", "stress_std")


@dataclass(frozen=True)
class Output:
    """What is written of each frame.

    Attributes:
        fidelities: names, in the order in which they are written.
        unit: of energies, a key of :data:`mfpyg.units.ENERGY_UNITS`; forces are per Å, stresses per Å³.
        quantities: those of the attributes of :class:`mfpyg.interop.predict.Values` that predictions have.
        lost: what frames came with and extended XYZ is without, each with the reason; grows while it is written.
    """

    fidelities: tuple[str, ...]
    unit: str
    quantities: tuple[str, ...]
    lost: dict[str, str] = field(default_factory=dict, compare=False)

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
    """Frames as ASE's own writer writes them, where that loses nothing.

    Values of one fidelity in eV are called ``energy``, ``forces`` and ``stress``, which ASE reads as a calculator's
    results; all others have the fidelity's name before them (``cc_energy``), and ``energy_unit`` stands beside them
    unless it is eV. What else a frame came with is read back by ASE as it was; what can't be is left out, and so is
    what is predicted anew, and ``output.lost`` says which. See :func:`mfpyg.interop.comment.pair` for the values of
    the frame; columns of numbers have 8 digits after the point, as ASE's, or all where they need more.
    """
    prefixes = {name: "" if output.as_results else f"{name}_" for name in output.fidelities}
    taken = {prefix + quantity for prefix in prefixes.values() for quantity in _QUANTITIES}
    taken |= _PREDICTED if output.as_results else {"energy_unit"}
    taken |= {f"{name}{number}" for name in taken if "forces" in name for number in range(3)}  # what ASE makes of them
    for one in predictions:
        columns, pairs = _kept(one.frame, taken, output.lost)
        for name, values in one.of.items():
            for quantity in output.quantities:
                value = getattr(values, quantity)
                if value is None:
                    continue
                if quantity.startswith("forces"):
                    columns[prefixes[name] + quantity] = value, FORMATS["f"][1]
                else:
                    pairs.append(pair(prefixes[name] + quantity, value) or "")
        if output.unit != "eV":
            pairs.append(f"energy_unit={output.unit}")
        yield _extxyz_frame(one.frame, columns, pairs)


def _kept(frame: Frame, taken: set[str], lost: dict[str, str]) -> tuple[Columns, list[str]]:
    """What a frame came with and extended XYZ can hold: columns of the atoms, and ``key=value`` of the frame."""
    columns: Columns = {"pos": (frame.pos, "")}
    pairs, reasons = [], {"constraints": "not read"} if frame.constrained else {}
    for key, value in frame.values.items():
        if key in taken:
            reasons[key] = "predicted anew"
        elif key in frame.columns:
            reason = add_column(columns, key, value)
            if reason is not None:
                reasons[key] = reason
        else:
            text = None if key in OF_FORMAT else pair(key, _full_stress(value) if key == "stress" else value)
            if text is not None:
                pairs.append(text)
            if text is None or isinstance(value, Spacegroup):
                reasons[key] = "written as its symbol" if text else f"{type(value).__name__} that the format can't hold"
    for key, value in frame.hidden.items():
        reason = "predicted anew" if key in taken else add_column(columns, key, value)
        if reason is not None:
            reasons[f"{key} of the atoms"] = reason
    for key, reason in reasons.items():
        lost.setdefault(str(key), f"{reason}, frame {frame.number}")
    choose_digits(columns)
    return columns, pairs


def _full_stress(value: Any) -> Any:
    return voigt_6_to_full_3x3_stress(value) if np.shape(value) == (6,) else value


def _extxyz_frame(frame: Frame, columns: Columns, pairs: list[str]) -> str:
    arrays = [array for array, _ in columns.values()]
    properties, formats, all_floats = _layout(
        tuple((name, array.dtype.kind, array.shape[1], form) for name, (array, form) in columns.items())
    )
    if all_floats:
        numbers = np.concatenate(arrays, axis=1).ravel().tolist()
    else:
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        numbers = [value for of_atom in rows for values in of_atom for value in values]
    cell = frame.cell.ravel().tolist()
    lattice = f'Lattice="{" ".join(map(str, cell))}" ' if any(cell) else ""
    about = " ".join([*pairs, _pbc(*frame.pbc.tolist())])
    head = f"{len(frame.z)}\n{lattice}Properties={properties} {about}\n"
    return head + _template(frame.z.tobytes(), formats) % tuple(numbers)


@functools.lru_cache(maxsize=256)
def _layout(columns: tuple[tuple[str, str, int, str], ...]) -> tuple[str, str, bool]:
    """``Properties``, the format of a line, and whether all are reals, of columns by name, kind, width and format."""
    properties = "".join(f":{name}:{FORMATS[kind][0]}:{width}" for name, kind, width, _ in columns)
    formats = "".join(f" {form}" * width for _, _, width, form in columns)
    return f"species:S:1{properties}", formats, {kind for _, kind, _, _ in columns} == {"f"}


@functools.lru_cache(maxsize=1024)
def _template(numbers: bytes, formats: str) -> str:
    """The lines of the atoms of these atomic numbers, (n,) int64 as bytes, each with these formats to be filled."""
    symbols = [chemical_symbols[z] for z in np.frombuffer(numbers, dtype=np.int64).tolist()]
    return "".join(f"{symbol:<2}{formats}\n" for symbol in symbols)


@functools.lru_cache
def _pbc(*repeats: bool) -> str:
    return f'pbc="{" ".join("FT"[repeated] for repeated in repeats)}"'


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
