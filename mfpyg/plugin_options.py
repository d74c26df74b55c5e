"""Options of a backbone that somebody else wrote: from its class ``Options``, or from the signature of its factory."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from typing import Any

from mfpyg.errors import MFPyGError
from mfpyg.options import alternatives, fits, in_words, setting

_KINDS = {int, float, str, bool, type(None)}


def options_of(name: str, factory: Callable[..., Any]) -> type:
    """The dataclass of a factory's options.

    Args:
        name: of the backbone, for errors.
        factory: with a dataclass ``Options``, or keyword parameters with kinds and defaults.

    Raises:
        MFPyGError: for anything that is no option: no default, one of another kind, or a kind that is not plain.
    """
    given = getattr(factory, "Options", None)
    if given is not None and not (isinstance(given, type) and is_dataclass(given)):
        raise MFPyGError(f"backbone '{name}': Options is {given!r}, expected a dataclass")
    try:
        if given is None:
            return _from_signature(name, factory)
        hints = typing.get_type_hints(given)
    except (NameError, TypeError, ValueError) as error:
        raise MFPyGError(f"backbone '{name}': its options can't be told ({' '.join(str(error).split())})") from error
    for f in fields(given):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        _check(name, f.name, hints[f.name], default)
    return given


def _from_signature(name: str, factory: Callable[..., Any]) -> type:
    parameters = list(inspect.signature(factory).parameters.values())
    if not parameters:
        raise MFPyGError(f"backbone '{name}': its factory takes nothing; expected species, and then the options")
    hints = typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory)  # type: ignore[misc]
    helps, found = _helps(factory), []
    for p in parameters[1:]:
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise MFPyGError(f"backbone '{name}': parameter '{p}' can't be an option; give each option a name")
        kind = hints.get(p.name)
        _check(name, p.name, kind, MISSING if p.default is p.empty else p.default)
        found.append((p.name, kind, setting(p.default, helps.get(p.name, "see the backbone's documentation"))))
    return make_dataclass(f"{getattr(factory, '__name__', name)}Options", found)


def _check(name: str, option: str, kind: Any, default: Any) -> None:
    if not set(alternatives(kind)) <= _KINDS or default is MISSING:
        raise MFPyGError(
            f"backbone '{name}': parameter '{option}' can't be an option; expected a kind such as int, float, str, "
            "bool or int | None, and a default, as in 'width: int = 64'"
        )
    if not fits(default, kind):
        raise MFPyGError(f"backbone '{name}': the default of '{option}' is {default!r}, expected {in_words(kind)}")


def _helps(factory: Callable[..., Any]) -> dict[str, str]:
    """What the section ``Args:`` of a docstring says of each parameter."""
    _, _, section = (inspect.getdoc(factory) or "").partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}
