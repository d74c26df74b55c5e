"""Options of the strategies ``tl``, ``delta`` and ``meta``; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.options import setting


@dataclass
class TransferSettings:
    """Options of strategy ``tl``, transfer learning."""

    frozen: int | str = setting(
        "none",
        "part of the network that is frozen after the first level: none, a number of first interaction blocks (with "
        "everything before them), or backbone, all but the head",
        low=0,
    )
    share: list[str] = setting([], "relative numbers of epochs of the levels, as dz=2 cc=1; 1 if not given")
    lr: float | None = setting(
        None, "initial learning rate after the first level; null: optim.lr", low=1e-12, high=10.0
    )

    def check(self) -> None:
        """Raise :class:`MFPyGError` if ``frozen`` is an unknown word."""
        if isinstance(self.frozen, str) and self.frozen not in ("none", "backbone"):
            raise unknown_name("transfer.frozen", self.frozen, ("none", "backbone", "a number of blocks"))


@dataclass
class DeltaSettings:
    """Options of strategy ``delta``, Δ-learning."""

    base: str | None = setting(None, "level that the difference is added to; null: the last one before the target")
    share: float = setting(0.5, "share of the epochs for the base model", low=0.01, high=0.99)


@dataclass
class MetaSettings:
    """Options of strategy ``meta``, meta-learning."""

    share: float = setting(0.5, "share of the epochs before the adaptation to the target", low=0.01, high=0.99)
    inner_steps: int = setting(5, "steps on one level before the shared weights are updated", low=1)
    rate: float = setting(
        0.5, "step of the shared weights towards those after the inner steps; 1: all the way", low=1e-6, high=1.0
    )
    optimiser: str = setting(
        "adam", "optimiser of the inner steps; adam: without momentum, as in the paper", choices=("adam", "sgd")
    )
    inner_lr: float | None = setting(
        None, "initial learning rate of the inner steps; null: optim.lr", low=1e-12, high=10.0
    )


GROUPS = {"transfer": "tl", "delta": "delta", "meta": "meta"}
"""Strategy of each group of settings."""


def check_groups(settings: object, strategy: str) -> None:
    """Check that no options of other strategies are set.

    Args:
        settings: settings with a field for each group.
        strategy: selected strategy.

    Raises:
        MFPyGError: naming the first such option.
    """
    for group, needed in GROUPS.items():
        given = getattr(settings, group)
        if needed != strategy:
            for name, default in vars(type(given)()).items():
                if getattr(given, name) != default:
                    raise MFPyGError(f"{group}.{name} is given, but strategy is {strategy}; it has to be {needed}")
