"""What can be said of the settings before any data is opened, or torch imported."""

from __future__ import annotations

from collections.abc import Sequence

from mfpyg.datasets.spec import combined_levels, parse_specs
from mfpyg.engine import check_engine
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, check_available, parse_fidelities, parse_numbers, parse_weights
from mfpyg.settings import TrainSettings
from mfpyg.training.strategies.plan import plan_of


def check_settings(settings: TrainSettings) -> tuple[Fidelity, ...]:
    """Everything about the settings that can be checked without opening the data; the fidelities parsed.

    Raises:
        MFPyGError: in one line, for the first thing that is wrong.
    """
    settings.check()
    fidelities = parse_fidelities(settings.fidelities)
    specs = parse_specs(settings.sources)
    check_available(fidelities, combined_levels(specs), " and ".join(map(str, specs)))
    names = [f.name for f in fidelities]
    for spec in specs:
        if not any(level.name in names for level in spec.levels):
            having = ", ".join(level.name for level in spec.levels)
            raise MFPyGError(f"{spec} has none of the fidelities {', '.join(names)} (it has {having}); leave it out")
    check_minimum(settings, names)
    check_engine(settings.engine)
    weights = parse_weights(settings.weights, fidelities)
    label_fractions(settings, fidelities)
    if settings.strategy != "mfl":
        plan_of(settings, fidelities)
    if settings.monitor not in ("sum", *names):
        raise unknown_name("monitor", settings.monitor, ["sum", *names])
    if not any(weight for (name, _), weight in weights.items() if settings.monitor in ("sum", name)):
        raise MFPyGError(f"monitor {settings.monitor} weighs 0 in the loss, so that no epoch is best; give it a weight")
    return fidelities


def label_fractions(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> dict[str, float]:
    """The part of each fidelity's labels that is kept, where one is given; see :mod:`mfpyg.datasets.thinning`.

    Raises:
        MFPyGError: if it is malformed, of a fidelity not trained on, or not above 0 and at most 1.
    """
    return parse_numbers("label_fraction", settings.label_fraction, fidelities, high=1.0)


def check_minimum(settings: TrainSettings, fidelities: Sequence[str]) -> tuple[str, int] | None:
    """The fidelity and the number of ``sampling.minimum``, if one is given.

    Raises:
        MFPyGError: if it is malformed, of a fidelity not trained on, or more than a batch holds.
    """
    text = settings.sampling.minimum
    if text is None:
        return None
    name, equals, number = text.partition("=")
    if not equals or not number.isdecimal() or int(number) < 1:
        raise MFPyGError(f"sampling.minimum is '{text}', expected a fidelity and a number of graphs, as cc=4")
    if name not in fidelities:
        raise unknown_name("fidelity of sampling.minimum", name, fidelities)
    if int(number) > settings.batch_size:
        raise MFPyGError(f"sampling.minimum {text} is more than batch_size {settings.batch_size}")
    return name, int(number)
