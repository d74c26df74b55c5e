"""``mfpyg-study``: train many models as ensembles, and write the tables and figures that compare them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli import train
from mfpyg.cli.common import INTERRUPT_STATUS, Parser, run
from mfpyg.datasets.spec import combined_levels, parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.study.names import target_of
from mfpyg.study.plan import SETS, StudyPlan, joined_with_stored, models_named, store
from mfpyg.training.check import check_settings

if TYPE_CHECKING:
    from mfpyg.study.scheduling import Job
    from mfpyg.study.studyrun import StudyRun

NAME = "mfpyg-study"
_FIXED = ("--fidelities", "--seed", "--split.seed", "--strategy", "--out", "--resume", "--config", "--print-config")
"""Options of mfpyg-train that a study sets itself, or that make no sense in one."""


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
    own, options = _parted(arguments, parser)
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
        _levels(options),
    )
    plan.fractions = [_fraction(text, plan) for text in parsed.label_fraction]
    plan.check()
    plan = joined_with_stored(plan, folder)
    runs = plan.runs(folder)
    for study_run in runs[: len(runs) // plan.members]:  # the first members; the others differ in their seeds
        settings, _ = train.parse(plan.arguments(study_run))
        check_settings(settings)
    jobs_at_a_time = parsed.jobs or (len(parsed.gpus) if parsed.gpus else os.cpu_count() or 1)
    if jobs_at_a_time < 1:
        raise MFPyGError(f"jobs is {jobs_at_a_time}, expected at least 1")
    more = [_named(text) for text in parsed.evaluate]
    store(plan, folder)
    jobs = _jobs(plan, runs, settings.epochs)
    _train(jobs, jobs_at_a_time, parsed.gpus or [])
    _write(folder, runs, jobs, more, [shlex.join([NAME, *arguments])])
    if any(job.state == "failed" for job in jobs):
        sys.exit(1)


def _parted(arguments: Sequence[str], parser: Parser) -> tuple[list[str], list[str]]:
    """The arguments of this command, and those of mfpyg-train, each option with its values.

    Raises:
        MFPyGError: for an option that neither has, or that a study sets itself.
    """
    mine = [option for action in parser._actions for option in action.option_strings]
    own, others = [], []
    into = own
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if name.startswith("--"):
            into = own if name in mine else others
            if name in _FIXED and name not in mine:
                raise MFPyGError(f"option {name} can't be given; a study sets it for each run")
        into.append(argument)
    known = train.build_parser("hipnn") if not others else train.build_parser(_backbone(others))
    known.check_names(others)
    return own, others


def _backbone(options: Sequence[str]) -> str:
    from mfpyg.cli.common import given

    return given(options, "--backbone") or "hipnn"


def _levels(options: Sequence[str]) -> list[str]:
    """Names of the levels that the data of these options have."""
    settings, _ = train.parse(["--fidelities", "any:E", *options])
    return [level.name for level in combined_levels(parse_specs(settings.dataset))]


def _fraction(text: str, plan: StudyPlan) -> float:
    name, _, number = text.rpartition("=")
    try:
        fraction = float(number)
    except ValueError:
        raise MFPyGError(f"label-fraction is '{text}', expected a number such as 0.1, or cc=0.1") from None
    if name:
        from mfpyg.study.names import parse_model

        targets = {target_of(parse_model(model, plan.levels)).name for model in plan.models}
        if targets != {name}:
            raise MFPyGError(f"label-fraction {text}: the models' targets are {', '.join(sorted(targets))}; name those")
    return fraction


def _named(text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not equals or not name or not spec:
        raise MFPyGError(f"evaluate is '{text}', expected a name and a data set, as comp6=comp6:COMP6/COMP6v1")
    parse_specs([spec])
    return name, spec


def _jobs(plan: StudyPlan, runs: Sequence[StudyRun], epochs: int) -> list[Job]:
    from mfpyg.study.scheduling import Job

    return [Job(str(r), r.folder, plan.arguments(r), epochs) for r in runs]


def _train(jobs: Sequence[Job], at_a_time: int, gpus: Sequence[str]) -> None:
    from rich.console import Console

    from mfpyg.study.progress import StudyProgress
    from mfpyg.study.scheduling import run_jobs

    console = Console()
    try:
        with StudyProgress(console, jobs) as progress:
            run_jobs(jobs, at_a_time, gpus, progress)
    except KeyboardInterrupt:
        done = sum(job.state == "done" for job in jobs)
        console.print(
            f"{NAME}: stopped; {done} of {len(jobs)} runs are done, the same command goes on", highlight=False
        )
        sys.exit(INTERRUPT_STATUS)


def _write(
    folder: Path, runs: Sequence[StudyRun], jobs: Sequence[Job], more: Sequence[tuple[str, str]], commands: list[str]
) -> None:
    import dataclasses

    from rich.console import Console

    from mfpyg.datasets.opening import open_dataset
    from mfpyg.study import collect, write_figures, write_report, write_tables

    console = Console()
    failures = {job.folder: job.error for job in jobs if job.state == "failed"}
    for where, reason in failures.items():
        console.print(f"failed: {where}: {reason}", highlight=False, soft_wrap=True)
    runs = [dataclasses.replace(r, failure=failures.get(r.folder)) for r in runs]
    others: dict[str, Any] = {name: open_dataset(parse_specs([spec]), ()) for name, spec in more}
    result = collect(runs, others=others, note=lambda line: console.print(line, highlight=False))
    for path in write_tables(result, folder):
        if path.suffix == ".md":
            console.print(path.read_text(), highlight=False, soft_wrap=True)
    write_report(result, folder, commands=commands, figures=write_figures(result, folder))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
