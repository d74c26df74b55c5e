"""YAML files of settings, read so that what stands there is what is meant; importable without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from mfpyg.errors import MFPyGError

LARGEST = 1 << 20
"""Bytes; settings are some kilobytes."""

_NO_YAML = (
    *(yaml.YAMLError, ValueError, OverflowError, RecursionError),
    *(AttributeError, KeyError, TypeError),  # of tags on values that are no such thing, as !!timestamp 1
)
"""What PyYAML raises for files that are none, or whose values can't be made."""


class _Loader(yaml.SafeLoader):
    """Plain values alone, each key once, and nothing that stands for a copy of something else."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for gigabytes
            raise yaml.composer.ComposerError(None, None, "aliases are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a key that is no word", key.start_mark)
            if key.value in seen:
                twice = f"'{key.value[:60]}' stands there twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def plain(self, node: yaml.ScalarNode) -> Any:
        """A text or a whole number that a setting can have."""
        kind = node.tag.rpartition(":")[2]
        value = self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_str(node)
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise yaml.constructor.ConstructorError(None, None, "a number of more than 64 bits", node.start_mark)
        if isinstance(value, str) and not _could_be_a_name(value):
            raise yaml.constructor.ConstructorError(None, None, "a text that no name can be", node.start_mark)
        return value


for _kind in ("int", "str"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.plain)


def _could_be_a_name(text: str) -> bool:
    """Whether the system could have a file of this name."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text and len(text) <= 1000


def read_yaml(path: Path, what: str = "settings", example: str = "'epochs: 100'") -> dict[str, Any]:
    """Nested plain values of a YAML file; tags that would make objects are refused.

    So are keys that stand there twice, of which one would be ignored, and aliases.

    Raises:
        MFPyGError: if the file is missing, not YAML, or anything but settings.
    """
    try:
        if not path.is_file():
            raise MFPyGError(f"{path}: no such file; expected a YAML file of {what}")
        if path.stat().st_size > LARGEST:
            raise MFPyGError(f"{path}: has {path.stat().st_size:,} bytes; expected a YAML file of {what}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MFPyGError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise MFPyGError(f"{path}: not readable as YAML ({str(error)[:100]})") from error
    try:
        values = yaml.load(text, _Loader)
    except _NO_YAML as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise MFPyGError(f"{path}: not readable as YAML ({reason})") from error
    if not isinstance(values, dict):
        raise MFPyGError(f"{path}: expected {what} such as {example}, found {type(values).__name__}")
    return values
