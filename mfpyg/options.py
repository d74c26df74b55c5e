"""Options as dataclass fields: help texts, allowed values and their checks; importable without torch.

The ``help`` of a field is shown by the ``--help`` of a command.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import field
from typing import Any

from mfpyg.errors import MFPyGError, shown, unknown_name


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] | Callable[[], tuple[Any, ...]] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Dataclass field with a help text, allowed values (or a function that returns them), and bounds."""
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def choices_of(field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """Allowed values of a field; empty if they are not restricted to a list."""
    choices = field.metadata.get("choices", ())
    return tuple(choices() if callable(choices) else choices)


def check(settings: Any, prefix: str = "") -> None:
    """Check every field of a settings dataclass against its type, allowed values and bounds.

    Raises:
        MFPyGError: naming the setting, what was found and what is allowed.
    """
    hints = typing.get_type_hints(type(settings))
    for f in dataclasses.fields(settings):
        value, name = getattr(settings, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
            continue
        if not fits(value, hints[f.name]):
            raise MFPyGError(f"{name} is {shown(value)}, expected {in_words(hints[f.name])}")
        choices, low = choices_of(f), f.metadata.get("low")
        if choices and value not in choices:
            raise unknown_name(name, str(value), map(str, choices))
        high = f.metadata.get("high")
        if (
            low is not None
            and not isinstance(value, str | None)
            and not low <= value <= (sys.float_info.max if high is None else high)
        ):
            bounds = f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise MFPyGError(f"{name} is {value}, expected a number {bounds}")


def build(cls: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Create an options dataclass from plain values, such as those of a YAML file.

    Raises:
        MFPyGError: for an unknown option, or a value of the wrong type.
    """
    known = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            raise unknown_name("setting", prefix + str(name), [prefix + k for k in known])
    hints = typing.get_type_hints(cls)
    values = {name: _number(value) if hints[name] in (float, float | None) else value for name, value in values.items()}
    for name, value in values.items():
        if not dataclasses.is_dataclass(value) and not fits(value, hints[name]):
            raise MFPyGError(f"{prefix}{name} is {shown(value)}, expected {in_words(hints[name])}")
    return cls(**values)


def _number(value: Any) -> Any:
    """Convert a number that YAML reads as text, such as 1e-3 without a point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Members of a union type such as ``int | None``; the type itself if it is not a union."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def fits(value: Any, kind: Any) -> bool:
    """True if a value is of a type; an ``int`` counts as ``float``, a ``bool`` does not count as a number."""
    if len(alternatives(kind)) > 1:
        return any(fits(value, k) for k in alternatives(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def in_words(kind: Any) -> str:
    """Description of a type in errors: "a whole number, or null" of ``int | None``."""
    if len(alternatives(kind)) > 1:
        return ", or ".join(map(in_words, alternatives(kind)))
    if typing.get_origin(kind) is list:
        return "a list such as [dz:EF, cc:E]"
    return {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        dict: "names and values such as {xtb: tblite:GFN2-xTB:EF}",
        type(None): "null",
    }[kind]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names: ``{"optim": {"lr": 1}}`` becomes ``{"optim.lr": 1}``."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return result


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested values updated with those of ``over``; a group that is ``None`` there is kept."""
    result = {**values, **over}
    for name, value in values.items():
        if isinstance(value, dict):
            result[name] = merged(value, over.get(name) or {})
    return result
