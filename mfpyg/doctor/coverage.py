"""Coverage of labels: missing, partly missing, only in the test split, or too few to fit reference energies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase.data import chemical_symbols

from mfpyg.datasets.references import fit_references, silent_directions
from mfpyg.doctor.view import Finding, View
from mfpyg.fidelity import LevelOfTheory
from mfpyg.properties import PROPERTIES, Property, in_order

MISSING = "missing labels"
UNLABELLED = "elements without labels"
SPLIT = "labels outside training"
RANK = "reference energies"

DERIVATIVES = "FSH"
"""Properties that are derivatives of the energy, which is known wherever they are."""


def check_missing(view: View) -> Iterator[Finding]:
    """Fidelities without labels, labels with missing components, and derivatives without energies."""
    for column, level in view.levels:
        masks = {letter: view.mask(letter)[:, column] for letter in level.letters}
        labelled = in_order(letter for letter, mask in masks.items() if mask.any())
        if not labelled:
            text = f"no label in {len(view)} conformations: all are NaN"
            yield Finding(
                MISSING, "certain", level.name, text, "leave the fidelity out, or check the keys it is read from"
            )
            continue
        for letter, mask in masks.items():
            if letter != "E":
                yield from _incomplete(view, level, PROPERTIES[letter], mask, view.energy_mask[:, column], labelled)


def _incomplete(
    view: View, level: LevelOfTheory, property: Property, mask: np.ndarray, energy: np.ndarray, labelled: str
) -> Iterator[Finding]:
    """Labels of a property that are missing in part, without an energy, or all of them."""
    what = property.plural
    incomplete = view.dataset.incomplete[property.letter][level.name]
    if incomplete:
        text = (
            f"{incomplete} conformations lack some {property.singular} components; all of their {what} are taken as "
            f"missing"
        )
        yield Finding(MISSING, "suspect", level.name, text, "check why they are NaN in the file")
    alone = np.flatnonzero(mask & ~energy)
    if len(alone) and property.letter in DERIVATIVES:
        text = f"{len(alone)} of {mask.sum()} conformations with {what} have no energy, e.g. {view.where(alone[0])}"
        fix = f"check whether the energies were lost; they are cheaper than the {what}"
        severity = "note" if energy.any() else "suspect"
        yield Finding(MISSING, severity, level.name, text, fix, tuple(alone))
    if not mask.any():
        text = f"the key '{level.labels[property.letter].keys[0]}' is there, but all {what} are NaN"
        yield Finding(MISSING, "suspect", level.name, text, f"train with {level.name}:{labelled}")


def check_elements(view: View) -> Iterator[Finding]:
    """Elements of which a fidelity has no label, or only one."""
    contains = view.counts > 0  # (n, n_species)
    for column, level in view.levels:
        labelled = view.energy_mask[:, column] | view.forces_mask[:, column]
        if not labelled.any():
            continue
        number = contains[labelled].sum(axis=0)
        fix = f"add labels of {level.name}, or do not use {level.name} for molecules with these elements"
        never = np.flatnonzero(number == 0)
        if len(never):
            example = int(np.flatnonzero(contains[:, never[0]])[0])
            text = f"no conformation with {_symbols(view, never)} is labelled; unlabelled: {view.where(example)}"
            yield Finding(UNLABELLED, "suspect", level.name, text, fix, (example,))
        once = np.flatnonzero(number == 1)
        if len(once) and labelled.sum() > 1:
            rows = np.flatnonzero(labelled & contains[:, once].any(axis=1))
            text = f"{_symbols(view, once)} in one labelled conformation only, e.g. {view.where(int(rows[0]))}"
            yield Finding(UNLABELLED, "suspect", level.name, text, fix, tuple(rows))


def check_split(view: View) -> Iterator[Finding]:
    """Fidelities with labels in the test split, but none for training."""
    training = np.isin(view.split, (0, 1))
    for column, level in view.levels:
        kinds = {PROPERTIES[letter].plural: view.mask(letter)[:, column] for letter in level.letters}
        every = [name for name, mask in kinds.items() if mask.any()]
        lost = [name for name in every if not (kinds[name] & training).any()]
        if not lost:
            continue
        row = int(np.flatnonzero(kinds[lost[0]])[0])
        number = kinds[lost[0]].sum()
        text = f"all {number} {' and '.join(lost)} are in the test or out of sample, e.g. {view.where(row)}"
        severity = "certain" if lost == every else "note"
        fix = (
            "good for testing, but nothing to train on"
            if severity == "note"
            else "split at random: split.method random"
        )
        yield Finding(SPLIT, severity, level.name, text, fix, (row,))


def check_references(view: View) -> Iterator[Finding]:
    """Reference energies that the compositions of the training rows do not determine."""
    train = view.splits["train"]
    fits = fit_references(view.dataset, train, view.species, [v.name for _, v in view.levels], view.counts)
    for column, level in view.levels:
        undetermined = fits[level.name].undetermined
        labelled = np.flatnonzero(view.energy_mask[:, column])
        known = np.intersect1d(train, labelled)
        if not undetermined or not len(known):
            continue
        silent = silent_directions(view.counts[known])
        kinds = np.unique(view.counts[known], axis=0)
        text = f"{len(kinds)} compositions do not determine the reference energies of {', '.join(undetermined)}"
        needing = np.flatnonzero(np.abs(view.counts @ silent).max(axis=1, initial=0) > 1e-6)
        tested = np.intersect1d(needing, labelled)
        if not len(needing):
            text += ", but no conformation of the data set needs them separately"
            fix = "fine for these molecules; their energies cannot be compared with those of others"
            yield Finding(RANK, "note", level.name, text, fix)
            continue
        what, shown = ("conformations with an energy", tested) if len(tested) else ("conformations", needing)
        text += f"; {len(shown)} {what} outside training need them, e.g. {view.where(int(shown[0]))}"
        fix = f"add {level.name} energies of molecules with other proportions of these elements, or of isolated atoms"
        yield Finding(RANK, "suspect", level.name, text, fix, tuple(shown))


def _symbols(view: View, which: np.ndarray) -> str:
    return ", ".join(chemical_symbols[view.species[int(i)]] for i in which)
