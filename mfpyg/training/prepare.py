"""From settings and data to a potential that is ready to train."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from ase.data import chemical_symbols
from rich.console import Console

from mfpyg.checkpoint import read_checkpoint
from mfpyg.datasets import ReleaseDataset
from mfpyg.datasets.levels import DatasetSpec
from mfpyg.datasets.spec import open_dataset
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.graph import RadiusGraph
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.settings import TrainSettings
from mfpyg.training.folder import RunFolder
from mfpyg.training.references import elements, fit_references


def open_training_data(settings: TrainSettings, fidelities: tuple[Fidelity, ...]) -> ReleaseDataset:
    """The data set of the settings, with edges where they ask for stored ones."""
    pre_transform = RadiusGraph(settings.model.cutoff, settings.engine) if settings.edges == "stored" else None
    names = [f.name for f in fidelities]
    return open_dataset(DatasetSpec.parse(settings.dataset), names, pre_transform=pre_transform)


def check_labels(dataset: ReleaseDataset, rows: np.ndarray, fidelities: tuple[Fidelity, ...]) -> None:
    """Check that every kind of label to train on occurs in the training split.

    Raises:
        MFPyGError: naming the first that does not.
    """
    for fidelity in fidelities:
        column = dataset.fidelities.index(fidelity.name)
        for prop, name in (("energy", "energies"), ("forces", "forces")):
            mask = dataset._data[f"{prop}_mask"][rows, column]
            if getattr(fidelity, prop) and not mask.any():
                raise MFPyGError(
                    f"fidelity '{fidelity}': none of the {len(rows)} conformations of the training split has {name} "
                    f"of '{fidelity.name}'; leave them out, or give other data"
                )


def new_potential(
    settings: TrainSettings,
    fidelities: tuple[Fidelity, ...],
    dataset: ReleaseDataset,
    splits: Mapping[str, np.ndarray],
    console: Console,
) -> MultiFidelityPotential:
    """A potential with fresh weights, and reference energies fitted to the training split.

    Raises:
        MFPyGError: if another split has an element that the training split has not.
    """
    species = elements(dataset, splits["train"])
    for name, rows in splits.items():
        extra = set(elements(dataset, rows)) - set(species)
        if extra:
            symbols = ", ".join(chemical_symbols[number] for number in sorted(extra))
            raise MFPyGError(
                f"element {symbols} occurs in split '{name}' but not in training; use another seed or split"
            )
    potential = build_potential(settings, species, [f.name for f in fidelities])
    for name, references in fit_references(dataset, splits["train"], species).items():
        if name in potential.fidelities:
            potential.head(name).reference.copy_(torch.from_numpy(references.energies))
            if references.undetermined:
                console.print(
                    f"note: the {name} labels do not determine the reference energies of "
                    f"{', '.join(references.undetermined)} one by one; their least-norm values are used"
                )
    return potential


def check_resumable(folder: RunFolder, dataset: ReleaseDataset, splits: Mapping[str, np.ndarray]) -> None:
    """Check that a run has a checkpoint, and was started on these data and splits.

    Raises:
        MFPyGError: naming what is missing or different.
    """
    if not folder.last.is_file():
        raise MFPyGError(f"{folder.path}: no last.ckpt, the run stopped before its first epoch ended; start it anew")
    described = read_checkpoint(folder.last)["mfpyg"]
    if described["data"]["fingerprint"] != dataset.fingerprint:
        raise MFPyGError(f"{folder.path}: the data are not those the run was started on; resume needs the same file")
    stored = {name: rows.tolist() for name, rows in described["splits"].items()}
    if stored != {name: rows.tolist() for name, rows in splits.items()}:
        raise MFPyGError(f"{folder.path}: the splits are not those the run was started on")
