"""``mfpyg-inspect``: show the contents of a checkpoint, a run, a study or a processed data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mfpyg.cli.common import Parser, check_json_target, run

NAME = "mfpyg-inspect"


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, inspect_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} FILE [options]",
        description="Show the contents of a checkpoint, a run, a study or a data set. No code in a file is run.\n\n"
        "Example: mfpyg-inspect runs/example",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="checkpoint, run folder, study folder, name of a shipped model, such as chno-1, processed data set (.pt), "
        "or data as for mfpyg-train --dataset, such as minichno",
    )
    parser.add_argument(
        "--all", action="store_true", help="show all settings, not only those that differ from the defaults"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything to FILE as JSON; -: only to standard output")
    return parser


def inspect_command(arguments: Sequence[str]) -> None:
    """Parse, inspect, print."""
    options = build_parser().parse_args(arguments)
    if options.json not in (None, "-"):
        check_json_target(options.json)
    _inspect(options.file, options.all, options.json)


def _inspect(file: str, everything: bool, target: str | None) -> None:
    from rich.console import Console

    from mfpyg.files import write_text
    from mfpyg.inspection import inspect
    from mfpyg.inspection.table import print_report
    from mfpyg.progress import shown_on

    console = Console(stderr=target == "-")
    report = inspect(file, shown_on(console))
    if target != "-":
        print_report(console, report, everything)
    if target is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if target == "-":
            sys.stdout.write(text)
        else:
            write_text(Path(target), text)


if __name__ == "__main__":
    main()
