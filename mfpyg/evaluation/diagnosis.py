"""Diagnosis of NaN and infinity in a batch: finding the conformation and the values at fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.evaluation.metrics import hessian_rows
from mfpyg.graph import find_topology
from mfpyg.models import Potential, Prediction
from mfpyg.models.prediction import Products, predicted_properties
from mfpyg.models.system import find_overlap
from mfpyg.properties import BY_NAME, Property

Labels = Iterable[tuple[str, str, int]]
"""Fidelity, name of the property, and index of the fidelity among the T of the data set."""


def name_of(batch: Batch, graph: int, molecules: Sequence[str]) -> str:
    """Name of a graph of a batch: molecule and conformation if the data have them, else its number."""
    if "molecule" in batch and "conformation" in batch:
        return f"{molecules[int(batch.molecule[graph])]}, conformation {int(batch.conformation[graph])}"
    return f"graph {graph} of the batch"


def fault_of_data(potential: Potential, batch: Batch, labels: Labels, molecules: Sequence[str]) -> str | None:
    """Find positions or unmasked labels of a batch that are not finite, or overlapping atoms.

    Args:
        potential: potential, whose cutoff and precision determine which atoms overlap.
        batch: batch of a data set.
        labels: labels to check.
        molecules: names of the data set's molecules.

    Returns:
        A clause with the conformation and advice; ``None`` if nothing is wrong.
    """
    lost = ~torch.isfinite(batch.pos).all(dim=1)
    if lost.any():
        graph = int(batch.batch[lost][0])
        return f"positions of {name_of(batch, graph, molecules)}, are NaN or infinite; take it out of the data"
    topology, lattice = find_topology(batch, potential.cutoff, potential.engine, potential.dtype)
    overlap = find_overlap(batch.pos.to(potential.dtype), topology, lattice)
    if overlap is not None:
        where = name_of(batch, overlap.graph, molecules)
        return f"{overlap} in {where}; take it out of the data (mfpyg-doctor finds all of them)"
    for name, prop, column in labels:
        wrong = _wrong_labels(batch, prop, column)
        if wrong.any():
            where = name_of(batch, int(wrong.nonzero()[0]), molecules)
            return f"the {name} {prop} label of {where}, is NaN or infinite but not masked; process the data again"
    return None


def fault_of_predictions(predictions: Mapping[str, Prediction], batch: Batch, molecules: Sequence[str]) -> str | None:
    """Find predictions of a batch that are not finite; ``None`` if all are finite."""
    for name, prediction in predictions.items():
        for property in predicted_properties(prediction):
            prop = property.name
            values = getattr(prediction, prop)
            if isinstance(values, Products):
                wrong = _graphs_of(values.values.movedim(0, 1), batch.batch[values.atoms], batch)
            else:
                wrong = _graphs_of(values, _owner(property, batch), batch) & _defined(property, batch)
            if wrong.any():
                where = name_of(batch, int(wrong.nonzero()[0]), molecules)
                count = f"{int(wrong.sum())} of {batch.num_graphs} in the batch"
                return f"the predicted {name} {prop} of {where}, is not finite ({count})"
    return None


def _wrong_labels(batch: Batch, prop: str, column: int) -> Tensor:
    """Graphs with a label that is neither finite nor masked, (n_graphs,) bool."""
    property = BY_NAME[prop]
    if property.per == "pair":  # only labelled ones are stored
        rows, first, _ = hessian_rows(batch, column)
        return _graphs_of(batch[prop][rows], batch.batch[first], batch)
    return batch[property.mask][:, column] & _graphs_of(batch[prop][:, column], _owner(property, batch), batch)


def _owner(property: Property, batch: Batch) -> Tensor:
    """Graph of each value of a property of graphs or atoms, (n,) int64."""
    if property.per == "atom":
        return batch.batch
    return torch.arange(batch.num_graphs, device=batch.batch.device)


def _defined(property: Property, batch: Batch) -> Tensor:
    """Graphs that have a property, (n_graphs,) bool; predictions of the others are NaN."""
    pbc = batch.pbc.tolist() if "pbc" in batch else [[False] * 3] * batch.num_graphs
    return torch.tensor([property.is_defined(of_graph) for of_graph in pbc], device=batch.batch.device)


def _graphs_of(values: Tensor, owner: Tensor, batch: Batch) -> Tensor:
    """True for graphs with a value that is not finite, (n_graphs,) bool; ``owner`` is the graph of each row, (n,)."""
    wrong = ~torch.isfinite(values)
    wrong = wrong.flatten(1).any(dim=1) if wrong.dim() > 1 else wrong
    return torch.bincount(owner[wrong], minlength=batch.num_graphs) > 0
