"""A multi-fidelity potential: one shared backbone, one head a fidelity, energies, forces and stresses of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import scatter

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.graph import Graph, build_graph, molecules_of
from mfpyg.lattice import lattice_of
from mfpyg.models.heads import LinearHead, hierarchicality


@dataclass
class Prediction:
    """What one fidelity says of a batch of molecules.

    Attributes:
        energy: total energies in kcal/mol, (n_graphs,) float64.
        forces: −dE/dx in kcal/mol/Å, (n_atoms, 3), or ``None`` where not asked for.
        atomic_energies: their share of each atom in kcal/mol, (n_atoms,) float64.
        hierarchicality: the regulariser of HIP-NN, (n_graphs,).
        stress: (1/V) dE/dε in kcal/mol/Å³ at the strain ε = 0 of positions and cell, x → x (I + ε) with ε symmetric;
            (n_graphs, 3, 3), symmetric; ``None`` where not asked for. Positive where the crystal pulls itself
            together (tension), as in ASE.
    """

    energy: Tensor
    forces: Tensor | None
    atomic_energies: Tensor
    hierarchicality: Tensor
    stress: Tensor | None = None


class MultiFidelityPotential(nn.Module):
    """Energies, forces and stresses of several levels of theory from one pass through a shared backbone.

    Args:
        backbone: module whose ``forward(graph)`` returns the per-atom features of every level; has
            ``cutoff``, ``species``, ``feature_sizes`` and ``reset_parameters``.
        fidelities: names of the levels of theory, each getting a head of its own.
        engine: neighbour-list engine, see :mod:`mfpyg.neighbours`.

    Example:
        >>> potential = mfpyg.load("runs/example")                   # doctest: +SKIP
        >>> prediction = potential(data, fidelity="cc")              # doctest: +SKIP
        >>> prediction.energy, prediction.forces                     # doctest: +SKIP
    """

    def __init__(self, backbone: nn.Module, fidelities: Sequence[str], engine: str = "auto") -> None:
        super().__init__()
        if len(set(fidelities)) < len(fidelities) or not fidelities:
            raise MFPyGError(
                f"fidelities are {', '.join(fidelities) or 'none'}, expected different names, at least one"
            )
        self.backbone = backbone
        self.fidelities = tuple(fidelities)
        self.engine = engine
        self.heads = nn.ModuleList(LinearHead(backbone.feature_sizes) for _ in fidelities)  # type: ignore[arg-type]

    def reset_parameters(self) -> None:
        """Draw new weights; the reference energies stay."""
        self.backbone.reset_parameters()  # type: ignore[operator]
        for head in self.heads:
            head.reset_parameters()  # type: ignore[operator]

    @property
    def cutoff(self) -> float:
        """In Å."""
        return float(self.backbone.cutoff)  # type: ignore[arg-type]

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that the potential knows."""
        return tuple(self.backbone.species.tolist())  # type: ignore[operator, union-attr]

    def head(self, fidelity: str) -> LinearHead:
        """The output layers of a fidelity.

        Raises:
            MFPyGError: for an unknown fidelity.
        """
        if fidelity not in self.fidelities:
            raise unknown_name("fidelity", fidelity, self.fidelities)
        return self.heads[self.fidelities.index(fidelity)]  # type: ignore[return-value]

    def forward(
        self, data: Data, fidelity: str | Sequence[str] | None = None, forces: bool = True, stress: bool = False
    ) -> Prediction | dict[str, Prediction]:
        """Energies, and forces unless told otherwise, of a molecule, a crystal or a batch.

        Args:
            data: ``Data`` or ``Batch`` with ``z`` (n_atoms,) and ``pos`` (n_atoms, 3) in Å; with ``cell``
                (n_graphs, 3, 3) in Å and ``pbc`` (n_graphs, 3) bool where graphs repeat, see :mod:`mfpyg.lattice`.
            fidelity: a name, or a list of names for several in one pass; may be left out only where
                the potential has a single one.
            forces: whether forces are wanted; each fidelity's cost a backward pass.
            stress: whether stresses are wanted, of graphs that repeat in all directions; they come with the forces.

        Returns:
            A :class:`Prediction` for a name, ``{name: Prediction}`` for a list.

        Raises:
            MFPyGError: for an unknown fidelity or element, no fidelity given among several, or a stress where
                the volume is not defined.
        """
        if fidelity is None:
            if len(self.fidelities) > 1:
                known = ", ".join(self.fidelities)
                raise MFPyGError(f"no fidelity given: this potential has several ({known}); name one")
            fidelity = self.fidelities[0]
        if isinstance(fidelity, str):
            return self.predict(data, {fidelity: forces}, stress)[fidelity]
        return self.predict(data, dict.fromkeys(fidelity, forces), stress)

    def predict(self, data: Data, wanted: Mapping[str, bool], stress: bool = False) -> dict[str, Prediction]:
        """Predictions of the wanted fidelities, with forces where the value is true, and stresses of all if wanted.

        One pass through the backbone; one backward pass for each fidelity with forces or stress. What comes back
        can be differentiated (again) in training mode, or where ``data.pos`` or ``data.cell`` requires a gradient;
        in evaluation it is detached.

        Raises:
            MFPyGError: for an unknown fidelity, an element that the potential does not know, positions that
                are not finite, a stress where a graph does not repeat in all directions, or forces in inference mode.
        """
        heads = {name: self.head(name) for name in wanted}
        with_gradients = [name for name, forces in wanted.items() if forces or stress]
        if torch.is_inference_mode_enabled() and with_gradients:
            raise MFPyGError("forces are gradients, which torch.inference_mode() forbids; use torch.no_grad() instead")
        differentiable = torch.is_grad_enabled() and (self.training or _requires_grad(data))
        species = self.species_number(data.z)
        if not torch.isfinite(data.pos).all():
            raise MFPyGError("positions are NaN or infinite; expected finite ones in Å")
        with torch.set_grad_enabled(torch.is_grad_enabled() or bool(with_gradients)):
            pos = data.pos.to(self.dtype)
            if any(wanted.values()) and not pos.requires_grad:
                pos = pos.detach().requires_grad_()
            moved = _with_positions(data, pos)
            strain = _strain(moved) if stress else None
            graph = build_graph(moved, self.cutoff, engine=self.engine)
            features = self.backbone(graph)
            predictions = {name: _assemble(head, features, species, graph) for name, head in heads.items()}
            for name in with_gradients:
                keep = differentiable or name != with_gradients[-1]
                of = pos if wanted[name] else None
                _add_derivatives(predictions[name], of, strain, differentiable, keep)
        if not differentiable:
            predictions = {name: _detached(prediction) for name, prediction in predictions.items()}
        return predictions

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of everything but total energies."""
        return next(self.parameters()).dtype

    def species_number(self, z: Tensor) -> Tensor:
        """Number of each atom's element among ``species``, (n_atoms,) int64.

        Raises:
            MFPyGError: naming the elements that the potential does not know.
        """
        known: Tensor = self.backbone.species  # type: ignore[assignment]
        number = torch.searchsorted(known, z).clamp(max=len(known) - 1)
        unknown = z[known[number] != z]
        if len(unknown):
            names = ", ".join(chemical_symbols[i] for i in unknown.unique().tolist())
            having = ", ".join(chemical_symbols[i] for i in self.species)
            raise MFPyGError(f"element {names} is unknown to this potential (it knows {having})")
        return number

    def reference_energy(self, data: Data, fidelity: str) -> Tensor:
        """Sum of the atomic reference energies of each molecule in kcal/mol, (n_graphs,) float64."""
        reference = self.head(fidelity).reference[self.species_number(data.z)]  # (n_atoms,)
        batch, n_graphs = molecules_of(data)
        return scatter(reference, batch, dim_size=n_graphs, reduce="sum")


def _with_positions(data: Data, pos: Tensor) -> Data:
    """The same graph (stored edges included) at other positions, sharing everything else."""
    moved = data.__copy__()
    moved.pos = pos
    return moved


def _assemble(head: LinearHead, features: list[Tensor], species: Tensor, graph: Graph) -> Prediction:
    reference = head.reference[species]  # (n_atoms,) float64
    terms = head(features)
    interacting = torch.stack(terms).sum(dim=0).to(reference.dtype)  # (n_atoms,)
    atomic_energies = reference + interacting
    per_atom = hierarchicality([reference.to(terms[0].dtype), *terms])

    def by_molecule(x: Tensor) -> Tensor:
        return scatter(x, graph.batch, dim_size=graph.n_graphs, reduce="sum")

    return Prediction(by_molecule(atomic_energies), None, atomic_energies, by_molecule(per_atom))


def _requires_grad(data: Data) -> bool:
    cell = getattr(data, "cell", None)
    return data.pos.requires_grad or (cell is not None and cell.requires_grad)


@dataclass
class _Strain:
    """A strain of each graph, zero, and the volumes in Å³; (n_graphs, 3, 3) and (n_graphs,)."""

    tensor: Tensor
    volume: Tensor


def _strain(data: Data) -> _Strain:
    """Apply a zero strain, of which the energy is a function from then on, to positions and cell of ``data``."""
    batch, n_graphs = molecules_of(data)
    _check_volumes(data, n_graphs)
    cell = data.cell.to(data.pos.dtype)
    tensor = cell.new_zeros(n_graphs, 3, 3).requires_grad_()
    deformation = torch.eye(3, dtype=cell.dtype, device=cell.device) + (tensor + tensor.mT) / 2
    data.pos = torch.bmm(data.pos.unsqueeze(1), deformation[batch]).squeeze(1)  # (n_atoms, 3)
    data.cell = cell @ deformation
    return _Strain(tensor, torch.linalg.det(cell).abs())


def _check_volumes(data: Data, n_graphs: int) -> None:
    lattice = lattice_of(data, n_graphs)
    repeats = torch.zeros(n_graphs, 3, dtype=torch.bool) if lattice is None else lattice.pbc
    without = (~repeats.all(dim=1)).nonzero()
    if len(without):
        graph = int(without[0])
        raise MFPyGError(
            f"stress of graph {graph} is not defined: its pbc is {repeats[graph].tolist()}, expected True in all "
            "three directions, with a cell; leave the stress out"
        )


def _add_derivatives(
    prediction: Prediction, pos: Tensor | None, strain: _Strain | None, create_graph: bool, retain_graph: bool
) -> None:
    """Forces and stress in one backward pass, each where there is something to differentiate by."""
    inputs = ([] if pos is None else [pos]) + ([] if strain is None else [strain.tensor])
    gradients = torch.autograd.grad(
        prediction.energy.sum(), inputs, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    if pos is not None:
        prediction.forces = -gradients[0]
    if strain is not None:
        prediction.stress = gradients[-1] / strain.volume[:, None, None]


def _detached(prediction: Prediction) -> Prediction:
    values = {field.name: getattr(prediction, field.name) for field in dataclasses.fields(Prediction)}
    return Prediction(**{name: None if value is None else value.detach() for name, value in values.items()})
