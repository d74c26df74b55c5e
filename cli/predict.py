"""``mfpyg-predict``: energies, forces and other properties of all frames of a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli.common import Parser, run
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.options import in_words
from mfpyg.pretrained import model_path, no_such_model
from mfpyg.properties import PROPERTIES, parse_letters
from mfpyg.units import ENERGY_UNITS, energy_factor

if TYPE_CHECKING:
    from mfpyg.inference.frames import FramePrediction

NAME = "mfpyg-predict"
ACCELERATORS = ("auto", "cpu", "cuda")
OUTPUT_FORMATS = ("extxyz", "json", "jsonl", "csv")
_LETTERS = ", ".join(f"{p.letter} {p.plural}" for p in PROPERTIES.values())
_FRAMES_PER_UPDATE = 64  # updating the bar takes as long as a frame


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, predict_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} MODEL ... FILE -o OUT [options]",
        description="Predict energies, forces and other properties of all frames of a file, in any format that ASE "
        "reads, with one trained potential or an ensemble. Energies and forces come with standard deviations if the "
        "potential has them.\n\n"
        "Example: mfpyg-predict runs/example in.xyz -o out.xyz --fidelity cc",
    )
    parser.add_argument(
        "paths",
        metavar="MODEL ... FILE",
        nargs="*",
        help="run folders of mfpyg-train, checkpoints or shipped models, such as chno-1, several of which form an "
        "ensemble, and last the input file",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="file for the predictions, replaced if it exists: .xyz, .json, .jsonl (a line per frame) or .csv (a row "
        "per frame)",
    )
    parser.add_argument(
        "--fidelity",
        metavar="NAME",
        nargs="+",
        help="levels of theory to predict, or all (default: the only one that the models have in common)",
    )
    parser.add_argument(
        "--properties",
        metavar="LETTERS",
        help=f"properties to predict by their letters, such as EFDQ ({_LETTERS}); energies are always included "
        "(default: EF, in CSV E)",
    )
    parser.add_argument("--forces", action="store_true", help="same as --properties EF")
    parser.add_argument("--no-forces", action="store_true", help="same as --properties E")
    parser.add_argument("--stress", action="store_true", help="add stresses to the default, --forces or --no-forces")
    parser.add_argument(
        "--units",
        default="eV",
        metavar="{" + ",".join(ENERGY_UNITS) + "}",
        help="unit of energies; lengths are in Å, charges in e; in extended XYZ, values in other units than eV do not "
        "have ASE's names",
    )
    parser.add_argument("--format", metavar="NAME", help="ASE's name of the format of FILE (default: guessed)")
    parser.add_argument(
        "--output-format",
        metavar="{" + ",".join(OUTPUT_FORMATS) + "}",
        help="format of OUT (default: by its suffix)",
    )
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="maximum number of frames per batch")
    parser.add_argument("--accelerator", default="auto", metavar="{auto,cpu,cuda}", help="device to compute on")
    parser.words["batch_size"] = in_words(int)
    return parser


def predict_command(arguments: Sequence[str]) -> None:
    """Parse, check, predict."""
    options = build_parser().parse_args(arguments)
    if len(options.paths) < 2:
        found = f"found only {options.paths[0]}" if options.paths else "found none"
        raise MFPyGError(f"expected one or more models and then the input file, before all options; {found}")
    if options.output is None:
        raise MFPyGError("option -o is missing; expected the name of a file for the predictions")
    if options.accelerator not in ACCELERATORS:
        raise unknown_name("accelerator", options.accelerator, ACCELERATORS)
    if options.output_format not in (None, *OUTPUT_FORMATS):
        raise unknown_name("output format", options.output_format, OUTPUT_FORMATS)
    if options.batch_size < 1:
        raise MFPyGError(f"--batch-size is {options.batch_size}, expected a whole number of at least 1")
    if options.forces and options.no_forces:
        raise MFPyGError("--forces and --no-forces cannot be combined; give one of them")
    if options.properties is not None:
        parse_letters(options.properties, f"--properties '{options.properties}'")
        if options.forces or options.no_forces or options.stress:
            raise MFPyGError("--properties cannot be combined with --forces, --no-forces or --stress; give it alone")
    if options.fidelity is not None and "all" in options.fidelity and len(options.fidelity) > 1:
        raise MFPyGError(f"--fidelity is {' '.join(options.fidelity)}, expected names, or only all")
    energy_factor(options.units)
    models, source = [model_path(path) for path in options.paths[:-1]], Path(options.paths[-1])
    _check_paths(models, source, Path(options.output))
    _predict(options, models, source)


def _check_paths(models: Sequence[Path], source: Path, out: Path) -> None:
    """Check the paths before torch is imported."""
    for model in models:
        if not model.exists():
            raise no_such_model(model)
    if source.is_dir() or source.suffix == ".ckpt":
        raise MFPyGError(f"{source} is a model; expected the input file as the last argument before the options")
    if not source.exists():
        raise MFPyGError(f"{source}: no such file; expected a file of atoms that ASE reads")
    if out.is_dir():
        raise MFPyGError(f"{out} is a folder; expected the name of a file for the predictions")
    if out.exists() and not out.is_file():
        raise MFPyGError(f"{out} is not a regular file and cannot be replaced; expected the name of a file")
    if not out.parent.is_dir():
        raise MFPyGError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")
    if not os.access(out.parent, os.W_OK):
        raise MFPyGError(f"{out.parent}: cannot write {out.name} there; name another place with -o")
    for path in (*models, source):
        if out.exists() and out.samefile(path):
            raise MFPyGError(f"{out} is one of the inputs; choose another name for the output")


def _predict(options: Any, models: Sequence[Path], source: Path) -> None:
    from rich.console import Console

    from mfpyg.device import choose_device
    from mfpyg.inference.ensemble import Ensemble
    from mfpyg.inference.files import format_of, predict_file

    console = Console()
    ensemble = Ensemble(models, choose_device(options.accelerator))
    wanted = options.fidelity
    forces = options.forces or not (
        options.no_forces or format_of(Path(options.output), options.output_format) == "csv"
    )
    n_frames = predict_file(
        ensemble,
        source,
        Path(options.output),
        ensemble.fidelities if wanted == ["all"] else wanted,
        properties=options.properties or "E" + "F" * forces + "S" * options.stress,
        unit=options.units,
        batch_size=options.batch_size,
        input_format=options.format,
        output_format=options.output_format,
        track=lambda found: _shown(console, found, source.name),
    )
    console.print(f"written: {options.output}, {n_frames:,} frames", highlight=False, soft_wrap=True)


def _shown(console: Any, found: Iterator[FramePrediction], name: str) -> Iterator[FramePrediction]:
    """Predictions with a progress bar of the part of the file that is read, or of frames if that is unknown."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[frames]:,} frames")]
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(name, total=None, frames=0)
        for number, one in enumerate(found):
            if number % _FRAMES_PER_UPDATE == 0:
                read = one.frame.read
                progress.update(task, completed=read, total=1.0 if read else None, frames=number)
            yield one


if __name__ == "__main__":
    main()
