"""The loop: sample, and then round by round label, train, and select."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mfpyg.datasets.frames import frames_of
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.report import as_text
from mfpyg.growth.costs import duration, spent
from mfpyg.growth.folder import GrowFolder, RoundFolder
from mfpyg.growth.frames import Pool, frame_text, read_assignment, write_frames
from mfpyg.growth.labels import Labels
from mfpyg.growth.report import text_table, use, write_report
from mfpyg.growth.rounds import choose_next, label_first
from mfpyg.growth.settings import GrowSettings
from mfpyg.growth.summary import summarise
from mfpyg.growth.training import Train, train
from mfpyg.labeling.level import open_program
from mfpyg.labeling.run import Compute
from mfpyg.sampling.files import Finished, sample_file
from mfpyg.sampling.molecules import Molecule, read_molecules
from mfpyg.training.lock import held

Track = Callable[[Iterator[tuple[Molecule, Finished]], int], Iterator[tuple[Molecule, Finished]]]
"""Wraps the molecules that are sampled, of which the number is known, to show progress."""


def grow(
    settings: GrowSettings,
    path: Path,
    compute: Compute,
    run: Train,
    *,
    note: Callable[[str], None] = print,
    track: Track = lambda found, total: found,
    retry: bool = False,
) -> None:
    """Grow a potential round by round, or continue with what is missing in its folder.

    Args:
        settings: settings, which are checked.
        path: folder of the growth.
        compute: computes labels, as :func:`mfpyg.labeling.pool.compute_labels` does.
        run: runs trainings, as :func:`mfpyg.study.jobs.run_jobs` does.
        note: shows a line.
        track: shows the progress of sampling.
        retry: whether to compute labels again that failed before.

    Raises:
        MFPyGError: for wrong settings, a folder with other settings, a budget below the first labels, a level without
            any label, or a training that fails.
    """
    settings.check()
    with _one_thread():
        for level in settings.label_levels:
            level.open()
    folder = GrowFolder(path)
    with held(path, "mfpyg-grow", "-o"):
        folder.start(settings)
        pool = _pool(settings, folder, track, note)
        end = _rounds(Labels(folder, settings, pool, compute, note, retry), run)
    note(f"{end}; report: {folder.report}")
    note(f"potential: {folder.potential}; use it with:")
    for command in use(folder, settings):
        note(f"  {command}")


def _pool(settings: GrowSettings, folder: GrowFolder, track: Track, note: Callable[[str], None]) -> Pool:
    there = folder.pool.is_file()
    try:
        if not there:
            _make_pool(settings, folder, track, note)
        return Pool.read(folder.pool, settings.validation, settings.seed)
    except MFPyGError:
        if not there:
            folder.discard()
        raise


def _make_pool(settings: GrowSettings, folder: GrowFolder, track: Track, note: Callable[[str], None]) -> None:
    if settings.pool is not None:
        write_frames(folder.pool, map(frame_text, frames_of(Path(settings.pool), hint="write it as extended XYZ")))
        return
    with _one_thread():
        molecules = read_molecules(settings.molecules, open_program(settings.sampling.calculator).needs_spin)
        results = sample_file(
            molecules,
            folder.pool,
            settings.sampling,
            jobs=settings.jobs,
            track=lambda found: track(found, len(molecules)),
        )
    for molecule, finished in zip(molecules, results, strict=True):
        if finished.error:
            note(f"{molecule.name} is left out: {finished.error}")
    note(f"pool: {sum(sum(finished.counts.values()) for finished in results):,} geometries")


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for programs that are loaded meanwhile: more make xTB slower, twenty times for small molecules."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _rounds(labels: Labels, run: Train) -> str:
    """Do the rounds that are left; returns why there are no more."""
    folder, settings = labels.folder, labels.settings
    before: RoundFolder | None = None
    worked, stop = False, ""
    for number in range(settings.rounds):
        this = folder.round(number)
        if this.done:
            labels.assignment.update(read_assignment(this.frames))
        else:
            stop = _label(labels, this, before)
            if stop:
                break
            _train_and_report(labels, this, before, run)
            worked = True
        before = this
    write_report(labels, stop)
    end = stop or f"{settings.rounds} of {settings.rounds} rounds are done"
    return end if worked else f"nothing left to do: {end}"


def _label(labels: Labels, this: RoundFolder, before: RoundFolder | None) -> str:
    """Choose and label what a round adds, unless its training has begun; returns why nothing is chosen, if so."""
    if before is not None and not this.frames.is_file() and (stop := choose_next(labels, this, before)):
        return stop
    if this.run.last.is_file():
        labels.assignment.update(read_assignment(this.frames))
    elif before is None:
        label_first(labels, this)
    else:
        labels.assignment.update(read_assignment(this.frames))
        labels.compute()
    counts = ", ".join(f"{about['labels']:,} of {name}" for name, about in labels.about["levels"].items())
    labels.note(f"round {this.number}: labels so far: {counts}; processor time {duration(spent(labels.costs()))}")
    return ""


def _train_and_report(labels: Labels, this: RoundFolder, before: RoundFolder | None, run: Train) -> None:
    train(labels, this, before, run)
    summarise(labels, this)
    labels.folder.link(this.run.path)
    write_report(labels)
    summaries = [one.read_summary() for one in labels.folder.rounds()]
    labels.note("RMSE of energies in kcal/mol, of force components in kcal/mol/Å:")
    labels.note(as_text(text_table(summaries, labels.settings.target_name)))
