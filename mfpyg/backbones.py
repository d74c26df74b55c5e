"""The backbones that ``--backbone`` can name: those of the package, and those that others add; without torch.

Others add theirs with :func:`register`, or, to have it at hand in every command, by an entry point of an installed
package in the group ``mfpyg.backbones``::

    [project.entry-points."mfpyg.backbones"]
    mine = "my_package.network:MyNetwork"

A factory, such as a class, is called with the atomic numbers and the options, and returns a backbone (see
:mod:`mfpyg.models.backbone`). Its options are the fields of a dataclass ``factory.Options``, made with
:func:`mfpyg.options.setting`, or else the keyword parameters of its signature. Only what is registered or installed is
ever imported: no name in a file or a checkpoint can bring code in.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from typing import Any

from mfpyg import backbone_options as builtin
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.options import build, setting

GROUP = "mfpyg.backbones"
_KINDS = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class BackboneKind:
    """What is known of a kind of backbone before any is made.

    Attributes:
        name: for ``--backbone``.
        factory: ``factory(species, **options)``; or where to import it from, as ``module:name``.
        options: dataclass of its options.
        small: options that ``--preset small`` changes.
        package: what has to be installed for it; ``None`` for those of this package.
        compiles: whether ``torch.compile`` takes it within about a minute, so that long runs do better with it.
    """

    name: str
    factory: Callable[..., Any] | str
    options: type
    small: Mapping[str, Any] = field(default_factory=dict)
    package: str | None = None
    compiles: bool = False

    def make(self, species: Sequence[int], options: Mapping[str, Any]) -> Any:
        """A backbone with fresh weights, drawn from torch's global generator.

        Raises:
            MFPyGError: with what the factory says against the options.
        """
        factory = self.factory
        if isinstance(factory, str):
            module, _, name = factory.partition(":")
            factory = getattr(importlib.import_module(module), name)
        try:
            return factory(species, **options)
        except MFPyGError:
            raise
        except ValueError as error:
            raise MFPyGError(f"backbone '{self.name}': {error}") from error


def _builtin(name: str, factory: str, options: type, compiles: bool = False, **small: Any) -> BackboneKind:
    return BackboneKind(name, f"mfpyg.models.{factory}", options, small, compiles=compiles)


_KINDS_OF_THE_PACKAGE = (
    _builtin(
        "hipnn",
        "hipnn:HIPNN",
        builtin.HIPNNOptions,
        compiles=True,
        n_features=64,
        n_atom_layers=3,
        n_sensitivities=12,
        cutoff=4.5,
        r_soft_max=3.8,
    ),
    _builtin(
        "schnet",
        "schnet:SchNetBackbone",
        builtin.SchNetOptions,
        compiles=True,
        n_interactions=3,
        n_features=64,
        n_filters=64,
        n_gaussians=25,
        cutoff=4.5,
    ),
    _builtin(
        "painn",
        "painn:PaiNN",
        builtin.PaiNNOptions,
        compiles=True,
        n_interactions=2,
        n_features=64,
        n_radial=16,
        cutoff=4.5,
    ),
    _builtin(
        "dimenet++",
        "dimenet:DimeNetBackbone",
        builtin.DimeNetOptions,
        n_interactions=2,
        n_features=64,
        n_triplet=32,
        n_out=64,
        n_spherical=5,
        cutoff=4.5,
    ),
    _builtin(
        "visnet",
        "visnet:ViSNetBackbone",
        builtin.ViSNetOptions,
        n_interactions=2,
        n_features=64,
        n_radial=16,
        cutoff=4.5,
    ),
    _builtin(
        "nequip",
        "nequip:NequIP",
        builtin.NequIPOptions,
        n_interactions=2,
        n_features=16,
        radial_width=32,
        n_neighbours=8.0,
        cutoff=4.5,
    ),
)

_KNOWN: dict[str, BackboneKind] = {kind.name: kind for kind in _KINDS_OF_THE_PACKAGE}
"""Those of the package, and what was registered or loaded since."""


def names() -> tuple[str, ...]:
    """All that can be named: of the package, registered, and of installed packages (which are not imported)."""
    return (*_KNOWN, *(name for name in _entry_points() if name not in _KNOWN))


def find(name: str) -> BackboneKind:
    """The kind of backbone of this name; a package that adds it is imported.

    Raises:
        MFPyGError: for an unknown name, or a package that can't be imported or whose options are none.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    if name not in _entry_points():
        raise unknown_name("backbone", name, names())
    entry = _entry_points()[name]
    package = entry.dist.name if entry.dist else entry.module
    try:
        factory = entry.load()
    except Exception as error:  # whatever a package may raise when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MFPyGError(f"backbone '{name}' of package {package} can't be imported ({reason}); mend it") from error
    _KNOWN[name] = BackboneKind(name, factory, _options_of(name, factory), package=package)
    return _KNOWN[name]


def register(name: str, factory: Callable[..., Any]) -> None:
    """Add a backbone for this process.

    Args:
        name: for ``--backbone``.
        factory: see this module's text. Registering the same one again does nothing.

    Raises:
        MFPyGError: if the name is taken by another, or an option has no default of a plain kind.

    Example:
        >>> class Mine(mfpyg.models.Backbone):                       # doctest: +SKIP
        ...     def __init__(self, species, width: int = 64, cutoff: float = 5.0): ...
        >>> mfpyg.models.register("mine", Mine)                      # doctest: +SKIP
    """
    if name in names() and (name not in _KNOWN or _KNOWN[name].factory != factory):
        raise MFPyGError(f"there is a backbone '{name}' already; register yours by another name")
    if not re.fullmatch(r"[A-Za-z0-9][\w+.-]*", name):
        raise MFPyGError(f"'{name}' can't name a backbone; expected letters, digits, and - + . _ between")
    if not callable(factory):
        raise MFPyGError(f"backbone '{name}' is made by {factory!r}, expected a class or a function")
    package = factory.__module__.partition(".")[0]
    _KNOWN[name] = BackboneKind(name, factory, _options_of(name, factory), package=package)


def options_from(name: str, values: Mapping[str, Any]) -> Any:
    """The options of a backbone from plain values, defaults in place of what is not given.

    Raises:
        MFPyGError: for an unknown backbone, an unknown option, or a value of the wrong kind.
    """
    return build(find(name).options, dict(values), "model.")


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}


def _options_of(name: str, factory: Callable[..., Any]) -> type:
    given = getattr(factory, "Options", None)
    if given is not None:
        if not (isinstance(given, type) and is_dataclass(given)):
            raise MFPyGError(f"backbone '{name}': Options is {given!r}, expected a dataclass")
        return given
    _, *parameters = inspect.signature(factory).parameters.values()
    hints = typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory)  # type: ignore[misc]
    helps = _helps(factory)
    fields = []
    for p in parameters:
        kind = hints.get(p.name)
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if (
            not set(kinds) <= set(_KINDS)
            or p.default is p.empty
            or p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ):
            raise MFPyGError(
                f"backbone '{name}': parameter '{p}' can't be an option; expected a kind such as int, float, str, bool "
                "or int | None, and a default, as in 'width: int = 64'"
            )
        fields.append((p.name, kind, setting(p.default, helps.get(p.name, "see the backbone's documentation"))))
    return make_dataclass(f"{getattr(factory, '__name__', name)}Options", fields)


def _helps(factory: Callable[..., Any]) -> dict[str, str]:
    """What the section ``Args:`` of a docstring says of each parameter."""
    _, _, section = (inspect.getdoc(factory) or "").partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}
