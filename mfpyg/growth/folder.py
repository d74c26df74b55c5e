"""Folder of a growth. Which files exist says how far it has come; there is no other record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mfpyg.errors import MFPyGError
from mfpyg.files import make_folder, sidecar, write_text
from mfpyg.growth.settings import MAY_CHANGE, MAY_CHANGE_BEFORE_TRAINING, GrowSettings, as_dict, differences
from mfpyg.labeling.run import store_of
from mfpyg.strict_yaml import read_yaml
from mfpyg.training.folder import RunFolder
from mfpyg.training.lock import HOLDER, LOCK

PART = "pool.xyz.part"
"""File of a sampling that was stopped."""


class RoundFolder:
    """Folder of a round.

    Its files, in the order in which they are written, are ``selected.xyz`` with its recipe (not in round 0),
    ``frames.xyz``, what the round labels; ``split.npz``, ``train.yaml``, the folder ``run/`` of mfpyg-train, and
    ``summary.json``.

    Args:
        path: path of the folder.
        number: number of the round, from 0.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.selected, self.frames = path / "selected.xyz", path / "frames.xyz"
        self.split, self.training = path / "split.npz", path / "train.yaml"
        self.run = RunFolder(path / "run")
        self.summary = path / "summary.json"

    @property
    def done(self) -> bool:
        """True if the round is complete."""
        return self.summary.is_file()

    def read_summary(self) -> dict[str, Any]:
        """Results of a complete round."""
        found: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return found


class GrowFolder:
    """Folder of a growth.

    Its files are ``grow.yaml`` (the settings), ``pool.xyz`` (all geometries), ``candidates.xyz`` (those that the last
    selection chose from), ``frames.xyz`` (those that are labelled, with their levels), ``labelled.xyz`` with
    ``labelled.xyz.labels/``, a folder ``round-N`` for each round, ``report.html``, ``error.png``, and the link
    ``potential`` to the last run.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.pool = path / "grow.yaml", path / "pool.xyz"
        self.candidates, self.frames = path / "candidates.xyz", path / "frames.xyz"
        self.labelled, self.report = path / "labelled.xyz", path / "report.html"
        self.figure, self.potential = path / "error.png", path / "potential"

    def round(self, number: int) -> RoundFolder:
        """Folder of a round."""
        return RoundFolder(self.path / f"round-{number}", number)

    def rounds(self) -> Iterator[RoundFolder]:
        """Complete rounds."""
        number = 0
        while (found := self.round(number)).done:
            yield found
            number += 1

    def start(self, settings: GrowSettings) -> None:
        """Store the settings; those of a growth that was started before may differ only where they may change.

        Raises:
            MFPyGError: naming every difference, or if the folder has other contents.
        """
        if self.config.is_file():
            trained = self.round(0).run.last.is_file()
            allowed = MAY_CHANGE if trained else (*MAY_CHANGE, *MAY_CHANGE_BEFORE_TRAINING)
            changes = differences(read_yaml(self.config), as_dict(settings), allowed)
            if changes:
                raise MFPyGError(
                    f"{self.path} was grown with other settings: {'; '.join(changes)}; restore them, or choose "
                    "another folder with -o"
                )
        elif self.path.exists() and any(file.name not in self._may_exist for file in self.path.iterdir()):
            raise MFPyGError(f"{self.path} is not empty, and not a folder of mfpyg-grow; choose another with -o")
        make_folder(self.path)
        write_text(self.config, yaml.safe_dump(as_dict(settings), sort_keys=False, allow_unicode=True))

    @property
    def _may_exist(self) -> tuple[str, ...]:
        """Files that a new folder may have: those of a start that was stopped, and labels computed before."""
        return LOCK, HOLDER, PART, store_of(self.labelled).folder.name

    def discard(self) -> None:
        """Remove settings and pool of a growth that could not be started, so that others may be tried."""
        for path in (self.pool, sidecar(self.pool), self.config):
            path.unlink(missing_ok=True)

    def link(self, run: Path) -> None:
        """Let ``potential`` point to a run."""
        new = self.path / ".potential.tmp"
        new.unlink(missing_ok=True)
        new.symlink_to(run.relative_to(self.path), target_is_directory=True)
        os.replace(new, self.potential)
