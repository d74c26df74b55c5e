"""Prediction of files: from any format that ASE reads to extended XYZ, JSON, JSON lines or CSV.

Input and output are streamed, so that memory does not grow with the number of frames.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.io.extxyz import PROPERTY_NAME_MAP
from ase.stress import full_3x3_to_voigt_6_stress
from ase.symbols import Symbols

from mfpyg.datasets.frames import frames_of
from mfpyg.errors import MFPyGError, MFPyGWarning, shown, unknown_name
from mfpyg.files import replace_file
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.extxyz import FORMATS, frame_as_text, kept_values, pair
from mfpyg.inference.frames import BATCH_SIZE, FramePrediction, names_of, predict_frames, with_energies
from mfpyg.properties import PROPERTIES, STRESS, Property
from mfpyg.units import energy_unit

_OF_ENERGY = {"energies", "free_energy", "stresses"}
"""Other results that belong to an energy, and are not kept beside another one."""

_NAMED = 10
"""Maximum number of values named in the warning about values that are not kept."""

Track = Callable[[Iterator[FramePrediction]], Iterable[FramePrediction]]


def predict_file(
    ensemble: Ensemble,
    source: Path,
    target: Path,
    fidelities: Sequence[str] | str | None = None,
    *,
    properties: str = "EF",
    unit: str = "eV",
    batch_size: int = BATCH_SIZE,
    input_format: str | None = None,
    output_format: str | None = None,
    track: Track = iter,
) -> int:
    """Predict all frames of a file. The target is written atomically.

    Args:
        ensemble: one potential or several.
        source: file that ASE reads, see :func:`mfpyg.datasets.frames.frames_of`.
        target: output file; may exist, but must differ from the source.
        fidelities: one or several names; optional if there is only one fidelity.
        properties, unit: as in :func:`mfpyg.inference.frames.predict_frames`; CSV has no Hessians.
        batch_size: maximum number of frames in a batch.
        input_format: ASE's name of the format; default: determined from the file.
        output_format: ``extxyz``, ``json``, ``jsonl`` or ``csv``; default: by the suffix of the target.
        track: wraps the predictions to show progress.

    Returns:
        The number of frames.

    Warns:
        MFPyGWarning: naming values of the input that extended XYZ cannot represent or that are replaced by predictions.

    Raises:
        MFPyGError: for an invalid file, name or property, or a frame that cannot be read or predicted; keeps the old
            target.
    """
    format_name = format_of(target, output_format)
    if target.exists() and source.exists() and target.samefile(source):
        raise MFPyGError(f"{target} is the input; choose another name for the output")
    names = names_of(ensemble, fidelities)
    output = output_of(names, unit, ensemble.letters_with_std(names, with_energies(properties)), properties)
    of_pairs = [p.plural for p in output.quantities.values() if p.per == "pair"]
    if format_name == "csv" and of_pairs:
        raise MFPyGError(f"{of_pairs[0]} do not fit in CSV; leave them out, or write .xyz, .json or .jsonl")
    frames = frames_of(source, input_format)
    predictions = predict_frames(
        ensemble, frames, names, properties=properties, unit=unit, batch_size=batch_size, source=str(source)
    )
    n_frames = 0

    def counted() -> Iterator[FramePrediction]:
        nonlocal n_frames
        for prediction in track(predictions):
            n_frames += 1
            yield prediction

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(WRITERS[format_name](counted(), output))

    replace_file(target, write)
    if output.lost:
        more = f" and {len(output.lost) - _NAMED} more" if len(output.lost) > _NAMED else ""
        listed = ", ".join(f"{shown(name)} ({reason})" for name, reason in list(output.lost.items())[:_NAMED])
        warnings.warn(f"{target} lacks some values of the input: {listed}{more}", MFPyGWarning, stacklevel=2)
    return n_frames


@dataclass(frozen=True)
class Output:
    """Contents of the output for each frame.

    Attributes:
        fidelities: names of the fidelities, in the order in which they are written.
        unit: unit of energies, a key of :data:`mfpyg.units.ENERGY_UNITS`; their derivatives are by Å.
        quantities: attributes of :class:`mfpyg.inference.frames.Values` to write, and the properties that they are
            values or standard deviations of.
        lost: names of input values that are not written to extended XYZ, with the reason; filled while writing.
    """

    fidelities: tuple[str, ...]
    unit: str
    quantities: dict[str, Property]
    lost: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def as_results(self) -> bool:
        """True if ASE may read the values as calculator results: a single fidelity in eV."""
        return len(self.fidelities) == 1 and self.unit == "eV"

    def unit_of(self, quantity: str) -> str:
        """Unit of a quantity."""
        return self.quantities[quantity].default_unit.format(self.unit)


def output_of(fidelities: Iterable[str], unit: str, std: str = "", properties: str = "EF") -> Output:
    """Create an output description.

    Args:
        fidelities: names of the fidelities.
        unit: unit of energies, as accepted by :func:`mfpyg.units.energy_unit`.
        std: letters of the properties whose standard deviations are written, too.
        properties: letters of the properties to write; energies are always written.

    Raises:
        MFPyGError: for an unknown unit or letter.
    """
    wanted = [PROPERTIES[letter] for letter in with_energies(properties)]
    quantities = {p.name + suffix: p for p in wanted for suffix in ("", "_std") if not suffix or p.letter in std}
    return Output(tuple(fidelities), energy_unit(unit), quantities)


def as_extxyz(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """Write extended XYZ, as ASE's writer does where that is lossless.

    Values of a single fidelity in eV are named ``energy``, ``forces``, ``dipole`` and so on, which ASE reads as
    calculator results (``hessian`` (3n, 3n) is in ``info``); otherwise names are prefixed with the fidelity
    (``cc_energy``), and ``energy_unit`` is added if it is not eV. Other values of the input are written so that ASE
    reads them back unchanged, see :func:`mfpyg.inference.extxyz.pair`; values for which that is impossible, or that are
    replaced by predictions, are omitted and listed in ``output.lost``. Real columns have 8 decimals, as in ASE, or all
    digits if needed.
    """
    prefixes = {name: "" if output.as_results else f"{name}_" for name in output.fidelities}
    taken = _replaced(output, prefixes.values())
    for prediction in predictions:
        columns, pairs = kept_values(prediction.frame, taken, output.lost)
        for name, values in prediction.of.items():
            for quantity, p in output.quantities.items():
                value, key = getattr(values, quantity), prefixes[name] + quantity
                if value is None:
                    continue
                if p.per == "atom":
                    columns[PROPERTY_NAME_MAP.get(key, key)] = value.reshape(len(value), -1), FORMATS["f"][1]
                else:
                    pairs.append(pair(key, value) or "")
        if output.unit != "eV":
            pairs.append(f"energy_unit={output.unit}")
        yield frame_as_text(prediction.frame, columns, pairs)


def _replaced(output: Output, prefixes: Iterable[str]) -> set[str]:
    """Keys of input values that are not kept, as they belong to another energy or other charges than those predicted.

    With ASE's numbered names of the columns of an array.
    """
    heads = {p.head for p in output.quantities.values()}
    taken = set(_OF_ENERGY) if output.as_results else {"energy_unit"}
    for p in PROPERTIES.values():
        if p.head in heads:
            names = {prefix + p.name + suffix for prefix in prefixes for suffix in ("", "_std")}
            numbers = range(math.prod(p.shape) if p.per == "atom" and p.shape else 0)
            taken |= names | {f"{name}{number}" for name in names for number in numbers}
    return taken


def as_json(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """Write one object with ``units``, ``fidelities`` and the list ``frames``, with one line per frame."""
    units = {quantity: output.unit_of(quantity) for quantity in output.quantities}
    head = {"units": units, "fidelities": output.fidelities}
    yield json.dumps(head, ensure_ascii=False)[:-1] + ', "frames": ['
    separator = "\n"
    for prediction in predictions:
        yield separator + json.dumps(_as_dict(prediction, output), allow_nan=False)
        separator = ",\n"
    yield "\n]}\n"


def as_jsonl(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """Write one object per line and frame, each with its ``energy_unit``."""
    for prediction in predictions:
        yield json.dumps({**_as_dict(prediction, output), "energy_unit": output.unit}, allow_nan=False) + "\n"


def _as_dict(prediction: FramePrediction, output: Output) -> dict[str, Any]:
    """Number of the frame, formula, and the values of each fidelity; ``None`` where it does not have them."""
    frame = prediction.frame
    result: dict[str, Any] = {"frame": frame.number, "formula": _formula(frame.z.tobytes())}
    for name, values in prediction.of.items():
        wanted = {quantity: getattr(values, quantity) for quantity in output.quantities}
        result[name] = {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in wanted.items()}
    return result


def as_csv(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """Write a header with units, then one row per frame; arrays are space-separated lists in one cell.

    Forces and charges are in the order of the atoms; stresses are xx, yy, zz, yz, xz, xy, as in ASE.
    """
    names = [f"{name}_{q} [{output.unit_of(q)}]" for name in output.fidelities for q in output.quantities]
    yield _csv_row(["frame", "formula", "n_atoms", *names])
    for prediction in predictions:
        frame = prediction.frame
        row: list[Any] = [frame.number, _formula(frame.z.tobytes()), len(frame.z)]
        for values in prediction.of.values():
            row += [_cell(getattr(values, quantity), p) for quantity, p in output.quantities.items()]
        yield _csv_row(row)


def _cell(value: float | np.ndarray | None, p: Property) -> Any:
    if p is STRESS and value is not None:
        value = full_3x3_to_voigt_6_stress(value)
    return " ".join(map(str, value.ravel().tolist())) if isinstance(value, np.ndarray) else value


def _csv_row(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


@functools.lru_cache(maxsize=1024)
def _formula(numbers: bytes) -> str:
    """Formula in Hill order; ``numbers`` are the bytes of atomic numbers (n,) int64."""
    return str(Symbols(np.frombuffer(numbers, dtype=np.int64)).get_chemical_formula())


Writer = Callable[[Iterable[FramePrediction], Output], Iterator[str]]

WRITERS: dict[str, Writer] = {"extxyz": as_extxyz, "json": as_json, "jsonl": as_jsonl, "csv": as_csv}
"""Writers by output format."""

_SUFFIXES = {".xyz": "extxyz", ".extxyz": "extxyz", ".json": "json", ".jsonl": "jsonl", ".csv": "csv"}


def format_of(path: Path, name: str | None = None) -> str:
    """Output format by name, or else by the suffix of the file.

    Raises:
        MFPyGError: for an unknown name or suffix.
    """
    if name is not None:
        if name not in WRITERS:
            raise unknown_name("output format", name, WRITERS)
        return name
    if path.suffix.lower() not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise MFPyGError(f"{path}: unknown suffix (known: {known}); choose a format with --output-format")
    return _SUFFIXES[path.suffix.lower()]
