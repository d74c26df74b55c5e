"""Options of ``mfpyg-study``, its own and those passed on to ``mfpyg-train``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mfpyg.cli import train_options
from mfpyg.cli.common import hyphenated
from mfpyg.datasets.spec import DatasetSpec, combined_levels, parse_specs, recorded_specs
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.settings import TrainSettings
from mfpyg.study.cluster import Slurm
from mfpyg.study.names import parse_model, target_of
from mfpyg.study.plan import SETS, StudyPlan

NAME = "mfpyg-study"
_FIXED = (
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
        usage=f"{NAME} MODEL [MODEL ...] --out FOLDER [options] [options of mfpyg-train]",
        description="Train ensembles of models on the same splits, several at a time, and write tables, figures and a "
        "report. Finished runs are not repeated, and stopped ones continue. "
        f"Example: {NAME} tables2-4 --members 5 --out studies/paper",
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help=f"model names of the paper, such as SF-CC/E or MF-DZ/EF-CC/E; {', '.join(SETS)}: those of its tables",
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder for runs, tables and the report")
    parser.add_argument(
        "--members", type=int, default=8, metavar="N", help="models per ensemble (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one per core, or per GPU of --gpus)"
    )
    parser.add_argument("--gpus", nargs="+", metavar="N", help="numbers of the GPUs to use")
    parser.add_argument(
        "--launcher",
        default="local",
        metavar="{local,slurm}",
        help="run on this machine, or as jobs of a cluster (default: local)",
    )
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="options of sbatch for each run, as partition=gpu time=240 gpus_per_node=1; time in minutes",
    )  # fmt: skip
    parser.add_argument(
        "--strategies", nargs="+", default=["mfl"], metavar="NAME",
        help="strategies for models of several fidelities: mfl, tl, delta, meta (default: mfl)",
    )  # fmt: skip
    parser.add_argument(
        "--label-fraction", nargs="+", default=["1"], metavar="X",
        help="fractions of the target's labels to train on, as 1 0.3 0.1 or cc=0.1, an ensemble for each (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", nargs="+", default=[], metavar="NAME=SPEC",
        help="data to evaluate on besides the splits test and ood, as comp6=comp6:COMP6/COMP6v1",
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
        if name in _FIXED:
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
            raise MFPyGError(f"label-fraction {text}: the models' targets are {', '.join(sorted(targets))}; name those")
    return fraction


def runs_at_a_time(jobs: int | None, gpus: Sequence[str]) -> int:
    """Number of runs at a time: as given, else one per GPU or core.

    Raises:
        MFPyGError: for GPUs that are not distinct numbers, or a number of runs below one.
    """
    for gpu in gpus:
        if not gpu.isdecimal() or gpus.count(gpu) > 1:
            raise MFPyGError(f"gpus are {' '.join(gpus)}, expected different numbers, as 0 1")
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


def cluster_of(parsed: argparse.Namespace) -> Slurm | None:
    """Cluster to run on, if any.

    Raises:
        MFPyGError: for an unknown launcher, or options of the other one.
    """
    if parsed.launcher not in ("local", "slurm"):
        raise unknown_name("launcher", parsed.launcher, ("local", "slurm"))
    if parsed.launcher == "local":
        if parsed.slurm:
            raise MFPyGError("slurm is given, but launcher is local; it has to be slurm")
        return None
    if parsed.gpus:
        raise MFPyGError(
            "gpus are those of this machine; with launcher slurm, request them with --slurm gpus_per_node=1"
        )
    return Slurm.parse(parsed.slurm)
