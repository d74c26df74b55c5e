"""What a checkpoint must be before anything is made of it: of the right kinds of values."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from mfpyg.errors import MFPyGError
from mfpyg.fidelity import is_name


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(kind, value))


def _is_dict_of(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and kind(one) for name, one in value.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_data(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    name = value.get("name")
    named = _is_text(name) or _is_list_of(name, _is_text)  # an imported model has none
    levels = value.get("levels") is None or _is_list_of(value["levels"], _is_text)
    return named and levels and _is_text(value.get("fingerprint")) and _is_dict_of(value.get("methods"), _is_text)


def is_array(value: Any) -> bool:
    """Whether it is an array of real numbers that are in the file, each once: one repeated could have any size."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return not value.is_complex() and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _is_rows(value: Any) -> bool:
    rows = is_array(value) and value.dim() == 1 and value.dtype in (torch.int32, torch.int64)
    return rows and bool((value >= 0).all())


def _is_plain(value: Any) -> bool:
    """Whether it is made of what a YAML file could hold."""
    if isinstance(value, dict):
        return _is_dict_of(value, _is_plain)
    if isinstance(value, list):
        return _is_list_of(value, _is_plain)
    return isinstance(value, str | float | None) or (isinstance(value, int) and abs(value) < 1 << 63)


def _is_progress(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_whole(value.get("epochs")):
        return False
    sums = value.get("sums", {})
    return isinstance(sums, dict) and all(
        is_array(found) and found.dtype == torch.float64 and found.dim() == 2 for found in sums.values()
    )


def _are_loops(value: Any) -> bool:
    """Whether it is what Lightning counts: it adds to some of it only when the training is under way."""
    if isinstance(value, dict):
        return all(_is_whole(one) if name in _COUNTS else _are_loops(one) for name, one in value.items())
    return _is_list_of(value, _are_loops) or isinstance(value, int)


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and _is_plain(value) and _is_list_of(value.get("fidelities", []), _is_text)


def _is_init(value: Any) -> bool:
    return isinstance(value, dict) and _is_list_of(value.get("fidelities"), _is_text) and _is_data(value.get("data"))


def _are_fidelities(value: Any) -> bool:
    return _is_list_of(value, _is_name) and 0 < len(value) == len(set(value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and is_name(value)


def _is_element(value: Any) -> bool:
    return _is_whole(value) and 0 < value < 119


def _are_species(value: Any) -> bool:
    return _is_list_of(value, _is_element) and value == sorted(set(value)) != []


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (_is_config, "settings"),
    "fidelities": (_are_fidelities, "a list of different names"),
    "units": (lambda value: _is_dict_of(value, _is_text), "names of units"),
    "species": (_are_species, "ascending atomic numbers"),
    "reference_energies": (
        lambda value: _is_dict_of(value, lambda one: _is_dict_of(one, _is_number)),
        "an energy for each element of each fidelity",
    ),
    "data": (_is_data, "name, fingerprint and methods"),
    "splits": (lambda value: _is_dict_of(value, _is_rows) and all(map(is_name, value)), "numbers of conformations"),
    "versions": (lambda value: _is_dict_of(value, _is_text), "versions of packages"),
}
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "init": (lambda value: value is None or _is_init(value), "what the training began with, or nothing"),
    "base_level": (lambda value: value is None or _is_text(value), "the name of a fidelity, or nothing"),
    "trained_species": (
        lambda value: value is None or _is_dict_of(value, lambda one: _is_list_of(one, _is_element)),
        "the atomic numbers that each fidelity was trained on",
    ),
    "n_parameters": (lambda value: value is None or _is_whole(value), "a whole number"),
    "backbone_package": (lambda value: value is None or _is_text(value), "the name of a package, or nothing"),
}


_COUNTS = ("ready", "started", "completed", "processed")
_OF_TRAINING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epoch": (lambda value: value is None or _is_whole(value), "a whole number"),
    "global_step": (lambda value: value is None or _is_whole(value), "a whole number"),
    "loops": (lambda value: value is None or _are_loops(value), "counts of steps and epochs"),
    "progress": (lambda value: value is None or _is_progress(value), "a number of epochs and sums of errors"),
}


def check_described(checkpoint: Any, path: Path, format: int) -> None:
    """Check that what a checkpoint says of itself is there and of the right kinds.

    Args:
        checkpoint: what was in the file.
        path: of the file, for errors.
        format: that is expected.

    Raises:
        MFPyGError: naming the first field that is missing or wrong.
    """
    described = checkpoint.get("mfpyg") if isinstance(checkpoint, dict) else None
    if not isinstance(described, dict) or "state_dict" not in checkpoint:
        raise MFPyGError(f"{path}: not a checkpoint of mfpyg; expected one written by mfpyg-train")
    found = described.get("format")
    if not _is_whole(found) or found != format:
        raise MFPyGError(f"{path}: format {in_words(found)}, expected {format}; use the mfpyg that wrote it")
    missing = [name for name in _FIELDS if name not in described]
    if missing:
        raise MFPyGError(f"{path}: damaged, lacks {', '.join(missing)}")
    for values, fields in ((described, _FIELDS), (described, _OPTIONAL), (checkpoint, _OF_TRAINING)):
        for name, (fits, expected) in fields.items():
            if not fits(values.get(name)):
                raise MFPyGError(f"{path}: damaged, its {name} is {in_words(values.get(name))}, expected {expected}")
    _check_state(checkpoint["state_dict"], path)
    if "raw_weights" in checkpoint:  # beside their average, of a training with optim.ema
        _check_state(checkpoint["raw_weights"], path)
        for name, value in checkpoint["raw_weights"].items():
            average = checkpoint["state_dict"].get(name)
            if average is None or (average.shape, average.dtype) != (value.shape, value.dtype):
                raise MFPyGError(f"{path}: damaged, its raw_weights have '{name}' that is not like its average")


def _check_state(state: Any, path: Path) -> None:
    """Check that weights are finite arrays of real numbers, or of whole ones."""
    if not isinstance(state, dict) or not state:
        raise MFPyGError(f"{path}: damaged, its state_dict is {in_words(state)}, expected weights by name")
    for name, value in state.items():
        if not isinstance(name, str) or not is_array(value):
            raise MFPyGError(f"{path}: damaged, weight '{name}' is {in_words(value)}, expected an array of numbers")
        if not torch.isfinite(value).all():
            raise MFPyGError(f"{path}: weight '{name}' is NaN or infinite; the file is damaged, or training diverged")


def in_words(value: Any) -> str:
    """A value of any kind in some words."""
    if isinstance(value, Tensor):
        return f"an array {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    shown = isinstance(value, str | float | None) or (isinstance(value, int) and abs(value) < 1 << 63)
    text = repr(value) if shown else type(value).__name__
    return text if len(text) <= 40 else f"{text[:39]}…"


class Room(TorchFunctionMode):
    """Lets a network be made whose weights are about as many as those of a file, and none that is larger.

    A file may say of itself that it holds a network of any size; one that does not fit its weights is found here,
    before its memory is taken: an array when it is asked for, and many of them when they become parameters.

    Args:
        weights: of the file.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Room for what is replaced or kept beside the weights; e3nn draws a million numbers to normalise a function.
        self.numbers = 4 * sum(weight.numel() for weight in weights.values()) + (1 << 22)
        self.arrays = 4 * len(weights) + 1000
        self._largest, self._thread = self.numbers, threading.get_ident()

    def __enter__(self) -> Room:
        self._hook = register_module_parameter_registration_hook(self._count)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._check(func not in _MAKERS or _MAKERS[func](args, kwargs) <= self._largest)
        return func(*args, **kwargs)

    def _count(self, module: Any, name: str, parameter: Tensor | None) -> None:
        if parameter is not None and threading.get_ident() == self._thread:  # hooks are of all threads
            self.numbers -= parameter.numel()
            self.arrays -= 1
            self._check(self.numbers >= 0 and self.arrays >= 0)

    def _check(self, fits: bool) -> None:
        if not fits:
            raise MFPyGError("the network of its config is larger than its weights; the file is damaged")


def _size(args: Any, kwargs: Any) -> int:
    size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
    return math.prod(size)


_MAKERS: dict[Any, Callable[[Any, Any], int]] = {
    **dict.fromkeys((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn), _size),
    torch.linspace: lambda args, kwargs: kwargs["steps"] if "steps" in kwargs else args[2],
    torch.arange: lambda args, kwargs: int(max([*args, kwargs.get("end", 0)], key=abs)),
    torch.eye: lambda args, kwargs: kwargs.get("n", args[0] if args else 0) ** 2,
}
"""Functions that take memory for new arrays, and how many numbers each call takes."""
