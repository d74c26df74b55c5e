"""Multi-fidelity loss (eqs. 1-3 of the MFL paper) with masked labels, over any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch_geometric.data import Batch

from mfpyg.evaluation.metrics import (
    ENERGY_DIFFERENCE,
    difference_errors,
    error_sums,
    hessian_atoms,
    hessian_rows,
    label_errors,
    labelled_pairs,
    labelled_rows,
    pair_errors,
    product_errors,
)
from mfpyg.evaluation.pairs import DIRECTIONAL_FORCE
from mfpyg.fidelity import Fidelity
from mfpyg.models import Potential, Prediction
from mfpyg.models.hessian import Displaced, displaced_copies, predict_with_products
from mfpyg.models.prediction import Products
from mfpyg.properties import BY_NAME, ENERGY, FORCES, HESSIAN
from mfpyg.training.directions import random_directions


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes, with a gradient that turns DDP's mean of gradients into a sum.

    Every process holds the same loss L(Σ_r S_r) of the summed S. The parameters' gradient is
    Σ_r L'·dS_r/dθ; DDP divides the sum by the number of processes, so the gradient passed to each
    process is multiplied by that number.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * dist.get_world_size()


def several_processes() -> bool:
    """True in a distributed run of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(local: Tensor) -> Tensor:
    """Sum of a tensor over all processes of a distributed run; the tensor itself in a single process."""
    if several_processes():
        return _SumOverProcesses.apply(local)
    return local


Entries = Mapping[tuple[str, str], Tensor]
"""Indices of the graphs or atoms with a label, (n,) int64, for each ``(fidelity, name of the property)``.

Of pairs, those of the first and second members, (2, n); of Hessians, the results of
:func:`mfpyg.evaluation.metrics.hessian_rows`, (3, n), and of :data:`HESSIAN_ATOMS`, those of the atoms of these graphs;
of :data:`HIERARCHICALITY`, those of graphs with an energy or a derivative of it as a label.
"""

HIERARCHICALITY = "hierarchicality"
HESSIAN_ATOMS = "hessian_atoms"


class MultiFidelityLoss(nn.Module):
    r"""Loss of the errors of every fidelity and property, and of the hierarchicality of every fidelity.

    .. math:: L = \sum_f \Big[\sum_p w_{fp} (\mathrm{RMSE}_{fp} + \mathrm{MAE}_{fp}) + w_R\, \bar R_f\Big]

    over the labelled entries of every property p only, :math:`\bar R_f` being the mean hierarchicality of the
    molecules with an energy of f, or a derivative of it, as a label. Hessians are compared along random directions, see
    :func:`mfpyg.evaluation.metrics.product_errors`. With a weight, the mean forces along pairs of near geometries
    (:mod:`mfpyg.evaluation.pairs`) are one more p, and so are the differences of energies from those of the fidelity
    before, of molecules with both: they do not depend on the errors that both have in common. Sums and counts are added
    over all processes before roots and ratios are taken, so that the loss does not depend on the number of processes.
    Labels missing in a batch contribute exactly zero, with a zero gradient.

    Args:
        fidelities: fidelities with the labels to train on.
        columns: ``{fidelity: column among the T of the data set}``.
        weights: ``{(fidelity, name of the property): w}`` for every label trained on, and
            :data:`mfpyg.evaluation.pairs.DIRECTIONAL_FORCE` as a name for pairs, and
            :data:`mfpyg.evaluation.metrics.ENERGY_DIFFERENCE` for differences from the fidelity before.
        hierarchicality: w_R.
        directions: number of random directions for each Hessian in a batch.
        seed: seed of the directions.
    """

    _w: Tensor

    def __init__(
        self,
        fidelities: Sequence[Fidelity],
        columns: Mapping[str, int],
        weights: Mapping[tuple[str, str], float],
        hierarchicality: float,
        directions: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.fidelities = tuple(fidelities)
        self.columns = {f.name: columns[f.name] for f in fidelities}
        self.weights = dict(weights)
        with_energies = [f.name for f in fidelities if ENERGY in f.properties]
        self._base = dict(zip(with_energies[1:], with_energies, strict=False))
        self.register_buffer("_w", torch.tensor(list(self.weights.values()), dtype=torch.float64), persistent=False)
        self.hierarchicality, self.directions, self.seed = hierarchicality, directions, seed

    def entries(self, batch: Batch) -> Entries:
        """Find the labelled entries of a batch; their numbers are read from the device, unlike in all that follows."""
        labels = [(f.name, p.name) for f in self.fidelities for p in f.properties]
        found = {key: self._entries(*key, batch) for key in dict.fromkeys([*labels, *self.weights])}
        for f in self.fidelities:
            masks = [batch[p.mask][:, self.columns[f.name]] for p in f.properties if p.head == ENERGY.head]
            labelled = torch.stack([*masks, torch.zeros_like(batch.energy_mask[:, 0])]).any(dim=0)
            found[f.name, HIERARCHICALITY] = labelled.nonzero().flatten()
            if HESSIAN in f.properties:
                found[f.name, HESSIAN_ATOMS] = hessian_atoms(batch, self.columns[f.name])
        return found

    def _entries(self, fidelity: str, prop: str, batch: Batch) -> Tensor:
        column = self.columns[fidelity]
        if prop == ENERGY_DIFFERENCE:
            both = batch.energy_mask[:, [column, self.columns[self._base[fidelity]]]]
            return both.all(dim=1).nonzero().flatten()
        if prop == DIRECTIONAL_FORCE:
            return labelled_pairs(batch, column)
        if prop == HESSIAN.name:
            return torch.stack(hessian_rows(batch, column))
        return labelled_rows(BY_NAME[prop], batch, column).nonzero().flatten()

    def wanted(self, entries: Entries) -> dict[str, str]:
        """Properties that are compared with the labels of a batch, ``{fidelity: letters}``.

        Energies and forces always, the rest only if the batch has a label: a network need not be able to predict
        stresses of molecules.
        """
        compared = {key for key, rows in entries.items() if rows.shape[-1]}
        return {
            f.name: "".join(p.letter for p in f.properties if p in (ENERGY, FORCES) or (f.name, p.name) in compared)
            or "E"
            for f in self.fidelities
        }

    def predict(
        self,
        potential: Potential,
        batch: Batch,
        *moment: int,
        entries: Entries | None = None,
        prepared: Any = None,
    ) -> dict[str, Prediction]:
        """Predict the properties of :meth:`wanted`.

        Hessians along directions that depend on the moment, such as the epoch and the step; those of validation do not
        change.

        Args:
            potential: potential.
            batch: batch with labels.
            moment: numbers that directions depend on.
            entries: result of :meth:`entries`, if known.
            prepared: result of :meth:`prepare`, if known.

        Raises:
            MFPyGError: as :meth:`mfpyg.models.MultiFidelityPotential.predict`.
        """
        wanted = self.wanted(self.entries(batch) if entries is None else entries)
        data = self._inputs(potential, batch, wanted, *moment) if prepared is None else prepared
        if isinstance(data, Displaced):
            return predict_with_products(potential, data, wanted)
        return potential.predict(data, wanted)

    def prepare(self, potential: Potential, batch: Batch, entries: Entries, *moment: int) -> Any:
        """Do the part of :meth:`predict` that reads numbers from the device.

        Raises:
            MFPyGError: as the potential's ``prepare``.
        """
        wanted = self.wanted(entries)
        data = self._inputs(potential, batch, wanted, *moment)
        return data.prepared(potential, wanted) if isinstance(data, Displaced) else potential.prepare(data, wanted)

    def _inputs(self, potential: Potential, batch: Batch, wanted: Mapping[str, str], *moment: int) -> Batch | Displaced:
        """The batch, or with Hessians, the batch and its displaced copies."""
        masks = [batch[HESSIAN.mask][:, self.columns[name]] for name, letters in wanted.items() if "H" in letters]
        if not masks:
            return batch
        directions = random_directions(batch, self.directions, self.seed, *moment)
        return displaced_copies(batch, torch.stack(masks).any(dim=0), directions, potential.dtype)

    @property
    def labels(self) -> list[tuple[str, str, int]]:
        """Fidelity, property and column of each label, in the order of ``weights``, without pairs."""
        return [(name, prop, self.columns[name]) for name, prop in self.weights if prop in BY_NAME]

    def labelled(self, sums: Tensor, entries: Entries | None = None) -> dict[tuple[str, str], bool]:
        """Whether the batch, over all processes, has a label for each kind of heads.

        Args:
            sums: sums over all processes, (n_labels, 3).
            entries: result of :meth:`entries`, if known; a single process then need not read the sums.

        Returns:
            ``{(fidelity, head): …}`` for the head ``energy`` and the others that are trained, such as ``charges``.
        """
        known = entries is not None and not several_processes()
        counts = [entries[key].shape[-1] for key in self.weights] if known else sums[:, 0].tolist()  # type: ignore[index]
        found = {(f.name, ENERGY.head): False for f in self.fidelities}
        for (name, prop), n in zip(self.weights, counts, strict=True):
            head = name, BY_NAME[prop].head if prop in BY_NAME else ENERGY.head
            found[head] = found.get(head, False) or n > 0
        return found

    def forward(
        self, predictions: Mapping[str, Prediction], batch: Batch, entries: Entries | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss of a batch and its error sums, both over all processes.

        Args:
            predictions: result of :meth:`predict`.
            batch: batch with labels.
            entries: result of :meth:`entries`, if known.

        Returns:
            The loss, and (n_labels, 3) float64 as :meth:`sums` gives them.
        """
        entries = self.entries(batch) if entries is None else entries
        hierarchicality = [
            error_sums(predictions[f.name].hierarchicality[entries[f.name, HIERARCHICALITY]].double())
            for f in self.fidelities
        ]
        total = sum_over_processes(torch.cat([self.sums(predictions, batch, entries), torch.stack(hierarchicality)]))
        sums, regulariser = total.split([len(self.weights), len(self.fidelities)])
        mean = regulariser[:, 1] / regulariser[:, 0].clamp(min=1)
        return self.error(sums).sum() + self.hierarchicality * mean.sum(), sums.detach()

    def sums(self, predictions: Mapping[str, Prediction], batch: Batch, entries: Entries | None = None) -> Tensor:
        """Count, Σ|e| and Σe² of each label, in the order of ``weights``: (n_labels, 3) float64."""
        entries = self.entries(batch) if entries is None else entries
        return torch.stack([error_sums(self._errors(predictions, batch, entries, *key)) for key in self.weights])

    def _errors(
        self, predictions: Mapping[str, Prediction], batch: Batch, entries: Entries, fidelity: str, prop: str
    ) -> Tensor:
        prediction, column, rows = predictions[fidelity], self.columns[fidelity], entries[fidelity, prop]
        if prop == ENERGY_DIFFERENCE:
            base = self._base[fidelity]
            return difference_errors(prediction, predictions[base], batch, column, self.columns[base], rows)
        if prop == DIRECTIONAL_FORCE:
            return pair_errors(prediction, batch, column, rows)
        if isinstance(prediction.hessian, Products) and prop == HESSIAN.name:
            return product_errors(prediction.hessian, batch, column, rows, entries[fidelity, HESSIAN_ATOMS])
        return label_errors(BY_NAME[prop], prediction, batch, column, rows)

    def error(self, sums: Tensor) -> Tensor:
        """w (RMSE + MAE) of each label from its sums; zero without labels. (n_labels, 3) -> (n_labels,)."""
        n = sums[:, 0].clamp(min=1)
        mean_square = sums[:, 2] / n
        positive = mean_square > 0  # the root has no finite gradient at zero
        rmse = torch.where(positive, mean_square, torch.ones_like(mean_square)).sqrt() * positive
        return self._w * (rmse + sums[:, 1] / n)
