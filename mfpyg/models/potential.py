"""Multi-fidelity potential: a shared backbone and one head per fidelity."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from mfpyg.errors import MFPyGError, unknown_name
from mfpyg.graph import EdgeTopology, Graph
from mfpyg.models.backbone import Backbone, check_backbone, private_copies, remove_template_files, reset, through
from mfpyg.models.compiled import Compiler
from mfpyg.models.derivatives import evaluate
from mfpyg.models.fidelity_heads import FidelityHeads
from mfpyg.models.heads import make_head
from mfpyg.models.last_layer import LastLayer, LastLayers
from mfpyg.models.prediction import Prediction
from mfpyg.models.prepare import PreparedData, complete, prepare_data
from mfpyg.models.repulsion import ZBL
from mfpyg.models.system import System, check_apart, species_number, with_isolated_atoms
from mfpyg.option_groups import REPULSIONS
from mfpyg.torch_defaults import default_torch_settings, without_inference_tensors


class MultiFidelityPotential(FidelityHeads):
    """Properties of several levels of theory from one pass through a shared backbone.

    Args:
        backbone: module whose ``forward(graph)`` returns the per-atom features of every level; has
            ``cutoff``, ``species``, ``feature_sizes`` and ``reset_parameters``.
        fidelities: names of the levels of theory, each of which gets its own head.
        engine: neighbour-list engine, see :mod:`mfpyg.neighbors`.
        head, head_width: output layers of each fidelity, see :func:`mfpyg.models.heads.make_head`.
        private_blocks: number of the backbone's last blocks that are not shared; they are removed from the backbone,
            and each fidelity gets its own copy.
        isolated: energy of an atom without neighbours, ``network`` or ``reference``; see
            :func:`mfpyg.models.system.with_isolated_atoms`.
        further: ``{fidelity: letters}`` of properties with heads of their own, as ``{"dz": "D"}``; see
            :data:`mfpyg.properties.HEADS`.
        repulsion: ``none``, or ``zbl`` to add :class:`mfpyg.models.repulsion.ZBL` to the energies of all fidelities.

    Raises:
        MFPyGError: for duplicate or no fidelities, properties of an unknown one, or a module that is not a backbone.

    Attributes:
        compiled: whether predictions, including forces, go through ``torch.compile``, and on a GPU through CUDA graphs;
            see :mod:`mfpyg.models.compiled`. Default: False.
        uncertainty: standard deviations of fidelities that have them, see :mod:`mfpyg.models.last_layer`.

    Example:
        >>> potential = mfpyg.load("runs/example")                   # doctest: +SKIP
        >>> prediction = potential(data, fidelity="cc")              # doctest: +SKIP
        >>> prediction.energy, prediction.forces                     # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: nn.Module,
        fidelities: Sequence[str],
        engine: str = "auto",
        *,
        head: str = "linear",
        head_width: int | None = None,
        private_blocks: int = 0,
        isolated: str = "network",
        further: Mapping[str, str] | None = None,
        repulsion: str = "none",
    ) -> None:
        super().__init__()
        if len(set(fidelities)) < len(fidelities) or not fidelities:
            raise MFPyGError(
                f"fidelities are {', '.join(fidelities) or 'none'}, expected different names, at least one"
            )
        if isolated not in ("network", "reference"):
            raise unknown_name("energy of isolated atoms", isolated, ("network", "reference"))
        if repulsion not in REPULSIONS:
            raise unknown_name("repulsion", repulsion, REPULSIONS)
        check_backbone(backbone)
        remove_template_files(backbone)
        self.backbone = backbone
        self.fidelities = tuple(fidelities)
        self.engine, self.isolated, self.compiled = engine, isolated, False
        self._compiler = Compiler()
        self.repulsion = ZBL(self.cutoff) if repulsion == "zbl" else None
        sizes: Sequence[int] = backbone.feature_sizes  # type: ignore[assignment]
        self.heads = nn.ModuleList(make_head(head, sizes, head_width) for _ in fidelities)
        self.private = private_copies(backbone, private_blocks, len(fidelities))
        self.uncertainty: Mapping[str, LastLayer] = LastLayers()  # type: ignore[assignment]
        self.further_heads = nn.ModuleList(nn.ModuleDict() for _ in fidelities)  # last: draws after all others
        for name, letters in (further or {}).items():
            self.add_properties(name, letters)

    def reset_parameters(self) -> None:
        """Draw new weights; the reference energies are kept."""
        self.backbone.reset_parameters()  # type: ignore[operator]
        for head in self.heads:
            head.reset_parameters()  # type: ignore[operator]
        reset(self.private)
        reset(self.further_heads)

    @property
    def cutoff(self) -> float:
        """Cutoff in Å."""
        return float(self.backbone.cutoff)  # type: ignore[arg-type]

    @property
    def vanishes_beyond_cutoff(self) -> bool:
        return bool(getattr(self.backbone, "vanishes_beyond_cutoff", False))

    @property
    def species(self) -> tuple[int, ...]:
        """Supported atomic numbers."""
        return tuple(self.backbone.species.tolist())  # type: ignore[operator, union-attr]

    def features(self, graph: Graph, fidelities: Iterable[str]) -> dict[str, list[Tensor]]:
        """Features of every level for the head of each fidelity, (n_atoms, width) each."""
        if not self.private:
            return dict.fromkeys(fidelities, self.backbone(graph))
        assert isinstance(self.backbone, Backbone)
        shared, state = through(self.backbone.blocks, self.backbone.embed(graph))
        levels = [self.backbone.one_hot(graph), *shared]
        numbers = {name: self.fidelities.index(name) for name in fidelities}
        return {name: [*levels, *through(self.private[i], state)[0]] for name, i in numbers.items()}  # type: ignore[arg-type]

    def has_std(self, fidelity: str) -> bool:
        return fidelity in self.uncertainty

    def prepare(self, data: Data, wanted: Mapping[str, str]) -> PreparedData:
        """Check graphs, find their neighbours and the kernel's tables, for :meth:`predict` not to wait for the device.

        Args:
            data: ``Data`` or ``Batch``.
            wanted: ``{fidelity: letters}`` of the properties that may be predicted.

        Raises:
            MFPyGError: as :meth:`predict`, but for overlapping atoms: predictions are not checked for these; and for a
                fidelity with a baseline.
        """
        self.check_wanted(wanted)
        self.check_preparable(wanted)
        with default_torch_settings(keep_inference=True):
            prepared = prepare_data(self, without_inference_tensors(data), wanted)
            complete(self, prepared, self._differentiable(prepared))
        return prepared

    def predict(self, data: Data | PreparedData, wanted: Mapping[str, str], std: bool = False) -> dict[str, Prediction]:
        """Predict the properties in ``wanted``, ``{fidelity: letters}``, see :mod:`mfpyg.properties`.

        One pass through the backbone; one backward pass for each fidelity with forces or stress. The results can be
        differentiated (again) in training mode, or if ``data.pos`` or ``data.cell`` requires a gradient; otherwise they
        are detached. With ``std``, there are standard deviations of energies and forces, too, without a backward pass.
        The data may be prepared, see :meth:`prepare`.

        Raises:
            MFPyGError: for an unknown fidelity or element, a property of a fidelity without a head for it, standard
                deviations of a fidelity without them, data
                on another device, positions that are not finite, overlapping atoms if the result is not finite (in
                evaluation mode), stresses if no graph is periodic in all directions, dipoles if all are periodic in
                some, Hessians, which only :meth:`forward` predicts, or forces in inference mode.
        """
        with default_torch_settings(keep_inference=True):
            self.check_wanted(wanted)
            if std:
                self.check_std(wanted)
            if isinstance(data, PreparedData):
                return self._predict(data, wanted, std)
            data = without_inference_tensors(data)
            prepared = prepare_data(self, data, wanted)
            predictions = self._predict(prepared, wanted, std)
            if not self.training:  # in training the loss is checked
                atoms = prepared.atoms
                check_apart(list(predictions.values()), atoms.pos, atoms.topology, atoms.lattice, prepared.order)
            return self.with_baselines(predictions, data)

    def _differentiable(self, prepared: PreparedData) -> bool:
        return torch.is_grad_enabled() and (self.training or prepared.requires_grad)

    def _predict(self, prepared: PreparedData, wanted: Mapping[str, str], std: bool) -> dict[str, Prediction]:
        predictions = self._evaluate(prepared, wanted, self._differentiable(prepared), std)
        if self.isolated == "reference":
            n_species = len(self.backbone.species)  # type: ignore[arg-type]
            predictions = {name: p.without_last(n_species) for name, p in predictions.items()}
        if prepared.order is None:
            return predictions
        return {name: p.of_atoms(torch.argsort(prepared.order)) for name, p in predictions.items()}

    def _evaluate(
        self, prepared: PreparedData, wanted: Mapping[str, str], differentiable: bool, std: bool
    ) -> dict[str, Prediction]:
        """Predictions of all atoms of the prepared system but ghosts."""
        n_edges = prepared.system.topology.edge_index.shape[1]
        if self.compiled and not prepared.requires_grad and not std and n_edges:
            if prepared.system.prepared is None and prepared.ghosts is None:
                complete(self, prepared, differentiable)
            replay = prepared.ghosts is not None
            predictions = self._compiler(self, prepared.system, wanted, differentiable, replay)
        else:
            predictions = evaluate(self, prepared.system, wanted, differentiable, std)
        ghosts = prepared.ghosts
        return predictions if ghosts is None else {name: ghosts.removed_from(p) for name, p in predictions.items()}

    def predict_edges(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor, fidelity: str) -> Prediction:
        self.check_edges_suffice(fidelity)
        with default_torch_settings():
            return self._predict_edges(z, edge_index, edge_vec, fidelity)

    def _predict_edges(self, z: Tensor, edge_index: Tensor, edge_vec: Tensor, fidelity: str) -> Prediction:
        vectors, species = edge_vec.detach().to(self.dtype), self.species_number(z)
        self.warn_untrained(z, (fidelity,))
        near = (vectors.square().sum(dim=1).sqrt() <= self.cutoff).nonzero().squeeze(1)
        place = edge_index[1, near] * len(z) + edge_index[0, near]
        near = near[torch.argsort(place, stable=True)]  # sorted by target, then source
        topology = EdgeTopology(z, edge_index[:, near], torch.zeros_like(z), 1)
        system = System(vectors[near], species, topology, None)
        if self.isolated == "reference":
            system = with_isolated_atoms(system, self.backbone.species)  # type: ignore[arg-type]
        prepared = PreparedData(system, system, None, requires_grad=False, as_given=False)
        prediction = self._evaluate(prepared, {fidelity: "EF"}, False, False)[fidelity].of_edges(near, len(edge_vec))
        if self.isolated == "reference":
            prediction = dataclasses.replace(prediction.without_last(len(self.species)), forces=prediction.forces)
        return prediction

    def species_number(self, z: Tensor) -> Tensor:
        """Index of each atom's element in ``species``, (n_atoms,) int64.

        Raises:
            MFPyGError: for unknown elements, which are listed.
        """
        return species_number(z, self.backbone.species)  # type: ignore[arg-type]
