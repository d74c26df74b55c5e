"""``mfpyg-doctor``: check data for errors that ruin training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli.common import Parser, check_json_target, run
from mfpyg.datasets.levels import levels_named
from mfpyg.datasets.spec import DatasetSpec, combined_levels, parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.options import in_words
from mfpyg.properties import PROPERTIES
from mfpyg.settings import DATASETS

if TYPE_CHECKING:
    from mfpyg.doctor import Finding, View

NAME = "mfpyg-doctor"
WRONG_STATUS = 1

_STYLES = {"certain": "bold red", "suspect": "yellow", "note": "dim"}


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point; exit status 1 if something is certainly wrong."""
    run(NAME, doctor_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} DATA ... [options]",
        description="Check data for errors that ruin training, such as wrong units, gradients in place of forces, "
        "duplicates across splits and missing labels. The exit status is 1 if something is certainly wrong.\n\n"
        "Example: mfpyg-doctor ani1x:ani1x-release.h5",
    )
    parser.add_argument(
        "dataset",
        metavar="DATA",
        nargs="+",
        help=f"{DATASETS}; several are combined",
    )
    parser.add_argument("--fidelities", nargs="+", metavar="NAME", help="levels to check (default: the usual ones)")
    parser.add_argument("--json", metavar="FILE", help="write the findings to FILE as JSON; -: only to standard output")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split, as in training")
    parser.words["seed"] = in_words(int)
    return parser


def doctor_command(arguments: Sequence[str]) -> None:
    """Parse, check, print; exit with status 1 if something is certainly wrong."""
    options = build_parser().parse_args(arguments)
    if options.seed < 0:
        raise MFPyGError(f"--seed is {options.seed}, expected a whole number of at least 0")
    if options.json not in (None, "-"):
        check_json_target(options.json)
    specs = parse_specs(options.dataset)
    names = tuple(options.fidelities or ())
    levels_named(names, combined_levels(specs), " and ".join(map(str, specs)))
    if not _healthy(specs, names, options.json, options.seed):
        sys.exit(WRONG_STATUS)


def _healthy(specs: tuple[DatasetSpec, ...], names: tuple[str, ...], target: str | None, seed: int) -> bool:
    from rich.console import Console

    from mfpyg.datasets.spec import open_dataset
    from mfpyg.doctor import View, examine
    from mfpyg.files import write_text
    from mfpyg.progress import shown_on

    console = Console(stderr=target == "-")
    dataset = open_dataset(specs, names, properties="".join(PROPERTIES), track=shown_on(console))
    view = View(dataset, names or None, seed)
    findings = examine(view, track=shown_on(console, "examining"))
    if target is not None:
        text = json.dumps(as_json(view, findings, specs), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if target == "-":
            sys.stdout.write(text)
        else:
            write_text(Path(target), text)
    if target != "-":
        if findings:
            console.print(findings_table(findings))
        console.print(verdict(view, findings), highlight=False, soft_wrap=True)
    return all(finding.severity != "certain" for finding in findings)


def as_json(view: View, findings: Sequence[Finding], specs: Sequence[DatasetSpec]) -> dict[str, Any]:
    """All findings, as plain values."""
    from mfpyg.doctor import SEVERITIES

    return {
        "dataset": [str(spec) for spec in specs],
        "conformations": len(view),
        "fidelities": [level.name for _, level in view.levels],
        "seed": view.seed,
        "counts": {name: sum(finding.severity == name for finding in findings) for name in SEVERITIES},
        "findings": [finding.as_dict(view) for finding in findings],
    }


def findings_table(findings: Sequence[Finding]) -> Any:
    """Rich table of severity, fidelity, check, and evidence with the fix below it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_lines=False, padding=(0, 1, 1, 0))
    table.add_column("severity", no_wrap=True)
    table.add_column("fidelity", max_width=10)
    table.add_column("what", max_width=14)
    table.add_column("evidence, and the fix", ratio=1)
    for finding in findings:
        table.add_row(
            Text(finding.severity, _STYLES[finding.severity]),
            Text(finding.fidelity or "all"),
            Text(finding.check),
            Text(f"{finding.evidence}\n→ {finding.fix}"),
        )
    return table


def verdict(view: View, findings: Sequence[Finding]) -> str:
    """Summary of the findings in one line."""
    counts = {name: sum(finding.severity == name for finding in findings) for name in _STYLES}
    what = f"{len(view):,} conformations, fidelities {', '.join(level.name for _, level in view.levels)}"
    if not findings:
        return f"{what}: nothing found"
    listed = f"{counts['certain']} certainly wrong, {counts['suspect']} suspect, {counts['note']} to note"
    return f"{what}: {listed}{'; fix the data before training' if counts['certain'] else ''}"


if __name__ == "__main__":
    main()
