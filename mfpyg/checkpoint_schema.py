"""Schema of checkpoints: fields and the types of their values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import is_name
from mfpyg.properties import PROPERTIES


def is_array(value: Any) -> bool:
    """True for a dense real tensor whose storage is large enough for its shape."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return not value.is_complex() and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _is_level_name(value: Any) -> bool:
    return isinstance(value, str) and is_name(value)


def _are_letters(value: Any) -> bool:
    return isinstance(value, str) and set(value) <= PROPERTIES.keys()


def _are_fidelities(value: Any) -> bool:
    return fits(value, [_is_level_name]) and 0 < len(value) == len(set(value))


def _is_element(value: Any) -> bool:
    return fits(value, int) and 0 < value < 119


def _are_species(value: Any) -> bool:
    return fits(value, [_is_element]) and value == sorted(set(value)) != []


def _are_rows(value: Any) -> bool:
    rows = is_array(value) and value.dim() == 1 and value.dtype in (torch.int32, torch.int64)
    return rows and bool((value >= 0).all())


def _are_splits(value: Any) -> bool:
    return fits(value, {str: _are_rows}) and all(map(is_name, value))


def _is_plain(value: Any) -> bool:
    """True for values that YAML can hold."""
    return fits(value, (None, bool, str, int, [_is_plain], {str: _is_plain})) or isinstance(value, float)


def _are_sums(value: Any) -> bool:
    return fits(value, {str: is_array}) and all(one.dtype == torch.float64 and one.dim() == 2 for one in value.values())


def _are_loops(value: Any) -> bool:
    """True for counts in the loop states of Lightning."""
    if isinstance(value, dict):
        counts = ("ready", "started", "completed", "processed")
        return all(fits(one, int) if name in counts else _are_loops(one) for name, one in value.items())
    return fits(value, [_are_loops]) or isinstance(value, int)


_DATA = {
    "name": (str, [str]),
    "fingerprint": str,
    "methods": {str: str},
    "levels": (None, [str]),
}
_HELD_OUT = {
    "data": str,
    "rows": is_array,
    "n_atoms": is_array,
    "energy": {str: is_array},
    "forces": {str: is_array},
    "force_per_energy": {str: float},
    "pairs": is_array,
    "pair_scale": is_array,
}
_UNCERTAINTY = {
    "levels": {str: {"energy": is_array, "atoms": is_array, "scale": is_array}},
    "target_scale": (None, is_array),
    "quantiles": {str: is_array},
    "held_out": (None, _HELD_OUT),
}
SCHEMA: dict[str, tuple[Any, str]] = {
    "mfpyg.config": ({"fidelities": (None, [str])}, "settings"),
    "mfpyg.fidelities": (_are_fidelities, "a list of different names"),
    "mfpyg.units": ({str: str}, "names of units"),
    "mfpyg.species": (_are_species, "ascending atomic numbers"),
    "mfpyg.reference_energies": ({str: {str: float}}, "an energy for each element of each fidelity"),
    "mfpyg.data": (_DATA, "name, fingerprint and methods"),
    "mfpyg.splits": (_are_splits, "numbers of conformations"),
    "mfpyg.versions": ({str: str}, "versions of packages"),
    "mfpyg.init": ((None, {"fidelities": [str], "data": _DATA}), "a record of the initial potential, or nothing"),
    "mfpyg.further": ((None, {str: _are_letters}), "letters of properties with heads of their own, or nothing"),
    "mfpyg.base_level": ((None, str), "the name of a fidelity, or nothing"),
    "mfpyg.trained_species": ((None, {str: [_is_element]}), "the atomic numbers that each fidelity was trained on"),
    "mfpyg.n_parameters": ((None, int), "a whole number"),
    "mfpyg.backbone_package": ((None, str), "the name of a package, or nothing"),
    "epoch": ((None, int), "a whole number"),
    "global_step": ((None, int), "a whole number"),
    "loops": ((None, _are_loops), "counts of steps and epochs"),
    "uncertainty": ((None, _UNCERTAINTY), "standard deviations and the labels that calibrate them, or nothing"),
    "progress": ((None, {"epochs": int, "sums": (None, _are_sums)}), "a number of epochs and error sums"),
}
"""Type of each field, see :func:`fits`, and its description for errors."""

_REQUIRED = ("config", "fidelities", "units", "species", "reference_energies", "data", "splits", "versions")


def fits(value: Any, kind: Any) -> bool:
    """True if a value has a type of the schema.

    Args:
        value: of any type.
        kind: ``None``, ``str``, ``int``, ``float`` (a finite number); ``[kind]``, a list; ``{str: kind}``, a
            dictionary; ``{"name": kind, …}``, one with these values among others; ``(kind, …)``, any of them; or a
            predicate.
    """
    if kind is None:
        return value is None
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(one, kind[0]) for one in value)
    if isinstance(kind, dict):
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            return False
        pairs = ((one, kind[str]) for one in value.values()) if str in kind else ((value.get(k), kind[k]) for k in kind)
        return all(fits(one, of_one) for one, of_one in pairs)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, kind) if isinstance(kind, type) else bool(kind(value))


def check_checkpoint(checkpoint: Any, path: Path, format: int) -> None:
    """Check a checkpoint against the schema.

    Args:
        checkpoint: contents of the file.
        path: path of the file, for errors.
        format: expected format number.

    Raises:
        MFPyGError: naming the first field that is missing or wrong.
    """
    described = checkpoint.get("mfpyg") if isinstance(checkpoint, dict) else None
    if not isinstance(described, dict) or "state_dict" not in checkpoint:
        raise MFPyGError(f"{path}: not a checkpoint of mfpyg; expected one written by mfpyg-train")
    found = described.get("format")
    if not fits(found, int) or found != format:
        raise MFPyGError(f"{path}: format {in_words(found)}, expected {format}; use the version of mfpyg that wrote it")
    missing = [name for name in _REQUIRED if name not in described]
    if missing:
        raise MFPyGError(f"{path}: damaged, lacks {', '.join(missing)}")
    for field, (kind, expected) in SCHEMA.items():
        name = field.removeprefix("mfpyg.")
        value = (described if field.startswith("mfpyg.") else checkpoint).get(name)
        if not fits(value, kind):
            raise MFPyGError(f"{path}: damaged, its {name} is {in_words(value)}, expected {expected}")
    if not _is_plain(described["config"]):
        raise MFPyGError(f"{path}: damaged, its config is not made of numbers, strings, lists and dictionaries")
    _check_weights(checkpoint["state_dict"], path)
    if "raw_weights" in checkpoint:  # saved along with their average by optim.ema
        _check_weights(checkpoint["raw_weights"], path)
        for name, value in checkpoint["raw_weights"].items():
            average = checkpoint["state_dict"].get(name)
            if average is None or (average.shape, average.dtype) != (value.shape, value.dtype):
                raise MFPyGError(f"{path}: damaged, '{name}' in its raw_weights does not match its average")


def _check_weights(weights: Any, path: Path) -> None:
    """Check that weights are finite arrays."""
    if not isinstance(weights, dict) or not weights:
        raise MFPyGError(f"{path}: damaged, its state_dict is {in_words(weights)}, expected weights by name")
    for name, value in weights.items():
        if not isinstance(name, str) or not is_array(value):
            raise MFPyGError(f"{path}: damaged, weight '{name}' is {in_words(value)}, expected an array of numbers")
        if not torch.isfinite(value).all():
            raise MFPyGError(f"{path}: weight '{name}' is NaN or infinite; the file is damaged, or training diverged")


def in_words(value: Any) -> str:
    """Short description of a value of any type."""
    if isinstance(value, Tensor):
        return f"an array {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    shown = isinstance(value, str | float | None) or (isinstance(value, int) and abs(value) < 1 << 63)
    text = repr(value) if shown else type(value).__name__
    return text if len(text) <= 40 else f"{text[:39]}…"
