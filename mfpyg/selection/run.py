"""Choose frames of a pool to label next, and write them for ``mfpyg-label``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mfpyg import __version__
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.frames import Frame, frames_of
from mfpyg.errors import MFPyGError
from mfpyg.files import replace_file, sidecar, write_text
from mfpyg.inference.extxyz import frame_as_text, kept_values
from mfpyg.labeling.run import LEVELS
from mfpyg.selection.candidates import Candidates, find_candidates
from mfpyg.selection.choice import Choice, fill
from mfpyg.selection.diverse import by_diversity
from mfpyg.selection.features import Show
from mfpyg.selection.multi_fidelity import choose_labels
from mfpyg.selection.settings import SelectSettings
from mfpyg.selection.trained import Trained
from mfpyg.selection.uncertainty import by_uncertainty


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
    trained: Trained | None = None,
    labelled: Sequence[ConformationDataset] = (),
    input_format: str | None = None,
    show: Show = iter,
) -> SelectReport:
    """Choose frames of a file, and write them in the order of choice, with a recipe in ``TARGET.yaml``.

    Args:
        pool: file that ASE reads.
        target: extended-XYZ file to write, which must not exist. Each frame has its levels under the key
            :data:`mfpyg.labeling.run.LEVELS`.
        settings: how to choose.
        trained: potential with its data; not needed for a random choice.
        labelled: further data with labels. Frames of the pool that are among these data, or those of the potential, get
            only the levels that they lack there.
        input_format: ASE's name of the format of the pool; default: determined from the file.
        show: wraps lists of batches to show progress.

    Raises:
        MFPyGError: for wrong settings or files, a target that exists, a pool without a frame that lacks labels, and a
            budget that no frame fits into.
    """
    settings.check()
    check_new(target)
    frames = list(frames_of(pool, input_format))
    known = [*labelled, *([] if trained is None else [trained.dataset])]
    candidates = find_candidates(frames, known, list(settings.costs), str(pool))
    choice = choose(candidates, settings, trained, labelled, str(pool), show)
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
    write_text(sidecar(target), yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
    notes = [*choice.notes, *(f"note: '{key}' is not written: {reason}" for key, reason in lost.items())]
    counts = (len(choice.levels), len(frames), candidates.n_labelled, candidates.n_repeated)
    return SelectReport(target, *counts, labels, cost, notes)


def choose(
    candidates: Candidates,
    settings: SelectSettings,
    trained: Trained | None,
    labelled: Sequence[ConformationDataset] = (),
    source: str = "",
    show: Show = iter,
) -> Choice:
    """Choose among candidates, by the method of the settings; the arguments are those of :func:`select_file`."""
    rng = np.random.default_rng(settings.seed)
    order: Iterable[int]
    if settings.method == "random":
        order = rng.permutation(len(candidates.frames)).tolist()
    elif trained is None:
        raise MFPyGError(f"method {settings.method} needs a run of mfpyg-train; give one, or choose with random")
    elif settings.method == "multi-fidelity":
        return choose_labels(candidates, settings, trained, labelled, source, show)
    elif settings.method == "diverse":
        order = by_diversity(candidates.frames, str(settings.target), trained, source, show)
    else:
        order = by_uncertainty(candidates.frames, str(settings.target), trained, rng, source, show).tolist()
    return fill(order, candidates.missing, settings.costs, settings.budget, settings.max)


def check_new(target: Path) -> None:
    """Check that an output and its recipe do not exist.

    Raises:
        MFPyGError: if one does.
    """
    for path in (target, sidecar(target)):
        if path.exists():
            raise MFPyGError(f"{path} exists; choose another name, or remove it")


def _as_text(frame: Frame, levels: Sequence[str], lost: dict[str, str]) -> str:
    values: dict[str, Any] = {**frame.values, LEVELS: " ".join(levels)}
    columns, pairs = kept_values(frame._replace(values=values), set(), lost)
    return frame_as_text(frame, columns, pairs)
