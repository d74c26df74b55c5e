"""``mfpyg-preprocess``: convert a raw file to the processed data set used for training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mfpyg.cli.common import Parser, run
from mfpyg.datasets.spec import DatasetSpec, combined_levels, parse_specs
from mfpyg.fidelity import Fidelity, check_available, parse_fidelities
from mfpyg.properties import in_order
from mfpyg.settings import DATASETS

NAME = "mfpyg-preprocess"


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, preprocess_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} DATA ... [options]",
        description="Process data once, so that training opens them quickly, and print a table of their labels.\n\n"
        "Example: mfpyg-preprocess ani1x:ani1x-release.h5",
    )
    parser.add_argument(
        "dataset",
        metavar="DATA",
        nargs="+",
        help=f"{DATASETS}; several are combined",
    )
    parser.add_argument(
        "--fidelities",
        nargs="+",
        metavar="NAME[:LABELS]",
        help="levels of known data sets to process, and labels to read besides energies and forces, such as dz:EFHD "
        "(default: dz tz mp2 cc); of your own files, all levels that DATA names are processed",
    )
    parser.add_argument(
        "--cutoff", type=float, metavar="X", help="store edges up to this distance in Å, for --edges stored"
    )
    parser.words["cutoff"] = "a number"
    parser.add_argument("--force", action="store_true", help="process again even if nothing has changed")
    return parser


def preprocess_command(arguments: Sequence[str]) -> None:
    """Parse, process, print the table."""
    options = build_parser().parse_args(arguments)
    specs = parse_specs(options.dataset)
    given = [text if ":" in text else f"{text}:E" for text in options.fidelities or ()]
    fidelities = parse_fidelities(given) if given else ()
    check_available(fidelities, combined_levels(specs), " and ".join(map(str, specs)))
    _process(specs, fidelities, options.cutoff, options.force)


def _process(specs: Sequence[DatasetSpec], fidelities: Sequence[Fidelity], cutoff: float | None, force: bool) -> None:
    from rich.console import Console

    from mfpyg.datasets.spec import open_dataset
    from mfpyg.graph import RadiusGraph
    from mfpyg.progress import shown_on

    console = Console()
    pre_transform = None if cutoff is None else RadiusGraph(cutoff)
    names, letters = [f.name for f in fidelities], "".join(f.labels for f in fidelities)
    options: dict[str, Any] = {"track": shown_on(console), "pre_transform": pre_transform, "force_reload": force}
    if letters:
        options["properties"] = in_order(letters)
    dataset = open_dataset(specs, names, **options)
    console.print(counts_table(dataset))
    console.print(f"written: {dataset.processed_paths[0]}", highlight=False, soft_wrap=True)


def counts_table(dataset: Any) -> Any:
    """Conformations, atoms and labels of each fidelity, as a rich table."""
    from rich import box
    from rich.table import Table

    from mfpyg.datasets.storage import count_columns

    n_atoms = len(dataset._data.z)
    title = f"{len(dataset):,} conformations of {len(dataset.molecules):,} molecules, {n_atoms:,} atoms"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    table.add_column("fidelity")
    table.add_column("level of theory")
    rows = dataset.label_counts()
    columns = count_columns(rows)
    for header in columns.values():
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(row["name"], row["method"], *(f"{row[column]:,}" for column in columns))
    return table


if __name__ == "__main__":
    main()
