"""Label the frames of a file at several levels of theory."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mfpyg.datasets.frames import Frame, frames_of
from mfpyg.errors import MFPyGError, MFPyGWarning, did_you_mean, shown
from mfpyg.files import make_folder
from mfpyg.labeling.jobs import LabelJob, formula_of, job_of
from mfpyg.labeling.level import LabelLevel
from mfpyg.labeling.output import Labels, check_target, dataset_of, format_of, write_output, write_sidecar
from mfpyg.labeling.program import LabelError, Program
from mfpyg.labeling.store import LabelStore
from mfpyg.properties import PROPERTIES

Compute = Callable[[Sequence[LabelJob], LabelStore], Mapping[str, str]]
"""Computes jobs and stores the results, as :func:`mfpyg.labeling.pool.compute_labels` does."""


LEVELS = "levels"
"""Key of a frame with the names of the levels to label it at, as ``mfpyg-select`` writes it; all without it."""


@dataclass
class Failure:
    """A label that could not be computed.

    Attributes:
        frame: number of the frame in the input, from 0.
        formula: its formula.
        level: name of the level.
        reason: why, in one line.
    """

    frame: int
    formula: str
    level: str
    reason: str


@dataclass
class LabelReport:
    """Labels that were computed.

    Attributes:
        path: output.
        n_frames: number of frames written; those without any label are left out.
        levels: for each level its program, version, method, settings, units, the numbers of ``labels`` and ``failed``,
            the mean ``seconds`` of processor time of a label, and the ``total_seconds`` of all, failed ones included.
        failures: labels that could not be computed.
        dataset: value of ``--dataset``, empty if nothing was written.
    """

    path: Path
    n_frames: int
    levels: dict[str, dict[str, Any]]
    failures: list[Failure]
    dataset: str


@dataclass
class _Plan:
    """Jobs of each frame by level, and what cannot become a job."""

    frames: list[Frame]
    jobs: dict[tuple[int, str], LabelJob] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, number: int, frame: Frame, level: LabelLevel, program: Program) -> None:
        try:
            self.jobs[number, level.name] = job_of(frame, level, program)
        except LabelError as error:
            self.fail(number, level.name, str(error))

    def fail(self, number: int, level: str, reason: str) -> None:
        formula = formula_of(self.frames[number].z.tolist())
        self.failures.append(Failure(self.frames[number].number, formula, level, reason))


def store_of(target: Path) -> LabelStore:
    """Folder beside an output with the labels computed for it."""
    return LabelStore(target.with_name(f"{target.name}.labels"))


def label_file(
    source: Path,
    target: Path,
    levels: Sequence[LabelLevel],
    compute: Compute,
    *,
    input_format: str | None = None,
    retry: bool = False,
) -> LabelReport:
    """Label all frames of a file, those with the key :data:`LEVELS` at these levels only.

    Labels are stored in ``target.labels/`` as they are computed, and a later call takes them from there. The output is
    written at the end.

    Args:
        source: file that ASE reads.
        target: ``.xyz`` or ``.h5``; replaced if it has no other levels than these.
        levels: levels of theory.
        compute: computes jobs.
        input_format: ASE's name of the format of the source; default: determined from the file.
        retry: whether to compute again what has failed before.

    Raises:
        MFPyGError: for an invalid file or level, levels that no frame is to be labelled at, a target that would lose
            labels, and another process that labels the same file.

    Example:
        >>> from functools import partial                                     # doctest: +SKIP
        >>> run = partial(compute_labels, at_a_time=2, threads=1)             # doctest: +SKIP
        >>> levels = parse_label_levels(["xtb=tblite:GFN2-xTB:EF"])           # doctest: +SKIP
        >>> label_file(Path("in.xyz"), Path("out.xyz"), levels, run).dataset  # doctest: +SKIP
        'out.xyz:xtb=xtb_energy,xtb_forces@eV'
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise MFPyGError(f"{target} is the input; choose another name for the output")
    check_target(target, levels)
    programs = {level.name: level.open() for level in levels}
    store = store_of(target)
    with _locked(store.folder):
        store.remove_unfinished()
        plan = _plan(list(frames_of(source, input_format)), levels, programs, source)
        if format_of(target) == "hdf5":
            _check_molecules(plan.frames, source, target)
        lost = compute(_missing(plan.jobs.values(), store, retry), store)
        return _assemble(plan, source, target, levels, programs, store, lost)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    make_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MFPyGError(f"{folder}: another mfpyg-label is writing to this folder; wait until it has ended") from None
    try:
        yield
    finally:
        lock.release()


def _plan(frames: list[Frame], levels: Sequence[LabelLevel], programs: Mapping[str, Program], source: Path) -> _Plan:
    """Jobs of all frames, level by level; a frame with :data:`LEVELS` is labelled at these only."""
    wanted = [_wanted(frame, f"{source}: frame {frame.number}") for frame in frames]
    _check_wanted(wanted, [level.name for level in levels], source)
    plan = _Plan([frame._replace(values=_without(frame.values, LEVELS)) for frame in frames])
    for level in levels:
        for number, frame in enumerate(plan.frames):
            names = wanted[number]
            if names is None or level.name in names:
                plan.add(number, frame, level, programs[level.name])
    return plan


def _wanted(frame: Frame, where: str) -> list[str] | None:
    """Names of the levels that a frame is to be labelled at; ``None`` for all."""
    if LEVELS not in frame.values:
        return None
    found = frame.values[LEVELS]
    names = found.split() if isinstance(found, str) else []
    if not names:
        value = shown(np.asarray(found).tolist())
        raise MFPyGError(f'{where}: {LEVELS} is {value}, expected names of levels, as in {LEVELS}="dz cc"')
    return names


def _check_wanted(wanted: Sequence[Sequence[str] | None], levels: Sequence[str], source: Path) -> None:
    """Warn about levels that frames name but the user does not, who may compute them elsewhere.

    Raises:
        MFPyGError: if no frame is to be labelled at any of the levels.
    """
    counts = Counter(name for names in wanted if names is not None for name in names)
    left_out = [name for name in counts if name not in levels]
    if wanted and None not in wanted and len(left_out) == len(counts):
        meant = did_you_mean(levels[0], counts)
        raise MFPyGError(
            f"{source}: its frames are to be labelled at {', '.join(counts)} (their '{LEVELS}'), not at "
            f"{', '.join(levels)}; give one of these names to --level{meant}"
        )
    if left_out:
        what = ", ".join(f"{counts[name]:,} of '{name}'" for name in left_out)
        text = f"labels that frames of {source} name in '{LEVELS}', but --level does not, are not computed: {what}"
        warnings.warn(text, MFPyGWarning, stacklevel=2)


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _check_molecules(frames: Sequence[Frame], source: Path, target: Path) -> None:
    for frame in frames:
        if frame.pbc.any():
            raise MFPyGError(f"{source}: frame {frame.number} is periodic, but {target} is for molecules; write .xyz")


def _missing(jobs: Any, store: LabelStore, retry: bool) -> list[LabelJob]:
    """Jobs to compute, each once; those that failed before only on request."""
    missing: dict[str, LabelJob] = {}
    for job in jobs:
        known = store.read(job.key)
        if known is not None and "error" in known and retry:
            store.path(job.key).unlink(missing_ok=True)
            known = None
        if known is None:
            missing.setdefault(job.key, job)
    return list(missing.values())


def _assemble(
    plan: _Plan,
    source: Path,
    target: Path,
    levels: Sequence[LabelLevel],
    programs: Mapping[str, Program],
    store: LabelStore,
    lost: Mapping[str, str],
) -> LabelReport:
    """Write the output, unless there is no label at all."""
    labels: list[Labels] = [{} for _ in plan.frames]
    seconds: dict[str, list[float]] = {level.name: [] for level in levels}
    total: dict[str, dict[str, float]] = {level.name: {} for level in levels}  # by job
    for (number, name), job in plan.jobs.items():
        known = store.read(job.key) or {"error": lost.get(job.key, "no result; label again")}
        total[name][job.key] = known.get("seconds", 0.0)
        if "error" in known:
            plan.fail(number, name, known["error"])
            continue
        labels[number][name] = {PROPERTIES[letter].name: known[PROPERTIES[letter].name] for letter in job.letters}
        seconds[name].append(known["seconds"])
    failures = sorted(plan.failures, key=lambda one: one.frame)
    about = {level.name: _about(level, programs[level.name], seconds[level.name], failures) for level in levels}
    for name, of_jobs in total.items():
        about[name]["total_seconds"] = round(sum(of_jobs.values()), 3)
    kept = [number for number, of in enumerate(labels) if of]
    if not kept:
        return LabelReport(target, 0, about, failures, "")
    frames, labels = [plan.frames[number] for number in kept], [labels[number] for number in kept]
    dataset = dataset_of(target, labels, levels)
    write_output(target, frames, labels, levels)
    listed = [{"frame": f.frame, "formula": f.formula, "level": f.level, "reason": f.reason} for f in failures]
    contents = {"dataset": dataset, "input": str(source), "frames": len(frames), "levels": about}
    write_sidecar(target, {**contents, "failures": listed})
    return LabelReport(target, len(frames), about, failures, dataset)


def _about(
    level: LabelLevel, program: Program, seconds: Sequence[float], failures: Sequence[Failure]
) -> dict[str, Any]:
    units = {p.name: p.default_unit.format("eV") for p in (PROPERTIES[letter] for letter in level.letters)}
    return {
        "program": level.program,
        "version": program.version,
        "method": level.method,
        "settings": dict(level.settings),
        "letters": level.letters,
        "units": units,
        "labels": len(seconds),
        "failed": sum(failure.level == level.name for failure in failures),
        "seconds": float(f"{sum(seconds) / len(seconds):.3g}") if seconds else None,
    }
