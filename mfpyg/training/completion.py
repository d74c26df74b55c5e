"""What the settings of a training leave to the potential that it begins with, and what they may not contradict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mfpyg.datasets.spec import combined_levels, parse_specs
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, parse_fidelities
from mfpyg.finetune_options import keeps
from mfpyg.settings import TrainSettings, flat, to_dict
from mfpyg.training.initial import InitialModel

FRESH = "fresh"
"""For ``finetune.head_from``: weights drawn anew."""


def completed(settings: TrainSettings, model: InitialModel) -> TrainSettings:
    """The settings with everything that they leave to the model: what is trained on, and from where it is copied.

    What is complete already is only checked.

    Raises:
        MFPyGError: if they contradict the model or themselves.
    """
    _check_network(settings, model)
    _check_sha256(settings, model)
    added = _added(settings, model)
    old, head_from = _old(settings, added), _head_from(settings, model, added)
    finetune = dataclasses.replace(settings.finetune, old=old, head_from=head_from, sha256=model.sha256)
    trained = _trained(dataclasses.replace(settings, finetune=finetune), model, added)
    return dataclasses.replace(settings, fidelities=[str(f) for f in (*trained, *added)], finetune=finetune)


def _check_network(settings: TrainSettings, model: InitialModel) -> None:
    before, now = flat(model.network), flat(to_dict(settings))
    for name, value in before.items():
        if now.get(name) != value:
            raise MFPyGError(
                f"{model} has {name} {value}, but the settings say {now.get(name)}; its weights fit no other "
                f"network, so leave {name} out"
            )


def _check_sha256(settings: TrainSettings, model: InitialModel) -> None:
    expected = settings.finetune.sha256
    if expected not in (None, model.sha256):
        raise MFPyGError(
            f"{model} is not the checkpoint that the settings were made for (SHA-256 {model.sha256[:12]}…, expected "
            f"{expected[:12]}…); leave finetune.sha256 out if it is the one you mean"
        )


def _added(settings: TrainSettings, model: InitialModel) -> tuple[Fidelity, ...]:
    added = parse_fidelities(settings.add_fidelity) if settings.add_fidelity else ()
    for fidelity in added:
        if fidelity.name in model.fidelities:
            raise MFPyGError(
                f"add_fidelity is {fidelity}, but {model} has '{fidelity.name}' already (it has "
                f"{', '.join(model.fidelities)}); train it further with fidelities {fidelity}, or use another name"
            )
    return added


def _old(settings: TrainSettings, added: Sequence[Fidelity]) -> str:
    old = settings.finetune.old
    if old == "replayed" and not added:
        raise MFPyGError(
            "finetune.old is replayed, but no fidelity is added; fidelities says which of init's are trained on"
        )
    if old != "auto":
        return old
    return "kept" if keeps(old, bool(added)) else "replayed"


def _trained(settings: TrainSettings, model: InitialModel, added: Sequence[Fidelity]) -> tuple[Fidelity, ...]:
    """The model's own fidelities that are trained on: those named, or all of them where any are."""
    named = _named(settings, model, added)
    if added and settings.finetune.old != "replayed":
        if named:
            raise MFPyGError(
                f"fidelities are {' '.join(map(str, named))}, but finetune.old is {settings.finetune.old}; leave them "
                "out, as only what is added is trained on, or use finetune.old replayed"
            )
        return ()
    if not named:
        named = tuple(model.fidelities.values())
        _check_there(settings, named)
    return named


def _named(settings: TrainSettings, model: InitialModel, added: Sequence[Fidelity]) -> tuple[Fidelity, ...]:
    """The model's own fidelities among those of the settings, which name the added ones, too, once completed."""
    new = {fidelity.name: fidelity for fidelity in added}
    own = []
    for fidelity in parse_fidelities(settings.fidelities) if settings.fidelities else ():
        if new.get(fidelity.name, fidelity) != fidelity:
            raise MFPyGError(f"fidelities say {fidelity}, add_fidelity says {new[fidelity.name]}; give it once")
        if fidelity.name not in new and fidelity.name not in model.fidelities:
            known = ", ".join(model.fidelities)
            raise MFPyGError(
                f"{model} has no fidelity '{fidelity.name}' to train further (it has {known}); a new one is added by "
                f"add_fidelity {fidelity}"
            )
        if fidelity.name not in new:
            own.append(fidelity)
    return tuple(own)


def _head_from(settings: TrainSettings, model: InitialModel, added: Sequence[Fidelity]) -> str | None:
    name = settings.finetune.head_from
    if not added:
        if name is not None:
            raise MFPyGError(f"finetune.head_from is {name}, but no fidelity is added that could begin with it")
        return None
    if name is None:
        return list(model.fidelities)[-1]
    if name != FRESH and name not in model.fidelities:
        raise unknown_name("finetune.head_from", name, [*model.fidelities, FRESH])
    return name


def _check_there(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> None:
    """Check that the data can have the labels that the model was trained on, which nobody has asked for by name."""
    specs = parse_specs(settings.sources)
    levels = {level.name: level for level in combined_levels(specs)}
    lacking = [
        str(fidelity)
        for fidelity in fidelities
        if fidelity.name not in levels or (fidelity.forces and levels[fidelity.name].forces is None)
    ]
    if lacking:
        where, having = " and ".join(map(str, specs)), ", ".join(levels)
        what = "use finetune.old frozen or kept, or name " if settings.add_fidelity else "name "
        raise MFPyGError(
            f"{where} has no labels of {' '.join(lacking)}, which init was trained on (it has levels {having}); {what}"
            "those to train on again with fidelities"
        )
