"""``mfpyg-sample``: geometries to be labelled."""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli.common import Parser, run
from mfpyg.errors import INTERRUPT_STATUS, MFPyGError
from mfpyg.files import sidecar
from mfpyg.options import in_words
from mfpyg.sampling.settings import SampleSettings

if TYPE_CHECKING:
    from mfpyg.sampling.files import Finished
    from mfpyg.sampling.molecules import Molecule

NAME = "mfpyg-sample"
SUFFIXES = (".xyz", ".extxyz")


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point; exit status 1 if some of the molecules could not be sampled."""
    run(NAME, sample_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} MOLECULE ... -o OUT.xyz [options]",
        description="Sample geometries to be labelled: conformers, displacements along normal modes, and molecular "
        "dynamics at several temperatures, with xTB or any other calculator.\n\n"
        "Example: mfpyg-sample CCO C=O -o frames.xyz --modes 20 --dynamics 20 --temperature 300 600",
    )
    parser.add_argument(
        "molecules",
        metavar="MOLECULE",
        nargs="*",
        help="SMILES, files of SMILES (.smi, one at the start of each line), or files of structures that ASE reads",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="extended-XYZ file to write, which must not exist")
    hints = typing.get_type_hints(SampleSettings)
    for f in dataclasses.fields(SampleSettings):
        option, text = f"--{f.name.replace('_', '-')}", f.metadata.get("help", "")
        if f.name == "temperature":
            help = "temperatures of modes and dynamics in K, which geometries are shared out among"
            shown = " ".join(f"{value:g}" for value in SampleSettings.temperature)
            parser.add_argument(option, type=float, nargs="+", metavar="T", help=f"{help} (default: {shown})")
        elif hints[f.name] is bool:
            parser.add_argument(option, action="store_true", help=text)
        else:
            metavar = {int: "N", float: "X", str: "NAME"}[hints[f.name]]
            parser.add_argument(option, type=hints[f.name], default=f.default, metavar=metavar, help=text)
            parser.words[f.name] = in_words(hints[f.name])
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="molecules at a time, one thread each")
    parser.words["jobs"] = in_words(int)
    parser.words["temperature"] = "numbers above 0, in K"
    return parser


def sample_command(arguments: Sequence[str]) -> None:
    """Parse, check, sample, write; exit with status 1 if some of the molecules could not be sampled."""
    options = build_parser().parse_args(arguments)
    if not options.molecules:
        raise MFPyGError("no molecule given; expected SMILES or files, before all options")
    if options.output is None:
        raise MFPyGError("option -o is missing; expected the name of an extended-XYZ file to write")
    if options.jobs < 1:
        raise MFPyGError(f"--jobs is {options.jobs}, expected a whole number of at least 1")
    names = [f.name for f in dataclasses.fields(SampleSettings)]
    given = {name: getattr(options, name) for name in names if name != "temperature"}
    if options.temperature is not None:
        given["temperature"] = tuple(options.temperature)
    settings = SampleSettings(**given)
    settings.check()
    out = Path(options.output)
    if out.suffix.lower() not in SUFFIXES:
        raise MFPyGError(f"{out}: unknown suffix, expected {' or '.join(SUFFIXES)}; extended XYZ is written")
    if out.exists():
        raise MFPyGError(f"{out} exists; choose another name, or remove it")
    if not out.parent.is_dir():
        raise MFPyGError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")
    if not os.access(out.parent, os.W_OK):
        raise MFPyGError(f"{out.parent}: cannot write {out.name} there; name another place with -o")
    # Read when the libraries are loaded: threads make calculations of small molecules slower, twenty times with xTB.
    os.environ["OMP_NUM_THREADS"] = "1"
    if not _sample(options.molecules, out, settings, options.jobs):
        sys.exit(1)


def _sample(words: Sequence[str], out: Path, settings: SampleSettings, jobs: int) -> bool:
    """True if all molecules could be sampled."""
    from rich.console import Console

    from mfpyg.labeling.level import open_program
    from mfpyg.sampling.files import sample_file
    from mfpyg.sampling.molecules import read_molecules
    from mfpyg.sampling.sampler import in_words as dropped_in_words

    console = Console()
    molecules = read_molecules(words, open_program(settings.calculator).needs_spin)
    done: list[str] = []
    try:
        results = sample_file(
            molecules, out, settings, jobs=jobs, track=lambda found: _shown(console, found, len(molecules), done)
        )
    except KeyboardInterrupt:
        left = f"{len(done)} of {len(molecules)} molecules are done; the same command continues"
        console.print(f"{NAME}: stopped; {left}", highlight=False, soft_wrap=True)
        sys.exit(INTERRUPT_STATUS)
    counts, dropped = Counter[str](), Counter[str]()
    for finished in results:
        counts.update(finished.counts)
        dropped.update(finished.dropped)
    listed = ", ".join(f"{counts[origin]:,} {what}" for origin, what in _ORIGINS.items() if counts[origin])
    sampled = sum(not finished.error for finished in results)
    what = f"{counts.total():,} geometries of {sampled:,} molecules ({listed})"
    console.print(f"written: {out}, {what}; recipe: {sidecar(out)}", highlight=False, soft_wrap=True)
    if dropped.total():
        console.print(f"dropped: {dropped_in_words(dropped)}", highlight=False, soft_wrap=True)
    return sampled == len(results)


_ORIGINS = {
    "conformer": "conformers",
    "modes": "along modes",
    "dynamics": "from dynamics",
    "partner": "partners of pairs",
}


def _shown(
    console: Any, found: Iterator[tuple[Molecule, Finished]], total: int, done: list[str]
) -> Iterator[tuple[Molecule, Finished]]:
    """Finished molecules with a progress bar; errors are printed as they come."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("molecules", total=total)
        for molecule, finished in found:
            if finished.error and total > 1:
                print(f"{NAME}: {molecule.name} is left out: {finished.error}", file=sys.stderr)
            elif not finished.error:
                done.append(molecule.name)
            progress.advance(task)
            yield molecule, finished


if __name__ == "__main__":
    main()
