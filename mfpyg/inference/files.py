"""Prediction of files: frames in any format that ASE reads to extended XYZ, JSON, JSON lines or CSV.

Both sides are streamed, so that memory does not grow with the number of frames.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.spacegroup import Spacegroup
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from ase.symbols import Symbols

from mfpyg.datasets.frames import Frame, frames_of
from mfpyg.errors import MFPyGError, MFPyGWarning, shown, unknown_name
from mfpyg.files import replace_file
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.extxyz import FORMATS, RESERVED, Columns, add_column, choose_digits, frame_as_text, pair
from mfpyg.inference.frames import BATCH_SIZE, FramePrediction, names_of, predict_frames
from mfpyg.units import energy_unit

_PREDICTED = {"energy", "energies", "free_energy", "forces", "stress", "stresses"}
"""Results that make no sense beside our energy."""

_QUANTITIES = ("energy", "energy_std", "forces", "forces_std", "stress", "stress_std")

_NAMED = 10
"""Values named in the warning about those that are not kept; more are counted."""

Track = Callable[[Iterator[FramePrediction]], Iterable[FramePrediction]]


def predict_file(
    ensemble: Ensemble,
    source: Path,
    target: Path,
    fidelities: Sequence[str] | str | None = None,
    *,
    forces: bool | None = None,
    stress: bool = False,
    unit: str = "eV",
    batch_size: int = BATCH_SIZE,
    input_format: str | None = None,
    output_format: str | None = None,
    track: Track = iter,
) -> int:
    """Predict all frames of a file; the target is replaced in one step when the last one is written.

    Args:
        ensemble: one potential or several.
        source: what ASE reads, see :func:`mfpyg.datasets.frames.frames_of`.
        target: of which the suffix says the format; may exist, but not be the source.
        fidelities: a name or several; may be left out only where there is a single one.
        forces: whether forces are wanted; if not given, in all formats but CSV.
        stress: whether stresses are wanted, of frames that repeat in all directions.
        unit: of energies, see :data:`mfpyg.units.ENERGY_UNITS`; forces are per Å.
        batch_size: most frames predicted at once.
        input_format: ASE's name of it, where the file does not say.
        output_format: ``extxyz``, ``json``, ``jsonl`` or ``csv``; if not given, by the target's suffix.
        track: shows the progress.

    Returns:
        The number of frames.

    Warns:
        MFPyGWarning: naming what frames came with that extended XYZ cannot hold or that is predicted anew.

    Raises:
        MFPyGError: if either file or a name is not as it should be, or a frame cannot be read or predicted, which it
            names; nothing is left at the target's place then but what was there before.
    """
    format_name = format_of(target, output_format)
    if target.exists() and source.exists() and target.samefile(source):
        raise MFPyGError(f"{target} is the input; choose another name for the output")
    if forces is None:
        forces = format_name != "csv"
    names = names_of(ensemble, fidelities)
    output = output_of(names, unit, len(ensemble.members) > 1, forces, stress)
    frames = frames_of(source, input_format)
    found = predict_frames(
        ensemble, frames, names, forces=forces, stress=stress, unit=unit, batch_size=batch_size, source=str(source)
    )
    n_frames = 0

    def counted() -> Iterator[FramePrediction]:
        nonlocal n_frames
        for one in track(found):
            n_frames += 1
            yield one

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(WRITERS[format_name](counted(), output))

    replace_file(target, write)
    if output.lost:
        more = f" and {len(output.lost) - _NAMED} more" if len(output.lost) > _NAMED else ""
        listed = ", ".join(f"{shown(name)} ({reason})" for name, reason in list(output.lost.items())[:_NAMED])
        warnings.warn(f"{target} is without some of what frames came with: {listed}{more}", MFPyGWarning, stacklevel=2)
    return n_frames


@dataclass(frozen=True)
class Output:
    """Predictions written for each frame.

    Attributes:
        fidelities: names, in the order in which they are written.
        unit: of energies, a key of :data:`mfpyg.units.ENERGY_UNITS`; forces are per Å, stresses per Å³.
        quantities: those of the attributes of :class:`mfpyg.inference.frames.Values` that predictions have.
        lost: what frames came with and extended XYZ is without, each with the reason; grows while it is written.
    """

    fidelities: tuple[str, ...]
    unit: str
    quantities: tuple[str, ...]
    lost: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def as_results(self) -> bool:
        """True if ASE may read the values as results of a calculator: those of one fidelity in eV."""
        return len(self.fidelities) == 1 and self.unit == "eV"

    def unit_of(self, quantity: str) -> str:
        """The unit of a quantity."""
        per = {"energy": "", "forces": "/Å", "stress": "/Å³"}
        return self.unit + per[quantity.removesuffix("_std")]


def output_of(fidelities: Iterable[str], unit: str, spread: bool, forces: bool, stress: bool) -> Output:
    """Output of these predictions.

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
    unless it is eV. What else a frame came with is read back by ASE as it was; what cannot be is left out, and so is
    what is predicted anew, and ``output.lost`` says which. See :func:`mfpyg.inference.extxyz.pair` for the values of
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
        yield frame_as_text(one.frame, columns, pairs)


def _kept(frame: Frame, taken: set[str], lost: dict[str, str]) -> tuple[Columns, list[str]]:
    """Values of a frame that extended XYZ can hold: columns of the atoms, and ``key=value`` of the frame."""
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
            text = None if key in RESERVED else pair(key, _full_stress(value) if key == "stress" else value)
            if text is not None:
                pairs.append(text)
            if text is None or isinstance(value, Spacegroup):
                reasons[key] = (
                    "written as its symbol" if text else f"{type(value).__name__} that the format cannot hold"
                )
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
