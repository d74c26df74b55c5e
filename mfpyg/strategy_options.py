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
        "part of the network that is frozen after the first level; a number: the first interaction blocks and "
        "everything before them; backbone: all but the output layers",
        low=0,
    )
    share: list[str] = setting([], "relative numbers of epochs of the levels, such as dz=2 cc=1 (default: 1 each)")
    lr: float | None = setting(
        None, "initial learning rate after the first level (default: optim.lr)", low=1e-12, high=10.0
    )

    def check(self) -> None:
        """Raise :class:`MFPyGError` if ``frozen`` is an unknown word."""
        if isinstance(self.frozen, str) and self.frozen not in ("none", "backbone"):
            raise unknown_name("transfer.frozen", self.frozen, ("none", "backbone", "a number of blocks"))


@dataclass
class DeltaSettings:
    """Options of strategy ``delta``, Δ-learning."""

    base: str | None = setting(None, "level that the difference is added to (default: the last one before the target)")
    share: float = setting(0.5, "fraction of the epochs for the base model", low=0.01, high=0.99)


@dataclass
class MetaSettings:
    """Options of strategy ``meta``, meta-learning."""

    share: float = setting(0.5, "fraction of the epochs before the adaptation to the target", low=0.01, high=0.99)
    inner_steps: int = setting(5, "steps on one level before the shared weights are updated", low=1)
    rate: float = setting(
        0.5, "fraction of the way to the weights after the inner steps that the shared weights move", low=1e-6, high=1.0
    )
    optimiser: str = setting(
        "adam", "optimiser of the inner steps; adam: without momentum, as in the paper", choices=("adam", "sgd")
    )
    inner_lr: float | None = setting(
        None, "initial learning rate of the inner steps (default: optim.lr)", low=1e-12, high=10.0
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
                    raise MFPyGError(f"{group}.{name} is given, but strategy is {strategy}; set strategy to {needed}")
