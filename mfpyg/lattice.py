"""Cells of periodic graphs, and the images of atoms within a cutoff.

``Data.cell`` (1, 3, 3) holds the lattice vectors in Å as rows, ``Data.pbc`` (1, 3) the periodic directions; a ``Batch``
has one of each per graph. The vector of a non-periodic direction is ignored, and may be zero as in ASE. Atoms may be
outside the cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError

MARGIN = 1 + 1e-5
"""Search radius / cutoff for candidates. The same comparison with the cutoff then selects the edges of all engines."""

_MOST_PAIRS, _MOST_IMAGES = 1e8, 1e3
"""Pairs per graph and images per atom; above both limits, the cell is taken for a mistake."""


@dataclass
class Lattice:
    """Cells of the graphs of a batch.

    Attributes:
        cell: lattice vectors in Å as rows, (n_graphs, 3, 3); differentiable.
        pbc: periodic directions, (n_graphs, 3) bool.
    """

    cell: Tensor
    pbc: Tensor

    def translations(self, shift: Tensor, owner: Tensor) -> Tensor:
        """Translations in Å, (n, 3), by ``shift`` (n, 3) lattice vectors of the graphs ``owner`` (n,).

        All code uses this order of operations, so that edge vectors are within the cutoff to the last bit, and those of
        the two directions of a pair are exact negatives.
        """
        one = len(self.cell) == 1  # no copy of the cell for each edge
        a, b, c = self.cell.unbind(1) if one else self.cell[owner].unbind(1)  # (n, 3) each, or (1, 3)
        n_a, n_b, n_c = shift.to(self.cell.dtype).unsqueeze(2).unbind(1)  # (n, 1) each
        return n_a * a + n_b * b + n_c * c

    def fractional(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Fractional coordinates, wrapped to [0, 1) in periodic directions, and the lattice vectors subtracted.

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
        """Cells with orthogonal unit vectors in non-periodic directions, (n_graphs, 3, 3) float64."""
        if self.pbc.all():
            return self.cell.detach().double()
        periodic = self.cell.detach().double() * self.pbc.unsqueeze(2)
        normals = torch.linalg.svd(periodic).Vh  # (n_graphs, 3, 3); the last rows are normal to the periodic vectors
        n_periodic = self.pbc.sum(dim=1, keepdim=True)
        row = (n_periodic + (~self.pbc).cumsum(dim=1) - 1).clamp(0, 2)  # (n_graphs, 3) row of normals to use
        normals = normals.gather(1, row.unsqueeze(2).expand(-1, -1, 3))
        return torch.where(self.pbc.unsqueeze(2), periodic, normals)


def lattice_of(data: Data, n_graphs: int, dtype: torch.dtype) -> Lattice | None:
    """Return the cells of a ``Data`` or ``Batch`` in a dtype; ``None`` if no graph is periodic.

    Raises:
        MFPyGError: for ``cell`` without ``pbc`` or ``pbc`` without ``cell``, wrong shapes, and cells without a volume.
    """
    cell, pbc = getattr(data, "cell", None), getattr(data, "pbc", None)
    if cell is None and pbc is None:
        return None
    if pbc is None:
        raise MFPyGError("cell is given without pbc; expected pbc (1, 3) bool as well, all False for a molecule")
    _check_shape("pbc", pbc, (n_graphs, 3))
    if pbc.dtype != torch.bool:
        raise MFPyGError(f"pbc is of type {pbc.dtype}, expected torch.bool: True in periodic directions")
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
            f"cell of graph {graph} is {cell[graph].tolist()}, whose periodic vectors span no volume; "
            "expected independent lattice vectors in Å, or pbc False in directions that are not periodic"
        )


@dataclass
class Images:
    """Images of atoms in and around the cells of their graphs.

    Attributes:
        pos: given positions in Å, (n_atoms, 3) float64.
        wrapped: positions wrapped into the cell in periodic directions, (n_atoms, 3) float64.
        wraps: lattice vectors subtracted by wrapping, (n_atoms, 3) int64.
        atom: atom of each image, (n_images,) int64, ascending.
        shift: shift of each image from ``wrapped`` in lattice vectors, (n_images, 3) int64, in lexicographic order.
        of_graph: number of images of each graph, (n_graphs,) int64.
    """

    pos: Tensor
    wrapped: Tensor
    wraps: Tensor
    atom: Tensor
    shift: Tensor
    of_graph: Tensor


def images_within(pos: Tensor, batch: Tensor, lattice: Lattice, cutoff: float) -> Images:
    """Find all images that may be within a cutoff of an atom in the cell of the graph, including the atoms themselves.

    Args:
        pos: (n_atoms, 3) in Å.
        batch: graph of each atom, (n_atoms,) int64, ascending.
        lattice: cells of the graphs, float64.
        cutoff: in Å.

    Raises:
        MFPyGError: for a cell so small that there are too many images.
    """
    inverse = torch.linalg.inv(lattice.completed())  # (n_graphs, 3, 3)
    periodic = lattice.pbc[batch]  # (n_atoms, 3)
    fractional, wraps = lattice.fractional(pos, batch)
    # The cutoff divided by the distance of the lattice planes that each lattice vector crosses.
    reach = MARGIN * cutoff * inverse.norm(dim=1)[batch]  # (n_atoms, 3)
    low = (-reach - fractional).ceil() * periodic
    width = (1 + reach - fractional).floor() * periodic - low + 1
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
    """Check the number of images of each atom, (n_atoms,) float64, before allocating memory for them."""
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
