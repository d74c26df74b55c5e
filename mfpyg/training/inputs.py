"""Inputs shared by the stages of a training: settings, labels, splits, elements, reference energies."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from mfpyg.datasets.batches import rows_of
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.references import GivenReferences, References, compositions, fit_references, species_of
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.metrics import ENERGY_DIFFERENCE
from mfpyg.evaluation.pairs import DIRECTIONAL_FORCE
from mfpyg.fidelity import Fidelity, parse_weights
from mfpyg.models import MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.properties import ENERGY
from mfpyg.settings import TrainSettings
from mfpyg.training.initial import Start
from mfpyg.training.labels import labelled_rows
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.pairs import pair_numbers
from mfpyg.training.sampling import Sampling
from mfpyg.training.stage import Stage

AnyStage = TypeVar("AnyStage", bound=Stage)


@dataclass(frozen=True)
class Elements:
    """Elements of the training split.

    Attributes:
        species: atomic numbers, ascending.
        counts: number of atoms of each in every conformation of the data set, (n_conformations, n_species) float64.
    """

    species: tuple[int, ...]
    counts: np.ndarray


@dataclass(frozen=True)
class Inputs:
    """Inputs from which a strategy creates the stages of a training.

    Attributes:
        settings: checked settings.
        fidelities: fidelities to train on, in the order given.
        dataset: data set with the labels available for training.
        splits: ``{"train": rows, "val": rows, …}``.
        given: reference energies that are not fitted.
        start: potential to train further, if any.
        notes: lines for the user; fitted references add theirs.
    """

    settings: TrainSettings
    fidelities: tuple[Fidelity, ...]
    dataset: ConformationDataset
    splits: Mapping[str, np.ndarray]
    given: GivenReferences = field(default_factory=dict)
    start: Start | None = None
    notes: list[str] = field(default_factory=list)

    @functools.cached_property
    def elements(self) -> Elements:
        """Elements that a potential can be trained on.

        Raises:
            MFPyGError: if another split has an element that the training split does not have.
        """
        every = species_of(self.dataset)
        counts = compositions(self.dataset, every)
        there = counts[self.splits["train"]].any(axis=0)
        for name, rows in self.splits.items():
            extra = counts[rows].any(axis=0) & ~there
            if extra.any():
                symbols = ", ".join(chemical_symbols[every[i]] for i in np.flatnonzero(extra))
                raise MFPyGError(
                    f"element {symbols} occurs in split '{name}' but not in training; use another seed or split"
                )
        species = tuple(number for number, trained in zip(every, there, strict=True) if trained)
        return Elements(species, counts[:, there])

    @functools.cached_property
    def budget(self) -> int:
        """Conformations per epoch of strategy ``mfl``, which set the optimiser steps per epoch of every stage."""
        return len(self.rows("train", self.fidelities))

    def column(self, fidelity: str) -> int:
        """Column of a fidelity among the T of the data set."""
        return self.dataset.fidelities.index(fidelity)

    def rows(self, split: str, fidelities: Sequence[Fidelity]) -> np.ndarray:
        """Conformations of a split with a label of any of these fidelities, (n,) int64."""
        rows = self.splits[split]
        return rows[labelled_rows(self.dataset, rows, fidelities).any(axis=1)]

    def potential(self, fidelities: Sequence[str]) -> MultiFidelityPotential:
        """Potential with weights drawn from torch's global generator, and no reference energies yet.

        Fidelities that are trained on dipole moments or charges get a head for them.
        """
        further = {f.name: f.labels for f in self.fidelities if f.name in fidelities}
        return build_potential(self.settings, self.elements.species, fidelities, further)

    def references(self, fidelities: Sequence[str]) -> dict[str, Tensor]:
        """Reference energies of each fidelity, (n_species,) float64, given or fitted to its training labels."""
        rows, elements = self.splits["train"], self.elements
        fitted = fit_references(self.dataset, rows, elements.species, fidelities, elements.counts, self.given)
        self.notes.extend(reference_notes(fitted))
        return {name: torch.from_numpy(references.energies) for name, references in fitted.items()}

    def loss(self, fidelities: Sequence[Fidelity]) -> MultiFidelityLoss:
        """Loss of the labels of some fidelities, and of pairs if they are used, with the weights of the settings."""
        every = parse_weights(self.settings.weights, self.fidelities)
        if self.settings.pair_weight:
            with_energies = [f.name for f in self.fidelities if ENERGY in f.properties]
            every.update({(name, DIRECTIONAL_FORCE): self.settings.pair_weight for name in with_energies})
        if self.settings.difference_weight:
            of_stage = [f.name for f in fidelities if ENERGY in f.properties]
            every.update({(name, ENERGY_DIFFERENCE): self.settings.difference_weight for name in of_stage[1:]})
        columns = {f.name: self.column(f.name) for f in fidelities}
        weights = {key: weight for key, weight in every.items() if key[0] in columns}
        return self.loss_of(fidelities, columns, weights)

    def loss_of(
        self, fidelities: Sequence[Fidelity], columns: Mapping[str, int], weights: Mapping[tuple[str, str], float]
    ) -> MultiFidelityLoss:
        """Loss with these weights, with everything else from the settings."""
        settings = self.settings
        return MultiFidelityLoss(
            fidelities, columns, weights, settings.hierarchicality, settings.hessian_directions, settings.seed
        )

    def sampling(self, rows: np.ndarray, seed: int | None = None) -> Sampling:
        """Sampling of these conformations, (n,) int64, with as many batches per epoch as the budget gives."""
        settings = self.settings
        return Sampling(
            rows,
            np.ones((len(rows), 1), bool),
            settings.seed if seed is None else seed,
            n_atoms=self.dataset.slices["z"].diff().numpy()[rows],
            window=settings.sampling.window,
            budget=self.budget,
            pair=pair_numbers(self.dataset, rows),
        )

    def relabelled(self, fidelity: str, rows: np.ndarray, energy: Tensor, forces: Tensor | None = None) -> Inputs:
        """Inputs with new labels of a fidelity in some conformations, which may have had none.

        Args:
            fidelity: fidelity of the data set.
            rows: indices of the conformations, (n,) int64.
            energy: energies in kcal/mol, (n,) float64, without the baseline of the fidelity, if it has one.
            forces: forces in kcal/mol/Å, (N, 3), of the N atoms of these conformations in order, if any.
        """
        dataset, column, chosen = copy.copy(self.dataset), self.column(fidelity), torch.from_numpy(rows)
        dataset._data, dataset._data_list = copy.copy(self.dataset._data), None
        atoms, _, _ = rows_of(dataset.slices["z"], chosen)
        for name, places, values in (("energy", chosen, energy), ("forces", atoms, forces)):
            if values is not None:
                labels, mask = dataset._data[name].clone(), dataset._data[f"{name}_mask"].clone()
                labels[places, column], mask[chosen, column] = values.to(labels), True
                dataset._data[name], dataset._data[f"{name}_mask"] = labels, mask
        return dataclasses.replace(self, dataset=dataset)

    def stage(
        self, kind: type[AnyStage], name: str, fidelities: Sequence[Fidelity], epochs: int, **others: Any
    ) -> AnyStage:
        """Create a stage on all labels of some fidelities, with the learning rate of the settings.

        Args:
            kind: :class:`Stage`, or a subclass.
            name, fidelities, epochs: attributes of the stage.
            others: further attributes, which replace the defaults.
        """
        defaults: dict[str, Any] = {
            "loss": self.loss(fidelities),
            "lr": self.settings.optim.lr,
            "weight_decay": self.settings.optim.weight_decay,
            "dataset": self.dataset,
            "val": self.rows("val", fidelities),
        }
        if "train" not in others:
            defaults["train"] = self.sampling(self.rows("train", fidelities))
        return kind(name=name, fidelities=tuple(fidelities), epochs=epochs, **{**defaults, **others})


def reference_notes(fitted: Mapping[str, References]) -> list[str]:
    """Notes on fidelities whose references are those of isolated atoms, or not determined by the labels."""
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
                f"{', '.join(references.undetermined)} individually; {used}; give others with references"
            )
    return notes
