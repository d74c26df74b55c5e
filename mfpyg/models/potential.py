"""A multi-fidelity potential: one shared backbone, one head a fidelity, energies and forces of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import scatter

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.graph import Graph, build_graph, molecules_of
from mfpyg.models.heads import LinearHead, hierarchicality


@dataclass
class Prediction:
    """What one fidelity says of a batch of molecules.

    Attributes:
        energy: total energies in kcal/mol, (n_graphs,) float64.
        forces: −dE/dx in kcal/mol/Å, (n_atoms, 3), or ``None`` where not asked for.
        atomic_energies: their share of each atom in kcal/mol, (n_atoms,) float64.
        hierarchicality: the regulariser of HIP-NN, (n_graphs,).
    """

    energy: Tensor
    forces: Tensor | None
    atomic_energies: Tensor
    hierarchicality: Tensor


class MultiFidelityPotential(nn.Module):
    """Energies and forces of several levels of theory from one pass through a shared backbone.

    Args:
        backbone: module whose ``forward(graph)`` returns the per-atom features of every level; has
            ``cutoff``, ``species``, ``feature_sizes`` and ``reset_parameters``.
        fidelities: names of the levels of theory, each getting a head of its own.
        engine: neighbour-list engine, see :func:`mfpyg.graph.radius_graph`.

    Example:
        >>> potential = mfpyg.load("runs/example")                   # doctest: +SKIP
        >>> prediction = potential(data, fidelity="cc")              # doctest: +SKIP
        >>> prediction.energy, prediction.forces                     # doctest: +SKIP
    """

    def __init__(self, backbone: nn.Module, fidelities: Sequence[str], engine: str = "torch") -> None:
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
        self, data: Data, fidelity: str | Sequence[str] | None = None, forces: bool = True
    ) -> Prediction | dict[str, Prediction]:
        """Energies, and forces unless told otherwise, of a molecule or a batch.

        Args:
            data: ``Data`` or ``Batch`` with ``z`` (n_atoms,) and ``pos`` (n_atoms, 3) in Å.
            fidelity: a name, or a list of names for several in one pass; may be left out only where
                the potential has a single one.
            forces: whether forces are wanted; each fidelity's cost a backward pass.

        Returns:
            A :class:`Prediction` for a name, ``{name: Prediction}`` for a list.

        Raises:
            MFPyGError: for an unknown fidelity or element, or none given among several.
        """
        if fidelity is None:
            if len(self.fidelities) > 1:
                known = ", ".join(self.fidelities)
                raise MFPyGError(f"no fidelity given: this potential has several ({known}); name one")
            fidelity = self.fidelities[0]
        if isinstance(fidelity, str):
            return self.predict(data, {fidelity: forces})[fidelity]
        return self.predict(data, dict.fromkeys(fidelity, forces))

    def predict(self, data: Data, wanted: Mapping[str, bool]) -> dict[str, Prediction]:
        """Predictions of the wanted fidelities, with forces where the value is true.

        One pass through the backbone; one backward pass for each fidelity with forces. What comes back
        can be differentiated (again) in training mode, or where ``data.pos`` requires a gradient; in
        evaluation it is detached.

        Raises:
            MFPyGError: for an unknown fidelity, an element that the potential does not know, positions that
                are not finite, or forces in inference mode.
        """
        heads = {name: self.head(name) for name in wanted}
        if torch.is_inference_mode_enabled() and any(wanted.values()):
            raise MFPyGError("forces are gradients, which torch.inference_mode() forbids; use torch.no_grad() instead")
        differentiable = torch.is_grad_enabled() and (self.training or data.pos.requires_grad)
        species = self.species_number(data.z)
        if not torch.isfinite(data.pos).all():
            raise MFPyGError("positions are NaN or infinite; expected finite ones in Å")
        with torch.set_grad_enabled(torch.is_grad_enabled() or any(wanted.values())):
            pos = data.pos.to(self.dtype)
            if any(wanted.values()) and not pos.requires_grad:
                pos = pos.detach().requires_grad_()
            graph = build_graph(_with_positions(data, pos), self.cutoff, engine=self.engine)
            features = self.backbone(graph)
            predictions = {name: _assemble(head, features, species, graph) for name, head in heads.items()}
            with_forces = [name for name, forces in wanted.items() if forces]
            for name in with_forces:
                keep = differentiable or name != with_forces[-1]
                predictions[name].forces = _forces(predictions[name].energy, pos, differentiable, keep)
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


def _forces(energy: Tensor, pos: Tensor, create_graph: bool, retain_graph: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(
        energy.sum(), pos, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    return -gradient


def _detached(prediction: Prediction) -> Prediction:
    forces = None if prediction.forces is None else prediction.forces.detach()
    return Prediction(
        prediction.energy.detach(), forces, prediction.atomic_energies.detach(), prediction.hierarchicality.detach()
    )
