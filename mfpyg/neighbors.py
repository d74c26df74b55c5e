"""Neighbour search within a cutoff. All engines find the same edges.

=================  ===================================================================================================
``torch``          compares all pairs of a graph, including images, in blocks of bounded memory; CPU and CUDA
``torch-cluster``  molecules only
``vesin``          cell lists, in time proportional to the number of atoms; always computes on the CPU
``nvalchemi``      the same by the Warp kernels of nvalchemi-toolkit-ops, all graphs at once; CPU and CUDA
``auto``           for large graphs ``vesin`` on the CPU and, if installed, ``nvalchemi`` on CUDA, else ``torch``
=================  ===================================================================================================

An edge runs from a source atom j to a target atom i, ``edge_index[:, e] = (j, i)``. Edges are sorted by target, source
and shift of the source's image. Their number is not limited.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mfpyg.engine import check_engine, is_installed
from mfpyg.errors import MFPyGError
from mfpyg.lattice import MARGIN, Images, Lattice, images_within

_PAIRS_AT_ONCE = 1 << 20  # about a hundred bytes each; larger blocks are slower on a CPU
_PAIRS_FOR_VESIN = 1 << 14
"""Average candidate pairs per graph above which vesin is faster: 128 atoms in a molecule, 30 in a crystal at 6.5 Å."""
_ATOMS_FOR_NVALCHEMI = 1 << 10
"""Average atoms per graph above which all pairs of a graph are more than one block."""


def radius_graph(pos: Tensor, batch: Tensor, cutoff: float, engine: str = "auto") -> Tensor:
    """Find all pairs of different atoms of a molecule at a distance of at most ``cutoff``.

    Args:
        pos: positions in Å, (n_atoms, 3).
        batch: molecule of each atom, (n_atoms,) int64, ascending.
        cutoff: in Å.
        engine: one of :data:`mfpyg.engine.ENGINES`.

    Returns:
        edge_index (2, n_edges) int64, sorted by target, then source.

    Raises:
        MFPyGError: for an unknown engine, or one that is not installed.
    """
    check_engine(engine)
    pos = pos.detach()
    if pos.shape[0] == 0:
        return batch.new_zeros(2, 0)
    counts = torch.bincount(batch)  # (n_graphs,) atoms of each molecule
    if engine == "auto":
        engine = _choose(pos, counts, counts)
    if engine == "torch":
        return _molecules_torch(pos, batch, counts, cutoff)
    if engine == "vesin":
        return _molecules_vesin(pos, counts, cutoff)
    if engine == "nvalchemi":
        return _molecules_nvalchemi(pos, batch, counts, cutoff)
    return _molecules_torch_cluster(pos, batch, counts, cutoff)


def periodic_radius_graph(
    pos: Tensor, batch: Tensor, lattice: Lattice, cutoff: float, engine: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Find all pairs of an atom and an image, including its own images, at a distance of at most ``cutoff``.

    Distances are compared in float64 for positions of any dtype.

    Args:
        pos, batch, cutoff, engine: as in :func:`radius_graph`.
        lattice: cells of the graphs; graphs without periodic directions are molecules.

    Returns:
        edge_index (2, n_edges) int64, and edge_shift (n_edges, 3) int32: the image of the source is
        ``pos[source] + edge_shift @ cell``. Sorted by target, then source, then shift.

    Raises:
        MFPyGError: for an unknown engine, one that is not installed or cannot do this, or a cell much too small.
    """
    check_engine(engine)
    if engine == "torch-cluster":
        raise MFPyGError("engine 'torch-cluster' cannot do periodic cells; use engine 'auto' or 'torch'")
    lattice = Lattice(lattice.cell.detach().double(), lattice.pbc)
    images = images_within(pos.detach().double(), batch, lattice, cutoff)
    counts = torch.bincount(batch, minlength=len(lattice.cell))  # (n_graphs,)
    if engine == "auto":
        engine = _choose(pos, counts, images.of_graph)
    candidates = {"torch": _images_torch, "vesin": _images_vesin, "nvalchemi": _images_nvalchemi}[engine]
    parts = [
        _image_edges(images, batch, lattice, cutoff, *part) for part in candidates(images, counts, lattice, cutoff)
    ]
    if not parts:
        return batch.new_zeros(2, 0), batch.new_zeros(0, 3, dtype=torch.int32)
    return torch.cat([edge_index for edge_index, _ in parts], dim=1), torch.cat([shift for _, shift in parts])


def _choose(pos: Tensor, counts: Tensor, candidates: Tensor) -> str:
    """Choose the engine for ``auto`` by the atoms of each graph and, on the CPU, the candidates per atom.

    On CUDA only sizes that are known without waiting for the device are used.
    """
    if pos.device.type == "cpu":
        return "vesin" if int((counts * candidates).sum()) > _PAIRS_FOR_VESIN * len(counts) else "torch"
    large = pos.device.type == "cuda" and len(pos) > _ATOMS_FOR_NVALCHEMI * len(counts)
    return "nvalchemi" if large and is_installed("nvalchemi") else "torch"


def _candidate_pairs(partners: Tensor, first: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield targets and candidates, (n_pairs,) each, in blocks of bounded memory.

    Each target has ``partners`` consecutive candidates, starting with number ``first``.
    """
    pairs_before = torch.cumsum(partners, 0)
    blocks = torch.div(pairs_before - 1, _PAIRS_AT_ONCE, rounding_mode="floor")
    for targets in torch.arange(len(partners), device=partners.device).split(torch.bincount(blocks).tolist()):
        of_each = partners[targets]
        target = torch.repeat_interleave(targets, of_each)  # (n_pairs,)
        start = torch.repeat_interleave(first[targets] - torch.cumsum(of_each, 0) + of_each, of_each)
        yield target, torch.arange(len(target), device=partners.device) + start


# Molecules


def _molecules_torch(pos: Tensor, batch: Tensor, counts: Tensor, cutoff: float) -> Tensor:
    first = torch.cumsum(counts, 0) - counts  # (n_graphs,) first atom of each molecule
    pairs = _candidate_pairs(counts[batch], first[batch])
    return torch.cat([_within(pos, source, target, cutoff) for target, source in pairs], dim=1)


def _within(pos: Tensor, source: Tensor, target: Tensor, cutoff: float) -> Tensor:
    near = (pos[source] - pos[target]).square().sum(dim=1) <= cutoff * cutoff
    near = (near & (source != target)).nonzero().squeeze(1)
    return torch.stack([source[near], target[near]])


def _molecules_torch_cluster(pos: Tensor, batch: Tensor, counts: Tensor, cutoff: float) -> Tensor:
    import torch_cluster

    source, target = torch_cluster.radius_graph(pos, cutoff * MARGIN, batch, max_num_neighbors=int(counts.max()))
    edge_index = _within(pos, source, target, cutoff)
    return edge_index[:, torch.argsort(edge_index[1] * pos.shape[0] + edge_index[0])]


def _molecules_vesin(pos: Tensor, counts: Tensor, cutoff: float) -> Tensor:
    edges, first = [], 0
    for points in pos.cpu().double().split(counts.tolist()):
        source, target, _ = _vesin(points, torch.zeros(3, 3), [False] * 3, cutoff)
        edges.append(torch.stack([source, target]) + first)
        first += len(points)
    source, target = torch.cat(edges, dim=1).to(pos.device)
    return _within(pos, source, target, cutoff)


def _molecules_nvalchemi(pos: Tensor, batch: Tensor, counts: Tensor, cutoff: float) -> Tensor:
    cell = torch.eye(3, dtype=torch.float64, device=pos.device).expand(len(counts), 3, 3)
    pbc = torch.zeros(len(counts), 3, dtype=torch.bool, device=pos.device)
    source, target, _ = _nvalchemi(pos.double(), batch, Lattice(cell, pbc), cutoff)
    return _within(pos, source, target, cutoff)


# Periodic graphs. Each engine yields candidates: source, target, and shift from the wrapped source to its image.


def _image_edges(
    images: Images, batch: Tensor, lattice: Lattice, cutoff: float, source: Tensor, target: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Select the candidates within the cutoff, and convert their shifts to the given, not wrapped, positions."""
    shift = shift - images.wraps[source] + images.wraps[target]
    edge_vec = images.pos[source] - images.pos[target] + lattice.translations(shift, batch[target])
    near = edge_vec.square().sum(dim=1) <= cutoff * cutoff
    near = (near & ((source != target) | shift.any(dim=1))).nonzero().squeeze(1)
    return torch.stack([source[near], target[near]]), shift[near].int()


def _images_torch(
    images: Images, counts: Tensor, lattice: Lattice, cutoff: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    batch = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # (n_atoms,)
    image_pos = images.wrapped[images.atom] + lattice.translations(images.shift, batch[images.atom])  # (n_images, 3)
    first = torch.cumsum(images.of_graph, 0) - images.of_graph  # (n_graphs,)
    for target, image in _candidate_pairs(images.of_graph[batch], first[batch]):
        near = (image_pos[image] - images.wrapped[target]).square().sum(dim=1) <= (cutoff * MARGIN) ** 2
        image = image[near]
        yield images.atom[image], target[near], images.shift[image]


def _images_vesin(
    images: Images, counts: Tensor, lattice: Lattice, cutoff: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    first, device = 0, images.pos.device
    graphs = zip(images.wrapped.cpu().split(counts.tolist()), lattice.completed().cpu(), lattice.pbc, strict=True)
    for points, cell, pbc in graphs:
        source, target, shift = _vesin(points, cell, pbc.tolist(), cutoff)
        for part in torch.arange(len(source)).split(_PAIRS_AT_ONCE):
            yield (source[part] + first).to(device), (target[part] + first).to(device), shift[part].to(device)
        first += len(points)


def _images_nvalchemi(
    images: Images, counts: Tensor, lattice: Lattice, cutoff: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    graphs, n_atoms = torch.arange(len(counts), device=counts.device), len(images.wrapped)
    if n_atoms:
        batch = torch.repeat_interleave(graphs, counts, output_size=n_atoms)  # (n_atoms,)
        yield _nvalchemi(images.wrapped, batch, Lattice(lattice.completed(), lattice.pbc), cutoff)


# Libraries. Each finds sources and targets, (n_pairs,), and shifts of the sources, (n_pairs, 3) int64, within
# cutoff · MARGIN, sorted as edges are.


def _vesin(points: Tensor, cell: Tensor, pbc: list[bool], cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    from vesin import NeighborList

    if not len(points):
        empty = torch.zeros(0, 3, dtype=torch.int64)
        return empty[:, 0], empty[:, 0], empty
    finder = NeighborList(cutoff=cutoff * MARGIN, full_list=True, n_threads=torch.get_num_threads())
    pairs, shift = finder.compute(points.numpy(), cell.double().numpy(), pbc, quantities="PS")
    target, source = torch.from_numpy(pairs.astype("int64")).unbind(1)
    return _sorted(source, target, torch.from_numpy(shift.astype("int64")), len(points))


def _nvalchemi(pos: Tensor, batch: Tensor, lattice: Lattice, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Search all graphs at once; positions (n_atoms, 3) float64 are in the cells in periodic directions."""
    from nvalchemiops.torch.neighbors import batch_cell_list

    pos, cell = _boxes(pos, batch, lattice)
    width = None  # slots per atom; the library's estimate is for solids and liquids
    while True:
        neighbors, counts, shifts = batch_cell_list(
            pos, cutoff * MARGIN, cell, lattice.pbc, batch.int(), max_neighbors=width, strategy="atom_centric"
        )  # (n_atoms, width), (n_atoms,), (n_atoms, width, 3)
        n_pairs, most = torch.stack([counts.sum(), counts.max().long()]).tolist()
        if most <= neighbors.shape[1]:
            break
        width = most
    atoms = torch.arange(len(pos), device=pos.device)
    target = torch.repeat_interleave(atoms, counts, output_size=n_pairs)
    slot = torch.arange(n_pairs, device=pos.device) - (counts.cumsum(0) - counts)[target]
    return _sorted(neighbors[target, slot].long(), target, shifts[target, slot].long(), len(pos))


def _boxes(pos: Tensor, batch: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Positions (n_atoms, 3) and cells (n_graphs, 3, 3) of which non-periodic directions enclose the atoms."""
    fractional = torch.einsum("na,nak->nk", pos, torch.linalg.inv_ex(lattice.cell).inverse[batch])
    index, none = batch.unsqueeze(1).expand(-1, 3), torch.zeros_like(lattice.cell[:, 0])
    low = none.scatter_reduce(0, index, fractional, "amin", include_self=False)  # (n_graphs, 3)
    high = none.scatter_reduce(0, index, fractional, "amax", include_self=False)
    low, length = low.masked_fill(lattice.pbc, 0), (high - low).clamp(min=1).masked_fill(lattice.pbc, 1)
    return pos - lattice.translations(low[batch], batch), lattice.cell * length.unsqueeze(2)


def _sorted(source: Tensor, target: Tensor, shift: Tensor, n_atoms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort pairs by target, source and shift."""
    key = target * n_atoms + source
    if len(shift):
        low, high = torch.aminmax(shift, dim=0)
        for direction, width in enumerate(high - low + 1):
            key = key * width + shift[:, direction] - low[direction]
    order = torch.argsort(key)
    return source[order], target[order], shift[order]
