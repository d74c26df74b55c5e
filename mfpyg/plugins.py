"""Registries of backbones and strategies, which other packages can extend; importable without torch.

Only registered or installed code is imported: a name in a file or a checkpoint cannot load any other.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass, make_dataclass
from typing import Any, Generic, TypeVar

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.options import alternatives, fits, in_words, setting

_KINDS = {int, float, str, bool, type(None)}


@dataclass(frozen=True)
class Plugin:
    """Registry entry; nothing is imported until it is loaded.

    Attributes:
        name: name by which users select it.
        factory: class or function, or where to import it from, as ``module:name``.
        options: dataclass of its options.
        package: package that provides it; ``None`` for this package.
    """

    name: str
    factory: Callable[..., Any] | str
    options: type
    package: str | None = None

    def load(self) -> Callable[..., Any]:
        """Return the factory, imported if necessary."""
        if callable(self.factory):
            return self.factory
        module, _, name = self.factory.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


Kind = TypeVar("Kind", bound=Plugin)


class Registry(Generic[Kind]):
    """Entries by name: built in, registered, and provided by installed packages.

    Args:
        what: kind of the entries in words, for errors.
        takes: name of the first argument of a factory, before its options, for errors.
        kind: class of the entries.
        own: built-in entries.
    """

    def __init__(self, what: str, takes: str, kind: type[Kind], own: Iterable[Kind]) -> None:
        self.what, self.takes, self.kind = what, takes, kind
        self.known = {one.name: one for one in own}
        """Entries that are built in, registered or loaded."""

    def names(self) -> tuple[str, ...]:
        """All available names; installed packages are not imported."""
        return (*self.known, *(name for name in self._entry_points() if name not in self.known))

    def find(self, name: str) -> Kind:
        """Entry of this name; the package that provides it is imported.

        Raises:
            MFPyGError: for an unknown name, or a package that cannot be imported or has invalid options.
        """
        if name in self.known:
            return self.known[name]
        entry = self._entry_points().get(name)
        if entry is None:
            raise unknown_name(self.what, name, self.names())
        package = entry.dist.name if entry.dist else entry.module
        try:
            factory = entry.load()
        except Exception as error:  # a package may raise anything when it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MFPyGError(
                f"{self.what} '{name}' of package {package} cannot be imported ({reason}); fix it"
            ) from error
        self.known[name] = self._entry(name, factory, package)
        return self.known[name]

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Add an entry for this process; registering the same factory again has no effect.

        Raises:
            MFPyGError: if the name is taken, or an option has no plain type or no default.
        """
        if name in self.names() and (name not in self.known or self.known[name].factory != factory):
            raise MFPyGError(f"there is a {self.what} '{name}' already; register yours under another name")
        if not re.fullmatch(r"[A-Za-z0-9][\w+.-]*", name):
            raise MFPyGError(f"'{name}' cannot name a {self.what}; expected letters, digits, and - + . _ between")
        package = getattr(factory, "__module__", type(factory).__module__).partition(".")[0]
        self.known[name] = self._entry(name, factory, package)

    def _entry(self, name: str, factory: Any, package: str) -> Kind:
        thing = f"{self.what} '{name}'"
        if not callable(factory):
            raise MFPyGError(f"the factory of {thing} is {factory!r}, expected a class or a function")
        return self.kind(name, factory, options_of(thing, factory, self.takes), package)

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        plural = {"strategy": "strategies"}.get(self.what, f"{self.what}s")
        return {entry.name: entry for entry in importlib.metadata.entry_points(group=f"mfpyg.{plural}")}


def options_of(thing: str, factory: Callable[..., Any], takes: str) -> type:
    """Dataclass of a factory's options: its attribute ``Options``, or derived from its signature.

    Args:
        thing: name for errors, as ``backbone 'mine'``.
        factory: callable with a dataclass ``Options``, or keyword parameters with types and defaults.
        takes: name of the factory's first argument, for errors.

    Raises:
        MFPyGError: for an option without a plain type, without a default, or with a default of another type.
    """
    given = getattr(factory, "Options", None)
    if given is not None and not (isinstance(given, type) and is_dataclass(given)):
        raise MFPyGError(f"{thing}: Options is {given!r}, expected a dataclass")
    try:
        if given is None:
            return _from_signature(thing, factory, takes)
        hints = typing.get_type_hints(given)
    except MFPyGError:
        raise
    except (NameError, TypeError, ValueError) as error:
        raise MFPyGError(f"{thing}: cannot determine its options ({' '.join(str(error).split())})") from error
    for f in fields(given):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        _check(thing, f.name, hints[f.name], default)
    return given


def _from_signature(thing: str, factory: Callable[..., Any], takes: str) -> type:
    parameters = list(inspect.signature(factory).parameters.values())
    if not parameters:
        raise MFPyGError(f"{thing}: its factory takes no arguments; expected {takes}, and then the options")
    hints = typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory)  # type: ignore[misc]
    helps, found = _helps(factory), []
    for p in parameters[1:]:
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise MFPyGError(f"{thing}: parameter '{p}' cannot be an option; give each option a name")
        kind = hints.get(p.name)
        _check(thing, p.name, kind, MISSING if p.default is p.empty else p.default)
        found.append((p.name, kind, setting(p.default, helps.get(p.name, "see its documentation"))))
    return make_dataclass(f"{getattr(factory, '__name__', 'Its')}Options", found)


def _check(thing: str, option: str, kind: Any, default: Any) -> None:
    if not set(alternatives(kind)) <= _KINDS or default is MISSING:
        raise MFPyGError(
            f"{thing}: parameter '{option}' cannot be an option; expected a type such as int, float, str, "
            "bool or int | None, and a default, as in 'width: int = 64'"
        )
    if not fits(default, kind):
        raise MFPyGError(f"{thing}: the default of '{option}' is {default!r}, expected {in_words(kind)}")


def _helps(factory: Callable[..., Any]) -> dict[str, str]:
    """Descriptions of the parameters in the section ``Args:`` of a docstring."""
    _, _, section = (inspect.getdoc(factory) or "").partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}
