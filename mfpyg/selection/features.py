"""Last features of frames and of labelled conformations, molecule by molecule, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from mfpyg.datasets.batches import BatchLoader, by_size
from mfpyg.datasets.conformations import ConformationDataset
from mfpyg.datasets.frames import Frame
from mfpyg.errors import MFPyGError
from mfpyg.evaluation.features import last_features_of
from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.frames import batch_of
from mfpyg.models import Potential
from mfpyg.selection.posterior import Features

GRAPHS, ATOMS = 64, 1024
"""Maximum numbers of molecules, and of atoms of more than one, in a batch."""

Show = Callable[[Sequence[Any]], Iterable[Any]]
"""Wraps a list of batches to show progress."""


def batches_of(
    potential: Potential, frames: Sequence[Frame], source: str, show: Show = iter
) -> Iterator[tuple[list[int], Data]]:
    """Batches of frames of similar size, with their numbers in the list.

    Raises:
        MFPyGError: for a frame that the potential cannot predict, naming it.
    """
    ensemble = Ensemble(potential)
    n_atoms = np.array([len(frame.z) for frame in frames])
    for chosen in show(list(by_size(np.arange(len(frames)), n_atoms, GRAPHS, ATOMS)(0))):
        numbers = chosen.tolist()
        try:
            yield numbers, batch_of([frames[n] for n in numbers], ensemble)
        except MFPyGError:
            for n in numbers:
                _check(frames[n], ensemble, source)
            raise


def _check(frame: Frame, ensemble: Ensemble, source: str) -> None:
    try:
        batch_of([frame], ensemble)
    except MFPyGError as error:
        raise MFPyGError(f"{source}: frame {frame.number}: {error}") from error


def features_of_frames(
    potential: Potential, frames: Sequence[Frame], fidelity: str, source: str, *, jacobian: bool, show: Show = iter
) -> list[Features]:
    """Last features of each frame for one fidelity; see :func:`mfpyg.evaluation.features.last_features_of`.

    Raises:
        MFPyGError: as :func:`batches_of`.
    """
    found: dict[int, Features] = {}
    for numbers, data in batches_of(potential, frames, source, show):
        found.update(zip(numbers, _split(potential, data, fidelity, jacobian), strict=True))
    return [found[n] for n in range(len(frames))]


def features_of_rows(
    potential: Potential,
    dataset: ConformationDataset,
    rows: np.ndarray,
    fidelity: str,
    *,
    jacobian: bool,
    show: Show = iter,
) -> list[Features]:
    """Last features of conformations of a data set, in the order of ``rows``, (n,) int64."""
    found: dict[int, Features] = {}
    for chosen, batch in _batches_of_rows(potential, dataset, rows, show):
        found.update(zip(chosen, _split(potential, batch, fidelity, jacobian), strict=True))
    return [found[row] for row in rows.tolist()]


def atoms_of_rows(
    potential: Potential, dataset: ConformationDataset, rows: np.ndarray, fidelity: str, show: Show = iter
) -> Iterator[Tensor]:
    """Last features of the atoms of conformations of a data set, batch by batch, (n_atoms, d) float64."""
    for _, batch in _batches_of_rows(potential, dataset, rows, show):
        yield last_features_of(potential, batch, fidelity).atoms.double()


def _batches_of_rows(
    potential: Potential, dataset: ConformationDataset, rows: np.ndarray, show: Show
) -> Iterator[tuple[list[int], Batch]]:
    plan = by_size(rows, dataset.slices["z"].diff().numpy(), GRAPHS, ATOMS)
    device = next(potential.parameters()).device
    for chosen, batch in zip(show(list(plan(0))), BatchLoader(dataset, plan=plan), strict=True):
        yield chosen.tolist(), batch.to(device)


def _split(potential: Potential, data: Data, fidelity: str, jacobian: bool) -> Iterator[Features]:
    features = last_features_of(potential, data, fidelity, jacobian)
    energy = features.graphs.double().cpu().numpy()
    if features.jacobian is None:
        yield from map(Features, energy)
        return
    ends = torch.bincount(data.batch, minlength=len(energy)).cumsum(0)[:-1].tolist()
    forces = np.split(features.jacobian.double().cpu().numpy(), ends)  # (n_atoms, 3, d) each
    for of_molecule, of_atoms in zip(energy, forces, strict=True):
        yield Features(of_molecule, of_atoms.reshape(-1, of_atoms.shape[2]))
