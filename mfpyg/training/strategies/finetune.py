"""Further training of a potential, on new levels of theory or on more data of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from ase.data import chemical_symbols

from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import complete_difference, compositions, species_of
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.alignment import align, alignment_notes, fit_to_predictions, offset_note
from mfpyg.models import MultiFidelityPotential, Potential
from mfpyg.option_groups import FIT
from mfpyg.settings import SplitSettings, TrainSettings
from mfpyg.training.initial import FRESH, InitialModel
from mfpyg.training.inputs import Inputs, reference_notes
from mfpyg.training.stage import Stage, train_only, trained_species
from mfpyg.training.strategies.joint import joint_stage

CHECKED = 256
"""Maximum number of conformations in which energies of init are compared with the labels."""


def stages(inputs: Inputs) -> tuple[Potential, list[Stage]]:
    """Potential to train further, with the new fidelities, and its stage.

    Args:
        inputs: inputs with a start and settings completed by :func:`mfpyg.training.initial.completed`.

    Raises:
        MFPyGError: if the potential does not know an element of the data.
    """
    assert inputs.start is not None
    settings, potential = inputs.settings, inputs.start.potential
    check_elements_known(potential, inputs.dataset, inputs.splits)
    potential.engine = settings.engine
    _refit(inputs, potential)
    _add_fidelities(inputs, potential)
    for fidelity in inputs.fidelities:
        potential.add_properties(fidelity.name, fidelity.labels)
    potential.train()
    trained = list(potential.parts_of([f.name for f in inputs.fidelities]).parameters())
    if settings.finetune.old == "frozen":
        potential.backbone.eval()  # batch statistics must not change either
    else:
        trained += potential.backbone.parameters()
    train_only(potential, trained)
    n_trained, own = sum(p.numel() for p in trained), " ".join(inputs.start.record["fidelities"])
    note = f"init {settings.init}: {own}; {settings.finetune.old}, {n_trained:,} parameters are trained"
    inputs.notes.insert(0, note)
    stage = joint_stage(inputs)
    potential.trained_species = inputs.start.with_trained(trained_species([stage]))
    return potential, [stage]


def _refit(inputs: Inputs, potential: MultiFidelityPotential) -> None:
    """Shift the reference energies of the fidelities that are trained to the training labels, or say what is amiss."""
    old = [fidelity for fidelity in inputs.fidelities if fidelity.name in potential.fidelities]
    if not old:
        return
    rows, refit = inputs.rows("train", old), inputs.settings.references == FIT
    rows = rows if refit else rows[:: math.ceil(len(rows) / CHECKED) or 1]
    found = fit_to_predictions(potential, inputs.dataset, rows, [fidelity.name for fidelity in old])
    if refit:
        align(potential, found)
        inputs.notes.extend(alignment_notes(found, "train"))
        return
    remedy = "--references fit shifts the reference energies of init"
    notes = [offset_note(name, one.left, one.counts, remedy) for name, one in found.items()]
    inputs.notes.extend(note for note in notes if note)


def _add_fidelities(inputs: Inputs, potential: MultiFidelityPotential) -> None:
    """Add the new fidelities to the potential, with their own reference energies."""
    source = inputs.settings.finetune.head_from
    like = potential.fidelities[-1] if source in (None, FRESH) else source
    fitted = {}
    for name, labels in [(f.name, f.labels) for f in inputs.fidelities if f.name not in potential.fidelities]:
        potential.add_fidelity(name, like, fresh=source == FRESH)
        potential.keep_properties(name, labels)  # without labels other heads would not be trained
        found = fit_to_predictions(potential, inputs.dataset, inputs.splits["train"], [name], inputs.given)[name]
        fitted[name] = complete_difference(found.shifts, like, potential.species)
        potential.shift_references(name, torch.from_numpy(fitted[name].energies))
    inputs.notes.extend(reference_notes(fitted))


def check_elements_known(
    potential: MultiFidelityPotential, dataset: ConformationDataset, splits: Mapping[str, np.ndarray]
) -> None:
    """Check that the potential knows every element of every split.

    Raises:
        MFPyGError: naming the unknown ones.
    """
    unknown = tuple(number for number in species_of(dataset) if number not in potential.species)
    counts = compositions(dataset, unknown)
    for name, rows in splits.items():
        there = counts[rows].any(axis=0)
        if there.any():
            symbols = ", ".join(chemical_symbols[unknown[i]] for i in np.flatnonzero(there))
            known = ", ".join(chemical_symbols[number] for number in potential.species)
            raise MFPyGError(
                f"element {symbols} of split '{name}' is unknown to init (it knows {known}); leave those conformations "
                "out, or train a new potential"
            )


def inherited_splits(
    settings: TrainSettings, dataset: ConformationDataset, model: InitialModel, together: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits of the data: those of the model if it was trained on the same conformations.

    This keeps its training data out of the test. ``split.files``, and a ``split.method`` other than ``auto``, take
    precedence; ``together`` is passed to :func:`mfpyg.datasets.splits.make_splits`.

    Returns:
        The splits, and notes for the user.

    Raises:
        MFPyGError: as :func:`mfpyg.datasets.splits.make_splits`, or for fractions that would have no effect.
    """
    same = model.is_of(dataset)
    if same and settings.split.method == "auto" and not settings.split.files:
        defaults = SplitSettings()
        if (settings.split.val, settings.split.test) != (defaults.val, defaults.test):
            raise MFPyGError(
                "split.val and split.test have no effect, as init was trained on the same data and its splits are "
                "kept; leave them out, or give a split.method other than auto"
            )
        return model.splits, ["the splits are those of init, which was trained on the same conformations"]
    splits = make_splits(dataset, settings.split, settings.split_seed, together)
    if not same:
        named = model.described["data"]["name"]
        data = (named if isinstance(named, str) else " + ".join(named)) or "data that it does not name"
        return splits, [f"note: init was trained on {data}; val and test may contain some of it"]
    seen = np.concatenate([model.splits[name] for name in ("train", "val")])
    counts = {name: int(np.isin(rows, seen).sum()) for name, rows in splits.items() if name not in ("train", "val")}
    return splits, [
        f"note: {n:,} of {len(splits[name]):,} in {name} were in training or validation of init; errors there are too "
        "low"
        for name, n in counts.items()
        if n
    ]


def method_notes(dataset: ConformationDataset, model: InitialModel) -> list[str]:
    """Notes on fidelities whose level of theory differs from that in the data of the model."""
    before = model.described["data"]["methods"]
    return [
        f"note: '{level.name}' is {level.method} here, but {before[level.name]} in the data of init"
        for level in dataset.present_levels
        if level.method and before.get(level.name) not in (None, "", level.method)
    ]
