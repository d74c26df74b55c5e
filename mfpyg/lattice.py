"""Periodic graphs: their cells, and the images of atoms that a cutoff reaches.

``Data.cell`` (1, 3, 3) holds the lattice vectors in Å as rows, ``Data.pbc`` (1, 3) the directions that repeat; a
``Batch`` has a row of each for every graph. The vector of a direction that does not repeat is of no importance, and
may be zero as in ASE. Atoms may lie outside of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError

MARGIN = 1 + 1e-5
"""Radius in cutoffs within which candidates are sought; one comparison then decides at the border for all engines."""

_MOST_PAIRS, _MOST_IMAGES = 1e8, 1e3
"""Of one graph, and for each of its atoms: beyond both, the cell is a mistake."""


@dataclass
class Lattice:
    """Cells of the graphs of a batch.

    Attributes:
        cell: lattice vectors in Å, (n_graphs, 3, 3), a vector a row; differentiable.
        pbc: the directions that repeat, (n_graphs, 3) bool.
    """

    cell: Tensor
    pbc: Tensor

    def translations(self, shift: Tensor, owner: Tensor) -> Tensor:
        """Vectors in Å of these many lattice vectors, (n, 3), each of the graph ``owner`` (n,); (n, 3).

        In one order of operations for all, so that edges found are within the cutoff to the last bit, and those
        of the two directions of a pair each other's negative.
        """
        one = len(self.cell) == 1  # which spares nine numbers for each of many edges
        a, b, c = self.cell.unbind(1) if one else self.cell[owner].unbind(1)  # (n, 3) each, or (1, 3)
        n_a, n_b, n_c = shift.to(self.cell.dtype).unsqueeze(2).unbind(1)  # (n, 1) each
        return n_a * a + n_b * b + n_c * c

    def fractional(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in lattice vectors, from 0 to 1 where they repeat, and how many were taken away for that.

        Args:
            pos: (n_atoms, 3) float64 in Å.
            batch: graph of each atom, (n_atoms,) int64.

        Returns:
            (n_atoms, 3) float64 and (n_atoms, 3) int64.
        """
        inverse = torch.linalg.inv(self.completed())[batch]  # (n_atoms, 3, 3)
        fractional = torch.einsum("na,nak->nk", pos, inverse)
        wraps = fractional.floor().long() * self.pbc[batch]
        return fractional - wraps, wraps

    def completed(self) -> Tensor:
        """Cells with unit vectors at right angles to all others where nothing repeats, (n_graphs, 3, 3) float64."""
        if self.pbc.all():
            return self.cell.detach().double()
        repeating = self.cell.detach().double() * self.pbc.unsqueeze(2)
        normals = torch.linalg.svd(repeating).Vh  # (n_graphs, 3, 3); the last rows stand on the repeating ones
        n_repeating = self.pbc.sum(dim=1, keepdim=True)
        row = (n_repeating + (~self.pbc).cumsum(dim=1) - 1).clamp(0, 2)  # (n_graphs, 3) which of them goes here
        normals = normals.gather(1, row.unsqueeze(2).expand(-1, -1, 3))
        return torch.where(self.pbc.unsqueeze(2), repeating, normals)


def lattice_of(data: Data, n_graphs: int, dtype: torch.dtype) -> Lattice | None:
    """The cells of a ``Data`` or ``Batch``, in this type; ``None`` where nothing repeats.

    Raises:
        MFPyGError: for ``cell`` without ``pbc`` or ``pbc`` without ``cell``, wrong shapes, and cells without a volume.
    """
    cell, pbc = getattr(data, "cell", None), getattr(data, "pbc", None)
    if cell is None and pbc is None:
        return None
    if pbc is None:
        raise MFPyGError("cell is given without pbc; expected pbc (1, 3) bool beside it, all False for a molecule")
    _check_shape("pbc", pbc, (n_graphs, 3))
    if pbc.dtype != torch.bool:
        raise MFPyGError(f"pbc is of type {pbc.dtype}, expected torch.bool: which of the directions repeat")
    if not pbc.any():
        return None
    if cell is None:
        raise MFPyGError("pbc is set but there is no cell; expected cell (1, 3, 3) in Å, or pbc all False")
    _check_shape("cell", cell, (n_graphs, 3, 3))
    lattice = Lattice(cell.to(dtype), pbc)
    _check_volume(lattice)
    return lattice


def _check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(value.shape) != expected:
        each = (1, *expected[1:])
        raise MFPyGError(
            f"{name} has shape {tuple(value.shape)}, expected {expected}: {each} in the Data of each graph"
        )


def _check_volume(lattice: Lattice) -> None:
    cell = lattice.cell.detach()
    if not cell.isfinite().all():
        raise MFPyGError("cell is NaN or infinite; expected lattice vectors in Å, zeros where pbc is False")
    completed = lattice.completed()
    volumes = torch.linalg.det(completed).abs()  # (n_graphs,)
    flat = volumes <= 1e-6 * completed.norm(dim=2).prod(dim=1)
    if flat.any():
        graph = int(flat.nonzero()[0])
        raise MFPyGError(
            f"cell of graph {graph} is {cell[graph].tolist()}, whose repeating vectors span no volume; "
            "expected independent lattice vectors in Å, or pbc False in directions that do not repeat"
        )


@dataclass
class Images:
    """The images of atoms near their graph's cell, and the way back from there to the positions given.

    Attributes:
        pos: positions given, in Å, (n_atoms, 3) float64.
        wrapped: the atoms moved into the cell in the directions that repeat, (n_atoms, 3) float64.
        wraps: how many lattice vectors each moved against, (n_atoms, 3) int64.
        atom: whose image it is, (n_images,) int64, ascending.
        shift: how many lattice vectors it is from ``wrapped``, (n_images, 3) int64, in lexicographic order.
        of_graph: number of images of each graph, (n_graphs,) int64.
    """

    pos: Tensor
    wrapped: Tensor
    wraps: Tensor
    atom: Tensor
    shift: Tensor
    of_graph: Tensor


def images_within(pos: Tensor, batch: Tensor, lattice: Lattice, cutoff: float) -> Images:
    """All images that may be within a cutoff of an atom in its graph's cell, each atom itself among them.

    Args:
        pos: (n_atoms, 3) in Å.
        batch: graph of each atom, (n_atoms,) int64, ascending.
        lattice: cells of the graphs, float64.
        cutoff: in Å.

    Raises:
        MFPyGError: for a cell so small that the images are without number.
    """
    inverse = torch.linalg.inv(lattice.completed())  # (n_graphs, 3, 3)
    repeating = lattice.pbc[batch]  # (n_atoms, 3)
    fractional, wraps = lattice.fractional(pos, batch)
    # A cutoff in units of the distance between lattice planes, the planes of a direction being those it crosses.
    reach = MARGIN * cutoff * inverse.norm(dim=1)[batch]  # (n_atoms, 3)
    low = (-reach - fractional).ceil() * repeating
    width = (1 + reach - fractional).floor() * repeating - low + 1
    _check_number(width.prod(dim=1), batch, lattice)
    low, width = low.long(), width.long()
    counts = width.prod(dim=1)  # (n_atoms,)
    atom = torch.repeat_interleave(torch.arange(len(pos), device=pos.device), counts)
    number = torch.arange(len(atom), device=pos.device) - (counts.cumsum(0) - counts)[atom]
    _, n_b, n_c = width[atom].unbind(1)
    digits = [number.div(n_b * n_c, rounding_mode="floor"), number.div(n_c, rounding_mode="floor") % n_b, number % n_c]
    of_graph = counts.new_zeros(len(lattice.cell)).index_add_(0, batch, counts)
    wrapped = pos - lattice.translations(wraps, batch)
    return Images(pos, wrapped, wraps, atom, low[atom] + torch.stack(digits, dim=1), of_graph)


def _check_number(images: Tensor, batch: Tensor, lattice: Lattice) -> None:
    """Images (n_atoms,) float64 of each atom, before memory is taken for them."""
    n_graphs = len(lattice.cell)
    n_images = images.new_zeros(n_graphs).index_add_(0, batch, images)
    n_atoms = torch.bincount(batch, minlength=n_graphs)
    wrong = (n_images * n_atoms > _MOST_PAIRS) & (n_images > _MOST_IMAGES * n_atoms)
    if wrong.any():
        graph = int(wrong.nonzero()[0])
        raise MFPyGError(
            f"cell of graph {graph} is so small that the cutoff reaches {n_images[graph] / n_atoms[graph]:.0e} images "
            f"of each atom: {lattice.cell[graph].tolist()}; expected lattice vectors in Å"
        )
