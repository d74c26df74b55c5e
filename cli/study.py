"""``mfpyg-study``: train many models as ensembles, and write the tables and figures that compare them."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mfpyg.cli import train_options
from mfpyg.cli.common import run
from mfpyg.cli.study_options import (
    NAME,
    cluster_chosen,
    label_fraction,
    levels_of,
    named_data,
    parse,
    runs_at_a_time,
    splits_of,
)
from mfpyg.datasets.spec import DatasetSpec
from mfpyg.errors import INTERRUPT_STATUS, MFPyGError
from mfpyg.fidelity import parse_fidelities
from mfpyg.study.cluster import Slurm, run_on_cluster
from mfpyg.study.jobs import Job, run_jobs
from mfpyg.study.plan import StudyPlan, data_options, joined_with_stored, models_named, store
from mfpyg.training.check import check_same_references, check_settings, given_references
from mfpyg.training.folder import RunFolder

if TYPE_CHECKING:
    from mfpyg.datasets.conformations import ConformationDataset
    from mfpyg.settings import TrainSettings
    from mfpyg.study.jobs import StudyProgress
    from mfpyg.study.plan import StudyRun


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, study_command, arguments)


def study_command(arguments: Sequence[str]) -> None:
    """Parse and check everything, train, write."""
    parsed, options, common = parse(arguments)
    if parsed.out is None:
        raise MFPyGError("--out is missing; expected a folder for the runs and the report")
    folder = Path(parsed.out)
    plan = StudyPlan(
        models_named(parsed.models),
        list(parsed.strategies),
        [],
        parsed.members,
        options,
        levels_of(common, folder),
        common.epochs,
    )
    plan.fractions = [label_fraction(text, plan) for text in parsed.label_fraction]
    plan.check()
    plan = joined_with_stored(plan, folder)
    plan.check_options()
    runs = plan.runs(folder)
    of_place = {r.folder.parent: train_options.parse(plan.arguments(r))[0] for r in runs if r.seed == 0}
    settings = list(of_place.values())  # of other seeds they differ in nothing but that
    for of_run in settings:
        check_settings(of_run)
        given_references(of_run)
    for one in runs:
        check_same_references(of_place[one.folder.parent], RunFolder(one.folder))
    splits = splits_of(settings[0])
    at_a_time = runs_at_a_time(parsed.jobs, parsed.gpus or [])
    cluster = cluster_chosen(parsed)
    more = named_data(parsed.evaluate, splits)
    device = ["--accelerator", "cuda"] if parsed.gpus and common.accelerator == "auto" else []
    runs = [dataclasses.replace(r, data=tuple(settings[0].sources)) for r in runs]
    data, _ = data_options(plan.options)
    jobs = [
        Job(str(r), r.folder, [*plan.arguments(r), *device], of_place[r.folder.parent].epochs, data=data) for r in runs
    ]
    others = _open_data(runs, settings, more, anything_to_train=not all(job.finished() for job in jobs))
    store(plan, folder)
    if cluster is None:
        _train(jobs, at_a_time, parsed.gpus or [])
    else:
        _train_on_cluster(jobs, cluster, parsed.jobs, folder)
    evaluated = ["--evaluate", *parsed.evaluate] if parsed.evaluate else []
    _write(
        folder,
        runs,
        jobs,
        splits,
        others,
        settings[0].accelerator,
        shlex.join([NAME, *plan.command(folder), *evaluated]),
    )
    if any(job.state == "failed" for job in jobs):
        sys.exit(1)


def _open_data(
    runs: Sequence[StudyRun],
    settings: Sequence[TrainSettings],
    more: Mapping[str, DatasetSpec],
    anything_to_train: bool,
) -> dict[str, ConformationDataset]:
    """Open the data to evaluate on; training data are opened once, so that they are processed before runs share them.

    Raises:
        MFPyGError: if a file is missing or invalid, or the data are not those that a run was started on.
    """
    from mfpyg.datasets.spec import open_dataset
    from mfpyg.study.ensembles import check_data, letters_of
    from mfpyg.training.data import open_training_data

    if anything_to_train:
        for fidelities, one in {tuple(s.fidelities): s for s in settings}.items():
            check_data(runs, open_training_data(one, parse_fidelities(fidelities)), fidelities)
    return {name: open_dataset(spec, properties=letters_of(runs)) for name, spec in more.items()}


def _train(jobs: Sequence[Job], at_a_time: int, gpus: Sequence[str]) -> None:
    with _followed(jobs) as progress:
        run_jobs(jobs, at_a_time, gpus, progress)


def _train_on_cluster(jobs: Sequence[Job], cluster: Slurm, at_a_time: int | None, folder: Path) -> None:
    with _followed(jobs, lambda: f"; the others stay in the queue ({cluster.to_cancel(jobs)} ends them)") as progress:
        run_on_cluster(jobs, cluster.executor(folder, at_a_time), folder, progress)


@contextmanager
def _followed(jobs: Sequence[Job], left: Callable[[], str] = lambda: "") -> Iterator[StudyProgress]:
    """Show the progress of jobs; on Ctrl-C, say how many are done, what is left, and how to continue."""
    from rich.console import Console

    from mfpyg.study.jobs import StudyProgress

    console = Console()
    try:
        with StudyProgress(console, jobs) as progress:
            yield progress
    except KeyboardInterrupt:
        done = sum(job.state == "done" for job in jobs)
        console.print(
            f"{NAME}: stopped; {done} of {len(jobs)} runs are done{left()}; the same command continues the study",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(INTERRUPT_STATUS)


def _write(
    folder: Path,
    runs: Sequence[StudyRun],
    jobs: Sequence[Job],
    splits: Sequence[str],
    others: Mapping[str, ConformationDataset],
    accelerator: str,
    command: str,
) -> None:
    from rich.console import Console

    from mfpyg.study import collect, write_figures, write_report, write_tables
    from mfpyg.study.ensembles import splits_with_data
    from mfpyg.study.tables import tables

    console = Console()
    failures = {job.folder: job.error for job in jobs if job.state == "failed"}
    runs = [dataclasses.replace(r, failure=failures.get(r.folder)) for r in runs]
    result = collect(
        runs,
        splits=splits_with_data(runs, splits),
        others=others,
        accelerator=accelerator,
        note=lambda line: console.print(line, highlight=False, soft_wrap=True),
    )
    write_tables(result, folder)
    for table in tables(result):
        console.print(table.markdown(), highlight=False, soft_wrap=True)
    write_report(result, folder, commands=[command], figures=write_figures(result, folder))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    for where, reason in failures.items():
        console.print(f"failed: {where}: {reason}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
