"""Errors of predictions against labels, over the labelled entries only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.models import Prediction
from mfpyg.models.prediction import Products, predicted_properties
from mfpyg.properties import ENERGY, Property


def label_errors(
    property: Property, prediction: Prediction, batch: Batch, column: int, rows: Tensor | None = None
) -> Tensor:
    """Predicted minus labelled components of a property, (n_labelled_components,) float64.

    Entries without a label are left out before any arithmetic: NaN times zero is still NaN, also in the gradient. Of
    Hessians along random directions, see :func:`product_errors`.

    Args:
        property: property with a prediction, or without any label in the batch.
        prediction: prediction of one fidelity.
        batch: batch with labels, such as ``forces`` (n_atoms, T, 3), and their mask (n_graphs, T).
        column: index of the fidelity among the T of the data set.
        rows: graphs, or atoms, with a label, (n_labelled,) int64; default: found by :func:`labelled_rows`.
    """
    predicted, labels = getattr(prediction, property.name), batch[property.name]
    if predicted is None:
        assert not (batch[property.mask][:, column].any() if rows is None else rows.shape[-1])
        return prediction.energy.new_zeros(0, dtype=torch.float64)
    if property.per == "pair":
        raise ValueError("whole Hessians are compared by mfpyg.evaluation.hessians")
    rows = labelled_rows(property, batch, column) if rows is None else rows
    return (predicted[rows].double() - labels[rows, column].double()).flatten()


def pair_members(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the first and of the second members of all pairs with both, (n_pairs,) int64 each.

    Args:
        pair: numbers of the pairs, positive for first members and negative for second ones, else 0, (n,) int64.
    """
    first, second = (members.nonzero().flatten() for members in (pair > 0, pair < 0))
    first, second = first[pair[first].argsort(stable=True)], second[(-pair[second]).argsort(stable=True)]
    one, other = pair[first], -pair[second]
    return first[torch.isin(one, other)], second[torch.isin(other, one)]


def labelled_pairs(batch: Batch, column: int) -> Tensor:
    """First and second members of the pairs with two energies of a fidelity, (2, n_pairs) int64."""
    first, second = pair_members(batch.pair)
    mask = batch.energy_mask[:, column]
    return torch.stack([members[mask[first] & mask[second]] for members in (first, second)])


def pair_errors(prediction: Prediction, batch: Batch, column: int, members: Tensor | None = None) -> Tensor:
    """Predicted minus labelled mean forces −(E_b − E_a) / |d| along pairs of graphs, (n_pairs,) float64.

    Args:
        prediction: prediction of one fidelity.
        batch: batch with energies, and ``pair`` and ``pair_length`` of :mod:`mfpyg.training.pairs`.
        column: index of the fidelity among the T of the data set.
        members: result of :func:`labelled_pairs`, if known.
    """
    first, second = labelled_pairs(batch, column) if members is None else members
    labels = batch.energy[:, column]
    predicted = prediction.energy[first] - prediction.energy[second]
    return (predicted - (labels[first] - labels[second])) / batch.pair_length[first]


ENERGY_DIFFERENCE = "energy_difference"
"""Name of the errors of :func:`difference_errors` in the loss and its logs."""


def difference_errors(
    prediction: Prediction, base: Prediction, batch: Batch, column: int, base_column: int, both: Tensor
) -> Tensor:
    """Predicted minus labelled E − E_base of the graphs with both energies, (n,) float64.

    Args:
        prediction, base: predictions of a fidelity and of the one that it is compared with.
        batch: batch with energies.
        column, base_column: indices of these among the T of the data set.
        both: graphs with both energies, (n,) int64.
    """
    predicted = prediction.energy[both].double() - base.energy[both].double()
    return predicted - (batch.energy[both, column] - batch.energy[both, base_column])


def labelled_rows(property: Property, batch: Batch, column: int) -> Tensor:
    """True for the graphs, or atoms, with a label, (n_graphs,) or (n_atoms,) bool."""
    mask = batch[property.mask][:, column]  # (n_graphs,)
    return mask[batch.batch] if property.per == "atom" else mask


def product_errors(
    products: Products, batch: Batch, column: int, rows: Tensor | None = None, atoms: Tensor | None = None
) -> Tensor:
    r"""Errors of products of Hessians with random vectors v, divided by √(3n), n being the atoms of the graph.

    If the components of v are independent, with zero mean and unit variance, the mean square of

    .. math:: e = \frac{(H - H')\, v}{\sqrt{3n}}

    over the 3n components is an unbiased estimate of the mean squared error of the 9n² elements of the graph. Graphs
    count by their 3n components, not by 9n² as in errors of whole Hessians; the mean of \|e\| is no estimate of the MAE
    of elements.

    Args:
        products: predicted products H v.
        batch: batch with labels H' in the rows of ``hessian``, and ``hessian_mask`` (n_graphs, T).
        column: index of the fidelity among the T of the data set.
        rows, atoms: results of :func:`hessian_rows`, (3, n_rows), and of :func:`hessian_atoms`, if known.

    Returns:
        In kcal/mol/Å², (n_directions · 3 Σ n,) float64 of the graphs with labels.
    """
    of_labels, first, second = hessian_rows(batch, column) if rows is None else rows
    chosen = hessian_atoms(batch, column) if atoms is None else atoms
    place = torch.full((len(batch.z),), -1, device=batch.z.device)
    place[products.atoms] = torch.arange(len(products.atoms), device=batch.z.device)
    v = products.directions.double()[:, place[second]]  # (k, n_rows, 3)
    terms = torch.einsum("rab,krb->kra", batch.hessian[of_labels].double(), v)
    labels = terms.new_zeros(len(v), len(batch.z), 3).index_add_(1, first, terms)
    n_atoms = batch.ptr.diff()[batch.batch[chosen], None]  # (N, 1)
    return ((products.values[:, place[chosen]].double() - labels[:, chosen]) / (3 * n_atoms).sqrt()).flatten()


def hessian_atoms(batch: Batch, column: int) -> Tensor:
    """Atoms of the graphs whose Hessian is a label of a fidelity, (N,) int64."""
    return batch.hessian_mask[batch.batch, column].nonzero().flatten()


def hessian_rows(batch: Batch, column: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ``batch.hessian`` with the labels of a fidelity, and the pair of atoms of each, (n_rows,) int64 each."""
    mask = batch.hessian_mask  # (n_graphs, T)
    sizes = torch.bincount(batch.batch, minlength=batch.num_graphs)
    starts = (sizes.square() * mask.sum(dim=1)).cumsum(0) - sizes.square() * mask[:, column:].sum(dim=1)
    graphs = mask[:, column].nonzero().flatten()
    counts = sizes[graphs].square()
    owner = torch.repeat_interleave(graphs, counts)  # (n_rows,)
    within = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    atoms = (sizes.cumsum(0) - sizes)[owner]
    return starts[owner] + within, atoms + within // sizes[owner], atoms + within % sizes[owner]


def error_sums(errors: Tensor) -> Tensor:
    """Count, Σ|e| and Σe², which add up over batches and processes. (n,) -> (3,) float64."""
    count = torch.full((), errors.numel(), dtype=torch.float64, device=errors.device)  # tensor() would copy a number
    return torch.stack([count, errors.abs().sum(), errors.square().sum()])


def mae_and_rmse(sums: Tensor) -> tuple[float, float]:
    """Mean absolute and root mean square error from the sums of at least one error."""
    n, absolute, squared = sums.tolist()
    return absolute / n, (squared / n) ** 0.5


class MetricTable:
    """Accumulates the errors of several fidelities over batches.

    Args:
        columns: ``{fidelity: its index among the T of the data set}``.
    """

    def __init__(self, columns: Mapping[str, int]) -> None:
        self.columns = dict(columns)
        self._sums: dict[tuple[str, str], Tensor] = {}

    def add(self, predictions: Mapping[str, Prediction], batch: Batch) -> bool:
        """Add a batch, with the errors of all that is predicted; return True if all errors are finite."""
        n_atoms = torch.bincount(batch.batch, minlength=batch.num_graphs)
        finite = True
        for name, prediction in predictions.items():
            column = self.columns[name]
            for property in predicted_properties(prediction):
                errors = label_errors(property, prediction, batch, column)
                finite &= self.add_errors(name, property.name, errors)
                if property is ENERGY:
                    self.add_errors(name, "per_atom", errors / n_atoms[labelled_rows(property, batch, column)])
        return finite

    def add_errors(self, name: str, quantity: str, errors: Tensor) -> bool:
        """Add errors of a fidelity, (n,); return True if all are finite."""
        sums = error_sums(errors).cpu()
        self._sums[name, quantity] = self._sums.get((name, quantity), torch.zeros_like(sums)) + sums
        return bool(torch.isfinite(sums).all())

    def result(self) -> dict[str, dict[str, dict[str, Any]]]:
        """``{fidelity: {"energy": {n, mae, rmse, mae_per_atom, rmse_per_atom}, "forces": {n, mae, rmse}, …}}``.

        In the units of :mod:`mfpyg.properties`; ``n`` counts energies, pairs, or components of other properties;
        entries without labels are absent.
        """
        table: dict[str, dict[str, dict[str, Any]]] = {}
        for (name, quantity), sums in self._sums.items():
            if sums[0] == 0:
                continue
            row = table.setdefault(name, {})
            mae, rmse = mae_and_rmse(sums)
            if quantity == "per_atom":
                row["energy"].update(mae_per_atom=mae, rmse_per_atom=rmse)
            else:
                row[quantity] = {"n": int(sums[0]), "mae": mae, "rmse": rmse}
        return table
