"""The run folder: what it holds, and when it may be written to."""

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
"""Settings that a resumed run may change; the epochs only with strategy ``mfl``, and of the data the place alone."""

LOGGED = ("tensorboard", "wandb", "mlflow.db", "mlruns")
"""Where loggers write to, in the run folder."""


class RunFolder:
    """``config.yaml``, ``versions.json``, ``splits.npz``, ``metrics.csv``, ``best.ckpt``, ``last.ckpt``,
    ``metrics.json``, ``metrics.txt``; ``references.yaml`` where reference energies were given; ``loggers.json`` and
    what is in ``LOGGED``, where there are loggers.

    Args:
        path: of the folder.
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
        """Check that nothing would be overwritten but a run that never reached a checkpoint.

        Raises:
            MFPyGError: if the folder holds anything.
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
            what = "exists, is not empty and no run folder" if self.path.is_dir() else "exists and is a file"
            raise MFPyGError(f"{self.path} {what}; choose another folder with --out")

    def check_resumable(self) -> None:
        """Check that there is a run with a checkpoint to go on from.

        Raises:
            MFPyGError: if the folder is no run, or stopped before its first epoch ended.
        """
        if not self.config.is_file():
            raise MFPyGError(f"{self.path} is no run folder, it has no config.yaml; expected one mfpyg-train wrote")
        if not self.last.is_file():
            raise MFPyGError(f"{self.path}: no last.ckpt, the run stopped before its first epoch ended; start it anew")

        self._check_logged()

    def to_go_on(self) -> str:
        """Advice for a run that has ended early."""
        if self.last.is_file():
            return f"continue with: mfpyg-train --resume {self.path}"
        return "it had not come to its first checkpoint, so that nothing was kept"

    def _check_logged(self) -> None:
        """Check that what loggers get is written to this folder, not to where a link in it leads."""
        for name in LOGGED:
            if (self.path / name).is_symlink():
                raise MFPyGError(f"{self.path / name}: a link to another place; remove it")

    def _unstarted(self) -> bool:
        """True if the folder holds a run that was killed before its first checkpoint, and nothing else."""
        # The versions tell it from a folder in which somebody keeps a config.yaml.
        if not self.versions.is_file() or self.last.is_file():
            return False
        own = {*self._own_files(), *self.path.glob(".*.tmp"), *map(self.path.joinpath, (LOCK, HOLDER, *LOGGED))}
        return all(path in own for path in self.path.iterdir())

    def _own_files(self) -> set[Path]:
        """Files that a run writes before its first ``last.ckpt``."""
        return {self.versions, self.config, self.splits, self.references, self.log, self.best, self.loggers}

    def remove_leftovers(self) -> None:
        """Remove what a killed run had not finished to write; only for who has the folder's lock."""
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
        """Make the folder and write what is known before training.

        Raises:
            MFPyGError: if the folder can't be made, or written to.
        """
        make_folder(self.path)
        if self._unstarted():
            self._remove_own_files()
        write_text(self.versions, json.dumps(versions, indent=2) + "\n")
        self.write_config(settings)
        if references:
            write_text(self.references, as_text(references))
        # A file of the handle, as numpy appends .npz to a name.
        replace_file(self.splits, lambda name: _save_npz(name, splits))

    def read_references(self) -> GivenReferences:
        """Reference energies that were given when the run began.

        Raises:
            MFPyGError: if the file is damaged.
        """
        return read_references(self.references) if self.references.is_file() else {}

    def write_config(self, settings: TrainSettings) -> None:
        """Write ``config.yaml``, which ``--config`` reads again."""
        write_text(self.config, yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True))

    def discard_unstarted(self) -> None:
        """Remove what a run that stopped before its first checkpoint has written."""
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
            MFPyGError: if the folder is no run, or its configuration is damaged.
        """
        return from_dict(read_yaml(self.config))

    def data_named(self, described: Mapping[str, Any]) -> list[str]:
        """The run's data sets, where its settings say: those are kept up when it is resumed on data that have moved.

        Args:
            described: what the checkpoint says, which counts where there are no such settings.
        """
        with contextlib.suppress(MFPyGError):
            return self.read_settings().sources
        name = described["data"]["name"]
        return [name] if isinstance(name, str) else list(name)

    def read_versions(self) -> dict[str, str]:
        """Versions that the run was started with; nothing where the file is missing or damaged."""
        return _read_json(self.versions)

    def read_loggers(self) -> dict[str, str]:
        """Each logger's name of this run; nothing where the file is missing or damaged."""
        return _read_json(self.loggers)

    def write_loggers(self, runs: Mapping[str, str]) -> None:
        """Write ``loggers.json``, by which a resumed run is logged where it was."""
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
    """Check that a resumed run differs only in what may change.

    Raises:
        MFPyGError: naming every other difference.
    """
    check_nothing_changed(setting_changes(before, now), before)


def may_change(before: TrainSettings) -> tuple[str, ...]:
    """Settings that a resumed run may change."""
    # Other strategies divide the epochs among stages, of which one may be over.
    return tuple(name for name in MAY_CHANGE if name != "epochs" or before.strategy == "mfl")


def setting_changes(before: TrainSettings, now: TrainSettings) -> list[str]:
    """Every setting that is different and may not be, in words."""
    old, new = flat(to_dict(before)), flat(to_dict(now))
    for settings, values in ((before, old), (now, new)):  # the files may have moved, as those of dataset
        values["split.files"] = [name for name, _ in settings.split.sources]
    kept = [name for name in dict.fromkeys([*old, *new]) if name not in (*may_change(before), "out")]  # where it is now
    absent = "absent"
    return [
        f"{name} was {old.get(name, absent)}, now {new.get(name, absent)}"
        for name in kept
        if old.get(name, absent) != new.get(name, absent)
    ]


def check_nothing_changed(changes: list[str], before: TrainSettings, where: str = "") -> None:
    """Refuse what is changed.

    Raises:
        MFPyGError: naming all of it.
    """
    if changes:
        raise MFPyGError(
            f"{where}a resumed run keeps its settings, data and splits, but {'; '.join(changes)} "
            f"(only {', '.join(may_change(before))} may change)"
        )
