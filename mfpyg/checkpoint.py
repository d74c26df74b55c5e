"""Checkpoints: metadata, reading, writing, and restoring potentials."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from mfpyg import backbones, baselines
from mfpyg.checkpoint_schema import check_checkpoint
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.files import check_archive, read_torch, save_torch
from mfpyg.models import DeltaPotential, Potential
from mfpyg.models.build import build_delta, build_potential
from mfpyg.models.uncertainty import load_uncertainty, uncertainty_state
from mfpyg.option_groups import FinetuneSettings
from mfpyg.options import check
from mfpyg.pretrained import model_path, no_such_model
from mfpyg.properties import in_order
from mfpyg.settings import TrainSettings, from_dict, to_dict
from mfpyg.torch_defaults import model_construction, with_default_torch_settings
from mfpyg.units import ENERGY_UNIT, FORCE_UNIT, LENGTH_UNIT

FORMAT = 1
_PREFIX = "potential."
UNITS = {"energy": ENERGY_UNIT, "forces": FORCE_UNIT, "length": LENGTH_UNIT}


def versions(backbone: str = "hipnn") -> dict[str, str]:
    """Versions of Python and relevant packages, and the package of a third-party backbone."""
    names = ("mfpyg", "torch", "torch-geometric", "lightning", "e3nn", "numpy", "h5py", "ase")
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    package = backbones.find(backbone).package
    return found if package is None else {**found, "backbone_package": package}


def describe(
    potential: Potential,
    settings: TrainSettings,
    data: Mapping[str, Any],
    splits: Mapping[str, np.ndarray],
    init: Mapping[str, Any] | None = None,
    trained_species: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Metadata of a checkpoint, as plain values that load with ``weights_only=True``.

    Args:
        potential: potential with its reference energies fitted.
        settings: settings of the run.
        data: name, fingerprints and methods of the data set.
        splits: conformations of each split.
        init: record of the initial checkpoint, see :meth:`mfpyg.training.initial.InitialModel.record`.
        trained_species: atomic numbers in the training labels of each fidelity, where known.
    """
    trained = trained_species or {}
    symbols = [chemical_symbols[number] for number in potential.species]
    references = {
        name: dict(zip(symbols, potential.reference(name).tolist(), strict=True)) for name in potential.fidelities
    }
    return {
        "format": FORMAT,
        "config": to_dict(settings),
        "fidelities": list(potential.fidelities),
        "further": dict(potential.further),
        "base_level": potential.base_level if isinstance(potential, DeltaPotential) else None,
        "units": dict(UNITS),
        "species": list(potential.species),
        "reference_energies": references,
        "trained_species": {name: list(trained[name]) for name in potential.fidelities if name in trained},
        "data": dict(data),
        "splits": {name: torch.from_numpy(rows.astype(np.int32)) for name, rows in splits.items()},
        "init": None if init is None else dict(init),
        "versions": versions(settings.backbone),
        "backbone_package": backbones.find(settings.backbone).package,
        "n_parameters": sum(parameter.numel() for parameter in potential.parameters()),
    }


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """Path of the checkpoint file: of a shipped model, a ``.ckpt`` file itself, or ``best.ckpt`` of a run folder.

    Raises:
        MFPyGError: if there is none, or the path is not accessible.
    """
    path = model_path(path)
    try:
        path = path / "best.ckpt" if path.is_dir() else path
        there = path.is_file()
    except OSError as error:
        shown = path if len(str(path)) <= 200 else f"…/{path.name}"  # the name alone may be too long for the system
        raise MFPyGError(f"{shown}: cannot be read ({error.strerror})") from error
    if not there:
        raise no_such_model(path)
    return path


@with_default_torch_settings
def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Contents of a checkpoint; code in the file is never run.

    Args:
        path: ``.ckpt`` file, run folder (its ``best.ckpt``), or name of a shipped model, see :func:`load`.

    Raises:
        MFPyGError: if it is missing, damaged, not a checkpoint of mfpyg, or of another format.
    """
    path = checkpoint_file(path)
    check_archive(path, "a checkpoint of mfpyg")
    checkpoint = read_torch(path, "a checkpoint of mfpyg")
    check_checkpoint(checkpoint, path, FORMAT)
    return checkpoint


def trained_labels(described: Mapping[str, Any]) -> dict[str, str]:
    """Labels that each fidelity was trained on, as ``{"dz": "EF"}``, including earlier trainings.

    Args:
        described: metadata of a checkpoint (its entry ``"mfpyg"``).
    """
    before = (described.get("init") or {}).get("fidelities", [])
    found: dict[str, str] = {}
    for fidelity in [Fidelity.parse(text) for text in (*before, *described["config"].get("fidelities", []))]:
        found[fidelity.name] = in_order(found.get(fidelity.name, "") + fidelity.labels)
    return found


def methods_of(described: Mapping[str, Any]) -> dict[str, str]:
    """Level of theory of each fidelity, as far as known, including those of earlier trainings.

    Args:
        described: metadata of a checkpoint (its entry ``"mfpyg"``).
    """
    before = (described.get("init") or {}).get("data", {}).get("methods", {})
    found = {**before, **described["data"]["methods"]}
    return {name: found[name] for name in described["fidelities"] if found.get(name)}


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Number of completed epochs of a checkpoint."""
    progress = checkpoint.get("progress")
    return int(checkpoint["epoch"]) + 1 if progress is None else int(progress["epochs"])


@with_default_torch_settings
def load(path: str | os.PathLike[str]) -> Potential:
    """Load the trained potential of a run folder (its best epoch), of a checkpoint, or a shipped one, ready to predict.

    The name of a shipped model, such as ``"chno-1"``, is that model, whatever is in the current folder;
    ``"./chno-1"`` and ``pathlib.Path("chno-1")`` are paths.

    Args:
        path: run folder, ``.ckpt`` file, or name of a shipped model.

    Raises:
        MFPyGError: if it cannot be read, or its weights do not match its metadata.

    Example:
        >>> potential = mfpyg.load("runs/example")                   # doctest: +SKIP
        >>> potential(data, fidelity="cc").energy                    # doctest: +SKIP
    """
    return potential_of(read_checkpoint(path), str(path))


def save(potential: Potential, path: str | os.PathLike[str], source: str | None = None) -> None:
    """Save a potential as a checkpoint that :func:`load` and the commands can open.

    Unlike a checkpoint in a run folder, it has no splits and no training history. Without ``held_out``, which only
    standard deviations of ensembles need, it is smallest: set ``potential.held_out = None`` before.

    Args:
        potential: loaded, imported, or built by :mod:`mfpyg.models.build`.
        path: file to write; an existing file is replaced.
        source: origin of the potential, kept in the checkpoint.

    Raises:
        MFPyGError: if the potential was assembled by hand and has no settings to rebuild it from, or the file cannot
            be written.

    Example:
        >>> mfpyg.save(potential, "model.ckpt")                      # doctest: +SKIP
    """
    if potential.settings is None:
        raise MFPyGError(
            "this potential has no settings to rebuild it from, as it was assembled by hand; create it with "
            "mfpyg.models.build.build_potential to save it"
        )
    precision = torch.finfo(potential.dtype).bits
    settings = dataclasses.replace(potential.settings, precision=precision)
    settings.check()
    methods = dict(potential.methods)
    data: dict[str, Any] = {"name": settings.sources, "fingerprint": "", "methods": methods, "source": source}
    values = {
        "mfpyg": describe(potential, settings, data, {}, trained_species=potential.trained_species),
        "state_dict": {f"{_PREFIX}{name}": value.cpu() for name, value in potential.state_dict().items()},
        "progress": {"epochs": 0},  # nothing to resume
        "uncertainty": uncertainty_state(potential),
    }
    save_torch(Path(path), values)


@with_default_torch_settings
def potential_of(checkpoint: Mapping[str, Any], name: str) -> Potential:
    """Rebuild the potential from the contents of a checkpoint, in evaluation mode.

    Args:
        checkpoint: contents from :func:`read_checkpoint`.
        name: file name, for errors.

    Raises:
        MFPyGError: if the weights do not match the configuration, naming the first mismatch.
    """
    described = checkpoint["mfpyg"]
    if described["units"] != UNITS:
        raise MFPyGError(f"{name}: units {described['units']}, expected {UNITS}")
    check_installed(described, name)
    weights = {k.removeprefix(_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(_PREFIX)}
    try:
        settings = _without_init(from_dict(described["config"]), described)
        check(dataclasses.replace(settings, strategy="mfl"))  # a third-party strategy is not needed to predict
        if hasattr(settings.model, "check"):
            settings.model.check()
        # The initial weights drawn here are replaced at once.
        with model_construction(), torch.random.fork_rng(devices=[]):
            potential = _build(settings, described)
    except MFPyGError as error:
        raise MFPyGError(f"{name}: {error}") from error
    if settings.precision == 64:
        potential.double()
    expected = {key: _shape_and_type(value) for key, value in potential.state_dict().items()}
    found = {key: _shape_and_type(value) for key, value in weights.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise MFPyGError(
                f"{name}: weight '{key}' has shape {found.get(key, 'none')}, expected {expected.get(key, 'none')} "
                f"for its backbone and fidelities {', '.join(described['fidelities'])}"
            )
    potential.load_state_dict(weights)
    _check_references(potential, described["reference_energies"], name)
    potential.trained_species = {name: tuple(z) for name, z in (described.get("trained_species") or {}).items()}
    potential.methods = methods_of(described)
    of_levels = baselines.parse(settings.baseline).items()
    potential.baselines = {name: baselines.make(text) for name, text in of_levels if name in potential.fidelities}
    if checkpoint.get("uncertainty") is not None:
        load_uncertainty(potential, checkpoint["uncertainty"])
    return potential.eval()


def _without_init(settings: TrainSettings, described: Mapping[str, Any]) -> TrainSettings:
    """Settings of a potential that was started from another one, as if it had been trained on all labels at once."""
    if settings.init is None:
        return settings
    fidelities = [f"{name}:{labels}" for name, labels in trained_labels(described).items()]
    finetune = FinetuneSettings()
    return dataclasses.replace(settings, fidelities=fidelities, init=None, add_fidelity=[], finetune=finetune)


def _shape_and_type(weight: torch.Tensor) -> str:
    """Shape and dtype of a weight, for errors."""
    return f"{tuple(weight.shape)} of {str(weight.dtype).removeprefix('torch.')}"


def _build(settings: TrainSettings, described: Mapping[str, Any]) -> Potential:
    species, fidelities, base_level = described["species"], described["fidelities"], described.get("base_level")
    further = described.get("further") or {}
    if base_level is None:
        return build_potential(settings, species, fidelities, further)
    return build_delta(settings, species, fidelities, base_level, further)


def check_installed(described: Mapping[str, Any], name: str) -> None:
    """Check that the backbone is built in, or comes from the package named in the metadata.

    Raises:
        MFPyGError: naming the package to install.
    """
    backbone, package = described["config"].get("backbone"), described.get("backbone_package")
    if package is None:
        return
    if backbone not in backbones.names():
        raise MFPyGError(f"{name}: {backbones.missing(backbone, package)}")
    found = backbones.find(backbone).package
    if found != package:
        raise MFPyGError(
            f"{name}: its backbone '{backbone}' comes from package {package}, but the one here from {found or 'mfpyg'}"
        )


def _check_references(potential: Potential, described: Mapping[str, Any], name: str) -> None:
    """Check by their reference energies that the heads belong to the fidelities in the metadata."""
    for fidelity in potential.fidelities:
        stored = potential.reference(fidelity).tolist()
        if list(described.get(fidelity, {}).values()) != stored:
            raise MFPyGError(
                f"{name}: damaged, its weights and its metadata have different reference energies of '{fidelity}'"
            )
