"""Errors of predictions against labels, over the labelled entries only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.models import Prediction
from mfpyg.models.prediction import predicted_properties
from mfpyg.properties import ENERGY, Property


def label_errors(property: Property, prediction: Prediction, batch: Batch, column: int) -> Tensor:
    """Predicted minus labelled components of a property of graphs or atoms, (n_labelled_components,) float64.

    Entries without a label are left out before any arithmetic: NaN times zero is still NaN, also in the gradient.

    Args:
        property: property with a prediction.
        prediction: prediction of one fidelity.
        batch: batch with labels, such as ``forces`` (n_atoms, T, 3), and their mask (n_graphs, T).
        column: index of the fidelity among the T of the data set.
    """
    predicted, labels = getattr(prediction, property.name), batch[property.name]
    rows = labelled_rows(property, batch, column)
    return (predicted[rows].double() - labels[rows, column].double()).flatten()


def labelled_rows(property: Property, batch: Batch, column: int) -> Tensor:
    """True for the graphs, or atoms, with a label, (n_graphs,) or (n_atoms,) bool."""
    mask = batch[property.mask][:, column]  # (n_graphs,)
    return mask[batch.batch] if property.per == "atom" else mask


def error_sums(errors: Tensor) -> Tensor:
    """Count, Σ|e| and Σe², which add up over batches and processes. (n,) -> (3,) float64."""
    count = torch.tensor(float(errors.numel()), dtype=torch.float64, device=errors.device)
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
                finite &= self._add(name, property.name, errors)
                if property is ENERGY:
                    self._add(name, "per_atom", errors / n_atoms[labelled_rows(property, batch, column)])
        return finite

    def _add(self, name: str, quantity: str, errors: Tensor) -> bool:
        sums = error_sums(errors).cpu()
        self._sums[name, quantity] = self._sums.get((name, quantity), torch.zeros_like(sums)) + sums
        return bool(torch.isfinite(sums).all())

    def result(self) -> dict[str, dict[str, dict[str, Any]]]:
        """``{fidelity: {"energy": {n, mae, rmse, mae_per_atom, rmse_per_atom}, "forces": {n, mae, rmse}}}``.

        In kcal/mol and kcal/mol/Å; ``n`` counts energies or force components; entries without labels are absent.
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
