"""Registries of backbones and strategies by name, to which other packages can add; without torch.

Only what is registered or installed is ever imported: no name in a file or a checkpoint can bring code in.
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
    """An entry of a registry, which imports nothing until it is loaded.

    Attributes:
        name: by which users choose it.
        factory: a class or function; or where to import it from, as ``module:name``.
        options: dataclass of its options.
        package: that has to be installed for it; ``None`` for those of this package.
    """

    name: str
    factory: Callable[..., Any] | str
    options: type
    package: str | None = None

    def load(self) -> Callable[..., Any]:
        """The factory, imported if need be."""
        if callable(self.factory):
            return self.factory
        module, _, name = self.factory.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


Kind = TypeVar("Kind", bound=Plugin)


class Registry(Generic[Kind]):
    """Things of one kind, by name: of this package, registered, and of installed packages.

    Args:
        what: the kind, for errors.
        takes: name of the first argument of a factory, before its options, for errors.
        kind: class of the entries.
        own: those of this package.
    """

    def __init__(self, what: str, takes: str, kind: type[Kind], own: Iterable[Kind]) -> None:
        self.what, self.takes, self.kind = what, takes, kind
        self.known = {one.name: one for one in own}
        """Those of this package, and what was registered or loaded since."""

    def names(self) -> tuple[str, ...]:
        """All that can be named; installed packages are not imported for it."""
        return (*self.known, *(name for name in self._entry_points() if name not in self.known))

    def find(self, name: str) -> Kind:
        """The entry of this name; a package that adds it is imported.

        Raises:
            MFPyGError: for an unknown name, or a package that can't be imported or whose options are none.
        """
        if name in self.known:
            return self.known[name]
        entry = self._entry_points().get(name)
        if entry is None:
            raise unknown_name(self.what, name, self.names())
        package = entry.dist.name if entry.dist else entry.module
        try:
            factory = entry.load()
        except Exception as error:  # whatever a package may raise when it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MFPyGError(
                f"{self.what} '{name}' of package {package} can't be imported ({reason}); fix it"
            ) from error
        self.known[name] = self._entry(name, factory, package)
        return self.known[name]

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Add an entry for this process; registering the same factory again does nothing.

        Raises:
            MFPyGError: if the name is taken by another, or an option has no default of a plain kind.
        """
        if name in self.names() and (name not in self.known or self.known[name].factory != factory):
            raise MFPyGError(f"there is a {self.what} '{name}' already; register yours by another name")
        if not re.fullmatch(r"[A-Za-z0-9][\w+.-]*", name):
            raise MFPyGError(f"'{name}' can't name a {self.what}; expected letters, digits, and - + . _ between")
        package = getattr(factory, "__module__", type(factory).__module__).partition(".")[0]
        self.known[name] = self._entry(name, factory, package)

    def _entry(self, name: str, factory: Any, package: str) -> Kind:
        thing = f"{self.what} '{name}'"
        if not callable(factory):
            raise MFPyGError(f"{thing} is made by {factory!r}, expected a class or a function")
        return self.kind(name, factory, options_of(thing, factory, self.takes), package)

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        plural = {"strategy": "strategies"}.get(self.what, f"{self.what}s")
        return {entry.name: entry for entry in importlib.metadata.entry_points(group=f"mfpyg.{plural}")}


def options_of(thing: str, factory: Callable[..., Any], takes: str) -> type:
    """The dataclass of a factory's options: its class ``Options``, or made of its signature.

    Args:
        thing: for errors, as ``backbone 'mine'``.
        factory: with a dataclass ``Options``, or keyword parameters with kinds and defaults.
        takes: name of the factory's first argument, for errors.

    Raises:
        MFPyGError: for anything that is no option: no default, one of another kind, or a kind that is not plain.
    """
    given = getattr(factory, "Options", None)
    if given is not None and not (isinstance(given, type) and is_dataclass(given)):
        raise MFPyGError(f"{thing}: Options is {given!r}, expected a dataclass")
    try:
        if given is None:
            return _from_signature(thing, factory, takes)
        hints = typing.get_type_hints(given)
    except (NameError, TypeError, ValueError) as error:
        raise MFPyGError(f"{thing}: its options can't be told ({' '.join(str(error).split())})") from error
    for f in fields(given):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        _check(thing, f.name, hints[f.name], default)
    return given


def _from_signature(thing: str, factory: Callable[..., Any], takes: str) -> type:
    parameters = list(inspect.signature(factory).parameters.values())
    if not parameters:
        raise MFPyGError(f"{thing}: its factory takes nothing; expected {takes}, and then the options")
    hints = typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory)  # type: ignore[misc]
    helps, found = _helps(factory), []
    for p in parameters[1:]:
        if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise MFPyGError(f"{thing}: parameter '{p}' can't be an option; give each option a name")
        kind = hints.get(p.name)
        _check(thing, p.name, kind, MISSING if p.default is p.empty else p.default)
        found.append((p.name, kind, setting(p.default, helps.get(p.name, "see its documentation"))))
    return make_dataclass(f"{getattr(factory, '__name__', 'Its')}Options", found)


def _check(thing: str, option: str, kind: Any, default: Any) -> None:
    if not set(alternatives(kind)) <= _KINDS or default is MISSING:
        raise MFPyGError(
            f"{thing}: parameter '{option}' can't be an option; expected a kind such as int, float, str, "
            "bool or int | None, and a default, as in 'width: int = 64'"
        )
    if not fits(default, kind):
        raise MFPyGError(f"{thing}: the default of '{option}' is {default!r}, expected {in_words(kind)}")


def _helps(factory: Callable[..., Any]) -> dict[str, str]:
    """Texts of the parameters in the section ``Args:`` of a docstring."""
    _, _, section = (inspect.getdoc(factory) or "").partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}
