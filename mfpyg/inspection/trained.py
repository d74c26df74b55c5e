"""Contents of checkpoints and run folders."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from torch import Tensor

from mfpyg.checkpoint import check_installed, checkpoint_file, epochs_done, methods_of, read_checkpoint
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.report import FREQUENCIES
from mfpyg.fidelity import parse_fidelities
from mfpyg.files import raise_if_unreadable
from mfpyg.options import check, flat
from mfpyg.pretrained.card import card_of
from mfpyg.properties import BY_NAME, ENERGY
from mfpyg.settings import defaults, from_dict
from mfpyg.training.folder import RunFolder


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint, see :func:`mfpyg.inspection.inspect`; its backbone need not be installed.

    Raises:
        MFPyGError: as :func:`mfpyg.checkpoint.read_checkpoint`.
    """
    path = checkpoint_file(path)
    checkpoint = read_checkpoint(path)
    described = checkpoint["mfpyg"]
    config, missing = described["config"], _missing(described, path)
    labels, methods = _labels(config, missing is None, path), methods_of(described)
    return {
        "kind": "checkpoint",
        "path": str(path),
        "format": described["format"],
        "potential": {
            "backbone": config["backbone"],
            "backbone_package": described.get("backbone_package"),
            "missing": missing,
            "cutoff": config["model"].get("cutoff"),
            "n_parameters": _n_parameters(checkpoint),
            "strategy": config.get("strategy", "mfl"),
            "base_level": described.get("base_level"),
            "elements": [chemical_symbols[number] for number in described["species"]],
            "units": dict(described["units"]),
        },
        "fidelities": {
            name: {
                "labels": labels.get(name),
                "method": methods.get(name),
                "reference_energies": described["reference_energies"].get(name, {}),
                "trained_elements": _symbols((described.get("trained_species") or {}).get(name)),
                "standard_deviations": _standard_deviations(checkpoint, name),
            }
            for name in described["fidelities"]
        },
        "data": _data(described),
        "training": _training(checkpoint, config),
        "card": None if (card := card_of(path)) is None else dataclasses.asdict(card),
        "metrics": None,
        "versions": _versions(described["versions"]),
        "changed": _changed(config, missing is None),
        "config": config,
    }


def describe_run(path: Path) -> dict[str, Any]:
    """Contents of a run folder: its best (else last) checkpoint, and how the run ended.

    Raises:
        MFPyGError: if a file in it is damaged, or there is no checkpoint.
    """
    folder = RunFolder(path)
    if not folder.best.is_file() and not folder.last.is_file():
        raise MFPyGError(f"{path}: no checkpoint, the run stopped before its first epoch ended; start a new run")
    report = describe_checkpoint(folder.best if folder.best.is_file() else folder.last)
    training = report["training"]
    if folder.last.is_file():
        last = _training(read_checkpoint(folder.last), report["config"])
        training |= {name: last[name] for name in ("epochs", "steps", "stage")}
    metrics = _metrics(folder)
    training |= {"finished": metrics is not None, "resumable": folder.last.is_file() and folder.config.is_file()}
    return {**report, "kind": "run", "path": str(path), "checkpoint": report["path"], "metrics": metrics}


def _symbols(species: list[int] | None) -> list[str] | None:
    """Symbols of elements; ``None`` if the checkpoint does not contain them."""
    return None if species is None else [chemical_symbols[number] for number in species]


def _standard_deviations(checkpoint: Mapping[str, Any], fidelity: str) -> dict[str, Any] | None:
    """Labels that calibrate the standard deviations of a fidelity, if kept, and their scales; ``None`` if it has none.

    Scales of the target of a Δ-learning potential multiply the sum of both standard deviations.
    """
    state = checkpoint.get("uncertainty")
    if state is None or fidelity not in state["quantiles"]:
        return None
    scale = state["levels"][fidelity]["scale"] if fidelity in state["levels"] else state["target_scale"]
    n_energies, n_with_forces = None, None
    if (held_out := state["held_out"]) is not None:
        first = held_out["n_atoms"].cumsum(0) - held_out["n_atoms"]
        n_energies = int(held_out["energy"][fidelity][0].isfinite().sum())
        n_with_forces = int(held_out["forces"][fidelity][0][first].isfinite().all(dim=1).sum())
    return {
        "held_out_energies": n_energies,
        "held_out_with_forces": n_with_forces,
        "energy_scale": float(scale[0]),
        "forces_scale": float(scale[1]),
    }


def _missing(described: Mapping[str, Any], path: Path) -> str | None:
    """Advice on what to install for the backbone; ``None`` if it is installed."""
    try:
        check_installed(described, str(path))
    except MFPyGError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _labels(config: dict[str, Any], installed: bool, path: Path) -> dict[str, str]:
    """Labels that each fidelity was trained on; also checks the settings, except those of a missing backbone."""
    lacking = [name for name in ("fidelities", "backbone", "preset", "model") if name not in config]
    if lacking or not isinstance(config["model"], dict):
        raise MFPyGError(f"{path}: damaged, its config lacks {', '.join(lacking) or 'options of the model'}")
    try:
        check(from_dict(config if installed else {**config, "backbone": "hipnn", "model": {}}))
        return {fidelity.name: fidelity.labels for fidelity in parse_fidelities(config["fidelities"])}
    except MFPyGError as error:
        raise MFPyGError(f"{path}: {error}") from error


def _n_parameters(checkpoint: Mapping[str, Any]) -> int:
    """Number of parameters as stored in training; else of all weights except the references."""
    stored = checkpoint["mfpyg"].get("n_parameters")
    if stored is not None:
        return int(stored)
    weights: dict[int, Tensor] = {}
    for name, weight in checkpoint["state_dict"].items():
        if weight.is_floating_point() and not name.endswith(".reference"):
            weights[weight.data_ptr()] = weight  # counts shared weights once
    return sum(weight.numel() for weight in weights.values())


def _data(described: Mapping[str, Any]) -> dict[str, Any]:
    data, splits = described["data"], described["splits"]
    named = [data["name"]] if isinstance(data["name"], str) else list(data["name"])
    return {
        "name": named,
        "fingerprint": data["fingerprint"],
        "split_hash": split_hash({name: rows.numpy() for name, rows in splits.items()}),
        "splits": {name: len(rows) for name, rows in splits.items()},
    }


def split_hash(splits: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the names and conformations of all splits."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        digest.update(f"{name} {len(splits[name])}\n".encode())
        digest.update(np.ascontiguousarray(splits[name], dtype="<i8").data)
    return digest.hexdigest()


def _training(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Epochs and steps so far, and the best epoch among them."""
    best: dict[str, Any] = {}
    callbacks = checkpoint.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and isinstance(state.get("best_epoch"), int):
            best = state
    loss, stage = best.get("best"), checkpoint.get("stage")
    number = stage.get("number") if isinstance(stage, dict) else None
    alone = isinstance(stage, dict) and number == 0 and stage.get("last") is True
    return {
        "epochs": None if checkpoint.get("epoch") is None else epochs_done(checkpoint),
        "epochs_asked": config.get("epochs"),
        "steps": checkpoint.get("global_step"),
        "best_epoch": best.get("best_epoch") if best.get("best_epoch", -1) >= 0 else None,
        "best_loss": loss if isinstance(loss, float) and math.isfinite(loss) else None,
        "stage": None if alone else number,
    }


def _metrics(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.metrics.is_file():
        return None
    try:
        found = json.loads(folder.metrics.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise_if_unreadable(folder.metrics, error)
        raise MFPyGError(f"{folder.metrics}: damaged; create it again with mfpyg-evaluate {folder.path}") from error
    if not _is_table(found):
        raise MFPyGError(f"{folder.metrics}: not a table of errors; create it again with mfpyg-evaluate {folder.path}")
    return found


def _is_table(found: Any) -> bool:
    """True for ``{split: {fidelity: {"energy": {"n": …, "mae": …, …}, …}}}``."""
    per_atom = {ENERGY.name: ("mae_per_atom", "rmse_per_atom")}
    try:
        leaves = [leaf for split in found.values() for row in split.values() for leaf in row.items()]
        names = [(values, name) for kind, values in leaves for name in ("n", "mae", "rmse", *per_atom.get(kind, ()))]
        known = {kind for kind, _ in leaves} <= {*BY_NAME, FREQUENCIES[0]}
        return known and all(isinstance(values[name], int | float) for values, name in names)
    except (AttributeError, KeyError, TypeError):
        return False


def _versions(trained: Mapping[str, str]) -> dict[str, Any]:
    """Versions in training, and those installed here that differ or are missing."""
    here = {name: _installed(name) for name in trained}
    return {"trained": dict(trained), "different": {n: v for n, v in here.items() if v != trained[n]}}


def _installed(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _changed(config: dict[str, Any], installed: bool) -> dict[str, Any]:
    """Settings, by dotted name, that differ from their preset; all settings of a backbone that is not installed."""
    usual = defaults(config["preset"], config["backbone"] if installed else "hipnn")
    if not installed:
        usual["model"] = {}
    known = {**flat(usual), "backbone": "hipnn"}
    return {name: value for name, value in flat(config).items() if name not in known or known[name] != value}
