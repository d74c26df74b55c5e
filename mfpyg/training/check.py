"""Checks of the settings that need neither data nor torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mfpyg.datasets.references import GivenReferences, read_references
from mfpyg.datasets.spec import combined_levels, parse_specs
from mfpyg.engine import check_engine
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, check_available, parse_fidelities, parse_numbers, parse_weights
from mfpyg.option_groups import FIT, KEEP
from mfpyg.properties import ENERGY, HESSIAN
from mfpyg.settings import TrainSettings
from mfpyg.training.folder import RunFolder
from mfpyg.training.strategies.outline import OUTLINED, outline_of


def check_settings(settings: TrainSettings) -> tuple[Fidelity, ...]:
    """Check the settings as far as possible without opening the data, and return the parsed fidelities.

    Raises:
        MFPyGError: for the first inconsistency.
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
    if settings.hessian_directions > 1 and not any(HESSIAN in fidelity.properties for fidelity in fidelities):
        raise MFPyGError(
            f"hessian_directions is {settings.hessian_directions}, which has no effect without Hessians; train on "
            f"some, as {fidelities[0].name}:EFH, or leave it out"
        )
    if settings.pair_weight:
        check_pairs(settings, fidelities)
    for stage in outline_of(settings, fidelities).stages if settings.strategy in OUTLINED else ():
        check_warmup(settings, stage.name, stage.epochs)
    check_installed(settings.logger)
    if settings.monitor not in ("sum", *names):
        raise unknown_name("monitor", settings.monitor, ["sum", *names])
    if not any(weight for (name, _), weight in weights.items() if settings.monitor in ("sum", name)):
        raise MFPyGError(
            f"monitor {settings.monitor} has weight 0 in the loss, so there is no best epoch; give it a weight"
        )
    return fidelities


def check_pairs(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> None:
    """Check that a training on pairs has energies, and batches for two conformations.

    Raises:
        MFPyGError: if not.
    """
    what = f"pair_weight is {settings.pair_weight:g}"
    if not any(ENERGY in fidelity.properties for fidelity in fidelities):
        raise MFPyGError(
            f"{what}, which has no effect without energies; train on some, as {fidelities[0].name}:EF, or leave it out"
        )
    if settings.batch_size < 2:
        raise MFPyGError(
            f"{what}, but batch_size is 1, expected at least 2, as both members of a pair are in one batch"
        )


def check_warmup(settings: TrainSettings, stage: str, epochs: int) -> None:
    """Check that a stage is not shorter than the warm-up.

    Raises:
        MFPyGError: if it is.
    """
    if settings.optim.warmup > epochs:
        raise MFPyGError(
            f"optim.warmup is {settings.optim.warmup:g} epochs, but stage {stage} has only {epochs}; shorten it"
        )


def check_same_references(settings: TrainSettings, folder: RunFolder) -> None:
    """Check that the file of reference energies, if it still exists, is the one that a run was started with.

    Raises:
        MFPyGError: naming the fidelities whose energies differ.
    """
    if (
        settings.references in (None, FIT, KEEP)
        or not Path(settings.references).expanduser().is_file()
        or not folder.config.is_file()
    ):
        return
    now, before = given_references(settings), folder.read_references()
    changed = [name for name in {**before, **now} if now.get(name) != before.get(name)]
    if changed:
        raise MFPyGError(
            f"{settings.references} has other reference energies of {', '.join(changed)} than {folder.path} was "
            "started with; restore the file, or train into another folder with --out"
        )


def given_references(settings: TrainSettings) -> GivenReferences:
    """Reference energies from the file named in the settings, if any.

    Raises:
        MFPyGError: as :func:`mfpyg.datasets.references.read_references`, or for a fidelity of init,
            which keeps its own.
    """
    if settings.references in (None, FIT, KEEP):
        return {}
    known = [level.name for level in combined_levels(parse_specs(settings.sources))]
    found = read_references(settings.references, known)
    added = [f.name for f in parse_fidelities(settings.add_fidelity)] if settings.add_fidelity else []
    for fidelity in parse_fidelities(settings.fidelities) if settings.init is not None else ():
        if fidelity.name in found and fidelity.name not in added:
            raise MFPyGError(
                f"{settings.references} has reference energies of '{fidelity.name}', but init has its own, which are "
                f"kept; leave '{fidelity.name}' out of the file, or shift them to the labels with references fit"
            )
    return found


def check_installed(loggers: Sequence[str]) -> None:
    """Check that the packages of the loggers are installed.

    Raises:
        MFPyGError: naming the first that is not.
    """
    for name in loggers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder that wandb has written is not a package
            raise MFPyGError(f"logger {name} needs the package {name}, which is not installed; pip install {name}")


def label_fractions(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> dict[str, float]:
    """Fraction of labels kept for each fidelity, where given; see :mod:`mfpyg.datasets.label_fraction`.

    Raises:
        MFPyGError: if it is malformed, for a fidelity not trained on, or not above 0 and at most 1.
    """
    return parse_numbers("label_fraction", settings.label_fraction, fidelities, high=1.0)


def check_minimum(settings: TrainSettings, fidelities: Sequence[str]) -> tuple[str, int] | None:
    """Parse ``sampling.minimum`` into fidelity and number, if given.

    Raises:
        MFPyGError: if it is malformed, for a fidelity not trained on, or larger than the batch size.
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
