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
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfpyg import backbone_options as builtin
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.plugin_options import options_of

GROUP = "mfpyg.backbones"


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
        except Exception as error:
            if self.package is None and not isinstance(error, ValueError):  # ours to mend
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MFPyGError(f"backbone '{self.name}' can't be made with these options ({reason})") from error


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
    _check_callable(name, factory)
    _KNOWN[name] = BackboneKind(name, factory, options_of(name, factory), package=package)
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
    _check_callable(name, factory)
    package = getattr(factory, "__module__", type(factory).__module__).partition(".")[0]
    _KNOWN[name] = BackboneKind(name, factory, options_of(name, factory), package=package)


def missing(name: str, package: str) -> MFPyGError:
    """The error for a backbone that a run was made with, and that is not known here."""
    if package == "__main__":
        return MFPyGError(f"its backbone '{name}' was registered by a script; call mfpyg.models.register for it first")
    return MFPyGError(
        f"its backbone '{name}' comes from package {package}, which is not installed here; install it, or call "
        "mfpyg.models.register for it first"
    )


def _check_callable(name: str, factory: Any) -> None:
    if not callable(factory):
        raise MFPyGError(f"backbone '{name}' is made by {factory!r}, expected a class or a function")


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
