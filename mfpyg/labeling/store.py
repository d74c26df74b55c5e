"""Folder with the labels that have been computed, a file for each job, under the hash of all they depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mfpyg.files import make_folder, write_text
from mfpyg.labeling.jobs import LabelJob
from mfpyg.properties import PROPERTIES


class LabelStore:
    """Labels by the keys of their jobs; files are written in one step, and safe from several processes.

    Args:
        folder: folder, which is created when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """File of a job."""
        return self.folder / key[:2] / f"{key}.json"

    def has(self, key: str) -> bool:
        """True if a job has labels or has failed."""
        return self.path(key).exists()

    def read(self, key: str) -> dict[str, Any] | None:
        """Labels of a job by the names of the properties, or its ``error``; ``None`` if it has neither."""
        try:
            found = json.loads(self.path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # damaged ones are computed again
            return None
        return found if isinstance(found, dict) else None

    def write(self, job: LabelJob, labels: Mapping[str, Any], version: str, seconds: float) -> None:
        """Store labels by letter."""
        values = {PROPERTIES[letter].name: np.asarray(value).tolist() for letter, value in labels.items()}
        self._write(job, {**values, "version": version, "seconds": seconds})

    def fail(self, job: LabelJob, reason: str, seconds: float = 0.0) -> None:
        """Store why there are none, and the time that it took to find out."""
        self._write(job, {"error": reason, "seconds": seconds})

    def remove_unfinished(self) -> None:
        """Remove files that a killed process was writing; for a folder that no other process writes to."""
        for path in self.folder.glob("*/.*.tmp"):
            path.unlink()

    def _write(self, job: LabelJob, contents: Mapping[str, Any]) -> None:
        about = {"level": str(job.level), "formula": job.formula}
        path = self.path(job.key)
        make_folder(path.parent)
        write_text(path, json.dumps({**about, **contents}) + "\n")
