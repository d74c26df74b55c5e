"""``mfpyg-study``: train many models as ensembles, and write the tables and figures that compare them."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mfpyg.cli import train
from mfpyg.cli.common import Parser, given, hyphenated, joined, run
from mfpyg.cli.imports import slow_imports
from mfpyg.datasets.spec import DatasetSpec, combined_levels, parse_specs
from mfpyg.errors import INTERRUPT_STATUS, MFPyGError, unknown_name
from mfpyg.fidelity import parse_fidelities
from mfpyg.study.cluster import Slurm, run_on_cluster
from mfpyg.study.names import parse_model, target_of
from mfpyg.study.plan import SETS, StudyPlan, joined_with_stored, models_named, store
from mfpyg.study.scheduling import Job, run_jobs
from mfpyg.training.check import check_settings

if TYPE_CHECKING:
    from mfpyg.datasets.conformations import ConformationDataset
    from mfpyg.settings import TrainSettings
    from mfpyg.study.progress import StudyProgress
    from mfpyg.study.studyrun import StudyRun

NAME = "mfpyg-study"
_FIXED = (
    *("--fidelities", "--target", "--seed", "--split.seed", "--strategy"),
    *("--resume", "--config", "--print-config", "--init", "--add-fidelity"),
)
"""Options of mfpyg-train that a study sets itself, or that make no sense in one."""
_SPLITS = ("test", "ood")


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, study_command, arguments)


def build_parser() -> Parser:
    """Options of the command itself."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} MODEL [MODEL ...] --out FOLDER [options] [options of mfpyg-train]",
        description="Train models as ensembles on the same splits, several at a time, and write tables, figures and a "
        "report. What is there already is not repeated, and what was stopped goes on. "
        f"Example: {NAME} tables2-4 --members 5 --out studies/paper",
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help=f"as the paper names them, such as SF-CC/E or MF-DZ/EF-CC/E; {', '.join(SETS)}: those of its tables",
    )
    parser.add_argument("--out", metavar="FOLDER", help="where runs, tables and the report go")
    parser.add_argument("--members", type=int, default=8, metavar="N", help="of each ensemble")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time; a core, or a GPU of --gpus, each")
    parser.add_argument("--gpus", nargs="+", metavar="N", help="numbers of the GPUs, one run each at a time")
    parser.add_argument(
        "--launcher", default="local", metavar="{local,slurm}", help="where the runs are: here, or jobs of a cluster"
    )
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="what sbatch is to ask for each run, as partition=gpu time=240 gpus_per_node=1; time in minutes",
    )  # fmt: skip
    parser.add_argument(
        "--strategies", nargs="+", default=["mfl"], metavar="NAME",
        help="mfl, tl, delta, meta: how the models of several fidelities are trained",
    )  # fmt: skip
    parser.add_argument(
        "--label-fraction", nargs="+", default=["1"], metavar="X",
        help="shares of the target's labels to train on, as 1 0.3 0.1 or cc=0.1; each is an ensemble of its own",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", nargs="+", default=[], metavar="NAME=SPEC",
        help="more data to evaluate on, as comp6=comp6:COMP6/COMP6v1; the splits test and ood always are",
    )  # fmt: skip
    parser.words.update(members="a whole number", jobs="a whole number")
    return parser


def study_command(arguments: Sequence[str]) -> None:
    """Parse and check everything, train, write."""
    parser = build_parser()
    own, options = _parted(hyphenated(arguments), parser)
    parsed = parser.parse_args(own)
    if parsed.out is None:
        raise MFPyGError("--out is missing; expected a folder for the runs and the report")
    folder = Path(parsed.out)
    plan = StudyPlan(
        models_named(parsed.models),
        list(parsed.strategies),
        [],
        parsed.members,
        options,
        *_levels_and_epochs(options),
    )
    plan.fractions = [_fraction(text, plan) for text in parsed.label_fraction]
    plan.check()
    plan = joined_with_stored(plan, folder)
    plan.check_options()
    runs = plan.runs(folder)
    of_place = {r.folder.parent: train.parse(plan.arguments(r))[0] for r in runs if r.seed == 0}
    settings = list(of_place.values())  # of other seeds they differ in nothing but that
    for of_run in settings:
        check_settings(of_run)
    at_a_time = _at_a_time(parsed.jobs, parsed.gpus or [])
    cluster = _cluster(parsed)
    more = _named(parsed.evaluate)
    device = ["--accelerator", "cuda"] if parsed.gpus and given(options, "--accelerator") is None else []
    jobs = [Job(str(r), r.folder, [*plan.arguments(r), *device], of_place[r.folder.parent].epochs) for r in runs]
    others = _open_data(settings, more, anything_to_train=not all(job.finished() for job in jobs))
    store(plan, folder)
    if cluster is None:
        _train(jobs, at_a_time, parsed.gpus or [])
    else:
        _train_on_cluster(jobs, cluster, parsed.jobs, folder)
    evaluated = ["--evaluate", *parsed.evaluate] if parsed.evaluate else []
    _write(folder, runs, jobs, others, settings[0].accelerator, shlex.join([NAME, *plan.command(folder), *evaluated]))
    if any(job.state == "failed" for job in jobs):
        sys.exit(1)


def _parted(arguments: Sequence[str], parser: Parser) -> tuple[list[str], list[str]]:
    """The arguments of this command, and those of mfpyg-train, each option with its values.

    Raises:
        MFPyGError: for an option that neither has, or that a study sets itself.
    """
    mine = [option for action in parser._actions for option in action.option_strings]
    own: list[str] = []
    others: list[str] = []
    into = own
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if name.startswith("--"):
            into = own if name in mine else others
            if name in _FIXED:
                raise MFPyGError(f"option {name} can't be given; a study sets it for each run")
        into.append(argument)
    train.build_parser(given(others, "--backbone") or "hipnn").check_names(others)
    return own, joined(others, "--dataset")


def _levels_and_epochs(options: Sequence[str]) -> tuple[list[str], int]:
    """Names of the levels that the data of these options have, and the epochs of a run."""
    settings, _ = train.parse(["--fidelities", "any:E", *options])
    return [level.name for level in combined_levels(parse_specs(settings.dataset))], settings.epochs


def _fraction(text: str, plan: StudyPlan) -> float:
    name, _, number = text.rpartition("=")
    try:
        fraction = float(number)
    except ValueError:
        raise MFPyGError(f"label-fraction is '{text}', expected a number such as 0.1, or cc=0.1") from None
    if name:
        targets = {target_of(parse_model(model, plan.levels)).name for model in plan.models}
        if targets != {name}:
            raise MFPyGError(f"label-fraction {text}: the models' targets are {', '.join(sorted(targets))}; name those")
    return fraction


def _at_a_time(jobs: int | None, gpus: Sequence[str]) -> int:
    for gpu in gpus:
        if not gpu.isdecimal() or gpus.count(gpu) > 1:
            raise MFPyGError(f"gpus are {' '.join(gpus)}, expected different numbers, as 0 1")
    at_a_time = (len(gpus) or os.cpu_count() or 1) if jobs is None else jobs
    if at_a_time < 1:
        raise MFPyGError(f"jobs is {at_a_time}, expected at least 1")
    return at_a_time


def _named(texts: Sequence[str]) -> dict[str, DatasetSpec]:
    found: dict[str, DatasetSpec] = {}
    for text in texts:
        name, _, spec = text.partition("=")
        if not name or not spec:
            raise MFPyGError(f"evaluate is '{text}', expected a name and a data set, as comp6=comp6:COMP6/COMP6v1")
        if name in found or name in _SPLITS:
            raise MFPyGError(f"evaluate {text}: there is a '{name}' already; choose another name")
        (found[name],) = parse_specs([spec])
    return found


def _open_data(
    settings: Sequence[TrainSettings], more: Mapping[str, DatasetSpec], anything_to_train: bool
) -> dict[str, ConformationDataset]:
    """The data to evaluate on; those to train on are opened once, so that they are processed before runs share them.

    Raises:
        MFPyGError: if a file is missing or wrong.
    """
    with slow_imports():
        from mfpyg.datasets.opening import open_dataset
        from mfpyg.training.prepare import open_training_data

    if anything_to_train:
        for fidelities, one in {tuple(s.fidelities): s for s in settings}.items():
            open_training_data(one, parse_fidelities(fidelities))
    return {name: open_dataset(spec) for name, spec in more.items()}


def _cluster(parsed: Namespace) -> Slurm | None:
    """What the options say of a cluster, if the runs go there."""
    if parsed.launcher not in ("local", "slurm"):
        raise unknown_name("launcher", parsed.launcher, ("local", "slurm"))
    if parsed.launcher == "local":
        if parsed.slurm:
            raise MFPyGError("slurm is given, but launcher is local; it has to be slurm")
        return None
    if parsed.gpus:
        raise MFPyGError(
            "gpus are those of this machine; with launcher slurm ask for them with --slurm gpus_per_node=1"
        )
    return Slurm.parse(parsed.slurm)


def _train(jobs: Sequence[Job], at_a_time: int, gpus: Sequence[str]) -> None:
    with _followed(jobs) as progress:
        run_jobs(jobs, at_a_time, gpus, progress)


def _train_on_cluster(jobs: Sequence[Job], cluster: Slurm, at_a_time: int | None, folder: Path) -> None:
    with _followed(jobs, lambda: f"; the others stay in the queue ({cluster.to_cancel(jobs)} ends them)") as progress:
        run_on_cluster(jobs, cluster.executor(folder, at_a_time), folder, progress)


@contextmanager
def _followed(jobs: Sequence[Job], left: Callable[[], str] = lambda: "") -> Iterator[StudyProgress]:
    """Show how far jobs are; on Ctrl-C say how many are done, what is left, and how to go on."""
    from rich.console import Console

    from mfpyg.study.progress import StudyProgress

    console = Console()
    try:
        with StudyProgress(console, jobs) as progress:
            yield progress
    except KeyboardInterrupt:
        done = sum(job.state == "done" for job in jobs)
        console.print(
            f"{NAME}: stopped; {done} of {len(jobs)} runs are done{left()}, the same command goes on",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(INTERRUPT_STATUS)


def _write(
    folder: Path,
    runs: Sequence[StudyRun],
    jobs: Sequence[Job],
    others: Mapping[str, ConformationDataset],
    accelerator: str,
    command: str,
) -> None:
    from rich.console import Console

    from mfpyg.study import collect, write_figures, write_report, write_tables
    from mfpyg.study.reading import splits_with_data
    from mfpyg.study.tables import tables

    console = Console()
    failures = {job.folder: job.error for job in jobs if job.state == "failed"}
    runs = [dataclasses.replace(r, failure=failures.get(r.folder)) for r in runs]
    result = collect(
        runs,
        splits=splits_with_data(runs, _SPLITS),
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
