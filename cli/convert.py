"""``mfpyg-convert``: convert a trained hippynn model to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mfpyg.cli.common import Parser, run
from mfpyg.errors import MFPyGError
from mfpyg.units import energy_factor, length_factor

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
    return parser


def convert_command(arguments: Sequence[str]) -> None:
    """Parse, check, convert, write."""
    options = build_parser().parse_args(arguments)
    fidelities = _named(options.fidelities)
    energy_factor(options.energy_unit)
    length_factor(options.length_unit)
    path, out = Path(options.file), Path(options.out)
    if not path.is_file():
        raise MFPyGError(f"{path}: no such file; expected best_model.pt or best_checkpoint.pt of a hippynn training")
    if out.exists():
        raise MFPyGError(f"{out} exists; choose another name, or remove it")
    if not out.parent.is_dir():
        raise MFPyGError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")

    from mfpyg.checkpoint import save
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
    save(potential, out, source=f"hippynn, {path.name}")
    print(f"written: {out}, fidelities {', '.join(potential.fidelities)}")


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
