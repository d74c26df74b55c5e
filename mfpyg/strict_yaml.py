"""YAML files of settings: plain values, each key once; importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mfpyg.errors import MFPyGError


class _Loader(yaml.SafeLoader):
    """Loader that refuses duplicate keys, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key[:60]}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str = "settings", example: str = "'epochs: 100'") -> dict[str, Any]:
    """Read nested plain values from a YAML file; object tags and duplicate keys are refused.

    Raises:
        MFPyGError: if the file is missing, not YAML, or anything but settings.
    """
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected a YAML file of {what}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise MFPyGError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise MFPyGError(f"{path}: not readable as YAML ({reason})") from error
    if not isinstance(values, dict):
        raise MFPyGError(f"{path}: expected {what} such as {example}, found {type(values).__name__}")
    return values
