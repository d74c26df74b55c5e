"""Choose frames of a pool to label next, and write them for ``mfpyg-label``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mfpyg import __version__
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.frames import Frame, frames_of
from mfpyg.errors import MFPyGError
from mfpyg.files import replace_file, write_text
from mfpyg.inference.extxyz import frame_as_text, kept_values
from mfpyg.labeling.run import LEVELS
from mfpyg.selection.candidates import Candidates, find_candidates
from mfpyg.selection.choice import Choice, fill
from mfpyg.selection.settings import SelectSettings


@dataclass
class SelectReport:
    """Frames that were chosen.

    Attributes:
        path: output.
        n_frames, n_pool: number of chosen frames, and of all frames of the pool.
        n_labelled, n_repeated: see :class:`mfpyg.selection.candidates.Candidates`.
        labels: number of labels of each level.
        cost: sum of their costs.
        notes: lines for the user.
    """

    path: Path
    n_frames: int
    n_pool: int
    n_labelled: int
    n_repeated: int
    labels: dict[str, int]
    cost: float
    notes: list[str]


def select_file(
    pool: Path,
    target: Path,
    settings: SelectSettings,
    *,
    labelled: Sequence[ConformationDataset] = (),
    input_format: str | None = None,
) -> SelectReport:
    """Choose frames of a file, and write them in the order of choice, with a recipe in ``TARGET.yaml``.

    Args:
        pool: file that ASE reads.
        target: extended-XYZ file to write, which must not exist. Each frame has its levels under the key
            :data:`mfpyg.labeling.run.LEVELS`.
        settings: how to choose.
        labelled: data with labels; frames of the pool that are among them get only the levels that they lack there.
        input_format: ASE's name of the format of the pool; default: determined from the file.

    Raises:
        MFPyGError: for wrong settings or files, a target that exists, a pool without a frame that lacks labels, and a
            budget that no frame fits into.
    """
    settings.check()
    check_new(target)
    frames = list(frames_of(pool, input_format))
    candidates = find_candidates(frames, labelled, list(settings.costs), str(pool))
    choice = choose(candidates, settings)
    labels = {name: choice.counts()[name] for name in settings.costs}
    cost = sum(n * settings.costs[name] for name, n in labels.items())
    lost: dict[str, str] = {}
    text = "".join(_as_text(candidates.frames[number], levels, lost) for number, levels in choice.levels.items())
    stated = {
        "settings": asdict(settings),
        "pool": {"file": str(pool), "frames": len(frames), "labelled": candidates.n_labelled}
        | {"repeated": candidates.n_repeated},
        "frames": len(choice.levels),
        "labels": {name: {"number": n, "cost": n * settings.costs[name]} for name, n in labels.items()},
        "cost": cost,
        **choice.about,
        "versions": {"mfpyg": __version__},
    }
    replace_file(target, lambda name: Path(name).write_text(text, encoding="utf-8"))
    write_text(recipe_path(target), yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
    notes = [*choice.notes, *(f"note: '{key}' is not written: {reason}" for key, reason in lost.items())]
    counts = (len(choice.levels), len(frames), candidates.n_labelled, candidates.n_repeated)
    return SelectReport(target, *counts, labels, cost, notes)


def choose(candidates: Candidates, settings: SelectSettings) -> Choice:
    """Choose among candidates, by the method of the settings."""
    if settings.method != "random":
        raise MFPyGError(f"method {settings.method} is not available yet; expected random")
    order = np.random.default_rng(settings.seed).permutation(len(candidates.frames)).tolist()
    return fill(order, candidates.missing, settings.costs, settings.budget, settings.max)


def recipe_path(target: Path) -> Path:
    """File of the recipe."""
    return target.with_name(f"{target.name}.yaml")


def check_new(target: Path) -> None:
    """Check that an output and its recipe do not exist.

    Raises:
        MFPyGError: if one does.
    """
    for path in (target, recipe_path(target)):
        if path.exists():
            raise MFPyGError(f"{path} exists; choose another name, or remove it")


def _as_text(frame: Frame, levels: Sequence[str], lost: dict[str, str]) -> str:
    values: dict[str, Any] = {**frame.values, LEVELS: " ".join(levels)}
    columns, pairs = kept_values(frame._replace(values=values), set(), lost)
    return frame_as_text(frame, columns, pairs)
