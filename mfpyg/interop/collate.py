"""Frames as one graph with edges, checked for what no potential should be asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch_geometric.data import Data

from mfpyg.datasets.frames import Frame
from mfpyg.errors import MFPyGError
from mfpyg.graph import find_topology
from mfpyg.interop.ensemble import Ensemble
from mfpyg.models.overlap import find_overlap
from mfpyg.origin import near_origin


def batch_of(frames: Sequence[Frame], ensemble: Ensemble) -> Data:
    """The frames as one graph, on the device and in the precision of the ensemble.

    Edges are found once for all members with the cutoff of the first; others find their own.

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
    return _with_edges(_collated(frames, ensemble), ensemble)


def _collated(batch: Sequence[Frame], ensemble: Ensemble) -> Data:
    """The frames as one graph without edges, on the device and in the precision of the ensemble.

    Raises:
        MFPyGError: for no atoms, or positions that are not finite.
    """
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
    data = near_origin(data, dtype)
    data.pos, data.cell = data.pos.to(dtype), data.cell.to(dtype)
    if not data.pos.isfinite().all():
        atom = int((~data.pos.isfinite().all(dim=1)).nonzero()[0])
        raise MFPyGError(f"position of atom {atom} is {pos[atom].tolist()}; expected finite numbers in Å")
    return data.to(ensemble.device)


def _with_edges(data: Data, ensemble: Ensemble) -> Data:
    """The data with edges, found once for all members with the cutoff of the first.

    Raises:
        MFPyGError: for atoms that overlap, or a cell that makes no sense.
    """
    first = ensemble.members[0]
    first.species_number(data.z)  # an unknown element is the clearer complaint
    topology, lattice = find_topology(data, first.cutoff)
    overlap = find_overlap(data.pos, topology, lattice)
    if overlap is not None:
        raise MFPyGError(f"{overlap}; move them apart, or remove one")
    data.edge_index, data.edge_shift = topology.edge_index, topology.edge_shift
    data.edge_cutoff = torch.tensor([first.cutoff], dtype=torch.float64)
    return data
