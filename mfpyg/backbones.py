"""Registry of backbones for ``--backbone``, built-in and third-party; importable without torch.

Third-party backbones are added with :func:`register` or, to be available in every command, by an entry point of an
installed package in the group ``mfpyg.backbones``::

    [project.entry-points."mfpyg.backbones"]
    mine = "my_package.network:MyNetwork"

A factory, such as a class, is called with the atomic numbers and the options, and returns a backbone (see
:mod:`mfpyg.models.backbone`). Its options are the fields of a dataclass ``factory.Options``, made with
:func:`mfpyg.options.setting`, or else the keyword parameters of its signature::

    class Mine(mfpyg.models.Backbone):
        def __init__(self, species, width: int = 64, cutoff: float = 5.0): ...

    mfpyg.models.register("mine", Mine)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfpyg import backbone_options as builtin
from mfpyg.errors import MFPyGError
from mfpyg.plugins import Plugin, Registry


@dataclass(frozen=True)
class BackboneKind(Plugin):
    """Registry entry of a backbone; ``factory(species, **options)`` creates it.

    Attributes:
        small: options that ``--preset small`` changes.
        small_optim: settings of the optimiser that it changes as well.
        compiles: whether ``torch.compile`` takes at most about a minute, so that long runs benefit from it.
    """

    small: Mapping[str, Any] = field(default_factory=dict)
    small_optim: Mapping[str, Any] = field(default_factory=dict)
    compiles: bool = False

    def make(self, species: Sequence[int], options: Mapping[str, Any]) -> Any:
        """Create a backbone with weights drawn from torch's global generator.

        Raises:
            MFPyGError: if the factory rejects the options.
        """
        factory = self.load()
        try:
            return factory(species, **options)
        except MFPyGError:
            raise
        except Exception as error:
            if self.package is None and not isinstance(error, ValueError):  # a bug in this package
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MFPyGError(f"backbone '{self.name}' cannot be built with these options ({reason})") from error


def _builtin(
    name: str,
    factory: str,
    options: type,
    compiles: bool = False,
    optim: Mapping[str, Any] | None = None,
    **small: Any,
) -> BackboneKind:
    return BackboneKind(
        name, f"mfpyg.models.{factory}", options, small=small, small_optim=optim or {}, compiles=compiles
    )


_BUILTIN_KINDS = (
    _builtin(
        "hipnn",
        "hipnn:HIPNN",
        builtin.HIPNNOptions,
        compiles=True,
        optim={"weight_decay": 0.01},
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
    _builtin(
        "mace",
        "mace:MACE",
        builtin.MACEOptions,
        optim={"lr": 0.003},
        n_features=32,
        l_max=2,
        n_neighbours=8.0,
        cutoff=4.5,
    ),
)

registry = Registry("backbone", "species", BackboneKind, _BUILTIN_KINDS)
names, find, register = registry.names, registry.find, registry.register


def missing(name: str, package: str) -> MFPyGError:
    """Error for the backbone of a run or checkpoint that is not available here."""
    if package == "__main__":
        return MFPyGError(f"its backbone '{name}' was registered by a script; call mfpyg.models.register for it first")
    return MFPyGError(
        f"its backbone '{name}' comes from package {package}, which is not installed here; install it, or call "
        "mfpyg.models.register for it first"
    )
