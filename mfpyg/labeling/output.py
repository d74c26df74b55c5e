"""Files of labelled frames: extended XYZ or HDF5, and a YAML file beside them about the levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from ase.data import chemical_symbols
from ase.io.extxyz import PROPERTY_NAME_MAP

from mfpyg.datasets.frames import Frame, total_charge
from mfpyg.datasets.labels import shape_in_file
from mfpyg.datasets.levels import level_as_text
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import LabelKeys, LevelOfTheory
from mfpyg.files import replace_file, sidecar, write_text
from mfpyg.inference.extxyz import FORMATS, frame_as_text, kept_values, pair
from mfpyg.labeling.jobs import formula_of
from mfpyg.labeling.level import LabelLevel
from mfpyg.properties import PROPERTIES, Property
from mfpyg.strict_yaml import read_yaml

FORMATS_BY_SUFFIX = {".xyz": "extxyz", ".extxyz": "extxyz", ".h5": "hdf5", ".hdf5": "hdf5"}

Labels = dict[str, dict[str, Any]]
"""Labels of a frame: values by the names of levels and of properties."""


def format_of(path: Path) -> str:
    """``extxyz`` or ``hdf5``, by the suffix.

    Raises:
        MFPyGError: for another suffix.
    """
    if path.suffix.lower() not in FORMATS_BY_SUFFIX:
        raise unknown_name("suffix of the output", path.suffix, FORMATS_BY_SUFFIX)
    return FORMATS_BY_SUFFIX[path.suffix.lower()]


def check_target(path: Path, levels: Sequence[LabelLevel]) -> None:
    """Check that an output, if it exists, has no other levels than these, whose labels would be lost.

    Raises:
        MFPyGError: saying what to do.
    """
    if not path.exists():
        return
    if not sidecar(path).is_file():
        raise MFPyGError(f"{path} exists and was not written by mfpyg-label; choose another output, or remove it")
    found = read_yaml(sidecar(path), "levels").get("levels", {})
    now = {level.name: level for level in levels}
    for name, about in found.items():
        if name not in now:
            raise MFPyGError(
                f"{path} has labels of level '{name}', which is not among those given; give it too (no label is "
                "computed twice), or choose another output"
            )
        before = f"{about['program']}:{about['method']}"
        if before != f"{now[name].program}:{now[name].method}":
            raise MFPyGError(f"{path} has level '{name}' computed with {before}, not {now[name]}; choose another name")


def write_output(path: Path, frames: Sequence[Frame], labels: Sequence[Labels], levels: Sequence[LabelLevel]) -> None:
    """Write frames and their labels in one step.

    Args:
        path: output; its suffix gives the format.
        frames: frames with at least one label each.
        labels: labels of each.
        levels: levels of theory.
    """
    if format_of(path) == "extxyz":
        replace_file(path, lambda name: _write_xyz(name, frames, labels, levels))
    else:
        replace_file(path, lambda name: _write_hdf5(name, frames, labels, levels))


def _write_xyz(name: str, frames: Sequence[Frame], labels: Sequence[Labels], levels: Sequence[LabelLevel]) -> None:
    taken = {f"{level.name}_{p.name}" for level in levels for p in PROPERTIES.values()}
    with open(name, "w", encoding="utf-8", newline="\n") as file:
        for frame, of_frame in zip(frames, labels, strict=True):
            new = {f"{level}_{key}": (key, value) for level, of in of_frame.items() for key, value in of.items()}
            values = {key: value for key, value in frame.values.items() if key not in taken}
            columns, pairs = kept_values(frame._replace(values=values), set(), {})
            for key, (property, value) in new.items():
                array = np.array(value, float)
                if property in _PER_ATOM:
                    columns[PROPERTY_NAME_MAP.get(key, key)] = array.reshape(len(array), -1), FORMATS["f"][1]
                else:
                    size = math.isqrt(array.size)
                    matrix = array.reshape(size, size) if property == "hessian" else array
                    pairs.append(pair(key, matrix if array.ndim else float(array)) or "")
            file.write(frame_as_text(frame, columns, pairs))


_PER_ATOM = {p.name for p in PROPERTIES.values() if p.per == "atom"}


def _write_hdf5(name: str, frames: Sequence[Frame], labels: Sequence[Labels], levels: Sequence[LabelLevel]) -> None:
    """Groups of frames with the same atoms in the same order, as in the ANI-1x release and for pyanitools."""
    groups: dict[tuple[bytes, str], list[int]] = {}
    for number, frame in enumerate(frames):
        groups.setdefault((frame.z.tobytes(), str(frame.values.get("molecule", ""))), []).append(number)
    with h5py.File(name, "w") as file:
        for (_, molecule), rows in groups.items():
            z = frames[rows[0]].z
            title = (molecule or formula_of(z.tolist())).replace("/", "|")
            unique = next(t for t in (title, *(f"{title}-{n}" for n in range(2, len(groups) + 2))) if t not in file)
            group = file.create_group(unique)
            group["atomic_numbers"] = z.astype(np.uint8)
            group["species"] = np.array([chemical_symbols[n].encode() for n in z])
            group["coordinates"] = np.stack([frames[row].pos for row in rows])
            group["charge"] = np.array([round(total_charge(frames[row], "frame")) for row in rows], np.int64)
            for level in levels:
                _write_level(group, level, [labels[row].get(level.name, {}) for row in rows], len(z))


def _write_level(group: h5py.Group, level: LabelLevel, labels: Sequence[Mapping[str, Any]], n_atoms: int) -> None:
    """Arrays of a level, with NaN where a conformation lacks a label."""
    for property in _properties(level):
        if not any(property.name in of for of in labels):
            continue
        shape = shape_in_file(property, n_atoms)
        missing = np.full(shape, np.nan)
        values = np.stack([np.array(of.get(property.name, missing), float).reshape(shape) for of in labels])
        array = group.create_dataset(f"{level.name}.{property.name}", data=values)
        array.attrs.update(unit=property.default_unit.format("eV"), method=level.method, program=level.program)


def dataset_of(path: Path, labels: Sequence[Labels], levels: Sequence[LabelLevel]) -> str:
    """Value of ``--dataset`` for an output, without levels that no frame has; keys that frames lack are optional."""
    join = "_" if format_of(path) == "extxyz" else "."
    written = []
    for level in levels:
        counts = {p.name: sum(p.name in of.get(level.name, {}) for of in labels) for p in _properties(level)}
        keys = {
            p.letter: LabelKeys((f"{level.name}{join}{p.name}",), p.canonical_unit(p.default_unit.format("eV")))
            for p in _properties(level)
            if counts[p.name]
        }
        optional = tuple(f"{level.name}{join}{name}" for name, count in counts.items() if count < len(labels))
        if keys:
            written.append(level_as_text(LevelOfTheory(level.name, keys, "", optional)))
    start = str(path) if join == "_" else f"pyanitools:{path}"
    return ":".join([start, *written])


def _properties(level: LabelLevel) -> list[Property]:
    return [PROPERTIES[letter] for letter in level.letters]


def write_sidecar(path: Path, contents: Mapping[str, Any]) -> None:
    """Write the file about the levels of an output."""
    text = yaml.safe_dump(dict(contents), sort_keys=False, allow_unicode=True, width=1000)
    write_text(sidecar(path), text)
