"""Options of ``mfpyg-study``, its own and those passed on to ``mfpyg-train``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mfpyg import __version__
from mfpyg.cli import train_options
from mfpyg.cli.common import HelpFormatter, hyphenated
from mfpyg.datasets.spec import DatasetSpec, combined_levels, parse_specs, recorded_specs
from mfpyg.errors import MFPyGError
from mfpyg.settings import TrainSettings
from mfpyg.study.cluster import Slurm, cluster_of
from mfpyg.study.names import parse_model, target_of
from mfpyg.study.plan import SETS, StudyPlan

NAME = "mfpyg-study"
FIXED = (
    *("--fidelities", "--target", "--seed", "--split.seed", "--strategy"),
    *("--resume", "--config", "--print-config", "--init", "--add-fidelity"),
)
"""Options of mfpyg-train that a study sets itself, or that make no sense in one."""
SPLITS = ("test", "ood")
"""Splits that every model is evaluated on."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise MFPyGError(message)


def build_parser() -> argparse.ArgumentParser:
    """Options of the command itself."""
    parser = _Parser(
        prog=NAME,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        usage=f"{NAME} MODEL ... --out FOLDER [options] [options of mfpyg-train]",
        description="Train ensembles of models on the same splits, and write tables, figures and an HTML report that "
        "compare them. The same command again continues a stopped study; finished runs are not repeated.\n\n"
        f"Example: {NAME} tables2-4 --members 5 --out studies/paper",
        epilog="All other options, such as --dataset and --epochs, are those of mfpyg-train and apply to every run; "
        "see mfpyg-train --help.",
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}", help="print the version")
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="models by their names in the paper, such as SF-CC/E or MF-DZ/EF-CC/E, or those of its tables: "
        f"{', '.join(SETS)}",
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder for the runs, the tables and the report (required)")
    parser.add_argument(
        "--members", type=int, default=8, metavar="N", help="runs of each model, which differ in the seed"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one per core, or per GPU of --gpus)"
    )
    parser.add_argument("--gpus", nargs="+", metavar="N", help="numbers of the GPUs to use, such as 0 1")
    parser.add_argument(
        "--launcher", default="local", metavar="{local,slurm}",
        help="local: run on this machine; slurm: submit each run as a job to a cluster",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="options of sbatch for each run, such as partition=gpu time=240 gpus_per_node=1; time is in minutes",
    )  # fmt: skip
    parser.add_argument(
        "--strategies", nargs="+", default=["mfl"], metavar="NAME",
        help="strategies to train models of several fidelities with: mfl, tl, delta, meta",
    )  # fmt: skip
    parser.add_argument(
        "--label-fraction", nargs="+", default=["1"], metavar="X",
        help="fractions of the target's labels to train on, such as 1 0.3 0.1 or cc=0.1, with an ensemble for each",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", nargs="+", default=[], metavar="NAME=DATA",
        help="data to evaluate on besides the splits test and ood, such as comp6=comp6:COMP6/COMP6v1",
    )  # fmt: skip
    return parser


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], TrainSettings]:
    """Options of this command, options for ``mfpyg-train``, and the settings common to all runs.

    Raises:
        MFPyGError: for an option that neither command has, or that a study sets itself.
    """
    parsed, options = build_parser().parse_known_args(hyphenated(arguments))
    for option in options:
        name = option.split("=", 1)[0]
        if name in FIXED:
            raise MFPyGError(f"option {name} cannot be given; a study sets it for each run")
    return parsed, options, train_options.parse(["--fidelities", "any:E", *options])[0]


def levels_of(settings: TrainSettings, folder: Path) -> list[str]:
    """Names of the levels in the data of the study in this folder."""
    if (folder / "study.yaml").is_file():
        specs = recorded_specs(settings.sources, f"the same command with {train_options.new_data(settings)}")
    else:
        specs = parse_specs(settings.sources)
    return [level.name for level in combined_levels(specs)]


def label_fraction(text: str, plan: StudyPlan) -> float:
    """Parse a fraction of the target's labels such as ``0.1`` or ``cc=0.1``.

    Raises:
        MFPyGError: if it is not a number, or names another level than the target of all models.
    """
    name, _, number = text.rpartition("=")
    try:
        fraction = float(number)
    except ValueError:
        raise MFPyGError(f"label-fraction is '{text}', expected a number such as 0.1, or cc=0.1") from None
    if name:
        targets = {target_of(parse_model(model, plan.levels)).name for model in plan.models}
        if targets != {name}:
            raise MFPyGError(
                f"label-fraction {text}: the models' targets are {', '.join(sorted(targets))}; give only the number, "
                "or name the target of all models"
            )
    return fraction


def runs_at_a_time(jobs: int | None, gpus: Sequence[str]) -> int:
    """Number of runs at a time: as given, else one per GPU or core.

    Raises:
        MFPyGError: for GPUs that are not distinct numbers, or a number of runs below one.
    """
    for gpu in gpus:
        if not gpu.isdecimal() or gpus.count(gpu) > 1:
            raise MFPyGError(f"gpus are {' '.join(gpus)}, expected different numbers, such as 0 1")
    at_a_time = (len(gpus) or os.cpu_count() or 1) if jobs is None else jobs
    if at_a_time < 1:
        raise MFPyGError(f"jobs is {at_a_time}, expected at least 1")
    return at_a_time


def splits_of(settings: TrainSettings) -> list[str]:
    """Splits that every model is evaluated on: the usual ones, and additional ones of ``split.files``."""
    further = [name for name, _ in settings.split.sources if name not in ("train", "val", *SPLITS)]
    return [*SPLITS, *dict.fromkeys(further)]


def named_data(texts: Sequence[str], taken: Sequence[str]) -> dict[str, DatasetSpec]:
    """Data sets of ``--evaluate NAME=SPEC`` by name.

    Raises:
        MFPyGError: for a malformed entry, or a name that is given twice or taken.
    """
    found: dict[str, DatasetSpec] = {}
    for text in texts:
        name, _, spec = text.partition("=")
        if not name or not spec:
            raise MFPyGError(f"evaluate is '{text}', expected a name and a data set, as comp6=comp6:COMP6/COMP6v1")
        if name in found or name in taken:
            raise MFPyGError(f"evaluate {text}: there is a '{name}' already; choose another name")
        (found[name],) = parse_specs([spec])
    return found


def cluster_chosen(parsed: argparse.Namespace) -> Slurm | None:
    """Cluster to run on, if any.

    Raises:
        MFPyGError: for an unknown launcher, or options of the other one.
    """
    if parsed.launcher == "slurm" and parsed.gpus:
        raise MFPyGError(
            "gpus selects GPUs of this machine; with launcher slurm, request them by --slurm gpus_per_node=1"
        )
    return cluster_of(parsed.launcher, parsed.slurm)
