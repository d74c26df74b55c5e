"""Levels and epochs of the stages of a training; importable without torch.

All strategies have the same budget of optimiser steps: as many per epoch of any stage as in an epoch of training on all
levels at once (``mfl``) with the same data, labels and batch size, and as many epochs in total. A stage with fewer
conformations repeats them within an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, parse_numbers, parse_weights
from mfpyg.properties import listed
from mfpyg.settings import TrainSettings

OUTLINED = ("tl", "delta", "meta")
"""Strategies whose stages do not depend on the data."""


@dataclass(frozen=True)
class StageOutline:
    """Outline of a stage.

    Attributes:
        name: name in ``metrics.csv`` and on the terminal.
        fidelities: fidelities to train on.
        epochs: maximum number of epochs.
    """

    name: str
    fidelities: tuple[Fidelity, ...]
    epochs: int


@dataclass(frozen=True)
class Outline:
    """Stages of one of the strategies ``tl``, ``delta`` and ``meta`` on a list of fidelities.

    Attributes:
        target: final fidelity.
        lower: the other fidelities, in the order given.
        stages: stages in their order.
        base: level that the difference is added to, in strategy ``delta``.
    """

    target: Fidelity
    lower: tuple[Fidelity, ...]
    stages: tuple[StageOutline, ...]
    base: Fidelity | None = None


def outline_of(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> Outline:
    """Stages of the strategy of the settings.

    Raises:
        MFPyGError: if there are too few fidelities or epochs, a level is unknown or has weight 0, or its labels do not
            include those of the target.
    """
    strategy, names = settings.strategy, [f.name for f in fidelities]
    if len(fidelities) < 2:
        raise MFPyGError(f"strategy {strategy} needs several fidelities, but there is only {names[0]}; name another")
    _check_weights(settings, fidelities)
    if settings.target is not None and settings.target not in names:
        raise unknown_name("target", settings.target, names)
    target = fidelities[-1] if settings.target is None else fidelities[names.index(settings.target)]
    lower = tuple(f for f in fidelities if f is not target)
    ordered = (*lower, target)
    if strategy == "tl":
        shares = {**dict.fromkeys(names, 1.0), **parse_numbers("transfer.share", settings.transfer.share, fidelities)}
        epochs = divided(settings.epochs, [shares[f.name] for f in ordered])
        stages = [StageOutline(f.name, (f,), n) for f, n in zip(ordered, epochs, strict=True)]
        return Outline(target, lower, tuple(stages))
    if strategy == "delta":
        base = _base_of(settings, lower, target)
        before, after = divided(settings.epochs, [settings.delta.share, 1 - settings.delta.share])
        return Outline(
            target, lower, (StageOutline("base", lower, before), StageOutline("difference", (target,), after)), base
        )
    assert strategy == "meta"
    before, after = divided(settings.epochs, [settings.meta.share, 1 - settings.meta.share])
    return Outline(target, lower, (StageOutline("meta", ordered, before), StageOutline("adaptation", (target,), after)))


def _check_weights(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> None:
    weights = parse_weights(settings.weights, fidelities)
    for fidelity in fidelities:
        if not any(weight for (name, _), weight in weights.items() if name == fidelity.name):
            raise MFPyGError(
                f"{fidelity.name} has weight 0 in the loss, but strategy {settings.strategy} trains on it alone; "
                "give it a weight, or leave it out"
            )


def _base_of(settings: TrainSettings, lower: tuple[Fidelity, ...], target: Fidelity) -> Fidelity:
    names = [f.name for f in lower]
    if settings.delta.base is not None and settings.delta.base not in names:
        raise unknown_name("delta.base", settings.delta.base, names)
    base = lower[-1] if settings.delta.base is None else lower[names.index(settings.delta.base)]
    missing = [label for label in target.labels if label not in base.labels]
    if missing:
        what = listed(missing)
        raise MFPyGError(
            f"strategy delta learns {target} from differences to {base}, which lacks {what}; give {base.name} those "
            f"labels, or leave them out of {target.name}"
        )
    if settings.head.private_blocks and len(lower) == 1:
        raise MFPyGError("head.private_blocks has no effect with strategy delta and one lower level")
    return base


def divided(epochs: int, shares: Sequence[float]) -> list[int]:
    """Distribute epochs over stages by their shares, at least one each.

    Raises:
        MFPyGError: if there are fewer epochs than stages.
    """
    if epochs < len(shares):
        raise MFPyGError(f"epochs is {epochs}, expected at least one for each of the {len(shares)} stages")
    exact = [epochs * share / sum(shares) for share in shares]
    counts = [max(1, int(x)) for x in exact]
    while sum(counts) != epochs:
        step = 1 if sum(counts) < epochs else -1
        possible = [i for i, count in enumerate(counts) if count + step >= 1]
        # The stage that deviates most from its exact share, the first of equals.
        counts[max(possible, key=lambda i: (step * (exact[i] - counts[i]), -i))] += step
    return counts
