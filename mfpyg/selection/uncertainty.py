"""Frames by the predicted standard deviation of their forces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mfpyg.datasets.frames import Frame
from mfpyg.evaluation.features import last_features_of
from mfpyg.models.last_layer import whitening
from mfpyg.selection.features import Show, atoms_of_rows, batches_of
from mfpyg.selection.trained import Trained


def by_uncertainty(
    frames: Sequence[Frame], target: str, trained: Trained, rng: np.random.Generator, source: str, show: Show = iter
) -> np.ndarray:
    """Numbers of frames by the mean variance of the forces on their atoms, the largest first, (n,) int64.

    Without standard deviations of the target (:meth:`mfpyg.models.Potential.has_std`), the variance is that of
    :mod:`mfpyg.models.last_layer` before calibration.

    Args:
        frames: frames.
        target: level of theory.
        trained: potential with its data.
        rng: random numbers that decide between equal frames.
        source: name of the pool, for errors.
        show: wraps a list of batches to show progress.

    Raises:
        MFPyGError: for an unknown target, or a frame that the potential cannot predict, naming it.
    """
    potential = trained.potential
    potential.check_fidelity(target)
    whitened = None
    if not potential.has_std(target):
        atoms = atoms_of_rows(potential, trained.dataset, trained.with_label(target), target, show=show)
        whitened = whitening(torch.stack([features.mT @ features for features in atoms]).sum(dim=0))
    variance = np.empty(len(frames))
    for numbers, data in batches_of(potential, frames, source, show):
        if whitened is None:
            std = potential.predict(data, {target: "E"}, std=True)[target].forces_std
            assert std is not None
            of_atoms = std.square().mean(dim=1)
        else:
            of_atoms = (last_features_of(potential, data, target).atoms.double() @ whitened).square().sum(dim=1)
        variance[numbers] = _mean_by_graph(of_atoms, data.batch, len(numbers)).cpu().numpy()
    order = rng.permutation(len(frames))
    ranked: np.ndarray = order[np.argsort(-variance[order], kind="stable")]
    return ranked


def _mean_by_graph(values: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    sums = values.new_zeros(n_graphs).index_add_(0, batch, values)
    return sums / torch.bincount(batch, minlength=n_graphs)
