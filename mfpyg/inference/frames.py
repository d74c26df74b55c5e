"""Batched prediction of frames: molecules and periodic systems of any sizes, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from mfpyg import interrupt
from mfpyg.centering import centered
from mfpyg.datasets.frames import Frame, frame_of_atoms
from mfpyg.errors import MFPyGError
from mfpyg.graph import find_topology
from mfpyg.inference.ensemble import Ensemble
from mfpyg.models.prediction import Prediction
from mfpyg.models.system import find_overlap
from mfpyg.torch_defaults import with_default_torch_settings
from mfpyg.units import energy_factor

BATCH_SIZE = 256
"""Maximum number of frames in a batch."""

ATOMS = 4096
"""Maximum number of atoms in a batch of more than one frame."""


class Values(NamedTuple):
    """Predictions of one fidelity for a frame, in the requested unit of energy and Å.

    Attributes:
        energy: total energy.
        forces: (n, 3) float64; ``None`` where not asked for.
        stress: (3, 3) float64, positive under tension; ``None`` where not asked for, and for a frame
            that does not repeat in all directions.
        energy_std, forces_std, stress_std: standard deviations over the members of an ensemble (sample, n − 1);
            ``None`` for a single potential.
    """

    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    energy_std: float | None = None
    forces_std: np.ndarray | None = None
    stress_std: np.ndarray | None = None


class FramePrediction(NamedTuple):
    """A frame and its predictions.

    Attributes:
        frame: as it was read.
        of: the predictions by fidelity.
    """

    frame: Frame
    of: dict[str, Values]


def predict_frames(
    ensemble: Ensemble,
    frames: Iterable[Frame | Atoms],
    fidelities: Sequence[str] | str | None = None,
    *,
    forces: bool = True,
    stress: bool = False,
    unit: str = "eV",
    batch_size: int = BATCH_SIZE,
    source: str = "",
) -> Iterator[FramePrediction]:
    """Predict frames in batches of consecutive ones.

    A batch has at most ``batch_size`` frames and, unless it is a single frame, 4096 atoms; it may mix molecules and
    periodic systems of any sizes. At most one batch of frames is in memory.

    Args:
        ensemble: one potential or several.
        frames: from :func:`mfpyg.datasets.frames.frames_of` or ASE; may be infinite.
        fidelities: a name or several, all from one pass; may be left out only where there is a single one.
        forces: whether forces are wanted; each fidelity's cost a backward pass.
        stress: whether stresses are wanted, of frames that repeat in all directions.
        unit: of energies, see :data:`mfpyg.units.ENERGY_UNITS`; lengths are in Å.
        batch_size: maximum number of frames in a batch.
        source: name of the file for errors.

    Yields:
        A prediction for each frame, in the order of the frames.

    Raises:
        MFPyGError: for an unknown fidelity, none given among several, an unknown unit, or a batch size less than one.
            For a frame, which it names, without atoms, with elements that are unknown, positions or predictions that
            are not finite, atoms that overlap, or a cell without a volume.

    Example:
        >>> ensemble = Ensemble(["runs/seed-0", "runs/seed-1"])               # doctest: +SKIP
        >>> for one in predict_frames(ensemble, ase.io.iread("in.xyz"), "cc"):    # doctest: +SKIP
        ...     one.of["cc"].energy, one.of["cc"].energy_std
    """
    if batch_size < 1:
        raise MFPyGError(f"batch size is {batch_size}, expected at least 1")
    wanted = dict.fromkeys(names_of(ensemble, fidelities), forces)
    task = _Task(ensemble, wanted, stress, 1 / energy_factor(unit))
    return _predicted(task, _batches(_numbered(frames), batch_size), source)


def names_of(ensemble: Ensemble, fidelities: Sequence[str] | str | None) -> list[str]:
    """Names of the requested fidelities.

    Raises:
        MFPyGError: for an unknown one, one given twice, or none given among several.
    """
    if fidelities is None or isinstance(fidelities, str):
        return [ensemble.fidelity(fidelities)]
    names = [ensemble.fidelity(name) for name in fidelities]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise MFPyGError(f"fidelity '{twice[0]}' is given {names.count(twice[0])} times; give it once")
    return names


@dataclass(frozen=True)
class _Task:
    """The requested predictions; ``factor`` is one kcal/mol in the unit."""

    ensemble: Ensemble
    wanted: dict[str, bool]
    stress: bool
    factor: float


def _predicted(task: _Task, batches: Iterable[list[Frame]], source: str) -> Iterator[FramePrediction]:
    for batch in batches:
        interrupt.check()
        try:
            found = _of_batch(task, batch)
        except MFPyGError:
            for frame in batch:
                if (error := _error_of(task, frame)) is not None:
                    raise MFPyGError(f"{source}{': ' if source else ''}frame {frame.number}: {error}") from error
            raise
        yield from found


def _error_of(task: _Task, frame: Frame) -> MFPyGError | None:
    """Error that predicting this frame alone raises."""
    try:
        _of_batch(task, [frame])
    except MFPyGError as error:
        return error
    return None


def _numbered(frames: Iterable[Frame | Atoms]) -> Iterator[Frame]:
    for number, frame in enumerate(frames):
        yield frame_of_atoms(frame, number) if isinstance(frame, Atoms) else frame


def _batches(frames: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Consecutive frames, bounded in number and in atoms."""
    batch: list[Frame] = []
    atoms = 0
    for frame in frames:
        if batch and (len(batch) == batch_size or atoms + len(frame.z) > ATOMS):
            yield batch
            batch, atoms = [], 0
        batch.append(frame)
        atoms += len(frame.z)
    if batch:
        yield batch


@with_default_torch_settings
def _of_batch(task: _Task, batch: Sequence[Frame]) -> list[FramePrediction]:
    """Predictions of these frames; those with a stress in a batch of their own, as all of its graphs need a volume."""
    if not task.stress:
        return _of_alike(task, batch, False)
    found: dict[int, FramePrediction] = {}
    for with_volume in (True, False):
        numbers = [i for i, frame in enumerate(batch) if bool(frame.pbc.all()) == with_volume]
        if numbers:
            predictions = _of_alike(task, [batch[i] for i in numbers], with_volume)
            found.update(zip(numbers, predictions, strict=True))
    return [found[i] for i in range(len(batch))]


def _of_alike(task: _Task, batch: Sequence[Frame], stress: bool) -> list[FramePrediction]:
    data = batch_of(batch, task.ensemble)
    mean, spread = task.ensemble.predict(data, task.wanted, stress)
    ends = np.cumsum([len(frame.z) for frame in batch]).tolist()
    of_each = zip(
        *(_split(mean[name], None if spread is None else spread[name], ends, task.factor) for name in task.wanted),
        strict=True,
    )
    return [
        FramePrediction(frame, dict(zip(task.wanted, values, strict=True)))
        for frame, values in zip(batch, of_each, strict=True)
    ]


def _split(mean: Prediction, spread: Prediction | None, ends: Sequence[int], factor: float) -> Iterator[Values]:
    """Predictions of one fidelity for each frame of a batch.

    Raises:
        MFPyGError: if any of them is not finite.
    """
    columns: dict[str, Any] = {}
    for suffix, prediction in (("", mean), ("_std", spread)):
        for quantity in ("energy", "forces", "stress") if prediction is not None else ():
            values = getattr(prediction, quantity)
            if values is None:
                continue
            values = values.double().cpu().numpy() * factor
            if not np.isfinite(values).all():
                raise MFPyGError("the prediction is not a finite number; check for atoms that are much too close")
            if quantity == "energy":
                values = values.tolist()
            columns[quantity + suffix] = _parted(values, ends) if quantity == "forces" else values
    return map(Values, *(columns.get(name, repeat(None)) for name in Values._fields))


def _parted(values: np.ndarray, ends: Sequence[int]) -> list[np.ndarray]:
    """The rows of each frame; ``np.split`` takes twice as long."""
    return [values[first:end] for first, end in zip([0, *ends[:-1]], ends, strict=True)]


def batch_of(frames: Sequence[Frame], ensemble: Ensemble) -> Data:
    """The frames as one graph, on the device and in the precision of the ensemble.

    Edges are found once for all members with the cutoff of the first; members with another cutoff find their own.

    Args:
        frames: molecules and periodic systems of any sizes, at least one.
        ensemble: that will predict.

    Returns:
        ``Data`` with ``z`` (n_atoms,), ``pos`` (n_atoms, 3), ``batch`` (n_atoms,), ``cell`` (n_frames, 3, 3), ``pbc``
        (n_frames, 3), and the edges with their cutoff, as :class:`mfpyg.graph.RadiusGraph` stores them.

    Raises:
        MFPyGError: for a frame without atoms, positions that are not finite, an element unknown to the first member,
            atoms that overlap, or a cell that makes no sense.
    """
    data = _collated(frames, ensemble)
    first = ensemble.members[0]
    first.species_number(data.z)  # an unknown element is the clearer complaint
    topology, lattice = find_topology(data, first.cutoff)
    overlap = find_overlap(data.pos, topology, lattice)
    if overlap is not None:
        raise MFPyGError(f"{overlap}; move them apart, or remove one")
    data.edge_index, data.edge_shift = topology.edge_index, topology.edge_shift
    data.edge_cutoff = torch.tensor([first.cutoff], dtype=torch.float64)
    return data


def _collated(batch: Sequence[Frame], ensemble: Ensemble) -> Data:
    """The frames as one graph without edges."""
    n_atoms = np.array([len(frame.z) for frame in batch])
    if not n_atoms.all():
        raise MFPyGError("no atoms; expected at least one")
    dtype = torch.float64 if any(m.dtype == torch.float64 for m in ensemble.members) else ensemble.members[0].dtype
    pos = torch.from_numpy(np.concatenate([frame.pos for frame in batch])).double()
    data = Data(
        z=torch.from_numpy(np.concatenate([frame.z for frame in batch]).astype(np.int64, copy=False)),
        pos=pos,
        batch=torch.from_numpy(np.repeat(np.arange(len(batch)), n_atoms)),
        pbc=torch.from_numpy(np.stack([frame.pbc for frame in batch])),
        cell=torch.from_numpy(np.stack([frame.cell for frame in batch])).double(),
    )
    data = centered(data, dtype)
    data.pos, data.cell = data.pos.to(dtype), data.cell.to(dtype)
    if not data.pos.isfinite().all():
        atom = int((~data.pos.isfinite().all(dim=1)).nonzero()[0])
        raise MFPyGError(f"position of atom {atom} is {pos[atom].tolist()}; expected finite numbers in Å")
    return data.to(ensemble.device)
