"""Initial potential of a training (``--init``), and the settings taken from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpyg.checkpoint import (
    checkpoint_file,
    epochs_done,
    methods_of,
    potential_of,
    read_checkpoint,
    trained_labels,
)
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.spec import combined_levels, parse_specs
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import Fidelity, parse_fidelities
from mfpyg.files import sha256_of
from mfpyg.models import MultiFidelityPotential
from mfpyg.option_groups import FIT, keeps
from mfpyg.options import flat
from mfpyg.settings import TrainSettings, from_dict, to_dict
from mfpyg.training.baselines import with_inherited
from mfpyg.training.folder import RunFolder

NETWORK = ("backbone", "model", "head", "repulsion", "precision")
"""Settings of the network, which cannot change when its weights are trained further."""

FRESH = "fresh"
"""Value of ``finetune.head_from`` for random weights."""


@dataclass(frozen=True)
class InitialModel:
    """Trained potential named by ``--init``.

    Attributes:
        path: path as given.
        sha256: SHA-256 of the checkpoint file.
        checkpoint: contents of the checkpoint.
    """

    path: str
    sha256: str
    checkpoint: Mapping[str, Any]

    @property
    def described(self) -> Mapping[str, Any]:
        """Metadata of the checkpoint."""
        found: Mapping[str, Any] = self.checkpoint["mfpyg"]
        return found

    @property
    def fidelities(self) -> dict[str, Fidelity]:
        """Fidelities of the potential by name, with the labels that they were trained on."""
        labels = trained_labels(self.described)
        return {name: Fidelity.parse(f"{name}:{labels[name]}") for name in self.described["fidelities"]}

    @property
    def network(self) -> dict[str, Any]:
        """Settings of its network, as nested plain values."""
        values = to_dict(from_dict(self.described["config"]))
        return {name: values[name] for name in NETWORK}

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Conformations of each split of its training."""
        return {name: rows.numpy().astype(np.int64) for name, rows in self.described["splits"].items()}

    def potential(self) -> MultiFidelityPotential:
        """The potential, in evaluation mode.

        Raises:
            MFPyGError: if the weights do not match the metadata of the checkpoint.
        """
        potential = potential_of(self.checkpoint, self.path)
        assert isinstance(potential, MultiFidelityPotential)
        return potential

    def is_of(self, dataset: ConformationDataset) -> bool:
        """True if it was trained on the conformations of a data set, with any levels."""
        data = self.described["data"]
        if data["fingerprint"] == dataset.fingerprint:
            return True
        return "geometries" in data and data["geometries"] == dataset.geometries

    def __str__(self) -> str:
        return self.path

    def record(self) -> dict[str, Any]:
        """Record for the checkpoints of the training: plain values, including its own initial potential."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "fidelities": [str(fidelity) for fidelity in self.fidelities.values()],
            "epochs": epochs_done(self.checkpoint),
            "data": {**self.described["data"], "methods": methods_of(self.described)},
            "init": self.described.get("init"),
        }


def read_initial(path: str) -> InitialModel:
    """Read the initial potential.

    Args:
        path: run folder (its best epoch), checkpoint, or name of a shipped model.

    Raises:
        MFPyGError: if it cannot be read, or is a Δ-learning potential.
    """
    checkpoint = read_checkpoint(path)
    described = checkpoint["mfpyg"]
    if described.get("base_level") is not None:
        raise MFPyGError(
            f"{path}: a potential of strategy delta, the sum of two networks, cannot be trained further; expected one "
            "of strategy mfl, tl or meta"
        )
    unknown = [name for name in described["fidelities"] if name not in trained_labels(described)]
    if unknown:
        raise MFPyGError(f"{path}: damaged, it does not say what '{unknown[0]}' was trained on")
    return InitialModel(path, sha256_of(checkpoint_file(path)), checkpoint)


@dataclass(frozen=True)
class Start:
    """Initial potential of a new or resumed run.

    Attributes:
        potential: the potential, without its baselines, as those are subtracted from the labels of a training; in a
            resumed run, with the new fidelities already.
        record: from :meth:`InitialModel.record`.
    """

    potential: MultiFidelityPotential
    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.potential.baselines = {}

    def with_trained(self, species: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Elements that each fidelity was trained on, before or in this training; left out if unknown."""
        before = self.potential.trained_species
        old = [fidelity.name for fidelity in parse_fidelities(self.record["fidelities"])]
        known = {name: found for name, found in species.items() if name in before or name not in old}
        return {**before, **{name: tuple(sorted({*before.get(name, ()), *found})) for name, found in known.items()}}


def start_of(model: InitialModel) -> Start:
    """Start of a new run.

    Raises:
        MFPyGError: if the weights of the model do not match its metadata.
    """
    return Start(model.potential(), model.record())


def start_of_resumed(folder: RunFolder) -> Start:
    """Start of a resumed run, which no longer needs its initial model.

    Raises:
        MFPyGError: if its last checkpoint is damaged.
    """
    checkpoint = read_checkpoint(folder.last)
    potential, record = potential_of(checkpoint, str(folder.last)), checkpoint["mfpyg"].get("init")
    if not isinstance(potential, MultiFidelityPotential) or not isinstance(record, dict):
        raise MFPyGError(f"{folder.last}: damaged, it does not say which potential the run was started with")
    return Start(potential, record)


def completed(settings: TrainSettings, model: InitialModel) -> TrainSettings:
    """Complete the settings from the model: fidelities to train on, and the one that new ones are copied from.

    Complete settings are only checked.

    Raises:
        MFPyGError: if the settings contradict the model or themselves.
    """
    _check_network(settings, model)
    _check_sha256(settings, model)
    added = _added(settings, model)
    old, head_from = _old(settings, added), _head_from(settings, model, added)
    finetune = dataclasses.replace(settings.finetune, old=old, head_from=head_from, sha256=model.sha256)
    trained = _trained(dataclasses.replace(settings, finetune=finetune), model, added)
    names = [str(f) for f in (*trained, *added)]
    baseline = with_inherited(settings, model.described, [f.name for f in added], str(model))
    return dataclasses.replace(settings, fidelities=names, finetune=finetune, baseline=baseline)


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
            "finetune.old is replayed, but no fidelity is added; select the ones to train on with fidelities"
        )
    if old != "auto":
        return old
    return "kept" if keeps(old, bool(added)) else "replayed"


def _trained(settings: TrainSettings, model: InitialModel, added: Sequence[Fidelity]) -> tuple[Fidelity, ...]:
    """Existing fidelities to train on: those named, or else all, if any are trained."""
    named = _named(settings, model, added)
    if added and settings.finetune.old != "replayed":
        if settings.references == FIT:
            raise MFPyGError(
                f"references is fit, but finetune.old is {settings.finetune.old}, so that no fidelity of init is "
                "trained; leave references out, as those of added fidelities are always fitted, or convert the model "
                "with mfpyg-convert --references fit"
            )
        if named:
            raise MFPyGError(
                f"fidelities are {' '.join(map(str, named))}, but finetune.old is {settings.finetune.old}; leave them "
                "out, as only added ones are trained on, or use finetune.old replayed"
            )
        return ()
    if not named:
        named = tuple(model.fidelities.values())
        _check_levels(settings, named)
    return named


def _named(settings: TrainSettings, model: InitialModel, added: Sequence[Fidelity]) -> tuple[Fidelity, ...]:
    """Existing fidelities among those of the settings, which include the added ones once completed."""
    new = {fidelity.name: fidelity for fidelity in added}
    own = []
    for fidelity in parse_fidelities(settings.fidelities) if settings.fidelities else ():
        if new.get(fidelity.name, fidelity) != fidelity:
            raise MFPyGError(f"fidelities say {fidelity}, add_fidelity says {new[fidelity.name]}; give it once")
        if fidelity.name not in new and fidelity.name not in model.fidelities:
            known = ", ".join(model.fidelities)
            raise MFPyGError(
                f"{model} has no fidelity '{fidelity.name}' to train further (it has {known}); add a new one with "
                f"add_fidelity {fidelity}"
            )
        if fidelity.name not in new:
            own.append(fidelity)
    return tuple(own)


def _head_from(settings: TrainSettings, model: InitialModel, added: Sequence[Fidelity]) -> str | None:
    name = settings.finetune.head_from
    if not added:
        if name is not None:
            raise MFPyGError(f"finetune.head_from is {name}, but no fidelity is added")
        return None
    if name is None:
        return list(model.fidelities)[-1]
    if name != FRESH and name not in model.fidelities:
        raise unknown_name("finetune.head_from", name, [*model.fidelities, FRESH])
    return name


def _check_levels(settings: TrainSettings, fidelities: Sequence[Fidelity]) -> None:
    """Check that the levels of the data include the labels that the model was trained on."""
    specs = parse_specs(settings.sources)
    levels = {level.name: level for level in combined_levels(specs)}
    lacking = [
        str(fidelity)
        for fidelity in fidelities
        if fidelity.name not in levels or not set(fidelity.labels) <= levels[fidelity.name].labels.keys()
    ]
    if lacking:
        where, having = " and ".join(map(str, specs)), ", ".join(levels)
        what = "use finetune.old frozen or kept, or name " if settings.add_fidelity else "name "
        raise MFPyGError(
            f"{where} has no labels of {' '.join(lacking)}, which init was trained on (it has levels {having}); {what}"
            "those to train on again with fidelities"
        )
