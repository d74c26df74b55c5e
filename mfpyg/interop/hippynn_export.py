"""Export of potentials to hippynn, as a state dictionary of a graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfpyg.errors import MFPyGError
from mfpyg.files import save_torch
from mfpyg.interop.hippynn_state import (
    EXTRA_STATE,
    GraphState,
    choose_heads,
    has_references,
    is_by_species,
    our_name,
    split_name,
    understand,
)
from mfpyg.models import HIPNN, MultiFidelityPotential, Potential
from mfpyg.models.heads import Head, LinearHead
from mfpyg.torch_defaults import with_default_torch_settings
from mfpyg.units import energy_factor


@with_default_torch_settings
def export_hippynn(
    potential: Potential,
    like: Mapping[str, Any],
    path: str | os.PathLike[str] | None = None,
    *,
    heads: Mapping[str, str] | None = None,
    energy_unit: str = "kcal/mol",
) -> dict[str, Any]:
    """Export a potential as a state dictionary for a graph of hippynn, which then predicts the same.

    Build the graph as for training, with an ``HEnergyNode`` for each fidelity::

        species, positions = inputs.SpeciesNode(db_name="Z"), inputs.PositionsNode(db_name="R")
        network = networks.HipnnQuad("HIPNN", (species, positions), module_kwargs={   # order 2; HipnnVec 1, Hipnn 0
            "possible_species": [0, *potential.species],
            "n_features": options.n_features,
            "n_sensitivities": options.n_sensitivities,
            "n_interaction_layers": options.n_interactions,
            "n_atom_layers": options.n_atom_layers,
            "dist_soft_min": options.r_soft_min,
            "dist_soft_max": options.r_soft_max,
            "dist_hard_max": potential.cutoff,
        })                                                                # options = potential.settings.model
        energies = {name: targets.HEnergyNode(name, network) for name in potential.fidelities}
        force = physics.GradientNode("forces", (energies["cc"], positions), sign=-1)
        model = GraphModule([species, positions], [*(node.mol_energy for node in energies.values()), force])
        heads = {name: model.names_dict[node] for name, node in energies.items()}
        model.load_state_dict(export_hippynn(potential, model.state_dict(), heads=heads))

    Reference energies are rounded to the precision of the graph.

    Args:
        potential: potential with a HIP-NN-TS network and linear heads.
        like: state dictionary of the graph, for its names and precision; weights that the potential does not have, such
            as those of charges, are not changed.
        path: optional file to write, in the format of ``best_model.pt``.
        heads: ``{fidelity: node}`` for all or some nodes of the graph; optional for a single fidelity and node.
        energy_unit: energy unit of the graph, see :mod:`mfpyg.units`.

    Raises:
        MFPyGError: if hippynn does not support the potential, or the graph does not match it.
    """
    state = understand(like, "the graph")
    if heads is None and len(potential.fidelities) > 1:
        known = ", ".join(potential.fidelities)
        raise MFPyGError(f"the potential has fidelities {known}; say which node is which with heads, see the help")
    chosen = choose_heads(state, potential.fidelities if heads is None else heads)
    backbone = _check_exportable(potential)
    assert isinstance(potential, MultiFidelityPotential)
    elements = state.elements or potential.species
    if sorted(elements) != list(potential.species):
        raise MFPyGError(f"the graph has elements {sorted(elements)}, but the potential {list(potential.species)}")
    columns = torch.tensor([potential.species.index(number) for number in elements])
    nodes: dict[str, Mapping[str, Any]] = {}
    nodes.update(dict.fromkeys([state.network, *state.copies], _export_network(backbone, state, columns)))
    for fidelity, node in chosen.items():
        nodes[node] = _export_head(potential.head(fidelity.name), state, node, columns, energy_factor(energy_unit))
    result = dict(like)
    for name, value in like.items():
        node, rest = split_name(name) or ("", "")
        if node in nodes:
            new = nodes[node][rest]
            result[name] = new.reshape(value.shape).to(value) if isinstance(new, Tensor) else new
    if path is not None:
        save_torch(Path(path), result)
    return result


def _check_exportable(potential: Potential) -> HIPNN:
    """Return the network of a potential that hippynn supports.

    Raises:
        MFPyGError: naming what hippynn does not support.
    """
    if not isinstance(potential, MultiFidelityPotential) or not isinstance(potential.backbone, HIPNN):
        kind = type(getattr(potential, "backbone", potential)).__name__
        raise MFPyGError(f"the potential is a {kind}, which hippynn does not support; expected backbone hipnn")
    if not all(isinstance(head, LinearHead) for head in potential.heads):
        raise MFPyGError("the potential has nonlinear heads, which hippynn does not support; expected head.kind linear")
    if potential.private or potential.isolated != "network":
        raise MFPyGError(
            "the potential has private blocks, or energies relative to isolated atoms, which hippynn does not support; "
            "expected head.private_blocks 0 and head.isolated network"
        )
    if potential.repulsion is not None or potential.baselines:
        raise MFPyGError(
            "the potential has a repulsion or a baseline, which hippynn does not support, and its weights are wrong "
            "without it; train a potential without one"
        )
    if potential.further:
        raise MFPyGError(
            f"the potential has charges of {', '.join(potential.further)}, which are not exported to hippynn; "
            "build one without charge heads"
        )
    return potential.backbone


def _export_network(backbone: HIPNN, state: GraphState, columns: Tensor) -> dict[str, Any]:
    """Weights of the backbone by hippynn's names.

    Raises:
        MFPyGError: if the graph's network has other sizes.
    """
    if columns.tolist() != sorted(columns.tolist()) and backbone.feature_sizes[0] == backbone.feature_sizes[1]:
        raise MFPyGError(
            "the graph's elements are not in ascending order, which is required if n_features is their number"
        )
    ours, result = backbone.state_dict(), {}
    for name, theirs in state.weights.items():
        if name.endswith(EXTRA_STATE):
            result[name] = {"cusp_reg": backbone.cusp}
            continue
        value = ours.pop(our_name(name), None)
        if value is None or value.shape not in (theirs.shape, theirs.squeeze(0).shape):
            found = "none" if value is None else tuple(value.shape)
            raise MFPyGError(f"the graph's '{name}' has shape {tuple(theirs.shape)}, but the potential's {found}")
        result[name] = value[..., columns] if is_by_species(name) else value
    stored_cusp = any(name.endswith(EXTRA_STATE) for name in result)
    if ours or (backbone.tensor_order and not stored_cusp):
        missing = next(iter(ours), "the cusp constant, which hippynn stores from 0.0.4")
        raise MFPyGError(
            f"the graph lacks weights of the potential ({missing}); build it with the sizes of the potential"
        )
    return result


def _export_head(head: Head, state: GraphState, node: str, columns: Tensor, unit: float) -> dict[str, Tensor]:
    """Weights of a head by hippynn's names; ``unit`` is the energy unit of the graph in kcal/mol.

    Raises:
        MFPyGError: if the graph's head has other layers.
    """
    result = {"layers.0.weight": head.reference[columns].unsqueeze(0) / unit}
    for number, layer in enumerate(head.levels, start=1):
        result.update({f"layers.{number}.{name}": value.double() / unit for name, value in layer.state_dict().items()})
    found = {name: value.shape for name, value in state.heads[node].items()}
    if not has_references(state, node) or found != {name: value.shape for name, value in result.items()}:
        raise MFPyGError(f"the graph's '{node}' is not an HEnergyNode with default options, which the potential needs")
    return result
