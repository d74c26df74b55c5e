"""``mfpyg-convert``: convert a trained hippynn model to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfpyg.cli.common import Parser, run
from mfpyg.datasets.spec import DatasetSpec, parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.option_groups import FIT, KEEP
from mfpyg.units import energy_factor, length_factor

if TYPE_CHECKING:
    from mfpyg.models import Potential

NAME = "mfpyg-convert"


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, convert_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} FILE OUT --cutoff X --fidelities NAME ... --energy-unit UNIT [options]",
        description="Convert a trained hippynn model to a checkpoint for mfpyg.load and the other commands.\n\n"
        "Example: mfpyg-convert best_model.pt model.ckpt --cutoff 6.5 --fidelities cc:E dz:EF --energy-unit kcal/mol",
    )
    parser.add_argument("file", metavar="FILE", help="best_model.pt or best_checkpoint.pt of hippynn")
    parser.add_argument("out", metavar="OUT", help="checkpoint to write, which must not exist")
    parser.add_argument(
        "--cutoff", type=float, required=True, metavar="X", help="cutoff of the network, hippynn's dist_hard_max"
    )
    parser.add_argument(
        "--fidelities",
        nargs="+",
        required=True,
        metavar="NAME",
        help="name of each energy head, in the alphabetical order of their names in hippynn, or NAME=NODE for some of "
        "them, such as cc=node22; NAME:EF instead of NAME records the labels that it was trained on",
    )
    parser.add_argument(
        "--energy-unit", required=True, metavar="UNIT", help="unit of the energies, such as Hartree or kcal/mol"
    )
    parser.add_argument("--length-unit", default="Å", metavar="UNIT", help="unit of the positions and of the cutoff")
    parser.add_argument("--sign", type=int, default=1, metavar="{1,-1}", help="-1 if the energies are negated")
    parser.add_argument(
        "--species", type=int, nargs="+", metavar="Z", help="atomic numbers in the order of the network, if not in FILE"
    )
    parser.add_argument(
        "--references",
        default=KEEP,
        metavar="FILE|fit|keep",
        help="reference energies; keep: those of the model; FILE: with the energies of isolated atoms of a YAML file "
        "added, for models of formation energies; fit: shifted by a least-squares fit to the labels of --dataset",
    )
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        action="append",
        help="data for --references fit, as for mfpyg-train, without what they declare as test or ood; may be repeated",
    )
    return parser


def convert_command(arguments: Sequence[str]) -> None:
    """Parse, check, convert, write."""
    options = build_parser().parse_args(arguments)
    fidelities = _named(options.fidelities)
    energy_factor(options.energy_unit)
    length_factor(options.length_unit)
    specs = _fit_data(options.references, options.dataset)
    path, out = Path(options.file), Path(options.out)
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected best_model.pt or best_checkpoint.pt of a hippynn training")
    if out.exists():
        raise MFPyGError(f"{out} exists; choose another name, or remove it")
    if not out.parent.is_dir():
        raise MFPyGError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")

    from mfpyg.checkpoint import save
    from mfpyg.evaluation.alignment import add_references
    from mfpyg.interop.hippynn import load_hippynn

    potential = load_hippynn(
        path,
        cutoff=options.cutoff,
        fidelities=fidelities,
        energy_unit=options.energy_unit,
        sign=options.sign,
        length_unit=options.length_unit,
        species=options.species,
    )
    if options.references == FIT:
        _fit_references(potential, specs)
    elif options.references != KEEP:
        add_references(potential, options.references)
    save(potential, out, source=f"hippynn, {path.name}")
    print(f"written: {out}, fidelities {', '.join(potential.fidelities)}")


def _fit_data(references: str, dataset: Sequence[str] | None) -> tuple[DatasetSpec, ...]:
    """Data to fit reference energies to, if they are to be fitted.

    Raises:
        MFPyGError: if there are none, or they have no effect, or the file of reference energies does not exist.
    """
    if references == FIT and not dataset:
        raise MFPyGError("--references is fit, but no --dataset; name the data with the labels to fit to")
    if references != FIT and dataset:
        raise MFPyGError(f"--dataset is given, but --references is {references}; leave it out, or use --references fit")
    if references not in (FIT, KEEP) and not Path(references).expanduser().is_file():
        raise MFPyGError(f"--references is {references}: no such file; expected a YAML file, fit or keep")
    return parse_specs(dataset) if dataset else ()


def _fit_references(potential: Potential, specs: Sequence[DatasetSpec]) -> None:
    """Fit the reference energies to data, and print what changed."""
    from rich.console import Console

    from mfpyg.cli.labels import fitted_on, open_data, pool_of
    from mfpyg.evaluation.alignment import align, alignment_notes
    from mfpyg.progress import shown_on

    dataset = open_data(specs, (), potential.fidelities, False, "", shown_on(Console()))
    rows, where = pool_of(dataset, " + ".join(map(str, specs)))
    found, notes = fitted_on(potential, dataset, rows, where)
    align(potential, found)
    for name, alignment in found.items():
        before, after = alignment.rmse()
        print(
            f"{name}: reference energies fitted to {len(alignment.left):,} energies of {where}; RMSE {before:,.1f} -> "
            f"{after:,.1f} kcal/mol"
        )
    for note in [*notes, *alignment_notes(found, where)]:
        print(note)


def _named(texts: Sequence[str]) -> list[str] | Mapping[str, str]:
    """Names in the order of the heads, or with their nodes if given."""
    pairs = [text.partition("=") for text in texts]
    if not any(equals for _, equals, _ in pairs):
        return list(texts)
    for name, equals, node in pairs:
        if not equals:
            raise MFPyGError(f"fidelity '{name}' has no node, but others do; expected NAME=NODE for all")
        if [other for other, *_ in pairs].count(name) > 1:
            raise MFPyGError(f"fidelity '{name}' is given twice, the second time with {node}; give it once")
    return {name: node for name, _, node in pairs}


if __name__ == "__main__":
    main()
