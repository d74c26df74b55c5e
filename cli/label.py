"""``mfpyg-label``: compute labels of all frames of a file at several levels of theory."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli.common import Parser, progress_bar, run
from mfpyg.errors import ERROR_STATUS, INTERRUPT_STATUS, MFPyGError
from mfpyg.options import in_words
from mfpyg.properties import PROPERTIES

if TYPE_CHECKING:
    from mfpyg.labeling.jobs import LabelJob
    from mfpyg.labeling.run import LabelReport
    from mfpyg.labeling.store import LabelStore
    from mfpyg.study.cluster import Slurm

NAME = "mfpyg-label"
_LETTERS = ", ".join(f"{p.letter} {p.plural}" for p in PROPERTIES.values())
_NAMED = 20
"""Maximum number of failures that are printed."""


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, label_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} FILE -o OUT --level LEVEL ... [options]",
        description="Compute energies, forces and other labels of all frames of a file, in any format that ASE reads, "
        "with tblite, PySCF, calculators of ASE or trained potentials. Labels are stored as they are computed, so that "
        "the same command continues after a stop.\n\n"
        "Example: mfpyg-label in.xyz -o out.xyz --level xtb=tblite:GFN2-xTB:EF 'cc=pyscf:CCSD(T)/cc-pVDZ:E'",
    )
    parser.add_argument("file", metavar="FILE", help="file of geometries")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="file for the labelled frames, .xyz or .h5; the labels are in OUT.labels/"
    )
    parser.add_argument(
        "--level",
        metavar="LEVEL",
        nargs="+",
        action="extend",
        help="levels of theory as NAME=PROGRAM:METHOD:LETTERS, with the program tblite, pyscf, ase or mfpyg and the "
        f"letters of properties ({_LETTERS}); settings follow the method, as in pyscf:wB97X/6-31G*,grid=4:EF",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="labels computed at a time (default: as many as the cores allow); with "
        "launcher slurm, jobs of the array (default: 10)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each calculation")
    parser.add_argument("--retry", action="store_true", help="compute again what failed before")
    parser.add_argument("--format", metavar="NAME", help="ASE's name of the format of FILE (default: guessed)")
    parser.add_argument(
        "--launcher", default="local", metavar="{local,slurm}", help="run on this machine, or as jobs of a cluster"
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of sbatch for each job, such as partition=cpu time=240 cpus_per_task=8; time in minutes",
    )
    for name in ("jobs", "threads"):
        parser.words[name] = in_words(int)
    return parser


def label_command(arguments: Sequence[str]) -> None:
    """Parse, check, label, print a summary."""
    options = build_parser().parse_args(arguments)
    if options.output is None:
        raise MFPyGError("option -o is missing; expected the name of a file for the labelled frames")
    for name in ("jobs", "threads"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise MFPyGError(f"--{name} is {number}, expected a whole number of at least 1")
    source, target = Path(options.file), Path(options.output)
    if not source.is_file():
        raise MFPyGError(f"{source}: no such file; expected one of atoms that ASE reads")
    if target.is_dir():
        raise MFPyGError(f"{target} is a folder; expected the name of a file for the labelled frames")
    if not target.parent.is_dir():
        raise MFPyGError(f"{target.parent}: no such folder; create it, or write {target.name} elsewhere")
    if not os.access(target.parent, os.W_OK):
        raise MFPyGError(f"{target.parent}: cannot write {target.name} there; name another place with -o")

    from mfpyg.labeling.level import parse_label_levels
    from mfpyg.labeling.output import format_of
    from mfpyg.labeling.run import label_file
    from mfpyg.study.cluster import cluster_of

    format_of(target)
    levels = parse_label_levels(options.level or ())
    cluster = cluster_of(options.launcher, options.slurm)

    def compute(jobs: Sequence[LabelJob], store: LabelStore) -> dict[str, str]:
        return _compute(jobs, store, options, cluster)

    report = label_file(source, target, levels, compute, input_format=options.format, retry=options.retry)
    _print(report)
    if not report.n_frames:
        sys.exit(ERROR_STATUS)


def _compute(jobs: Sequence[LabelJob], store: LabelStore, options: Any, cluster: Slurm | None) -> dict[str, str]:
    """Compute labels here or on the cluster, with a progress bar; on Ctrl-C, say how to continue."""
    if not jobs:
        return {}
    done = 0
    try:
        with progress_bar("labels", len(jobs)) as update:

            def show(*ended: Any) -> None:
                nonlocal done
                done = sum(store.has(job.key) for job in jobs) if cluster else done + 1
                update(done)

            if cluster is not None:
                from mfpyg.study.labels import compute_on_cluster

                return compute_on_cluster(jobs, store, cluster, options.jobs, options.threads, show)
            from mfpyg.labeling.pool import compute_labels

            at_a_time = options.jobs or max(_cores() // options.threads, 1)
            return compute_labels(jobs, store, at_a_time, options.threads, show)
    except KeyboardInterrupt:
        queue = "; jobs stay in the queue (see squeue)" if cluster else ""
        print(f"{NAME}: stopped; {done} of {len(jobs)} labels are done{queue}; the same command continues")
        sys.exit(INTERRUPT_STATUS)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(report: LabelReport) -> None:
    """Print the levels, the failures, and what to train with."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD)
    for header in ("level", "method", "program"):
        table.add_column(header)
    for header in ("labels", "failed", "s per label"):
        table.add_column(header, justify="right")
    for name, about in report.levels.items():
        seconds = "" if about["seconds"] is None else f"{about['seconds']:.3g}"
        program = f"{about['program']} {about['version']}"
        table.add_row(name, about["method"], program, f"{about['labels']:,}", f"{about['failed']:,}", seconds)
    if report.n_frames:
        console.print(table)
    lines: dict[tuple[str, str], list[str]] = {}
    for failure in report.failures:
        lines.setdefault((f"frame {failure.frame} ({failure.formula})", failure.reason), []).append(failure.level)
    for (frame, reason), names in list(lines.items())[:_NAMED]:
        line = f"failed: {frame}: {', '.join(names)}: {reason}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(lines) > _NAMED:
        console.print(f"failed: {len(lines) - _NAMED} more frames, see {report.path}.yaml", highlight=False)
    if not report.n_frames:
        print(f"{NAME}: error: none of {len(report.failures)} labels could be computed", file=sys.stderr)
        return
    console.print(f"written: {report.path}, {report.n_frames:,} frames", highlight=False, soft_wrap=True)
    console.print(f"train with: --dataset {shlex.quote(report.dataset)}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
