"""Errors of predictions against labels, over the labelled entries only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.models import Prediction


def energy_errors(prediction: Prediction, batch: Batch, column: int) -> Tensor:
    """Predicted minus labelled total energy in kcal/mol, (n_labelled,) float64.

    Entries without a label are left out before any arithmetic: NaN times zero is still NaN, also in the gradient.

    Args:
        prediction: prediction of one fidelity.
        batch: batch with ``energy`` (n_graphs, T) and ``energy_mask``.
        column: index of the fidelity among the T of the data set.
    """
    mask = batch.energy_mask[:, column]
    return prediction.energy[mask] - batch.energy[mask, column]


def force_errors(prediction: Prediction, batch: Batch, column: int) -> Tensor:
    """Predicted minus labelled force components in kcal/mol/Å, (n_labelled_atoms · 3,) float64.

    Args:
        prediction: prediction of one fidelity, with forces.
        batch: batch with ``forces`` (n_atoms, T, 3) and ``forces_mask`` (n_graphs, T).
        column: index of the fidelity among the T of the data set.
    """
    assert prediction.forces is not None
    mask = batch.forces_mask[batch.batch, column]  # (n_atoms,)
    return (prediction.forces[mask].double() - batch.forces[mask, column].double()).flatten()


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
        """Add a batch, with force errors where a prediction has forces; return True if all errors are finite."""
        n_atoms = torch.bincount(batch.batch, minlength=batch.num_graphs)
        finite = True
        for name, prediction in predictions.items():
            column = self.columns[name]
            errors = energy_errors(prediction, batch, column)
            finite &= self._add(name, "energy", errors)
            self._add(name, "per_atom", errors / n_atoms[batch.energy_mask[:, column]])
            if prediction.forces is not None:
                finite &= self._add(name, "forces", force_errors(prediction, batch, column))
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
