"""Hessians of a potential, and their products with vectors.

A whole Hessian takes a backward pass for each coordinate of the largest graph. To train on Hessians, products with
random vectors are enough: if the components of v are independent, with zero mean and unit variance, then

.. math:: E\\,|(H - H')\\,v|^2 = \\mathrm{tr}\\,(H - H')^T (H - H')\\,E\\,v v^T = |H - H'|_F^2,

so that a single direction per step gives unbiased estimates of the squared error of all elements and of its gradient.
Training takes differences of forces, :func:`predict_with_products`: they need one more geometry per direction in the
same prediction, and no third derivatives, which cost more (``benchmarks/hessians.py``).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError
from mfpyg.graph import molecules_of
from mfpyg.models.prediction import Prediction, Products
from mfpyg.properties import in_order
from mfpyg.torch_defaults import with_default_torch_settings

MAX_ATOMS = 300
"""Largest graph of which a whole Hessian is computed; it takes 900 backward passes."""

STEPS = {torch.float32: 1e-3, torch.float64: 1e-5}
"""Displacement h in Å along directions with components of the order of one, by the dtype of the potential.

Larger ones average over features of the potential: HIP-NN-TS's √(|Σ_j m e|² + c), c = 1e-6, bends sharply within about
1e-3 Å of linear and other symmetric surroundings of an atom.
"""


class Predictor(Protocol):
    """Interface of :class:`mfpyg.models.Potential` that is needed here."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""

    def prepare(self, data: Data, wanted: Mapping[str, str]) -> Any:
        """Do the part of a prediction that reads numbers from the device."""

    def predict(self, data: Any, wanted: Mapping[str, str]) -> dict[str, Prediction]:
        """Predict properties except Hessians, ``{fidelity: letters}``, of a ``Data``, or of prepared data."""


@with_default_torch_settings
def hessian(potential: Predictor, data: Data, fidelity: str) -> Tensor:
    """Second derivatives of the energy with respect to positions, d²E/dx_i dx_j.

    By backward passes through the forces, one for each coordinate of the largest graph; symmetrized, so that rounding
    errors do not make it asymmetric. Cells of periodic graphs are constant.

    Args:
        potential: potential in any mode; its weights do not get gradients.
        data: ``Data`` or ``Batch``, see :meth:`mfpyg.models.Potential.forward`.
        fidelity: level of theory.

    Returns:
        Hessians in kcal/mol/Å² in the dtype of the weights. Of a single graph without ``batch``, (n, n, 3, 3), where
        [i, j, a, b] is the derivative by component a of atom i and b of atom j. Of a batch, (Σ n², 3, 3): the pairs
        (i, j) of each graph row by row, one graph after the other, as the labels of data sets.

    Raises:
        MFPyGError: for a graph of more than :data:`MAX_ATOMS` atoms, and as
            :meth:`mfpyg.models.MultiFidelityPotential.predict`.
    """
    batch, n_graphs = molecules_of(data)
    sizes = torch.bincount(batch, minlength=n_graphs)  # (n_graphs,)
    _check_sizes(sizes.tolist())
    with torch.enable_grad():
        pos, forces = _forces(potential, data, fidelity)
    firsts, largest = sizes.cumsum(0) - sizes, int(sizes.max()) if n_graphs else 0
    rows = forces.new_zeros(largest, 3, *forces.shape)  # [k, a]: derivatives of −F_a of the k-th atom of each graph
    for atom in range(largest):
        for component in range(3):
            direction = torch.zeros_like(forces)
            direction[firsts[sizes > atom] + atom, component] = 1
            rows[atom, component] = _product(forces, pos, direction)
    blocks = []
    for first, n in zip(firsts.tolist(), sizes.tolist(), strict=True):
        block = rows[:n, :, first : first + n].transpose(1, 2)  # (n, n, 3, 3)
        blocks.append((block + block.permute(1, 0, 3, 2)) / 2)
    if getattr(data, "batch", None) is None:
        return blocks[0]
    return torch.cat([rows.new_empty(0, 3, 3), *(block.flatten(0, 1) for block in blocks)])


@dataclass
class Displaced:
    """Graphs, followed by copies of some of them that are displaced along vectors.

    Attributes:
        data: ``Data`` without edges, or the result of the potential's ``prepare`` for it.
        atoms: numbers of the atoms of the graphs that are copied, (N,) int64.
        directions: k vectors v as rounded, (k, N, 3), in the dtype of the potential.
        step: h of the displacements h v, in Å.
        n_graphs, n_atoms: numbers of graphs and atoms without the copies.
    """

    data: Any
    atoms: Tensor
    directions: Tensor
    step: float
    n_graphs: int
    n_atoms: int

    def prepared(self, potential: Predictor, wanted: Mapping[str, str]) -> Displaced:
        """The same with data prepared for the predictions of ``wanted``.

        Raises:
            MFPyGError: as the potential's ``prepare``.
        """
        return dataclasses.replace(self, data=potential.prepare(self.data, _without_hessians(wanted)))

    def tensors(self) -> list[Tensor]:
        """All tensors that a prediction of prepared data uses."""
        return [self.atoms, self.directions, *getattr(self.data, "tensors", list)()]


def displaced_copies(batch: Data, graphs: Tensor, directions: Tensor, dtype: torch.dtype) -> Displaced:
    """Displace copies of graphs along vectors; numbers are read from the device.

    Args:
        batch: ``Batch``, see :meth:`mfpyg.models.Potential.forward`.
        graphs: whether each graph is copied, (n_graphs,) bool.
        directions: k vectors v, of which those of these graphs are used, (k, n_atoms, 3); their components should be of
            the order of one.
        dtype: of the potential.

    Raises:
        MFPyGError: for directions of another shape.
    """
    _check_directions(directions, len(batch.z))
    owner, n_graphs = molecules_of(batch)
    atoms = graphs[owner].nonzero().flatten()
    pos = batch.pos.to(torch.promote_types(batch.pos.dtype, dtype))
    step = STEPS.get(dtype, STEPS[torch.float32])
    displaced = pos[atoms] + step * directions[:, atoms].to(pos)  # (k, N, 3)
    v = ((displaced - pos[atoms]) / step).to(dtype)  # as rounded
    return Displaced(_with_copies(batch, pos, graphs, displaced), atoms, v, step, n_graphs, len(batch.z))


def predict_with_products(
    potential: Predictor, displaced: Displaced, wanted: Mapping[str, str]
) -> dict[str, Prediction]:
    r"""Predictions in which Hessians are products with vectors, differentiable by weights in training mode.

    By differences of forces at displaced copies of the graphs, in the same prediction as all the rest,

    .. math:: H v = \frac{F(x) - F(x + h v)}{h} + \frac{h}{2} \frac{d^3 E}{dx^3} v v + O(h^2).

    For directions as probable as their opposites, the term linear in h has zero mean in a squared error.

    Args:
        potential: potential; goes through ``torch.compile`` if it is ``compiled``.
        displaced: graphs and their displaced copies.
        wanted: ``{fidelity: letters}``, some with an H.

    Returns:
        Predictions of the graphs, whose ``hessian`` is :class:`Products`, where wanted.

    Raises:
        MFPyGError: as :meth:`mfpyg.models.MultiFidelityPotential.predict`.
    """
    atoms, v, n_atoms = displaced.atoms, displaced.directions, displaced.n_atoms
    predictions = {}
    for name, prediction in potential.predict(displaced.data, _without_hessians(wanted)).items():
        predictions[name] = prediction.first(displaced.n_graphs, n_atoms).only(wanted[name])
        if "H" in wanted[name]:
            assert prediction.forces is not None
            before, after = prediction.forces[:n_atoms][atoms], prediction.forces[n_atoms:].view(v.shape)
            predictions[name].hessian = Products(atoms, v, (before - after) / displaced.step)
    return predictions


def _without_hessians(wanted: Mapping[str, str]) -> dict[str, str]:
    """Properties that are predicted of graphs and their copies, ``{fidelity: letters}``."""
    return {name: in_order({*letters.replace("H", "F"), "E"}) for name, letters in wanted.items()}


def _check_sizes(sizes: Sequence[int]) -> None:
    largest = max(sizes, default=0)
    if largest > MAX_ATOMS:
        raise MFPyGError(
            f"graph {sizes.index(largest)} has {largest} atoms, expected at most {MAX_ATOMS} for a whole Hessian; use "
            "displaced_copies and predict_with_products of mfpyg.models.hessian for its products with vectors"
        )


def _product(forces: Tensor, pos: Tensor, direction: Tensor) -> Tensor:
    """Product of the Hessian with a vector, (n_atoms, 3), from forces −dE/dx as a function of positions."""
    if not forces.requires_grad:  # no atom has a neighbour
        return torch.zeros_like(forces)
    (product,) = torch.autograd.grad(forces, pos, -direction, retain_graph=True, materialize_grads=True)
    return product.to(forces.dtype)


def _forces(potential: Predictor, data: Data, fidelity: str) -> tuple[Tensor, Tensor]:
    """Positions that require a gradient, at least as precise as the weights, and the forces as a function of them."""
    data = copy.copy(data)
    pos = data.pos.detach()
    data.pos = pos.to(torch.promote_types(pos.dtype, potential.dtype)).clone().requires_grad_()
    forces = potential.predict(data, {fidelity: "EF"})[fidelity].forces
    assert forces is not None
    return data.pos, forces


def _with_copies(batch: Data, pos: Tensor, graphs: Tensor, displaced: Tensor) -> Data:
    """Batch at ``pos`` followed by copies of some graphs at ``displaced`` (k, N, 3); edges are found again."""
    owner, n_graphs = molecules_of(batch)
    k, n_copied = len(displaced), int(graphs.sum())
    chosen = graphs[owner]
    number = (graphs.cumsum(0) - 1)[owner[chosen]]  # of a copied graph among its like, (N,)
    copy_number = n_graphs + n_copied * torch.arange(k, device=owner.device).unsqueeze(1)  # (k, 1)
    result = Data(
        z=torch.cat([batch.z, batch.z[chosen].repeat(k)]),
        pos=torch.cat([pos, displaced.flatten(0, 1)]),
        batch=torch.cat([owner, (copy_number + number).flatten()]),
    )
    for key in ("cell", "pbc", "charge"):
        value = getattr(batch, key, None)
        if value is not None:
            result[key] = torch.cat([value, *[value[graphs]] * k])
    return result


def _check_directions(directions: Tensor, n_atoms: int) -> None:
    if directions.dim() != 3 or directions.shape[1:] != (n_atoms, 3):
        raise MFPyGError(f"directions have the shape {tuple(directions.shape)}, expected (k, {n_atoms}, 3)")
