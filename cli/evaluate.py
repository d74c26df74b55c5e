"""``mfpyg-evaluate``: errors of a trained potential on any labelled data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli.common import Parser, run
from mfpyg.datasets.levels import LEVELS
from mfpyg.datasets.spec import DatasetSpec, parse_specs, recorded_specs
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.fidelity import is_name
from mfpyg.pretrained import is_shipped, model_path, no_such_model
from mfpyg.properties import ENERGY, parse_letters

if TYPE_CHECKING:
    import numpy as np

    from mfpyg.datasets.conformations import ConformationDataset
    from mfpyg.models import Potential

NAME = "mfpyg-evaluate"
SPLITS = ("train", "val", "test", "ood", "all")
ACCELERATORS = ("auto", "cpu", "cuda")


def main(arguments: Iterable[str] | None = None) -> None:
    """Entry point."""
    run(NAME, evaluate_command, arguments)


def build_parser() -> Parser:
    """Options of the command."""
    parser = Parser(
        prog=NAME,
        usage=f"{NAME} RUN [options]",
        description="Print the errors of a trained potential on all labels of its fidelities, including those it was "
        "not trained on.\n\nExample: mfpyg-evaluate runs/example --plot",
    )
    parser.add_argument(
        "run", metavar="RUN", help="run folder of mfpyg-train, checkpoint, or shipped model, such as chno-1"
    )
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        action="append",
        help="other data, as for mfpyg-train; may be repeated (default: the data of the run)",
    )
    parser.add_argument(
        "--split",
        metavar="{" + ",".join(SPLITS) + "}",
        help="evaluate one split, of these or another one of the run (default: all splits)",
    )
    parser.add_argument(
        "--align",
        metavar="SPLIT|DATA",
        help="least-squares fit of the reference energies, for data with another zero of energy, to the labels of a "
        "split, named as for --split, or of other data, named as for --dataset",
    )
    parser.add_argument(
        "--properties",
        metavar="LETTERS",
        help="letters of the properties to evaluate, such as EFHD (default: energies, forces and what was trained on)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="file for the errors (default: evaluation*.json in the run folder, of a shipped model in the current one)",
    )
    parser.add_argument("--accelerator", default="auto", metavar="{auto,cpu,cuda}", help="device to compute on")
    parser.add_argument("--plot", action="store_true", help="draw a parity plot of each split next to the JSON file")
    return parser


def evaluate_command(arguments: Sequence[str]) -> None:
    """Parse, check, evaluate, print, write."""
    options = build_parser().parse_args(arguments)
    if options.accelerator not in ACCELERATORS:
        raise unknown_name("accelerator", options.accelerator, ACCELERATORS)
    letters = (
        None
        if options.properties is None
        else parse_letters(options.properties, f"--properties '{options.properties}'")
    )
    specs = None if options.dataset is None else parse_specs(options.dataset)
    path = model_path(options.run)
    if options.split not in (None, *SPLITS) and options.split not in (known := _known_splits(path)):
        raise unknown_name("split", options.split, known)
    on = None if options.align is None else _align_on(path, options.align)
    if not path.exists():
        raise no_such_model(path)
    out = Path(options.json) if options.json else _default_out(path, specs, options.split, letters, on)
    if out.is_dir():
        raise MFPyGError(f"{out} is a folder; expected the name of a JSON file")
    if not out.parent.is_dir():
        raise MFPyGError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")
    if not os.access(out.parent, os.W_OK):
        raise MFPyGError(f"{out.parent}: cannot write {out.name} there; name another place with --json")
    _evaluate(path, specs, options.split, letters, on, out, options.plot, options.accelerator)


def _known_splits(path: Path) -> list[str]:
    """Splits that the run may have."""
    from mfpyg.files import read_npz

    splits = (path if path.is_dir() else path.parent) / "splits.npz"
    return list(dict.fromkeys([*SPLITS, *(read_npz(splits) if splits.is_file() else ())]))


def _align_on(path: Path, text: str) -> str | DatasetSpec:
    """Split or data named by ``--align``.

    Raises:
        MFPyGError: if it is neither.
    """
    if text in SPLITS or text in (known := _known_splits(path)):
        return text
    if is_name(text) and text not in LEVELS:
        raise unknown_name("split or data set of --align", text, [*known, *LEVELS])
    return parse_specs([text])[0]


def _default_out(
    path: Path,
    specs: Sequence[DatasetSpec] | None,
    split: str | None,
    letters: str | None,
    on: str | DatasetSpec | None,
) -> Path:
    """File named after checkpoint, data, split, properties and ``--align``, so that different ones differ.

    It is in the run folder, or beside the checkpoint; of a shipped model, in the current folder.
    """
    parts = ["evaluation"]
    if path.is_file() and path.stem != "best":
        parts.append(path.stem)
    for spec in specs or ():
        parts += _words_of(spec)
    parts += [part for part in (split, letters) if part is not None]
    if on is not None:
        parts += ["align", *([on] if isinstance(on, str) else _words_of(on))]
    folder = Path() if is_shipped(path) else path if path.is_dir() else path.parent
    return folder / f"{'-'.join(parts)}.json"


def _words_of(spec: DatasetSpec) -> list[str]:
    """Parts of a file's name that tell data apart."""
    if spec.path is None:
        return [spec.name]
    # With path and levels, as files of the same name, or one file with other levels, are different data.
    whole = hashlib.sha256(f"{spec.path.resolve()} {spec}".encode()).hexdigest()[:6]
    return [spec.name, spec.path.stem, whole]


def _evaluate(
    path: Path,
    specs: Sequence[DatasetSpec] | None,
    split: str | None,
    letters: str | None,
    on: str | DatasetSpec | None,
    out: Path,
    plot: bool,
    accelerator: str,
) -> None:
    from rich.console import Console
    from rich.progress import track

    from mfpyg.checkpoint import methods_of, potential_of, read_checkpoint, trained_labels
    from mfpyg.cli.labels import evaluated_rows, method_notes, offset_notes, open_data, parts_of, with_properties
    from mfpyg.datasets.label_fraction import thin_labels
    from mfpyg.device import choose_device
    from mfpyg.evaluation.evaluate import evaluate
    from mfpyg.evaluation.report import metrics_table, print_table
    from mfpyg.fidelity import parse_fidelities
    from mfpyg.files import write_text
    from mfpyg.progress import shown_on
    from mfpyg.settings import from_dict
    from mfpyg.training.check import label_fractions
    from mfpyg.training.folder import RunFolder

    console = Console()
    checkpoint = read_checkpoint(path)
    described = checkpoint["mfpyg"]
    potential = potential_of(checkpoint, str(path)).to(choose_device(accelerator))
    settings = from_dict(described["config"])
    trained = parse_fidelities(settings.fidelities)
    own = specs is None
    folder = path.parent if path.name in ("best.ckpt", "last.ckpt") else path
    specs = specs or recorded_specs(RunFolder(folder).recorded_data(described), f"{NAME} {path} --dataset NEW")
    spec = " + ".join(map(str, specs))
    fingerprint = described["data"]["fingerprint"]
    dataset = open_data(specs, trained, potential.fidelities, own, fingerprint, shown_on(console))
    same = dataset.fingerprint == fingerprint
    parts = parts_of(dataset, described)
    rows, notes = evaluated_rows(parts, same, spec, split)
    _print(console, method_notes(dataset, methods_of(described)) + notes)
    if letters is not None:
        dataset = with_properties(dataset, specs, letters, shown_on(console))
    if split != "all" and same:
        # Data of another name may have the same values under other names of levels.
        kept = label_fractions(settings, trained)
        fractions = {name: part for name, part in kept.items() if name in dataset.fidelities}
        splits = {name: of for name, of in parts.items() if name != "all"}
        dataset = thin_labels(dataset, splits, fractions, settings.split_seed)
    aligned = {} if on is None else _align(console, potential, dataset, parts, rows, on, spec)

    def progress(batches: Any, name: str) -> Any:
        return track(batches, description=name, console=console, transient=True, disable=not console.is_terminal)

    result = evaluate(potential, dataset, rows, parity=plot, track=progress)
    for of_split in result.metrics.values():
        for name, values in of_split.items():
            if name in aligned and ENERGY.name in values:
                values[ENERGY.name]["aligned"] = aligned[name]
    print_table(console, metrics_table(result.metrics, trained_labels(described)))
    _print(console, offset_notes(potential, dataset, result.energy_errors))
    write_text(out, json.dumps(result.metrics, indent=2) + "\n")
    _print(console, [f"written: {out}"])
    if plot:
        _plot(console, result.parity, out, spec)


def _print(console: Any, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _align(
    console: Any,
    potential: Potential,
    dataset: ConformationDataset,
    parts: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    on: str | DatasetSpec,
    spec: str,
) -> dict[str, dict[str, Any]]:
    """Shift the reference energies of the potential, with notes; what was done, by fidelity.

    Args:
        console: where notes are printed.
        potential: potential in evaluation mode.
        dataset: data to evaluate on.
        parts, rows: their parts, and the conformations to evaluate on.
        on: part of them, or other data to fit to.
        spec: name of the data.

    Raises:
        MFPyGError: if there is no such part, or it has no energies.
    """
    from mfpyg.cli.labels import fitted_on, occurring, open_data, overlap_note, pool_of
    from mfpyg.evaluation.alignment import align, alignment_notes
    from mfpyg.progress import shown_on

    if isinstance(on, str):
        if on not in parts:
            raise MFPyGError(
                f"{spec} has no split '{on}' to fit reference energies to (it has {', '.join(parts)}); name other data "
                "with --align"
            )
        source, fitted, where = dataset, parts[on], on
    else:
        source = open_data([on], (), potential.fidelities, False, "", shown_on(console))
        fitted, where = pool_of(source, str(on))
    found, notes = fitted_on(potential, source, fitted, where)
    if source.geometries == dataset.geometries:
        notes += overlap_note(rows, fitted, where)
    present = occurring(potential, [(source, fitted), *((dataset, of) for of in rows.values())])
    _print(console, [*notes, *alignment_notes(found, where, present)])
    align(potential, found)
    return {name: one.as_dict(where, potential.species) for name, one in found.items()}


def _plot(console: Any, parity: Mapping[str, Any], out: Path, spec: str) -> None:
    """Draw a parity plot of each split next to the file of the errors."""
    from mfpyg.evaluation.report import parity_plot

    for name, pairs in parity.items():
        if not pairs:
            _print(console, [f"note: no labels in {name} to plot"])
            continue
        picture = out.with_name(f"{out.stem}-{name}.png")
        parity_plot(pairs, picture, f"{spec}, {name}")
        _print(console, [f"written: {picture}"])


if __name__ == "__main__":
    main()
