"""The interface of all potentials."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import scatter

from mfpyg.errors import MFPyGError, MFPyGWarning, unknown_name
from mfpyg.graph import molecules_of
from mfpyg.models.baseline import Baseline, add_baselines
from mfpyg.models.calibration import HeldOut
from mfpyg.models.hessian import hessian
from mfpyg.models.prediction import Prediction
from mfpyg.properties import ENERGY, in_order, listed, of_heads, parse_letters
from mfpyg.settings import TrainSettings


class Potential(nn.Module):
    r"""Base class of potentials: properties (:mod:`mfpyg.properties`) of the levels of theory in ``fidelities``.

    Subclasses set the attributes below and implement :attr:`cutoff`, :attr:`species`, :meth:`predict`,
    :meth:`predict_edges`, :meth:`reference` and :meth:`species_number`.

    Attributes:
        fidelities: names of the levels of theory.
        further: letters of the properties that each fidelity has besides its energy and derivatives.
        compiled: whether predictions go through ``torch.compile``, see :mod:`mfpyg.models.compiled`.
        engine: neighbour-list engine, see :mod:`mfpyg.neighbors`.
        settings: settings that it was built from, see :mod:`mfpyg.models.build`; ``None`` if built by hand.
        trained_species: atomic numbers in the training labels of each fidelity, as far as known.
        methods: levels of theory of the fidelities, such as ``CCSD(T)/cc-pVDZ``, as far as known.
        baselines: energies and forces of fidelities that are added to those of the network, see
            :mod:`mfpyg.models.baseline`; from the settings when it is loaded, none in training.
        held_out: labels and predictions of validation, by which standard deviations are calibrated.
        quantiles: for each fidelity with standard deviations, quantiles of \|error\| over them at
            :data:`mfpyg.models.calibration.PROBABILITIES`, of energies and of force components, (2, 99).
    """

    fidelities: tuple[str, ...]
    further: Mapping[str, str] = MappingProxyType({})
    compiled: bool
    engine: str
    settings: TrainSettings | None = None
    held_out: HeldOut | None = None

    def __init__(self) -> None:
        super().__init__()
        self.trained_species: dict[str, tuple[int, ...]] = {}
        self.methods: dict[str, str] = {}
        self.quantiles: dict[str, np.ndarray] = {}
        self.baselines: dict[str, Baseline] = {}
        self._warned: set[tuple[str, int]] = set()

    @property
    def cutoff(self) -> float:
        """Cutoff in Å."""
        raise NotImplementedError

    @property
    def species(self) -> tuple[int, ...]:
        """Supported atomic numbers."""
        raise NotImplementedError

    @property
    def vanishes_beyond_cutoff(self) -> bool:
        """True if edges longer than the cutoff have no effect, see :class:`mfpyg.models.Backbone`."""
        return False

    def prepare(self, data: Data, wanted: Mapping[str, str]) -> Any:
        """Do the part of a prediction that reads numbers from the device; :meth:`predict` takes the result as its data.

        By default, these are the data.
        """
        return data

    def predict(self, data: Any, wanted: Mapping[str, str], std: bool = False) -> dict[str, Prediction]:
        """Predict the properties in ``wanted``, ``{fidelity: letters}``, see :mod:`mfpyg.properties`.

        The data are a ``Data`` or ``Batch``, or a result of :meth:`prepare`.
        With ``std``, of fidelities with :meth:`has_std`, standard deviations of energies and forces, too.
        """
        raise NotImplementedError

    def has_std(self, fidelity: str) -> bool:
        """True if standard deviations of a fidelity can be predicted, see :mod:`mfpyg.models.last_layer`."""
        return False

    def predict_edges(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor, fidelity: str) -> Prediction:
        """Predict one graph from given edge vectors.

        For programs with their own neighbour lists, which compute forces and virials from derivatives with respect to
        edge vectors.

        Args:
            z: atomic numbers, (n_atoms,) int64.
            edge_index: sources and targets, (2, n_edges) int64, both directions of each pair.
            edge_vec: position of the source, or its image, minus that of the target in Å, (n_edges, 3); the vectors of
                the two directions of a pair must be exact negatives. Edges beyond the cutoff are ignored.

        Returns:
            The prediction, detached, with −dE/d(edge_vec) in kcal/mol/Å, (n_edges, 3), in ``forces``.

        Raises:
            MFPyGError: for an unknown fidelity or element.
        """
        raise NotImplementedError

    def reference(self, fidelity: str) -> Tensor:
        """Atomic reference energies of a fidelity in kcal/mol, (n_species,) float64.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        raise NotImplementedError

    def shift_references(self, fidelity: str, shifts: Tensor) -> None:
        """Add to the atomic reference energies of a fidelity, and of no other.

        Args:
            fidelity: name of the fidelity.
            shifts: energies in kcal/mol, (n_species,) float64.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        self.reference(fidelity).add_(shifts.to(self.reference(fidelity)))

    def species_number(self, z: Tensor) -> Tensor:
        """Index of each atom's element in ``species``, (n_atoms,) int64.

        Raises:
            MFPyGError: for unknown elements, which are listed.
        """
        raise NotImplementedError

    def check_fidelity(self, fidelity: str) -> None:
        """Check that the potential has a fidelity.

        Raises:
            MFPyGError: if not; lists the fidelities it has.
        """
        if fidelity not in self.fidelities:
            raise unknown_name("fidelity", fidelity, self.fidelities)

    def letters(self, fidelity: str) -> str:
        """Letters of the properties that can be predicted for a fidelity."""
        return in_order(of_heads((ENERGY.head,)) + self.further.get(fidelity, ""))

    def with_baselines(self, predictions: dict[str, Prediction], data: Data) -> dict[str, Prediction]:
        """Predictions of the network, with the baselines of their fidelities added."""
        return add_baselines(predictions, self.baselines, data)

    def check_edges_suffice(self, fidelity: str) -> None:
        """Check that a fidelity can be predicted from edges within the cutoff: that it has no baseline.

        Raises:
            MFPyGError: if it has one.
        """
        self.check_fidelity(fidelity)
        if fidelity in self.baselines:
            raise MFPyGError(
                f"fidelity '{fidelity}' has a baseline, which is not available in LAMMPS, as it has no cutoff; "
                "use ASE or torch-sim, or a potential without one"
            )

    def check_preparable(self, wanted: Iterable[str]) -> None:
        """Check that fidelities can be predicted from prepared data: that they have no baseline.

        Raises:
            MFPyGError: for the first that has one.
        """
        for fidelity in wanted:
            if fidelity in self.baselines:
                raise MFPyGError(
                    f"fidelity '{fidelity}' has a baseline, which is not added to predictions of prepared data; pass "
                    "the data to predict as they are"
                )

    def check_wanted(self, wanted: Mapping[str, str]) -> None:
        """Check that the potential has the fidelities in ``{fidelity: letters}``, and heads for them.

        Raises:
            MFPyGError: for the first that it has not; lists those that it has.
        """
        for name, letters in wanted.items():
            self.check_fidelity(name)
            missing = [letter for letter in letters if letter not in self.letters(name)]
            if missing:
                having = [other for other in self.fidelities if set(missing) <= set(self.letters(other))]
                raise MFPyGError(
                    f"fidelity '{name}' has no head for {listed(missing)}; fidelities with one: "
                    f"{', '.join(having) or 'none'}; leave them out, or train on {listed(missing)} of '{name}'"
                )
            if "H" in letters:
                raise MFPyGError(
                    f"Hessians of '{name}' are not predicted with the rest; use potential(data, properties='EFH') or "
                    "mfpyg.models.hessian.hessian"
                )

    def check_std(self, fidelities: Iterable[str]) -> None:
        """Check that standard deviations of fidelities can be predicted.

        Raises:
            MFPyGError: for the first of which they cannot.
        """
        for name in fidelities:
            if not self.has_std(name):
                raise MFPyGError(
                    f"fidelity '{name}' has no standard deviations: its training had too few energies for validation, "
                    "or was that of an earlier version; train it again, or use an ensemble"
                )

    def warn_untrained(self, z: Tensor, fidelities: Iterable[str]) -> None:
        """Warn once about each element that a fidelity was never trained on.

        Args:
            z: atomic numbers, (n_atoms,) int64.
            fidelities: predicted fidelities.
        """
        for name in fidelities:
            trained = self.trained_species.get(name, self.species)
            for number in self.species:
                if number in trained or (name, number) in self._warned or not (z == number).any():
                    continue
                self._warned.add((name, number))
                warnings.warn(
                    f"fidelity '{name}' was never trained on {chemical_symbols[number]}; its predictions for molecules "
                    "with this element are extrapolated, and total energies can be off by several eV",
                    MFPyGWarning,
                    stacklevel=2,
                )

    def forward(
        self,
        data: Data,
        fidelity: str | Sequence[str] | None = None,
        forces: bool = True,
        stress: bool = False,
        properties: str | None = None,
    ) -> Prediction | dict[str, Prediction]:
        """Predict energies, forces and other properties of a molecule, a crystal or a batch.

        Args:
            data: ``Data`` or ``Batch`` with ``z`` (n_atoms,) and ``pos`` (n_atoms, 3) in Å; for periodic graphs also
                ``cell`` (n_graphs, 3, 3) in Å and ``pbc`` (n_graphs, 3) bool, see :mod:`mfpyg.lattice`;
                for charges and dipole moments of ions ``charge`` (n_graphs,) in e, 0 if absent.
            fidelity: a name, or a list of names for several in one pass; optional if the potential has only one.
            forces: whether to compute forces, by a backward pass for each fidelity.
            stress: whether to compute stresses, in the same backward pass; NaN for graphs that are not periodic in all
                directions.
            properties: letters of :data:`mfpyg.properties.PROPERTIES`, as ``"EFD"``, instead of ``forces`` and
                ``stress``, which are then ignored; energies are always predicted.

        Returns:
            A :class:`Prediction` for a name, ``{name: Prediction}`` for a list.

        Raises:
            MFPyGError: for an unknown fidelity, element or letter, no fidelity although there are several, or a
                property that the graph or the fidelity does not have.
        """
        if fidelity is None:
            if len(self.fidelities) > 1:
                known = ", ".join(self.fidelities)
                raise MFPyGError(f"no fidelity given: this potential has several ({known}); name one")
            fidelity = self.fidelities[0]
        letters = "E" + "F" * forces + "S" * stress
        if properties is not None:
            letters = parse_letters(properties, f"properties '{properties}'")
        names = [fidelity] if isinstance(fidelity, str) else list(fidelity)
        predictions = self.predict(data, dict.fromkeys(names, letters.replace("H", "") or "E"))
        if "H" in letters:
            for name, prediction in predictions.items():
                prediction.hessian = hessian(self, data, name).reshape(-1, 3, 3)
        return predictions[fidelity] if isinstance(fidelity, str) else predictions

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and of everything but total energies."""
        return next(self.parameters()).dtype

    def reference_energy(self, data: Data, fidelity: str) -> Tensor:
        """Sum of atomic reference energies of each molecule in kcal/mol, (n_graphs,) float64."""
        reference = self.reference(fidelity)[self.species_number(data.z)]  # (n_atoms,)
        batch, n_graphs = molecules_of(data)
        return scatter(reference, batch, dim_size=n_graphs, reduce="sum")
