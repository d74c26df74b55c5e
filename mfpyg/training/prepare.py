"""From settings and data to a potential that is ready to train."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import chemical_symbols

from mfpyg.backbones import find as find_backbone
from mfpyg.datasets.chunks import Track
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.label_fraction import thin_labels
from mfpyg.datasets.opening import open_dataset
from mfpyg.datasets.references import GivenReferences, References, compositions, fit_references, species_of
from mfpyg.datasets.spec import parse_specs
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity, parse_fidelities
from mfpyg.graph import RadiusGraph
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.models.build_native import find_compiler
from mfpyg.settings import TrainSettings
from mfpyg.training.check import label_fractions
from mfpyg.training.data import labelled_rows
from mfpyg.training.strategies.plan import plan_of


def open_training_data(
    settings: TrainSettings, fidelities: tuple[Fidelity, ...], track: Track = iter
) -> ConformationDataset:
    """The data set of the settings, with edges where they ask for stored ones."""
    pre_transform = RadiusGraph(_cutoff(settings), settings.engine) if settings.edges == "stored" else None
    names = [f.name for f in fidelities]
    return open_dataset(parse_specs(settings.sources), names, pre_transform=pre_transform, track=track)


def _cutoff(settings: TrainSettings) -> float:
    cutoff = getattr(settings.model, "cutoff", None)
    if cutoff is None:
        raise MFPyGError(
            f"edges can't be stored: backbone '{settings.backbone}' has no option 'cutoff'; use edges batch"
        )
    return float(cutoff)


def with_labels_kept(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
) -> ConformationDataset:
    """The data set with the part of the labels that the settings keep, see :mod:`mfpyg.datasets.label_fraction`."""
    return thin_labels(dataset, splits, label_fractions(settings, fidelities), settings.split_seed)


def label_notes(settings: TrainSettings, dataset: ConformationDataset, splits: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each fidelity of which only a part of the labels is kept: how many conformations have some."""
    lines = []
    for name in label_fractions(settings, parse_fidelities(settings.fidelities)):
        any_label = (Fidelity(name, energy=True, forces=True),)
        train, val = (int(labelled_rows(dataset, splits[split], any_label).sum()) for split in ("train", "val"))
        lines.append(f"labels of {name} are kept of {train:,} conformations in train and {val:,} in val")
    return lines


def needed(settings: TrainSettings) -> tuple[str, ...]:
    """Fidelities without whose labels in the validation split no epoch, or stage, can be judged."""
    if settings.strategy != "mfl":
        return tuple(f.name for f in parse_fidelities(settings.fidelities))
    return () if settings.monitor == "sum" else (settings.monitor,)


def check_labels(
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
    fidelities: tuple[Fidelity, ...],
    needed: Sequence[str],
) -> list[str]:
    """Check that every kind of label to train on occurs in the training split.

    Args:
        dataset, splits, fidelities: of the training.
        needed: fidelities that the validation split must have labels of; it must have some of one, anyway.

    Returns:
        A line for each kind that the validation split lacks, which the choice of the best epoch can't see, and one
        for the conformations that carry no label to train on.

    Raises:
        MFPyGError: naming the first that does not, or if nothing is left to choose the best epoch by.
    """
    rows, notes, seen = splits["train"], [], []
    labelled = int(labelled_rows(dataset, rows, fidelities).any(axis=1).sum())
    if labelled < len(rows):
        trained = " ".join(map(str, fidelities))
        notes.append(f"note: {len(rows) - labelled:,} of train carry no label of {trained}; they are left out")
    for fidelity in fidelities:
        column = dataset.fidelities.index(fidelity.name)
        for prop, name in (("energy", "energies"), ("forces", "forces")):
            mask = dataset._data[f"{prop}_mask"][:, column]
            if not getattr(fidelity, prop):
                continue
            if not mask[rows].any():
                raise MFPyGError(
                    f"fidelity '{fidelity}': none of the {len(rows)} conformations of the training split has {name} "
                    f"of '{fidelity.name}'; leave them out, or give other data"
                )
            if mask[splits["val"]].any():
                seen.append(fidelity.name)
            else:
                notes.append(f"note: no {fidelity.name} {name} in validation; the best epoch is chosen without them")
    for name in needed or (() if seen else ("sum",)):
        if name not in seen:
            raise MFPyGError(f"monitor {name} has no labels in the validation split; give split.val a larger share")
    return notes


@dataclass(frozen=True)
class Elements:
    """The elements of the training split.

    Attributes:
        species: atomic numbers, ascending.
        counts: how many atoms of each every conformation of the data set has, (n_conformations, n_species) float64.
    """

    species: tuple[int, ...]
    counts: np.ndarray


def elements_of(dataset: ConformationDataset, splits: Mapping[str, np.ndarray]) -> Elements:
    """The elements that a potential can be trained on.

    Raises:
        MFPyGError: if another split has an element that the training split has not.
    """
    every = species_of(dataset)
    counts = compositions(dataset, every)
    there = counts[splits["train"]].any(axis=0)
    for name, rows in splits.items():
        extra = counts[rows].any(axis=0) & ~there
        if extra.any():
            symbols = ", ".join(chemical_symbols[every[i]] for i in np.flatnonzero(extra))
            raise MFPyGError(
                f"element {symbols} occurs in split '{name}' but not in training; use another seed or split"
            )
    species = tuple(number for number, trained in zip(every, there, strict=True) if trained)
    return Elements(species, counts[:, there])


def new_potential(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    dataset: ConformationDataset,
    splits: Mapping[str, np.ndarray],
    given: GivenReferences | None = None,
) -> tuple[MultiFidelityPotential, list[str]]:
    """A potential with fresh weights, and reference energies given or fitted to the training split.

    Returns:
        The potential, and a line for each fidelity whose references the labels do not determine.

    Raises:
        MFPyGError: if another split has an element that the training split has not.
    """
    elements = elements_of(dataset, splits)
    names = [f.name for f in fidelities]
    potential = build_potential(settings, elements.species, names)
    fitted = fit_references(dataset, splits["train"], elements.species, names, elements.counts, given)
    for name, references in fitted.items():
        potential.head(name).reference.copy_(torch.from_numpy(references.energies))
    return potential, reference_notes(fitted)


def reference_notes(fitted: Mapping[str, References]) -> list[str]:
    """A line for each fidelity whose references are those of isolated atoms, or not determined by the labels."""
    notes = []
    for name, references in fitted.items():
        if references.isolated:
            symbols = ", ".join(references.isolated)
            notes.append(f"the {name} reference energies of {symbols} are the lowest of isolated atoms in train")
        if references.undetermined:
            sources = " and ".join(references.sources)
            used = f"they are extrapolated from those of {sources}" if sources else "their least-norm values are used"
            notes.append(
                f"note: the {name} labels do not determine the reference energies of "
                f"{', '.join(references.undetermined)} one by one; {used}; references can give others"
            )
    return notes


def trained_species(
    settings: TrainSettings, dataset: ConformationDataset, rows: np.ndarray
) -> dict[str, tuple[int, ...]]:
    """Atomic numbers in the labels that each fidelity is trained on.

    Args:
        settings: of the training.
        dataset: with the labels that the training may see.
        rows: conformations of the training split.
    """
    species, fidelities = species_of(dataset), parse_fidelities(settings.fidelities)
    there = compositions(dataset, species)[rows] > 0  # (n_rows, n_species)
    labelled = labelled_rows(dataset, rows, fidelities)  # (n_rows, n_fidelities)
    if settings.strategy == "delta":  # the difference is trained on what has both labels
        plan = plan_of(settings, fidelities)
        (target,), base = plan.stages[-1].fidelities, plan.base
        labelled[:, fidelities.index(target)] &= labelled[:, fidelities.index(base)]
    return {
        fidelity.name: tuple(np.array(species)[there[labelled[:, i]].any(axis=0)].tolist())
        for i, fidelity in enumerate(fidelities)
    }


COMPILE_FROM = 10_000
"""Training steps, if the run is not stopped early, from which on the compiler's time of up to a minute pays."""


def with_compile_chosen(settings: TrainSettings, n_train: int, device: torch.device) -> TrainSettings:
    """The settings with ``compile`` on or off, as a run keeps it however it is resumed.

    Args:
        settings: of the run.
        n_train: conformations in the training split.
        device: where it runs; ``auto`` compiles on a CPU that has a C++ compiler, backbones that compile soon.
    """
    if settings.compile != "auto":
        return settings
    n_steps = settings.epochs * math.ceil(n_train / settings.batch_size)
    compiler = find_compiler("CXX", ("g++", "c++", "clang++"))
    able = find_backbone(settings.backbone).compiles and compiler is not None
    worth = able and device.type == "cpu" and n_steps >= COMPILE_FROM
    return dataclasses.replace(settings, compile="on" if worth else "off")
