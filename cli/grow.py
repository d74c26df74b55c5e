"""``mfpyg-grow``: from molecules to a potential, round by round."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from mfpyg.cli.common import Parser, progress_bar, run
from mfpyg.errors import INTERRUPT_STATUS, MFPyGError
from mfpyg.growth.settings import GrowSettings, read_settings

if TYPE_CHECKING:
    from mfpyg.labeling.jobs import LabelJob
    from mfpyg.labeling.store import LabelStore
    from mfpyg.sampling.files import Finished
    from mfpyg.sampling.molecules import Molecule
    from mfpyg.study.jobs import Job

NAME = "mfpyg-grow"


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, grow_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    keys = "\n".join(f"  {f.name}: {f.metadata['help']}" for f in dataclasses.fields(GrowSettings))
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} FILE [options]",
        description="Grow a potential from a list of molecules: sample geometries, and then, in rounds that share a "
        "budget of processor time, label some of them, train, and select the next. The same command continues after a "
        f"stop.\n\nExample: {NAME} ethanol.yaml",
        epilog=f"Keys of FILE:\n{keys}",
    )
    parser.add_argument("config", metavar="FILE", help="YAML file of settings, see below")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder of the growth, instead of 'out' of the file")
    parser.add_argument("--retry", action="store_true", help="compute labels again that failed before")
    return parser


def grow_command(arguments: Sequence[str]) -> None:
    """Parse, check, grow."""
    options = build_parser().parse_args(arguments)
    settings = read_settings(Path(options.config))
    out = options.output or settings.out
    if out is None:
        raise MFPyGError(f"{options.config} has no out, and -o is missing; expected a folder for the growth")
    settings.check()
    _grow(settings, Path(out), options.retry)


def _grow(settings: GrowSettings, out: Path, retry: bool) -> None:
    from rich.console import Console

    from mfpyg.growth.run import grow
    from mfpyg.labeling.pool import compute_labels
    from mfpyg.study.jobs import StudyProgress, run_jobs

    console = Console()

    def note(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def compute(jobs: Sequence[LabelJob], store: LabelStore) -> dict[str, str]:
        if not jobs:
            return {}
        done = count(1)
        with progress_bar("labels", len(jobs)) as update:
            return compute_labels(jobs, store, settings.jobs, threads=1, shown=lambda job: update(next(done)))

    def train(job: Job) -> None:
        with StudyProgress(console, [job]) as progress:
            run_jobs([job], 1, shown=progress)

    def track(found: Iterator[tuple[Molecule, Finished]], total: int) -> Iterator[tuple[Molecule, Finished]]:
        with progress_bar("molecules", total) as update:
            for done, one in enumerate(found, start=1):
                update(done)
                yield one

    try:
        grow(settings, out, compute, train, note=note, track=track, retry=retry)
    except KeyboardInterrupt:
        note(f"{NAME}: stopped; the same command continues")
        sys.exit(INTERRUPT_STATUS)


if __name__ == "__main__":
    main()
