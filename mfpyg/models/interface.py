"""The interface of all potentials."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import scatter

from mfpyg.errors import MFPyGError, MFPyGWarning, unknown_name
from mfpyg.graph import molecules_of
from mfpyg.models.prediction import Prediction
from mfpyg.settings import TrainSettings


class Potential(nn.Module):
    """Energies, forces and stresses of the levels of theory in ``fidelities``.

    A subclass has the attributes below and says how to :meth:`predict`, what the :meth:`reference` energies of a
    level are, and what number each element has.

    Attributes:
        fidelities: names of the levels of theory.
        compiled: whether predictions go through ``torch.compile``, see :mod:`mfpyg.models.compiled`.
        engine: neighbour-list engine, see :mod:`mfpyg.neighbors`.
        settings: that it was built from, see :mod:`mfpyg.models.build`; ``None`` if it was put together by hand.
        trained_species: atomic numbers in the training labels of each fidelity of which they are known.
    """

    fidelities: tuple[str, ...]
    compiled: bool
    engine: str
    settings: TrainSettings | None = None

    def __init__(self) -> None:
        super().__init__()
        self.trained_species: dict[str, tuple[int, ...]] = {}
        self._warned: set[tuple[str, int]] = set()

    @property
    def cutoff(self) -> float:
        """In Å."""
        raise NotImplementedError

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that the potential knows."""
        raise NotImplementedError

    def predict(self, data: Data, wanted: Mapping[str, bool], stress: bool = False) -> dict[str, Prediction]:
        """Predictions of the wanted fidelities, with forces where the value is true, and stresses of all if wanted."""
        raise NotImplementedError

    def predict_edges(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor, fidelity: str) -> Prediction:
        """Prediction for one graph from the vectors to neighbours that are found already.

        For programs that need the derivatives by these vectors, of which they make forces and virials.

        Args:
            z: atomic numbers, (n_atoms,) int64.
            edge_index: sources and targets, (2, n_edges) int64, both directions of each pair.
            edge_vec: position of the source, or its image, minus that of the target in Å, (n_edges, 3), the two
                directions of a pair each other's negative to the last bit; what is beyond the cutoff is left out.

        Returns:
            The prediction, detached, with −dE/d(edge_vec) in kcal/mol/Å, (n_edges, 3), in ``forces``.

        Raises:
            MFPyGError: for an unknown fidelity, or an element that the potential does not know.
        """
        raise NotImplementedError

    def reference(self, fidelity: str) -> Tensor:
        """Atomic reference energy of each element for a fidelity in kcal/mol, (n_species,) float64.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        raise NotImplementedError

    def species_number(self, z: Tensor) -> Tensor:
        """Number of each atom's element among ``species``, (n_atoms,) int64.

        Raises:
            MFPyGError: naming the elements that the potential does not know.
        """
        raise NotImplementedError

    def check_fidelity(self, fidelity: str) -> None:
        """Check that the potential has a fidelity.

        Raises:
            MFPyGError: listing those it has.
        """
        if fidelity not in self.fidelities:
            raise unknown_name("fidelity", fidelity, self.fidelities)

    def warn_untrained(self, z: Tensor, fidelities: Iterable[str]) -> None:
        """Warn once of every element that a fidelity is asked for and was never trained on.

        Args:
            z: atomic numbers, (n_atoms,) int64.
            fidelities: that are predicted.
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
        self, data: Data, fidelity: str | Sequence[str] | None = None, forces: bool = True, stress: bool = False
    ) -> Prediction | dict[str, Prediction]:
        """Energies, and forces unless told otherwise, of a molecule, a crystal or a batch.

        Args:
            data: ``Data`` or ``Batch`` with ``z`` (n_atoms,) and ``pos`` (n_atoms, 3) in Å; with ``cell``
                (n_graphs, 3, 3) in Å and ``pbc`` (n_graphs, 3) bool where graphs repeat, see :mod:`mfpyg.lattice`.
            fidelity: a name, or a list of names for several in one pass; may be left out only where
                the potential has a single one.
            forces: whether forces are wanted; each fidelity's cost a backward pass.
            stress: whether stresses are wanted, of graphs that repeat in all directions; they come with the forces.

        Returns:
            A :class:`Prediction` for a name, ``{name: Prediction}`` for a list.

        Raises:
            MFPyGError: for an unknown fidelity or element, no fidelity given among several, or a stress where
                the volume is not defined.
        """
        if fidelity is None:
            if len(self.fidelities) > 1:
                known = ", ".join(self.fidelities)
                raise MFPyGError(f"no fidelity given: this potential has several ({known}); name one")
            fidelity = self.fidelities[0]
        if isinstance(fidelity, str):
            return self.predict(data, {fidelity: forces}, stress)[fidelity]
        return self.predict(data, dict.fromkeys(fidelity, forces), stress)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of everything but total energies."""
        return next(self.parameters()).dtype

    def reference_energy(self, data: Data, fidelity: str) -> Tensor:
        """Sum of the atomic reference energies of each molecule in kcal/mol, (n_graphs,) float64."""
        reference = self.reference(fidelity)[self.species_number(data.z)]  # (n_atoms,)
        batch, n_graphs = molecules_of(data)
        return scatter(reference, batch, dim_size=n_graphs, reduce="sum")
