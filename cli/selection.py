"""``mfpyg-select``: frames to label next, and at which levels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli.common import Parser, run
from mfpyg.datasets.spec import DatasetSpec
from mfpyg.errors import MFPyGError
from mfpyg.files import sidecar
from mfpyg.options import in_words
from mfpyg.pretrained import model_path, no_such_model
from mfpyg.selection.settings import METHODS, SelectSettings, labelled_spec, read_costs

if TYPE_CHECKING:
    from mfpyg.selection.run import SelectReport

NAME = "mfpyg-select"
SUFFIXES = (".xyz", ".extxyz")


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, select_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} RUN POOL -o OUT.xyz --target NAME --cost NAME=NUMBER ... --budget NUMBER [options]",
        description="Choose the frames of a pool to label next, and the levels of theory to label each of them at, "
        "for a budget. mfpyg-label computes the labels.\n\n"
        "Example: mfpyg-select runs/first pool.xyz -o next.xyz --target cc --cost cc=1.7 dz=0.3 --budget 600",
    )
    parser.add_argument(
        "paths",
        metavar="RUN POOL",
        nargs="*",
        help="run folder of mfpyg-train or checkpoint, not needed for a random choice, and the file of frames to "
        "choose from",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="extended-XYZ file to write, which must not exist")
    parser.add_argument("--target", metavar="NAME", help="level of theory whose forces are to become accurate")
    parser.add_argument(
        "--cost",
        metavar="COST",
        nargs="+",
        action="extend",
        help="cost of a label of each level as NAME=NUMBER, or a YAML file written by mfpyg-label, whose mean seconds "
        "are the costs",
    )
    parser.add_argument(
        "--levels", metavar="NAME", nargs="+", help="levels of theory to choose from (default: all with a cost)"
    )
    parser.add_argument(
        "--budget", type=float, metavar="NUMBER", help="largest sum of the costs of all labels, in the unit of --cost"
    )
    parser.add_argument(
        "--method", default=METHODS[0], metavar="{" + ",".join(METHODS) + "}", help="how frames are chosen"
    )
    parser.add_argument("--max", type=int, metavar="N", help="number of frames at most")
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        action="append",
        help="data of the run, if they have moved, as for mfpyg-train; may be repeated (default: as recorded)",
    )
    parser.add_argument(
        "--labelled",
        metavar="DATA",
        nargs="+",
        action="extend",
        help="data with labels that the run was not trained on: outputs of mfpyg-label, or as --dataset of mfpyg-train",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random numbers")
    parser.add_argument("--format", metavar="NAME", help="ASE's name of the format of POOL (default: guessed)")
    parser.words["budget"] = in_words(float)
    for name in ("max", "seed"):
        parser.words[name] = in_words(int)
    return parser


def select_command(arguments: Sequence[str]) -> None:
    """Parse, check, choose, write."""
    options = build_parser().parse_args(arguments)
    settings = _settings(options)
    model, pool = [model_path(path) for path in options.paths[:-1]], Path(options.paths[-1])
    if options.output is None:
        raise MFPyGError("option -o is missing; expected the name of an extended-XYZ file to write")
    out = Path(options.output)
    if out.suffix.lower() not in SUFFIXES:
        raise MFPyGError(f"{out}: unknown suffix, expected {' or '.join(SUFFIXES)}; extended XYZ is written")
    if not out.parent.is_dir():
        raise MFPyGError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")
    if not os.access(out.parent, os.W_OK):
        raise MFPyGError(f"{out.parent}: cannot write {out.name} there; name another place with -o")
    if not pool.is_file():
        raise MFPyGError(f"{pool}: no such file; expected one of atoms that ASE reads")
    for path in model:
        if not path.exists():
            raise no_such_model(path)
    specs = [labelled_spec(text) for text in options.labelled or ()]
    _select(options, settings, model[0] if model else None, pool, out, specs)


def _settings(options: Any) -> SelectSettings:
    if options.budget is None:
        raise MFPyGError("option --budget is missing; expected a number in the unit of the costs")
    settings = SelectSettings(
        costs=read_costs(options.cost or (), options.levels),
        method=options.method,
        target=options.target,
        budget=options.budget,
        max=options.max,
        seed=options.seed,
    )
    settings.check()
    n = len(options.paths)
    if not 1 <= n <= 2 or (n == 1 and settings.method != "random"):
        found = f"found {' '.join(options.paths)}" if n else "found none"
        raise MFPyGError(f"expected a run and the file of frames to choose from, before all options; {found}")
    return settings


def _select(
    options: Any, settings: SelectSettings, model: Path | None, pool: Path, out: Path, specs: Sequence[DatasetSpec]
) -> None:
    from rich.console import Console
    from rich.progress import track

    from mfpyg.datasets.spec import open_dataset
    from mfpyg.progress import shown_on
    from mfpyg.selection.run import check_new, select_file
    from mfpyg.selection.trained import open_trained

    console = Console()
    check_new(out)
    trained = None if model is None else open_trained(model, options.dataset, shown_on(console))
    labelled = [open_dataset(spec, track=shown_on(console)) for spec in specs]

    def show(batches: Sequence[Any]) -> Iterable[Any]:
        return track(batches, "features", console=console, transient=True, disable=not console.is_terminal)

    inputs: dict[str, Any] = {"trained": trained, "labelled": labelled, "input_format": options.format}
    _print(console, select_file(pool, out, settings, **inputs, show=show), settings)


def _print(console: Any, report: SelectReport, settings: SelectSettings) -> None:
    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if report.n_labelled:
        line(f"left out: {report.n_labelled:,} of {report.n_pool:,} frames, which have all labels already")
    if report.n_repeated:
        line(f"left out: {report.n_repeated:,} of {report.n_pool:,} frames, which are the same as earlier ones")
    for note in report.notes:
        line(note)
    labels = ", ".join(f"{n:,} {name}" for name, n in report.labels.items())
    cost = f"cost {report.cost:.4g} of {settings.budget:g}"
    what = f"{report.n_frames:,} of {report.n_pool:,} frames, labels: {labels}; {cost}"
    line(f"written: {report.path}, {what}; recipe: {sidecar(report.path)}")


if __name__ == "__main__":
    main()
