"""Run folder: its files, and checks before it is written to."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mfpyg.datasets.references import GivenReferences, as_text, read_references
from mfpyg.errors import MFPyGError
from mfpyg.files import make_folder, read_npz, replace_file, write_text
from mfpyg.options import flat
from mfpyg.settings import TrainSettings, from_dict, to_dict
from mfpyg.strict_yaml import read_yaml
from mfpyg.training.lock import HOLDER, LOCK

MAY_CHANGE = ("epochs", "checkpoint_minutes", "logger", "devices", "nodes", "accelerator", "threads", "dataset")
"""Settings that a resumed run may change: ``epochs`` only with strategy ``mfl``, and only the location of the data."""

LOGGED = ("tensorboard", "wandb", "mlflow.db", "mlruns")
"""Files and folders in the run folder that loggers write."""


class RunFolder:
    """Folder of a run.

    Its files are ``config.yaml``, ``versions.json``, ``splits.npz``, ``metrics.csv``, ``best.ckpt``, ``last.ckpt``,
    ``metrics.json`` and ``metrics.txt``; ``references.yaml`` if reference energies were given; ``loggers.json`` and
    those in ``LOGGED`` if there are loggers.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.splits = path / "config.yaml", path / "splits.npz"
        self.best, self.last = path / "best.ckpt", path / "last.ckpt"
        self.log, self.versions = path / "metrics.csv", path / "versions.json"
        self.references = path / "references.yaml"
        self.metrics, self.table = path / "metrics.json", path / "metrics.txt"
        self.loggers = path / "loggers.json"

    def check_new(self) -> None:
        """Check that nothing would be overwritten except a run that never reached a checkpoint.

        Raises:
            MFPyGError: if the folder contains anything else.
        """
        if self._unstarted():
            self._check_logged()
            return
        if self.config.is_file():
            raise MFPyGError(
                f"{self.path} exists; continue it with --resume {self.path}, or choose another folder with --out"
            )
        if self.path.exists() and (
            not self.path.is_dir() or any(p.name not in (LOCK, HOLDER) for p in self.path.iterdir())
        ):
            what = "exists, is not empty and is not a run folder" if self.path.is_dir() else "exists and is a file"
            raise MFPyGError(f"{self.path} {what}; choose another folder with --out")

    def check_resumable(self) -> None:
        """Check that there is a run with a checkpoint to resume from.

        Raises:
            MFPyGError: if the folder is not a run folder, or its run stopped before the first epoch ended.
        """
        if not self.config.is_file():
            raise MFPyGError(
                f"{self.path} is not a run folder, it has no config.yaml; expected one written by mfpyg-train"
            )
        if not self.last.is_file():
            raise MFPyGError(
                f"{self.path}: no last.ckpt, the run stopped before its first epoch ended; start a new run"
            )

        self._check_logged()

    def resume_hint(self) -> str:
        """Advice for a run that has ended early."""
        if self.last.is_file():
            return f"continue with: mfpyg-train --resume {self.path}"
        return "there was no checkpoint yet, so nothing was saved"

    def _check_logged(self) -> None:
        """Check that loggers write to this folder, not through a link to another place."""
        for name in LOGGED:
            if (self.path / name).is_symlink():
                raise MFPyGError(f"{self.path / name}: a link to another place; remove it")

    def _unstarted(self) -> bool:
        """True if the folder contains only a run that was killed before its first checkpoint."""
        # versions.json distinguishes it from a folder in which a user keeps a config.yaml.
        if not self.versions.is_file() or self.last.is_file():
            return False
        own = {*self._own_files(), *self.path.glob(".*.tmp"), *map(self.path.joinpath, (LOCK, HOLDER, *LOGGED))}
        return all(path in own for path in self.path.iterdir())

    def _own_files(self) -> set[Path]:
        """Files that a run writes before its first ``last.ckpt``."""
        return {self.versions, self.config, self.splits, self.references, self.log, self.best, self.loggers}

    def remove_leftovers(self) -> None:
        """Remove temporary files of a killed run; requires the lock of the folder."""
        for file in (*self._own_files(), self.last, self.metrics, self.table):
            for path in self.path.glob(f".{file.name}.*.tmp"):
                path.unlink(missing_ok=True)

    def create(
        self,
        settings: TrainSettings,
        splits: Mapping[str, np.ndarray],
        versions: Mapping[str, str],
        references: GivenReferences | None = None,
    ) -> None:
        """Create the folder and write the files known before training.

        Raises:
            MFPyGError: if the folder cannot be created or written to.
        """
        make_folder(self.path)
        if self._unstarted():
            self._remove_own_files()
        write_text(self.versions, json.dumps(versions, indent=2) + "\n")
        self.write_config(settings)
        if references:
            write_text(self.references, as_text(references))
        # Through a file handle, as numpy appends .npz to a name.
        replace_file(self.splits, lambda name: _save_npz(name, splits))

    def read_references(self) -> GivenReferences:
        """Reference energies that the run was started with.

        Raises:
            MFPyGError: if the file is damaged.
        """
        return read_references(self.references) if self.references.is_file() else {}

    def write_config(self, settings: TrainSettings) -> None:
        """Write ``config.yaml``, which ``--config`` reads again."""
        write_text(self.config, yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True))

    def discard_unstarted(self) -> None:
        """Remove the files of a run that stopped before its first checkpoint."""
        if not self.path.is_dir() or not self._unstarted():
            return
        self._remove_own_files()

    def _remove_own_files(self) -> None:
        for path in (*self._own_files(), *self.path.glob(".*.tmp")):
            path.unlink(missing_ok=True)
        for name in LOGGED:
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "mlflow.db").unlink(missing_ok=True)

    def read_settings(self) -> TrainSettings:
        """Settings of the run.

        Raises:
            MFPyGError: if the folder is not a run folder, or its configuration is damaged.
        """
        return from_dict(read_yaml(self.config))

    def recorded_data(self, described: Mapping[str, Any]) -> list[str]:
        """Data sets of the run, from its settings, which are updated when it is resumed on moved data.

        Args:
            described: metadata of the checkpoint, used if there are no such settings.
        """
        with contextlib.suppress(MFPyGError):
            return self.read_settings().sources
        name = described["data"]["name"]
        return [name] if isinstance(name, str) else list(name)

    def read_versions(self) -> dict[str, str]:
        """Versions that the run was started with; empty if the file is missing or damaged."""
        return _read_json(self.versions)

    def read_loggers(self) -> dict[str, str]:
        """Name of this run in each logger; empty if the file is missing or damaged."""
        return _read_json(self.loggers)

    def write_loggers(self, runs: Mapping[str, str]) -> None:
        """Write ``loggers.json``, by which a resumed run continues the same runs of the loggers."""
        write_text(self.loggers, json.dumps(runs, indent=2) + "\n")

    def read_splits(self) -> dict[str, np.ndarray]:
        """Conformations of each split.

        Raises:
            MFPyGError: if the file is missing or damaged.
        """
        return read_npz(self.splits)

    def write_metrics(self, metrics: Mapping[str, Any], table: str) -> None:
        """Write the final table as JSON and as text."""
        write_text(self.metrics, json.dumps(metrics, indent=2) + "\n")
        write_text(self.table, table)


def _read_json(path: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _save_npz(name: str, splits: Mapping[str, np.ndarray]) -> None:
    with open(name, "wb") as file:
        np.savez(file, **splits)  # type: ignore[arg-type]


def check_same(before: TrainSettings, now: TrainSettings) -> None:
    """Check that a resumed run differs only in settings that may change.

    Raises:
        MFPyGError: naming every other difference.
    """
    check_nothing_changed(setting_changes(before, now), before)


def may_change(before: TrainSettings) -> tuple[str, ...]:
    """Settings that a resumed run may change."""
    # Other strategies divide the epochs among stages, some of which may be over.
    return tuple(name for name in MAY_CHANGE if name != "epochs" or before.strategy == "mfl")


def setting_changes(before: TrainSettings, now: TrainSettings) -> list[str]:
    """Descriptions of all differences in settings that may not change."""
    old, new = flat(to_dict(before)), flat(to_dict(now))
    for settings, values in ((before, old), (now, new)):  # the files may have moved, as with dataset
        values["split.files"] = [name for name, _ in settings.split.sources]
    kept = [name for name in dict.fromkeys([*old, *new]) if name not in (*may_change(before), "out")]
    absent = "absent"
    return [
        f"{name} was {old.get(name, absent)}, now {new.get(name, absent)}"
        for name in kept
        if old.get(name, absent) != new.get(name, absent)
    ]


def check_nothing_changed(changes: list[str], before: TrainSettings, where: str = "") -> None:
    """Raise if there are changes.

    Raises:
        MFPyGError: naming all changes.
    """
    if changes:
        raise MFPyGError(
            f"{where}a resumed run keeps its settings, data and splits, but {'; '.join(changes)} "
            f"(only {', '.join(may_change(before))} may change)"
        )
