"""Labelled data that commands compare predictions with, and the parts of them that reference energies are fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import compositions
from mfpyg.datasets.spec import DatasetSpec, available_fidelities, open_dataset
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.alignment import Alignment, fit_to_predictions, offset_note
from mfpyg.fidelity import Fidelity, further_letters
from mfpyg.models import Potential
from mfpyg.properties import PROPERTIES, listed

if TYPE_CHECKING:
    from mfpyg.datasets.chunks import Track


def open_data(
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


def with_properties(
    dataset: ConformationDataset, specs: Sequence[DatasetSpec], letters: str, track: Track
) -> ConformationDataset:
    """The same conformations with other properties.

    Raises:
        MFPyGError: if the data have none of a property.
    """
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


def method_notes(dataset: ConformationDataset, trained: Mapping[str, str]) -> list[str]:
    """Notes on fidelities whose method differs from that in the training data."""
    notes = []
    for level in dataset.label_counts():
        name, method = level["name"], level["method"]
        before = trained.get(name)
        if method and before and before != method:
            notes.append(f"note: '{name}' is {method} in these data, but {before} in the training data")
    return notes


def splits_of(described: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    """Rows of each split, checked to be less than ``n``."""
    splits = {name: rows.numpy().astype(np.int64) for name, rows in described["splits"].items()}
    for name, rows in splits.items():
        if len(rows) and rows.max() >= n:
            raise MFPyGError(f"the checkpoint is damaged: its split '{name}' has row {rows.max()}, the data only {n:,}")
    return splits


def parts_of(dataset: ConformationDataset, described: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Conformations by the names of ``--split`` and ``--align``: splits of the run, or those declared by other data."""
    everything = {"all": np.arange(len(dataset))}
    if dataset.fingerprint == described["data"]["fingerprint"]:
        return {**splits_of(described, len(dataset)), **everything}
    given = dataset.given_split()
    splits = {name: np.flatnonzero(given == number) for number, name in enumerate(("train", "test", "ood"))}
    return {**{name: rows for name, rows in splits.items() if len(rows)}, **everything}


def evaluated_rows(
    parts: Mapping[str, np.ndarray], own: bool, spec: str, split: str | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Conformations to evaluate on, and notes: the given part, else all splits of the run, else all of other data.

    Args:
        parts: from :func:`parts_of`.
        own: whether the data are those of the training.
        spec: name of the data.
        split: part to evaluate on, if given.

    Raises:
        MFPyGError: if there is no such part.
    """
    if split is None and own:
        return {name: rows for name, rows in parts.items() if name != "all"}, []
    if split is None:
        return {"all": parts["all"]}, [f"note: all of {spec} is evaluated, which may include training data"]
    if split not in parts:
        raise MFPyGError(f"{spec} has no split '{split}' for this run (it has {', '.join(parts)})")
    return {split: parts[split]}, []


def fitted_on(
    potential: Potential, dataset: ConformationDataset, rows: np.ndarray, on: str
) -> tuple[dict[str, Alignment], list[str]]:
    """Fit reference energies to some conformations, and note the fidelities that have no energies there.

    Args:
        potential: potential in evaluation mode, which is not changed.
        dataset, rows: data set, and its conformations to fit to.
        on: their name.

    Raises:
        MFPyGError: if there are no energies of any fidelity.
    """
    names = [name for name in potential.fidelities if name in dataset.fidelities]
    found = fit_to_predictions(potential, dataset, rows, names)
    alignments = {name: one for name, one in found.items() if len(one.left)}
    if not alignments:
        raise MFPyGError(f"{on} has no energies of {', '.join(names)} to fit reference energies to; name other data")
    lacking = [name for name in potential.fidelities if name not in alignments]
    return alignments, [f"note: {on} has no energies of {name}, whose reference energies are kept" for name in lacking]


def pool_of(dataset: ConformationDataset, spec: str) -> tuple[np.ndarray, str]:
    """Conformations of data to fit to, those declared as test or ood left out, and their name."""
    given = dataset.given_split()
    rows = np.flatnonzero(given <= 0)
    return rows, spec if len(rows) == len(dataset) else f"{spec} without its test and ood"


def overlap_note(rows: Mapping[str, np.ndarray], fitted: np.ndarray, on: str) -> list[str]:
    """Note on evaluated conformations that the reference energies are fitted to, the part ``on`` itself left out."""
    counts = {name: int(np.isin(of, fitted).sum()) for name, of in rows.items() if name != on}
    shared = [f"{n:,} of {len(rows[name]):,} in {name}" for name, n in counts.items() if n]
    return [f"note: reference energies are fitted to {', '.join(shared)}, where errors are too low"] if shared else []


def occurring(potential: Potential, parts: Iterable[tuple[ConformationDataset, np.ndarray]]) -> list[str]:
    """Symbols of the potential's elements that occur in any of these conformations."""
    there = np.zeros(len(potential.species), bool)
    for dataset, rows in parts:
        there |= compositions(dataset, potential.species)[rows].any(axis=0)
    return [chemical_symbols[number] for number, found in zip(potential.species, there, strict=True) if found]


def offset_notes(potential: Potential, dataset: ConformationDataset, errors: Mapping[str, np.ndarray]) -> list[str]:
    """Notes on fidelities whose labels have another zero of energy.

    Args:
        potential: evaluated potential.
        dataset: data that it was evaluated on.
        errors: :attr:`mfpyg.evaluation.evaluate.Evaluation.energy_errors`.
    """
    counts, remedy = compositions(dataset, potential.species), "--align evaluates with reference energies fitted"
    there = {name: ~np.isnan(of) for name, of in errors.items()}
    notes = [offset_note(name, -of[there[name]], counts[there[name]], remedy) for name, of in errors.items()]
    return [note for note in notes if note]
