"""Options of the training strategies other than training on all levels at once; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.options import setting


@dataclass
class TransferSettings:
    """Of strategy ``tl``."""

    frozen: int | str = setting(
        "none",
        "what the first level alone teaches and later ones leave: none, the first so many interaction blocks (and what "
        "comes before them), or backbone, all but the head",
        low=0,
    )
    share: list[str] = setting(
        [], "of the epochs that each level gets, relative to the others', as dz=2 cc=1; 1 where not given"
    )
    lr: float | None = setting(
        None, "initial learning rate after the first level; null: optim.lr", low=1e-12, high=10.0
    )

    def check(self) -> None:
        """Raise :class:`MFPyGError` for a word that is none of those there are."""
        if isinstance(self.frozen, str) and self.frozen not in ("none", "backbone"):
            raise unknown_name("transfer.frozen", self.frozen, ("none", "backbone", "a number of blocks"))


@dataclass
class DeltaSettings:
    """Of strategy ``delta``."""

    base: str | None = setting(None, "level that the difference is added to; null: the last before the target")
    share: float = setting(0.5, "of the epochs that the base model gets", low=0.01, high=0.99)


@dataclass
class MetaSettings:
    """Of strategy ``meta``."""

    share: float = setting(0.5, "of the epochs before the adaptation to the target", low=0.01, high=0.99)
    inner_steps: int = setting(5, "steps on one level before the shared weights move", low=1)
    rate: float = setting(0.5, "part of the way to the weights after the inner steps that they go", low=1e-6, high=1.0)
    optimiser: str = setting(
        "adam", "of the inner steps; adam: without momentum, as in the paper", choices=("adam", "sgd")
    )
    inner_lr: float | None = setting(
        None, "initial learning rate of the inner steps; null: optim.lr", low=1e-12, high=10.0
    )


GROUPS = {"transfer": "tl", "delta": "delta", "meta": "meta"}
"""Strategy of each group of settings."""


def check_groups(settings: object, strategy: str) -> None:
    """Check that nothing is set that has no effect under a strategy.

    Args:
        settings: with a field for each of the groups.
        strategy: that is chosen.

    Raises:
        MFPyGError: naming the first such setting.
    """
    for group, of in GROUPS.items():
        given = getattr(settings, group)
        if of != strategy:
            for name, default in vars(type(given)()).items():
                if getattr(given, name) != default:
                    raise MFPyGError(f"{group}.{name} is given, but strategy is {strategy}; it has to be {of}")
