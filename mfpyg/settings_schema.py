"""JSON schema of the settings of ``mfpyg-train``, with which editors check and complete YAML files."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.errors import MFPyGError
from mfpyg.options import alternatives, choices_of

_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def settings_schema() -> dict[str, Any]:
    """Schema of a file for ``mfpyg-train --config``; defaults are those of the small preset.

    The options in ``model`` depend on the ``backbone``, which may also come from an installed package.
    """
    schema = _object(s.TrainSettings, s.defaults("small", "hipnn"))
    schema["properties"]["dataset"]["type"] = ["array", "string"]
    branches = []
    for name in backbones.names():
        try:
            options = backbones.find(name).options
        except MFPyGError:  # a package that cannot be imported
            continue
        model = _object(options, s.defaults("small", name)["model"])
        selected: dict[str, Any] = {"properties": {"backbone": {"const": name}}}
        if name != "hipnn":  # the default
            selected["required"] = ["backbone"]
        branches.append({"if": selected, "then": {"properties": {"model": model}}})
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Settings of mfpyg-train",
        **schema,
        "allOf": branches,
    }


def _object(cls: type, defaults: dict[str, Any]) -> dict[str, Any]:
    """Schema of a settings class; ``null`` stands for its defaults."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: _field(f, hints[f.name], defaults[f.name]) for f in dataclasses.fields(cls)}
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


def _field(field: dataclasses.Field[Any], kind: Any, default: Any) -> dict[str, Any]:
    about = {"description": field.metadata["help"]} if field.metadata.get("help") else {}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return about | _object(kind, default)
    if field.name == "model":  # depends on the backbone
        return about | {"type": ["object", "null"]}
    about["default"] = default
    if typing.get_origin(kind) is list:
        return {**about, "type": "array", "items": {"type": "string"}}
    types = [_TYPES[one] for one in alternatives(kind)]
    about["type"] = types if len(types) > 1 else types[0]
    if choices := choices_of(field):
        about["enum"] = list(choices)
    bounds = {"minimum": field.metadata.get("low"), "maximum": field.metadata.get("high")}
    return about | {name: bound for name, bound in bounds.items() if bound is not None}
