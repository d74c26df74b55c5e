"""Prediction of files: from any format that ASE reads to extended XYZ, JSON, JSON lines or CSV.

Input and output are streamed, so that memory does not grow with the number of frames.
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
"""Results in the input that are replaced by the predictions."""

_QUANTITIES = ("energy", "energy_std", "forces", "forces_std", "stress", "stress_std")

_NAMED = 10
"""Maximum number of values named in the warning about values that are not kept."""

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
    """Predict all frames of a file. The target is written atomically.

    Args:
        ensemble: one potential or several.
        source: file that ASE reads, see :func:`mfpyg.datasets.frames.frames_of`.
        target: output file; may exist, but must differ from the source.
        fidelities: one or several names; optional if there is only one fidelity.
        forces: whether to predict forces; default: in all formats except CSV.
        stress: whether to predict stresses of frames that are periodic in all directions.
        unit: unit of energies, see :data:`mfpyg.units.ENERGY_UNITS`; forces are per Å.
        batch_size: maximum number of frames in a batch.
        input_format: ASE's name of the format; default: determined from the file.
        output_format: ``extxyz``, ``json``, ``jsonl`` or ``csv``; default: by the suffix of the target.
        track: wraps the predictions to show progress.

    Returns:
        The number of frames.

    Warns:
        MFPyGWarning: naming values of the input that extended XYZ cannot represent or that are replaced by predictions.

    Raises:
        MFPyGError: for an invalid file or name, or a frame that cannot be read or predicted; keeps the old target.
    """
    format_name = format_of(target, output_format)
    if target.exists() and source.exists() and target.samefile(source):
        raise MFPyGError(f"{target} is the input; choose another name for the output")
    if forces is None:
        forces = format_name != "csv"
    names = names_of(ensemble, fidelities)
    output = output_of(names, unit, len(ensemble.members) > 1, forces, stress)
    frames = frames_of(source, input_format)
    predictions = predict_frames(
        ensemble, frames, names, forces=forces, stress=stress, unit=unit, batch_size=batch_size, source=str(source)
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
        unit: unit of energies, a key of :data:`mfpyg.units.ENERGY_UNITS`; forces are per Å, stresses per Å³.
        quantities: attributes of :class:`mfpyg.inference.frames.Values` to write.
        lost: names of input values that are not written to extended XYZ, with the reason; filled while writing.
    """

    fidelities: tuple[str, ...]
    unit: str
    quantities: tuple[str, ...]
    lost: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def as_results(self) -> bool:
        """True if ASE may read the values as calculator results: a single fidelity in eV."""
        return len(self.fidelities) == 1 and self.unit == "eV"

    def unit_of(self, quantity: str) -> str:
        """Unit of a quantity."""
        per = {"energy": "", "forces": "/Å", "stress": "/Å³"}
        return self.unit + per[quantity.removesuffix("_std")]


def output_of(fidelities: Iterable[str], unit: str, spread: bool, forces: bool, stress: bool) -> Output:
    """Create an output description.

    Args:
        fidelities: names of the fidelities.
        unit: unit of energies, as accepted by :func:`mfpyg.units.energy_unit`.
        spread: whether to write standard deviations.
        forces, stress: whether to write them.

    Raises:
        MFPyGError: for an unknown unit.
    """
    wanted = {"energy": True, "forces": forces, "stress": stress}
    quantities = [q for q in _QUANTITIES if wanted[q.removesuffix("_std")] and (spread or not q.endswith("_std"))]
    return Output(tuple(fidelities), energy_unit(unit), tuple(quantities))


def as_extxyz(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """Write extended XYZ, as ASE's writer does where that is lossless.

    Values of a single fidelity in eV are named ``energy``, ``forces`` and ``stress``, which ASE reads as calculator
    results; otherwise names are prefixed with the fidelity (``cc_energy``), and ``energy_unit`` is added if it is not
    eV. Other values of the input are written so that ASE reads them back unchanged, see
    :func:`mfpyg.inference.extxyz.pair`; values for which that is impossible, or that are replaced by predictions, are
    omitted and listed in ``output.lost``. Real columns have 8 decimals, as in ASE, or all digits if needed.
    """
    prefixes = {name: "" if output.as_results else f"{name}_" for name in output.fidelities}
    taken = {prefix + quantity for prefix in prefixes.values() for quantity in _QUANTITIES}
    taken |= _PREDICTED if output.as_results else {"energy_unit"}
    taken |= {f"{name}{number}" for name in taken if "forces" in name for number in range(3)}  # ASE's column names
    for prediction in predictions:
        columns, pairs = _kept(prediction.frame, taken, output.lost)
        for name, values in prediction.of.items():
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
        yield frame_as_text(prediction.frame, columns, pairs)


def _kept(frame: Frame, taken: set[str], lost: dict[str, str]) -> tuple[Columns, list[str]]:
    """Input values to keep, as per-atom columns and ``key=value`` pairs; others are added to ``lost``."""
    columns: Columns = {"pos": (frame.pos, "")}
    pairs, reasons = [], {"constraints": "not read"} if frame.constrained else {}
    for key, value in frame.values.items():
        if key in taken:
            reasons[key] = "replaced by the prediction"
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
        reason = "replaced by the prediction" if key in taken else add_column(columns, key, value)
        if reason is not None:
            reasons[f"{key} of the atoms"] = reason
    for key, reason in reasons.items():
        lost.setdefault(str(key), f"{reason}, frame {frame.number}")
    choose_digits(columns)
    return columns, pairs


def _full_stress(value: Any) -> Any:
    return voigt_6_to_full_3x3_stress(value) if np.shape(value) == (6,) else value


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
    """Number of the frame, formula, and the values of each fidelity; stresses are (3, 3) or ``None``."""
    frame = prediction.frame
    result: dict[str, Any] = {"frame": frame.number, "formula": _formula(frame.z.tobytes())}
    for name, values in prediction.of.items():
        wanted = {quantity: getattr(values, quantity) for quantity in output.quantities}
        result[name] = {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in wanted.items()}
    return result


def as_csv(predictions: Iterable[FramePrediction], output: Output) -> Iterator[str]:
    """Write a header with units, then one row per frame; forces and stresses are space-separated lists in one cell.

    Forces are in the order of the atoms; stresses are xx, yy, zz, yz, xz, xy, as in ASE.
    """
    names = [f"{name}_{q} [{output.unit_of(q)}]" for name in output.fidelities for q in output.quantities]
    yield _csv_row(["frame", "formula", "n_atoms", *names])
    for prediction in predictions:
        frame = prediction.frame
        row: list[Any] = [frame.number, _formula(frame.z.tobytes()), len(frame.z)]
        for values in prediction.of.values():
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
