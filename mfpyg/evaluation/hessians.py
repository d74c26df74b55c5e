"""Whole Hessians against labels, and harmonic frequencies at stationary points."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from mfpyg.datasets.batches import BatchLoader, by_size
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.errors import MFPyGError, MFPyGWarning
from mfpyg.evaluation.diagnosis import name_of
from mfpyg.evaluation.frequencies import harmonic_frequencies
from mfpyg.evaluation.metrics import hessian_rows
from mfpyg.models import Potential
from mfpyg.models.hessian import MAX_ATOMS, hessian
from mfpyg.properties import FORCES, HESSIAN

STATIONARY = 1.0
"""Largest force on an atom, in kcal/mol/Å, of conformations that are taken for stationary points of their level."""

_NOT_FINITE = ("Hessian label", "predicted Hessian"), ("take it out of the data", "train the potential again")

BATCH_SIZE, ATOMS = 32, MAX_ATOMS
"""Maximum numbers of conformations and of atoms in a batch of more than one conformation."""


@dataclass
class Comparison:
    """Hessian of a conformation at a level.

    Attributes:
        fidelity: the level.
        label, predicted: d²E/dx_i dx_j in kcal/mol/Å², (n, n, 3, 3).
        frequencies: harmonic frequencies of both in cm⁻¹, (2, n_frequencies) float64, see
            :func:`mfpyg.evaluation.frequencies.harmonic_frequencies`; ``None`` unless the labelled forces are below
            :data:`STATIONARY`.
    """

    fidelity: str
    label: Tensor
    predicted: Tensor
    frequencies: Tensor | None


def compared_hessians(
    potential: Potential, dataset: ConformationDataset, rows: np.ndarray, columns: Mapping[str, int]
) -> Iterator[Comparison]:
    """Predict the Hessians of all conformations that have one as a label.

    Args:
        potential: potential in evaluation mode.
        dataset: whole data set, with Hessians.
        rows: numbers of the conformations, (n,) int64.
        columns: ``{fidelity: its index among the T of the data set}``.

    Raises:
        MFPyGError: for a label or a prediction that is NaN or infinite, naming the conformation.

    Warns:
        MFPyGWarning: if conformations of more than :data:`mfpyg.models.hessian.MAX_ATOMS` atoms are left out.
    """
    n_atoms = dataset.slices["z"].diff().numpy()
    mask = dataset._data[HESSIAN.mask].numpy()
    labelled = rows[mask[rows][:, list(columns.values())].any(axis=1)]
    chosen = labelled[n_atoms[labelled] <= MAX_ATOMS]
    if len(chosen) < len(labelled):
        warnings.warn(
            f"Hessians of {len(labelled) - len(chosen):,} conformations with more than {MAX_ATOMS} atoms are not "
            "evaluated",
            MFPyGWarning,
            stacklevel=2,
        )
    device = next(potential.parameters()).device
    for batch in BatchLoader(dataset, plan=by_size(chosen, n_atoms, BATCH_SIZE, ATOMS)):
        batch = batch.to(device)
        for name, column in columns.items():
            if batch[HESSIAN.mask][:, column].any():
                yield from _compared(potential, batch, name, column, dataset.molecules)


def _compared(
    potential: Potential, batch: Batch, name: str, column: int, molecules: Sequence[str]
) -> Iterator[Comparison]:
    labels = batch.hessian[hessian_rows(batch, column)[0]]  # (Σ n², 3, 3) of the labelled graphs
    sizes = torch.bincount(batch.batch, minlength=batch.num_graphs)
    predicted = hessian(potential, batch, name).split(sizes.square().tolist())
    graphs = batch[HESSIAN.mask][:, column].nonzero().flatten().tolist()
    for graph, label in zip(graphs, labels.split(sizes[graphs].square().tolist()), strict=True):
        shape = (int(sizes[graph]), int(sizes[graph]), 3, 3)
        both = label.reshape(shape), predicted[graph].reshape(shape)
        for what, advice, values in zip(*_NOT_FINITE, both, strict=True):
            if not values.isfinite().all():
                where = name_of(batch, graph, molecules)
                raise MFPyGError(f"the {name} {what} of {where}, is NaN or infinite; {advice}")
        frequencies = None
        if _is_stationary(batch, graph, column):
            atoms, periodic = batch.batch == graph, "pbc" in batch and bool(batch.pbc[graph].any())
            of_each = [harmonic_frequencies(h, batch.z[atoms], batch.pos[atoms], periodic) for h in both]
            frequencies = torch.stack(of_each)
        yield Comparison(name, *both, frequencies)


def _is_stationary(batch: Batch, graph: int, column: int) -> bool:
    if not batch[FORCES.mask][graph, column]:
        return False
    return bool(batch.forces[batch.batch == graph, column].norm(dim=1).max() < STATIONARY)
