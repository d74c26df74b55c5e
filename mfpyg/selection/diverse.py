r"""Frames that are uncertain, and unlike those chosen before.

The variance of the energy of a frame in the last layer is :math:`\Phi^T C\, \Phi` with the covariance of the weights
:math:`C = (\sum_t \Phi_t \Phi_t^T + \varsigma)^{-1}`, see :mod:`mfpyg.models.last_layer`. The frame with the largest
variance is chosen, C is conditioned on its label, and so on. This is the greedy maximum of the determinant of the
covariance of all chosen energies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mfpyg.datasets.frames import Frame
from mfpyg.models.last_layer import whitening
from mfpyg.selection.features import Show, features_of_frames, features_of_rows
from mfpyg.selection.trained import Trained


def by_diversity(
    frames: Sequence[Frame], target: str, trained: Trained, source: str, show: Show = iter
) -> Iterator[int]:
    """Numbers of frames in the order of choice.

    Args:
        frames: frames.
        target: level of theory.
        trained: potential with its data.
        source: name of the pool, for errors.
        show: wraps a list of batches to show progress.

    Raises:
        MFPyGError: for an unknown target, or a frame that the potential cannot predict, naming it.
    """
    trained.potential.check_fidelity(target)
    rows = trained.with_label(target)
    known = features_of_rows(trained.potential, trained.dataset, rows, target, jacobian=False, show=show)
    pool = features_of_frames(trained.potential, frames, target, source, jacobian=False, show=show)
    before = np.stack([one.energy for one in known])
    whitened = whitening(torch.from_numpy(before.T @ before)).numpy()
    return in_order(np.stack([one.energy for one in pool]) @ whitened)


def in_order(features: np.ndarray) -> Iterator[int]:
    """Rows in the order of choice, for features (n, d) in whose units C is the identity."""
    covariance, variance = np.eye(features.shape[1]), np.sum(features**2, axis=1)
    for _ in range(len(features)):
        best = int(np.argmax(variance))
        yield best
        direction = covariance @ features[best]
        direction /= np.sqrt(1 + features[best] @ direction)
        covariance -= np.outer(direction, direction)
        variance -= (features @ direction) ** 2
        variance[best] = -np.inf
