"""Batched prediction of frames, which may be molecules and periodic systems of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from mfpyg import interrupt
from mfpyg.centering import centered
from mfpyg.datasets.frames import Frame, frame_of_atoms, total_charge
from mfpyg.errors import MFPyGError
from mfpyg.graph import find_topology
from mfpyg.inference.ensemble import Ensemble, hessian_matrix
from mfpyg.models.prediction import Prediction, predicted_properties
from mfpyg.models.system import find_overlap
from mfpyg.properties import PROPERTIES, Property, heads_of, in_order, parse_letters
from mfpyg.torch_defaults import with_default_torch_settings

BATCH_SIZE = 256
"""Maximum number of frames in a batch."""

ATOMS = 4096
"""Maximum number of atoms in a batch of more than one frame."""


QUANTITIES = tuple(p.name + suffix for suffix in ("", "_std") for p in PROPERTIES.values())
"""Names of all properties, and of their standard deviations."""


class Values(SimpleNamespace):
    """Predictions of one fidelity for a frame, in the requested unit of energy, Å and e; arrays are float64.

    An attribute for each of :data:`QUANTITIES`: the ``energy``, ``forces`` (n, 3), the ``stress`` (3, 3), positive
    under tension, the ``hessian`` (3n, 3n) in the order of ``pos.ravel()``, the ``dipole`` (3,) in e·Å relative to the
    centre of mass, ``charges`` (n,) in e, which add up to the total charge of the frame. ``None`` if not requested, or
    if the frame does not have the property. The standard deviations, such as ``forces_std``, are those of
    :meth:`mfpyg.inference.ensemble.Ensemble.predict`; ``None`` where there are none.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**{**dict.fromkeys(QUANTITIES), **values})


class FramePrediction(NamedTuple):
    """A frame and its predictions.

    Attributes:
        frame: frame as read.
        of: predictions by fidelity.
    """

    frame: Frame
    of: dict[str, Values]


def predict_frames(
    ensemble: Ensemble,
    frames: Iterable[Frame | Atoms],
    fidelities: Sequence[str] | str | None = None,
    *,
    properties: str = "EF",
    unit: str = "eV",
    batch_size: int = BATCH_SIZE,
    source: str = "",
) -> Iterator[FramePrediction]:
    """Predict frames in batches of consecutive frames.

    A batch has at most ``batch_size`` frames and, unless it is a single frame, 4096 atoms; it may mix molecules and
    periodic systems. Only one batch is in memory at a time.

    Args:
        ensemble: one potential or several.
        frames: from :func:`mfpyg.datasets.frames.frames_of` or ASE; may be infinite.
        fidelities: one or several names, predicted in one pass; optional if there is only one fidelity.
        properties: letters of :data:`mfpyg.properties.PROPERTIES`, as ``"EFDQ"``; energies are always predicted.
            Charges add up to :func:`mfpyg.datasets.frames.total_charge`.
        unit: unit of energies, see :data:`mfpyg.units.ENERGY_UNITS`; lengths are in Å, charges in e.
        batch_size: maximum number of frames in a batch.
        source: file name for error messages.

    Yields:
        A prediction for each frame, in the order of the frames.

    Raises:
        MFPyGError: for an unknown fidelity, none given although there are several, an unknown letter or unit, charges
            or dipoles of a fidelity without a charge head, or a batch size below one; and for a frame, which it names,
            without atoms, with unknown elements, positions or predictions that are not finite, overlapping atoms, a
            cell without a volume, a total charge that is not a number, or too many atoms for a Hessian.

    Example:
        >>> ensemble = Ensemble(["runs/seed-0", "runs/seed-1"])               # doctest: +SKIP
        >>> for one in predict_frames(ensemble, ase.io.iread("in.xyz"), "cc"):    # doctest: +SKIP
        ...     one.of["cc"].energy, one.of["cc"].energy_std
    """
    if batch_size < 1:
        raise MFPyGError(f"batch size is {batch_size}, expected at least 1")
    names, letters = names_of(ensemble, fidelities), with_energies(properties)
    ensemble.check_wanted(dict.fromkeys(names, letters))
    factors = {p.name: 1 / p.factor(p.default_unit.format(unit)) for p in PROPERTIES.values()}
    task = _Task(ensemble, names, letters, factors)
    return _predict_batches(task, _batches(_numbered(frames), batch_size), source)


def with_energies(properties: str) -> str:
    """Letters of properties in their order, with ``E``; see :func:`mfpyg.properties.parse_letters`."""
    return in_order("E" + parse_letters(properties, f"properties '{properties}'"))


def names_of(ensemble: Ensemble, fidelities: Sequence[str] | str | None) -> list[str]:
    """Names of the requested fidelities.

    Raises:
        MFPyGError: for an unknown or repeated fidelity, or none given although there are several.
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
    """Requested predictions; ``factors`` by name of the property are from the package's units to those requested."""

    ensemble: Ensemble
    fidelities: list[str]
    letters: str
    factors: dict[str, float]


def _predict_batches(task: _Task, batches: Iterable[list[Frame]], source: str) -> Iterator[FramePrediction]:
    for batch in batches:
        interrupt.check()
        try:
            predictions = _predict_batch(task, batch)
        except MFPyGError:
            for frame in batch:
                if (error := _error_of(task, frame)) is not None:
                    raise MFPyGError(f"{source}{': ' if source else ''}frame {frame.number}: {error}") from error
            raise
        yield from predictions


def _error_of(task: _Task, frame: Frame) -> MFPyGError | None:
    """Error raised by the prediction of a single frame."""
    try:
        _predict_batch(task, [frame])
    except MFPyGError as error:
        return error
    return None


def _numbered(frames: Iterable[Frame | Atoms]) -> Iterator[Frame]:
    for number, frame in enumerate(frames):
        yield frame_of_atoms(frame, number) if isinstance(frame, Atoms) else frame


def _batches(frames: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Group consecutive frames, with limits on the numbers of frames and atoms."""
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
def _predict_batch(task: _Task, batch: Sequence[Frame]) -> list[FramePrediction]:
    """Predict a batch; frames that do not have the same properties, of those requested, are predicted separately."""
    groups: dict[str, list[int]] = {}
    for number, frame in enumerate(batch):
        pbc = frame.pbc.tolist()
        letters = "".join(letter for letter in task.letters if PROPERTIES[letter].is_defined(pbc))
        groups.setdefault(letters, []).append(number)
    result: dict[int, FramePrediction] = {}
    for letters, numbers in groups.items():
        predictions = _predict_graphs(task, [batch[i] for i in numbers], letters)
        result.update(zip(numbers, predictions, strict=True))
    return [result[i] for i in range(len(batch))]


def _predict_graphs(task: _Task, batch: Sequence[Frame], letters: str) -> list[FramePrediction]:
    data = batch_of(batch, task.ensemble)
    if heads_of(letters):
        data.charge = torch.tensor([total_charge(frame) for frame in batch], dtype=torch.float64)
    mean, spread = task.ensemble.predict(data, dict.fromkeys(task.fidelities, letters), std=True)
    n_atoms = [len(frame.z) for frame in batch]
    of = [_split(task, mean[name], (spread or {}).get(name), n_atoms) for name in task.fidelities]
    per_frame = zip(batch, zip(*of, strict=True), strict=True)
    return [FramePrediction(frame, dict(zip(task.fidelities, values, strict=True))) for frame, values in per_frame]


def _split(task: _Task, mean: Prediction, spread: Prediction | None, n_atoms: Sequence[int]) -> Iterator[Values]:
    """Split the predictions of one fidelity by frame.

    Raises:
        MFPyGError: if a value is not finite.
    """
    columns: dict[str, Any] = {}
    for suffix, prediction in (("", mean), ("_std", spread)):
        for p in [] if prediction is None else predicted_properties(prediction):
            values = getattr(prediction, p.name).double().cpu().numpy() * task.factors[p.name]
            if not np.isfinite(values).all():
                raise MFPyGError("the prediction is not a finite number; check for atoms that are much too close")
            columns[p.name + suffix] = _by_frame(p, values, n_atoms)
    return (Values(**dict(zip(columns, of_frame, strict=True))) for of_frame in zip(*columns.values(), strict=True))


def _by_frame(p: Property, values: np.ndarray, n_atoms: Sequence[int]) -> Iterable[Any]:
    """Values of a property of each frame; Hessians (Σ n², 3, 3) become matrices (3n, 3n)."""
    if p.per == "graph":
        return values if p.shape else values.tolist()
    if p.per == "atom":
        return _split_rows(values, n_atoms)
    return [hessian_matrix(pairs) for pairs in _split_rows(values, [n * n for n in n_atoms])]


def _split_rows(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Rows of each frame, in half the time of ``np.split``."""
    ends = [0, *np.cumsum(sizes).tolist()]
    return [values[first:end] for first, end in pairwise(ends)]


def batch_of(frames: Sequence[Frame], ensemble: Ensemble) -> Data:
    """Collate frames, on the device and in the dtype of an ensemble.

    Edges are built with the cutoff of the first member; members with another cutoff build their own.

    Args:
        frames: at least one molecule or periodic system.
        ensemble: potentials that will predict.

    Returns:
        ``Data`` with ``z`` (n_atoms,), ``pos`` (n_atoms, 3), ``batch`` (n_atoms,), ``cell`` (n_frames, 3, 3), ``pbc``
        (n_frames, 3), and the edges with their cutoff, as :class:`mfpyg.graph.RadiusGraph` stores them.

    Raises:
        MFPyGError: for a frame without atoms, positions that are not finite, an element unknown to the first member,
            overlapping atoms, or an invalid cell.
    """
    data = _collate(frames, ensemble)
    first = ensemble.members[0]
    first.species_number(data.z)  # before other checks, as its error is the most helpful
    topology, lattice = find_topology(data, first.cutoff)
    overlap = find_overlap(data.pos, topology, lattice)
    if overlap is not None:
        raise MFPyGError(f"{overlap}; move them apart, or remove one")
    data.edge_index, data.edge_shift = topology.edge_index, topology.edge_shift
    data.edge_cutoff = torch.tensor([first.cutoff], dtype=torch.float64)
    return data


def _collate(batch: Sequence[Frame], ensemble: Ensemble) -> Data:
    """Collate frames without edges."""
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
