"""Training a trained potential further: with new levels of theory, or on more data of those it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from mfpyg.checkpoint import potential_of, read_checkpoint
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import (
    GivenReferences,
    References,
    complete_difference,
    compositions,
    fit,
    labelled_energies,
    species_of,
)
from mfpyg.datasets.splits import make_splits
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity, parse_fidelities
from mfpyg.inference.dataset import predicted
from mfpyg.models import MultiFidelityPotential
from mfpyg.settings import SplitSettings, TrainSettings
from mfpyg.training.completion import FRESH
from mfpyg.training.folder import RunFolder
from mfpyg.training.initial import InitialModel
from mfpyg.training.module import train_only
from mfpyg.training.prepare import reference_notes, trained_species
from mfpyg.training.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """What a training goes on from.

    Attributes:
        potential: in a run that is resumed, with the new fidelities already.
        record: of :meth:`InitialModel.record`.
    """

    potential: MultiFidelityPotential
    record: Mapping[str, Any]

    def with_trained(self, species: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Elements that each fidelity was trained on before or in this training; unknown where it was before."""
        before = self.potential.trained_species
        old = [fidelity.name for fidelity in parse_fidelities(self.record["fidelities"])]
        known = {name: found for name, found in species.items() if name in before or name not in old}
        return {**before, **{name: tuple(sorted({*before.get(name, ()), *found})) for name, found in known.items()}}


def start_of(model: InitialModel) -> Start:
    """The beginning of a new run.

    Raises:
        MFPyGError: if the model's weights do not fit what it says of itself.
    """
    return Start(model.potential(), model.record())


def start_of_resumed(folder: RunFolder) -> Start:
    """That of a run that is resumed, for which the model that it began with is not needed any more.

    Raises:
        MFPyGError: if its last checkpoint is damaged.
    """
    checkpoint = read_checkpoint(folder.last)
    potential, record = potential_of(checkpoint, str(folder.last)), checkpoint["mfpyg"].get("init")
    if not isinstance(potential, MultiFidelityPotential) or not isinstance(record, dict):
        raise MFPyGError(f"{folder.last}: damaged, it does not say which potential the training began with")
    return Start(potential, record)


class FinetuneRecipe(Recipe):
    """Training that goes on from a potential.

    Args:
        settings: completed, see :func:`mfpyg.training.completion.completed`.
        fidelities, dataset, splits, given: see :class:`Recipe`.
        start: the potential; it is changed.
    """

    def __init__(
        self,
        settings: TrainSettings,
        fidelities: tuple[Fidelity, ...],
        dataset: ConformationDataset,
        splits: Mapping[str, np.ndarray],
        start: Start,
        given: GivenReferences | None = None,
    ) -> None:
        self.start = start
        super().__init__(settings, fidelities, dataset, splits, given)

    def prepare(self) -> None:
        potential, settings = self.start.potential, self.settings
        self.potential, self.notes = potential, []
        check_elements_known(potential, self.dataset, self.splits)
        potential.engine = settings.engine
        self._add([f.name for f in self.fidelities if f.name not in potential.fidelities])
        potential.trained_species = self.start.with_trained(
            trained_species(settings, self.dataset, self.splits["train"])
        )
        potential.train()
        trained = list(potential.parts_of([f.name for f in self.fidelities]).parameters())
        if settings.finetune.old == "frozen":
            potential.backbone.eval()  # nor may statistics that a network keeps of its batches change
        else:
            trained += potential.backbone.parameters()
        train_only(potential, trained)
        n_trained = sum(p.numel() for p in trained)
        own = " ".join(self.start.record["fidelities"])
        self.notes.insert(
            0, f"init {settings.init}: {own}; {settings.finetune.old}, {n_trained:,} parameters are trained"
        )

    def _add(self, names: list[str]) -> None:
        """Give the potential new fidelities, with reference energies of their own."""
        potential, source = self.start.potential, self.settings.finetune.head_from
        like = potential.fidelities[-1] if source in (None, FRESH) else source
        fitted = {}
        for name in names:
            potential.add_fidelity(name, like, fresh=source == FRESH)
            fitted[name] = fit_to_predictions(
                potential, self.dataset, self.splits["train"], name, like, self.given.get(name, {})
            )
            potential.reference(name).add_(torch.from_numpy(fitted[name].energies))
        self.notes += reference_notes(fitted)


def fit_to_predictions(
    potential: MultiFidelityPotential,
    dataset: ConformationDataset,
    rows: np.ndarray,
    fidelity: str,
    like: str,
    given: Mapping[int, float],
) -> References:
    """What to add to the reference energies of a fidelity, by least squares of its labels less its predictions.

    A fit of the labels themselves, as for new networks, would have to do without knowing how strongly the labelled
    molecules are bound, which the network it is added to knows: of few labels its error is that of a poor sample.

    Args:
        potential: in evaluation mode.
        dataset, rows: with the labels, and the conformations of them to fit to.
        fidelity: of both.
        like: fidelity that it is a copy of.
        given: reference energies in kcal/mol, by atomic number, that are not fitted.
    """
    column = dataset.fidelities.index(fidelity)
    rows = rows[dataset._data.energy_mask[:, column].numpy()[rows]]
    energy = np.zeros(len(dataset.slices["energy"]) - 1)
    for chosen, _, predictions in predicted(potential, dataset, rows, {fidelity: column}):
        energy[chosen] = predictions[fidelity].energy.numpy()
    label, counts = labelled_energies(dataset, fidelity, rows), compositions(dataset, potential.species)
    before = dict(zip(potential.species, potential.reference(fidelity).tolist(), strict=True))
    missing = {number: energy - before[number] for number, energy in given.items() if number in before}
    fitted = fit(counts[rows], label - energy[rows], potential.species, missing, dataset.isolated_atoms[rows])
    return complete_difference(fitted, like, potential.species)


def check_elements_known(
    potential: MultiFidelityPotential, dataset: ConformationDataset, splits: Mapping[str, np.ndarray]
) -> None:
    """Check that the potential knows every element of every split.

    Raises:
        MFPyGError: naming those that it does not.
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


def splits_to_go_on(
    settings: TrainSettings, dataset: ConformationDataset, model: InitialModel
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits of the data: those of the model's training if it was trained on the same conformations.

    So nothing that it was trained on comes into the test. Another ``split.method`` than ``auto`` is done as it says,
    and so are ``split.files``.

    Returns:
        The splits, and lines for the user.

    Raises:
        MFPyGError: as :func:`mfpyg.datasets.splits.make_splits`, or for fractions that would have no effect.
    """
    same = model.is_of(dataset)
    if same and settings.split.method == "auto" and not settings.split.files:
        usual = SplitSettings()
        if (settings.split.val, settings.split.test) != (usual.val, usual.test):
            raise MFPyGError(
                "split.val and split.test do nothing where init was trained on the same data, whose splits are kept; "
                "leave them out, or name another split.method than auto"
            )
        return model.splits, ["the splits are those of init, which was trained on the same conformations"]
    splits = make_splits(dataset, settings.split, settings.split_seed)
    if not same:
        named = model.described["data"]["name"]
        data = named if isinstance(named, str) else " + ".join(named)
        return splits, [f"note: init was trained on {data}; what of it may be in val and test is not told apart"]
    seen = np.concatenate([model.splits[name] for name in ("train", "val")])
    counts = {name: int(np.isin(rows, seen).sum()) for name, rows in splits.items() if name not in ("train", "val")}
    return splits, [
        f"note: {n:,} of {len(splits[name]):,} in {name} were for training or validation of init; errors there are too "
        "low"
        for name, n in counts.items()
        if n
    ]


def method_notes(dataset: ConformationDataset, model: InitialModel) -> list[str]:
    """A line for each fidelity that is another level of theory here than in the data of the model."""
    before = model.described["data"]["methods"]
    return [
        f"note: '{level.name}' is {level.method} here, but {before[level.name]} in the data of init"
        for level in dataset.present_levels
        if level.method and before.get(level.name) not in (None, "", level.method)
    ]
