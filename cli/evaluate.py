"""``mfpyg-evaluate``: errors of a trained potential on any labelled data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfpyg.cli.common import Parser, run
from mfpyg.datasets.spec import DatasetSpec, parse_specs, recorded_specs
from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.pretrained import is_shipped, model_path, no_such_model
from mfpyg.properties import PROPERTIES, listed, parse_letters

if TYPE_CHECKING:
    import numpy as np

    from mfpyg.datasets.chunks import Track
    from mfpyg.datasets.conformations import ConformationDataset
    from mfpyg.fidelity import Fidelity

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
    if options.split not in (None, *SPLITS):
        _check_further_split(path, options.split)
    if not path.exists():
        raise no_such_model(path)
    out = Path(options.json) if options.json else _default_out(path, specs, options.split, letters)
    if out.is_dir():
        raise MFPyGError(f"{out} is a folder; expected the name of a JSON file")
    if not out.parent.is_dir():
        raise MFPyGError(f"{out.parent}: no such folder; create it, or write {out.name} elsewhere")
    if not os.access(out.parent, os.W_OK):
        raise MFPyGError(f"{out.parent}: cannot write {out.name} there; name another place with --json")
    _evaluate(path, specs, options.split, letters, out, options.plot, options.accelerator)


def _check_further_split(path: Path, split: str) -> None:
    """Check that the run has a split with this name."""
    from mfpyg.files import read_npz

    splits = (path if path.is_dir() else path.parent) / "splits.npz"
    known = list(dict.fromkeys([*SPLITS, *(read_npz(splits) if splits.is_file() else ())]))
    if split not in known:
        raise unknown_name("split", split, known)


def _default_out(path: Path, specs: Sequence[DatasetSpec] | None, split: str | None, letters: str | None) -> Path:
    """File named after checkpoint, data, split and properties, so that different ones differ.

    It is in the run folder, or beside the checkpoint; of a shipped model, in the current folder.
    """
    parts = ["evaluation"]
    if path.is_file() and path.stem != "best":
        parts.append(path.stem)
    for spec in specs or ():
        # With path and levels, as files of the same name, or one file with other levels, are different data.
        whole = hashlib.sha256(f"{spec.path and spec.path.resolve()} {spec}".encode()).hexdigest()[:6]
        parts += [spec.name] if spec.path is None else [spec.name, spec.path.stem, whole]
    parts += [part for part in (split, letters) if part is not None]
    folder = Path() if is_shipped(path) else path if path.is_dir() else path.parent
    return folder / f"{'-'.join(parts)}.json"


def _evaluate(
    path: Path,
    specs: Sequence[DatasetSpec] | None,
    split: str | None,
    letters: str | None,
    out: Path,
    plot: bool,
    accelerator: str,
) -> None:
    from rich.console import Console
    from rich.progress import track

    from mfpyg.checkpoint import methods_of, potential_of, read_checkpoint, trained_labels
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
    dataset = _open(specs, trained, potential.fidelities, own, fingerprint, shown_on(console))
    _note_methods(console, dataset, methods_of(described))
    rows = _rows(console, dataset, described, spec, split)
    same = dataset.fingerprint == fingerprint
    if letters is not None:
        dataset = _with_properties(dataset, specs, letters, shown_on(console))
    if split != "all" and same:
        # Data of another name may have the same values under other names of levels.
        kept = label_fractions(settings, trained)
        fractions = {name: part for name, part in kept.items() if name in dataset.fidelities}
        dataset = thin_labels(dataset, _splits_of(described, len(dataset)), fractions, settings.split_seed)

    def progress(batches: Any, name: str) -> Any:
        return track(batches, description=name, console=console, transient=True, disable=not console.is_terminal)

    result = evaluate(potential, dataset, rows, parity=plot, track=progress)
    print_table(console, metrics_table(result.metrics, trained_labels(described)))
    write_text(out, json.dumps(result.metrics, indent=2) + "\n")
    console.print(f"written: {out}", highlight=False, soft_wrap=True)
    if plot:
        from mfpyg.evaluation.report import parity_plot

        for name, pairs in result.parity.items():
            if not pairs:
                console.print(f"note: no labels in {name} to plot", highlight=False, soft_wrap=True)
                continue
            picture = out.with_name(f"{out.stem}-{name}.png")
            parity_plot(pairs, picture, f"{spec}, {name}")
            console.print(f"written: {picture}", highlight=False, soft_wrap=True)


def _open(
    specs: Sequence[DatasetSpec],
    trained: Sequence[Fidelity],
    known: Sequence[str],
    own: bool,
    fingerprint: str,
    track: Track,
) -> ConformationDataset:
    """Open the data to evaluate on.

    The training data, which may have moved, are opened as in training, with levels that the potential may not have.

    Args:
        specs: data sets.
        trained, known: fidelities that were trained on, and that the potential has.
        own: whether the data are certainly those of the training.
        fingerprint: fingerprint of the training data.
        track: shows the progress of processing.

    Raises:
        MFPyGError: if the data have none of the potential's fidelities.
    """
    from mfpyg.datasets.spec import available_fidelities, open_dataset
    from mfpyg.fidelity import further_letters

    names, letters = [f.name for f in trained], further_letters(trained)
    each = [available_fidelities(spec) for spec in specs]
    present = list(dict.fromkeys(name for of in each for name in of))
    common = [name for name in known if name in present]
    if not common:
        raise MFPyGError(
            f"{' + '.join(map(str, specs))} has none of the potential's fidelities {', '.join(known)} "
            f"(it has {', '.join(present)})"
        )
    if own or (set(names) <= set(present) and all(set(names) & set(of) for of in each)):
        dataset = open_dataset(specs, names, track=track, properties=letters)
        if own or dataset.fingerprint == fingerprint:
            return dataset
    return open_dataset(specs, common, track=track, properties=letters)


def _with_properties(
    dataset: ConformationDataset, specs: Sequence[DatasetSpec], letters: str, track: Track
) -> ConformationDataset:
    """The same conformations with other properties.

    Raises:
        MFPyGError: if the data have none of a property.
    """
    from mfpyg.datasets.spec import open_dataset

    result = open_dataset(specs, dataset.fidelities, track=track, properties=letters)
    if result.geometries != dataset.geometries:
        raise MFPyGError(
            f"reading {letters} changes the conformations of {' + '.join(map(str, specs))}; leave out --properties"
        )
    there = [letter for letter in result.letters if result._data[PROPERTIES[letter].mask].any()]
    absent = [letter for letter in letters if letter not in there]
    if absent:
        raise MFPyGError(f"{' + '.join(map(str, specs))} has no {listed(absent)}; leave them out of --properties")
    return result


def _note_methods(console: Any, dataset: ConformationDataset, trained: dict[str, str]) -> None:
    for level in dataset.label_counts():
        name, method = level["name"], level["method"]
        before = trained.get(name)
        if method and before and before != method:
            text = f"note: '{name}' is {method} in these data, but {before} in the training data"
            console.print(text, highlight=False, soft_wrap=True)


def _splits_of(described: dict[str, Any], n: int) -> dict[str, np.ndarray]:
    """Rows of each split, checked to be less than ``n``."""
    import numpy as np

    splits = {name: rows.numpy().astype(np.int64) for name, rows in described["splits"].items()}
    for name, rows in splits.items():
        if len(rows) and rows.max() >= n:
            raise MFPyGError(f"the checkpoint is damaged: its split '{name}' has row {rows.max()}, the data only {n:,}")
    return splits


def _rows(
    console: Any, dataset: ConformationDataset, described: dict[str, Any], spec: str, split: str | None
) -> dict[str, np.ndarray]:
    """Conformations to evaluate on: the splits of the run for its own data, else all, or the given split."""
    import numpy as np

    everything = {"all": np.arange(len(dataset))}
    if split == "all":
        return everything
    if dataset.fingerprint == described["data"]["fingerprint"]:
        splits = _splits_of(described, len(dataset))
    elif split is None:
        text = f"note: all of {spec} is evaluated, which may include training data"
        console.print(text, highlight=False, soft_wrap=True)
        return everything
    else:
        given = dataset.given_split()
        splits = {"test": np.flatnonzero(given == 1), "ood": np.flatnonzero(given == 2)}
        splits = {name: rows for name, rows in splits.items() if len(rows)}
    if split is None:
        return splits
    if split not in splits:
        raise MFPyGError(f"{spec} has no split '{split}' for this run (it has {', '.join([*splits, 'all'])})")
    return {split: splits[split]}


if __name__ == "__main__":
    main()
